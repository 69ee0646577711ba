"""GGUF files by hand: just enough bytes for the readers of `bundle` and `backends.gguf`, no library needed."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
ALIGNMENT = 32


def text(value: str) -> bytes:
    """A GGUF string."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: object) -> bytes:
    """A typed value: str, int, float, or a list of those."""
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, int):
        return struct.pack("<II", UINT32, item)
    assert isinstance(item, list)
    packed = [value(one) for one in item]
    kind = packed[0][:4] if packed else struct.pack("<I", UINT32)
    return struct.pack("<I", ARRAY) + kind + struct.pack("<Q", len(packed)) + b"".join(one[4:] for one in packed)


def gguf_bytes(keys: Mapping[str, object], tensors: Mapping[str, tuple[Sequence[int], int, int]]) -> bytes:
    """A file of `keys` and `tensors`: name -> (shape, ggml type number, bytes). All weights are zero."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(name) + value(item) for name, item in keys.items())
    offset = 0
    for name, (shape, kind, size) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", extent) for extent in shape)
        head += struct.pack("<IQ", kind, offset)
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return head + bytes(-len(head) % ALIGNMENT) + bytes(offset)


LLAMA: Mapping[str, object] = {
    "general.architecture": "llama",
    "general.file_type": 1,
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}
WEIGHTS = {"token_embd.weight": ((64, 3), 1, 384), "output_norm.weight": ((64,), 0, 256)}


def adapter_bytes(rank: int = 4, base_id: str | None = None, kind: int = 0, arch: str = "llama") -> bytes:
    """A LoRA adapter file with one pair of tensors, float32 (or float16 with kind 1)."""
    keys: dict[str, object] = {"general.architecture": arch, "general.type": "adapter", "adapter.type": "lora"}
    keys["adapter.lora.alpha"] = 8.0
    if base_id is not None:
        keys["edge.base_id"] = base_id
    size = 64 * rank * (2 if kind else 4)
    stem = "blk.0.attn_q.weight"
    return gguf_bytes(keys, {f"{stem}.lora_a": ((64, rank), kind, size), f"{stem}.lora_b": ((rank, 64), kind, size)})
