"""llama.cpp as a backend: its capabilities here, its options, and the memory of a session before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edge_agent.backends.api import (
    Backend,
    Capabilities,
    Session,
    Unavailable,
    check_ranges,
    checked_options,
    model_file,
)
from edge_agent.backends.gguf import KV_BLOCK, KV_BYTES, GgufHeader, padded, read_header
from edge_agent.base.errors import BackendError, BackendMissing, MemoryRefused
from edge_agent.base.limits import CONTEXT_TOKENS
from edge_agent.base.units import bytes_text
from edge_agent.bundle.gguf_memory import (
    BATCH,
    KV_TYPE,
    SEQUENCES,
    SIZE_OPTIONS,
    Demand,
    advice,
    arithmetic,
    fitted,
    need,
)

NAME = "llamacpp"
# max_tokens, context: tokens of one sequence (context 0: as the package's task says). sequences: how many are decoded
# together. kv_type: format of the cache. batch: the most tokens of one call; prompt_chunk: of prompts while others
# decode; turn_steps: calls until another adapter's sequences are computed. decode_threads: at most so many while no
# prompt is read (0: as many as granted). repack: a second copy of the weights in the CPU's own order. memory_bytes:
# what may be used (0: unknown), shrink: make the context smaller rather than refuse; max_rows is not needed.
DEFAULTS: Final[Mapping[str, Any]] = {
    "max_rows": 16,
    "max_tokens": 2048,
    "base_id": "",
    "threads": 0,
    "context": 0,
    "sequences": SEQUENCES,
    "kv_type": KV_TYPE,
    "batch": BATCH,
    "prompt_chunk": 64,
    "turn_steps": 4,
    "decode_threads": 0,
    "repack": False,
    "memory_bytes": 0,
    "shrink": False,
}
_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "max_rows": (1, 1024),
    "max_tokens": (1, CONTEXT_TOKENS),
    **SIZE_OPTIONS,
    "prompt_chunk": (1, 4096),
    "turn_steps": (1, 1024),
    "threads": (0, 256),
    "decode_threads": (0, 256),
}


class LlamaBackend(Backend):
    """llama.cpp on the CPU (or whatever devices its build has)."""

    def probe(self) -> Capabilities | Unavailable:
        """See `Backend.probe`."""
        from edge_agent.backends.llamacpp.library import open_library

        try:
            library = open_library()
        except BackendMissing as error:
            return Unavailable(error.what, error.remedy or "")
        return Capabilities(
            runtime="llama.cpp",
            version=library.version,
            devices=("cpu",),
            dtypes=("f16", "q8_0", "q4_k_m", "q4_0"),
            adapters=True,
            mixed_adapters=False,
            streams=True,
            unchecked=library.unchecked,
        )

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """See `Backend.load`; `files` needs the role 'model', a GGUF file."""
        checked = checked_options(options, DEFAULTS, NAME)
        check_ranges(checked, _RANGES, NAME)
        path = model_file(files, NAME)
        header = read_header(path)
        if header.adapter_type is not None:
            raise BackendError("cannot load the model: the file is an adapter", path)
        context, sequences = fitting(header, checked, path)

        from edge_agent.backends.llamacpp.library import open_library
        from edge_agent.backends.llamacpp.model import LlamaModel
        from edge_agent.backends.llamacpp.session import LlamaSession, SessionSettings

        model = LlamaModel(open_library(), path, checked["repack"])
        cells = sequences * padded(context)
        settings = SessionSettings(
            base_id=checked["base_id"],
            context=context,
            sequences=sequences,
            batch=min(checked["batch"], cells),
            prompt_chunk=checked["prompt_chunk"],
            turn_steps=checked["turn_steps"],
            decode_threads=checked["decode_threads"],
            kv_type=checked["kv_type"],
            cells=cells,
        )
        try:
            return LlamaSession(model, header, settings)
        except BackendError:
            model.close()
            raise


def fitting(header: GgufHeader, options: Mapping[str, Any], where: str) -> tuple[int, int]:
    """(context of a sequence, sequences) that fit the memory allowed. Raises BackendError with the arithmetic.

    With `shrink` the context is halved, then sequences are given up, until it fits; without it nothing is made smaller.
    """
    kv_type, sequences = options["kv_type"], options["sequences"]
    if kv_type not in KV_BYTES:
        raise BackendError(f"option 'kv_type' is {kv_type!r}; there are: {', '.join(KV_BYTES)}", NAME)
    if header.head_dim % KV_BLOCK[kv_type]:
        raise BackendError(
            f"a cache of {kv_type} needs heads of a multiple of {KV_BLOCK[kv_type]} values, these have "
            f"{header.head_dim}",
            where,
            "use kv_type f16",
        )
    context = options["context"] or options["max_tokens"]
    if context > header.context_length:
        raise BackendError(
            f"a context of {context} tokens is asked for, the model was trained for {header.context_length}", where
        )
    demand, allowed = Demand(context, sequences, kv_type, options["batch"]), options["memory_bytes"]
    if not allowed or sum(need(header, demand)) <= allowed:
        return context, sequences
    smaller = fitted(header, demand, allowed) if options["shrink"] else None
    if smaller is None:
        text = f"it does not fit into {bytes_text(allowed)}: {arithmetic(header, demand)}"
        raise MemoryRefused(text, where, advice(header, demand, allowed))
    return smaller.context, smaller.sequences
