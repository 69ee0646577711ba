"""The model that a GGUF file holds, from its header alone: counts, and the bytes of its tensors. Reads no weights."""

from __future__ import annotations

from typing import BinaryIO

from edge_agent.base.errors import PackageError
from edge_agent.bundle.gguf_header import Array, GgufTable, read_table
from edge_agent.bundle.gguf_memory import GgufHeader

SPECIAL_TOKEN_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def header_of(file: BinaryIO, name: str, size_bytes: int | None = None) -> GgufHeader:
    """The header of an open file (`size_bytes`: where it is none by itself). Raises PackageError for what is damaged or
    no model."""
    return _header(read_table(file, name, size_bytes), name)


def header_at(path: str) -> GgufHeader | None:
    """The header of the file there; None where it cannot be read: whoever loads it says why."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (pathlib costs memory for one line)
            return header_of(file, path)
    except (OSError, PackageError):
        return None


def _header(table: GgufTable, where: str) -> GgufHeader:
    arch = table.text("general.architecture")
    if arch is None:
        raise PackageError("the key general.architecture is missing", where)
    adapter_type = table.text("adapter.type") if table.text("general.type") == "adapter" else None
    if adapter_type is not None:
        return _adapter(table, arch, adapter_type)
    blocks, embedding = _count(table, f"{arch}.block_count", where), _count(table, f"{arch}.embedding_length", where)
    if blocks > len(table.tensors):
        raise PackageError(f"{blocks} blocks cannot be made of {len(table.tensors)} tensors", where, "copy it again")
    heads = _per_block(table, f"{arch}.attention.head_count", blocks, where)
    key = f"{arch}.attention.head_count_kv"
    kv_heads = _per_block(table, key, blocks, where) if key in table.keys else heads
    head_dim = int(table.number(f"{arch}.attention.key_length") or embedding // max(1, *heads))
    tokens = table.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or table.text("tokenizer.ggml.model") is None:
        raise PackageError("it carries no tokenizer (tokenizer.ggml.*)", where, "convert it with its tokenizer")
    feed_forward = f"{arch}.feed_forward_length"
    return GgufHeader(
        arch=arch,
        blocks=blocks,
        heads=max(heads),
        kv_heads=max(kv_heads),
        head_dim=head_dim,
        kv_width=sum(kv_heads) * head_dim,
        embedding=embedding,
        feed_forward=max(_per_block(table, feed_forward, blocks, where)) if feed_forward in table.keys else embedding,
        vocab=tokens.count,
        context_length=_count(table, f"{arch}.context_length", where),
        tensor_bytes=table.tensor_bytes,
        file_type=_whole(table.number("general.file_type")),
        tokenizer=table.text("tokenizer.ggml.model"),
        chat_template=table.text("tokenizer.chat_template"),
        adapter_type=None,
        adapter_alpha=None,
        base_id=table.text("edge.base_id"),
        special_token_ids=_special_token_ids(table, tokens.count),
    )


def _adapter(table: GgufTable, arch: str, adapter_type: str) -> GgufHeader:
    return GgufHeader(
        arch=arch,
        blocks=0,
        heads=0,
        kv_heads=0,
        head_dim=0,
        kv_width=0,
        embedding=0,
        feed_forward=0,
        vocab=0,
        context_length=0,
        tensor_bytes=table.tensor_bytes,
        file_type=_whole(table.number("general.file_type")),
        tokenizer=None,
        chat_template=None,
        adapter_type=adapter_type,
        adapter_alpha=table.number("adapter.lora.alpha"),
        base_id=table.text("edge.base_id"),
    )


def _special_token_ids(table: GgufTable, vocab: int) -> dict[str, int]:
    """Ids by name; llama.cpp ignores an id outside of the vocabulary, and so does this."""
    found = {name: _whole(table.number(key)) for name, key in SPECIAL_TOKEN_KEYS.items()}
    return {name: token for name, token in found.items() if token is not None and 0 <= token < vocab}


def _count(table: GgufTable, key: str, where: str) -> int:
    found = table.number(key)
    if found is None or found < 1:
        raise PackageError(f"the key {key} is missing", where, "convert the model again")
    return int(found)


def _per_block(table: GgufTable, key: str, blocks: int, where: str) -> list[int]:
    """A count that is one number for all layers, or one per layer."""
    found = table.keys.get(key)
    if isinstance(found, Array):
        if found.values is None or found.count != blocks:
            raise PackageError(f"{key} does not have {blocks} entries", where)
        return [int(value) for value in found.values]
    return [_count(table, key, where)] * blocks


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
