"""What a GGUF model is and what it will need, in the backends' terms; `bundle.gguf_memory` has the arithmetic.

A file of its own because the llama.cpp backend and the host tool, which writes the prediction into the package, share
it. No runtime is imported.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.backends.api import Footprint
from edge_agent.base.errors import BackendError, PackageError
from edge_agent.bundle import gguf_header
from edge_agent.bundle.gguf_memory import (
    CONTEXT_STEP,
    KV_BLOCK,
    KV_BYTES,
    PROCESS_BYTES,
    Demand,
    GgufHeader,
    need,
    padded,
)

__all__ = ["CONTEXT_STEP", "KV_BLOCK", "KV_BYTES", "PROCESS_BYTES", "GgufHeader", "padded", "predict", "read_header"]


def read_header(path: str | Path) -> GgufHeader:
    """The header of a GGUF file. Raises BackendError for a file that is missing, cut, damaged or no model."""
    try:
        return gguf_header.read_header(path)
    except PackageError as error:
        raise BackendError(f"cannot load the model: {error.what}", error.where, error.remedy) from error


def predict(header: GgufHeader, context: int, sequences: int, kv_type: str, batch: int) -> Footprint:
    """Bytes that a worker will hold for `sequences` sequences of `context` tokens each, decoded `batch` at a time."""
    found = need(header, Demand(context, sequences, kv_type, batch))
    return Footprint(found.weights_bytes, 0, found.cache_bytes, found.arena_bytes)
