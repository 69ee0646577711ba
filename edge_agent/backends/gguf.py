"""What a GGUF model is and what it will need: its header, and the bytes that a worker takes for it.

Shared by the llama.cpp backend (a context that does not fit is refused before anything is loaded) and by the host tool,
which writes the prediction into the package. No runtime is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.backends.api import Footprint
from edge_agent.base.errors import BackendError, PackageError
from edge_agent.base.limits import MIB
from edge_agent.bundle.gguftable import Array, GgufTable, read_table

KV_BYTES: Final = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes per cached value; q8_0 keeps 32 values and one scale in 34 bytes."""
KV_BLOCK = {"f16": 1, "q8_0": 32}
CONTEXT_STEP = 256
"""llama.cpp pads the context of every sequence to this many cells."""
PROCESS_BYTES = 60 * MIB
"""A worker's interpreter, numpy and llama.cpp's libraries before any model (PSS)."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model (or, with `adapter_type`, an adapter) as its file describes it; counts, and bytes for tensors.

    `kv_width` is the sum over the layers of kv heads times head size: what one cell of the cache holds of K, and again
    of V. `file_type` is llama.cpp's number of the predominant format, `context_length` what the model was trained on.
    """

    arch: str
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_width: int
    embedding: int
    feed_forward: int
    vocab: int
    context_length: int
    tensor_bytes: int
    file_type: int | None
    tokenizer: str | None
    chat_template: str | None
    adapter_type: str | None
    adapter_alpha: float | None
    base_id: str | None


def read_header(path: str | Path) -> GgufHeader:
    """The header of a GGUF file. Raises BackendError for a file that is missing, cut, damaged or no model."""
    try:
        with Path(path).open("rb") as file:
            table = read_table(file, str(path))
    except OSError as error:
        raise BackendError(f"cannot load the model: {error.strerror}", str(path)) from error
    except PackageError as error:
        raise BackendError(f"cannot load the model: {error.what}", error.where, error.remedy) from error
    return _header(table, str(path))


def predict(header: GgufHeader, context: int, sequences: int, kv_type: str, batch: int) -> Footprint:
    """Bytes that a worker will hold for `sequences` sequences of `context` tokens each, decoded `batch` at a time.

    weights: all tensors, mapped from the file and touched by every step.
    cache: 2 (K and V) x kv_width x cells x bytes per value, cells = sequences x context padded to 256
    (facts/boards.md E, checked against llama.cpp's own log).
    arena: llama.cpp's largest graph, that of a full prompt batch: what is alive at its widest point, per token of the
    batch in float32 the residual stream twice with the widest of attention (4 x embedding) and feed-forward (2 x), and
    the logits of its `sequences` outputs, kept once in the graph and once for us; plus the process itself.
    """
    cells = sequences * padded(context)
    cache = int(2 * header.kv_width * cells * KV_BYTES[kv_type])
    widest = max(4 * header.embedding, 2 * header.feed_forward)
    graph = 4 * min(batch, cells) * (2 * header.embedding + widest)
    logits = 2 * 4 * sequences * header.vocab
    return Footprint(header.tensor_bytes, 0, cache, graph + logits + PROCESS_BYTES)


def padded(context: int) -> int:
    """The cells that llama.cpp takes for a sequence of this context."""
    return -(-context // CONTEXT_STEP) * CONTEXT_STEP


def _header(table: GgufTable, where: str) -> GgufHeader:
    arch = table.text("general.architecture")
    if arch is None:
        raise BackendError("cannot load the model: the key general.architecture is missing", where)
    adapter_type = table.text("adapter.type") if table.text("general.type") == "adapter" else None
    if adapter_type is not None:
        return _adapter(table, arch, adapter_type)
    blocks, embedding = _count(table, f"{arch}.block_count", where), _count(table, f"{arch}.embedding_length", where)
    if blocks > len(table.tensors):
        what = f"cannot load the model: {blocks} blocks cannot be made of {len(table.tensors)} tensors"
        raise BackendError(what, where, "copy it again")
    heads = _per_block(table, f"{arch}.attention.head_count", blocks, where)
    key = f"{arch}.attention.head_count_kv"
    kv_heads = _per_block(table, key, blocks, where) if key in table.keys else heads
    head_dim = int(table.number(f"{arch}.attention.key_length") or embedding // max(1, *heads))
    tokens = table.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or table.text("tokenizer.ggml.model") is None:
        raise BackendError(
            "cannot load the model: it carries no tokenizer (tokenizer.ggml.*)", where, "convert it with its tokenizer"
        )
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


def _count(table: GgufTable, key: str, where: str) -> int:
    found = table.number(key)
    if found is None or found < 1:
        raise BackendError(f"cannot load the model: the key {key} is missing", where, "convert the model again")
    return int(found)


def _per_block(table: GgufTable, key: str, blocks: int, where: str) -> list[int]:
    """A count that is one number for all layers, or one per layer."""
    found = table.keys.get(key)
    if isinstance(found, Array):
        if found.values is None or found.count != blocks:
            raise BackendError(f"cannot load the model: {key} does not have {blocks} entries", where)
        return [int(value) for value in found.values]
    return [_count(table, key, where)] * blocks


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
