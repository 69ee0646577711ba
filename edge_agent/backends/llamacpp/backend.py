"""llama.cpp as a backend: its capabilities here, its options, and the memory of a session before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

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
from edge_agent.base.runtimes import GPU_LAYERS_VARIABLE
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
    gpu_layers,
    gpu_need,
    need,
)

NAME = "llamacpp"
LoadedT = TypeVar("LoadedT")
_DIGITS = 4
_WHY_CHARS = 200
# max_tokens, context: tokens of one sequence (context 0: as the package's task says). sequences: how many are decoded
# together. kv_type: format of the cache. batch: the most tokens of one call; prompt_chunk: of prompts while others
# decode; turn_steps: calls until another adapter's sequences are computed. decode_threads: at most so many while no
# prompt is read (0: as many as granted). repack: a second copy of the weights in the CPU's own order. memory_bytes:
# what may be used (0: unknown), shrink: make the context smaller rather than refuse; max_rows is not needed.
# room_bytes: what the device has for this load, the model included (0: unknown), of which a GPU may take a part.
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
    "room_bytes": 0,
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
            devices=("gpu", "cpu") if library.has_gpu else ("cpu",),
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

        library = open_library()
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

        def load(layers: int, computed_by: str) -> LlamaSession:
            model = LlamaModel(library, path, checked["repack"], gpu_layers=layers)
            try:
                return LlamaSession(model, header, replace(settings, computed_by=computed_by))
            except BackendError:
                model.close()
                raise

        demand = Demand(context, sequences, checked["kv_type"], checked["batch"])
        wanted, why = wanted_layers(header, demand, checked["room_bytes"], asked_layers(), library.has_gpu)
        return on_gpu_or_not(load, wanted, gpu_layers(header), why)


def asked_layers() -> int | None:
    """What the operator set; None: to be decided by the memory. Raises BackendError for what is no number."""
    text = os.environ.get(GPU_LAYERS_VARIABLE)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS:
        raise BackendError(f"{GPU_LAYERS_VARIABLE} is {text[:20]!r}, a number of layers is needed", NAME)
    return int(text)


def wanted_layers(
    header: GgufHeader, demand: Demand, room_bytes: int, asked: int | None, has_gpu: bool
) -> tuple[int, str]:
    """How many layers the GPU is to compute, and, where none of those that could be, why not ('' where that was asked).

    `room_bytes`: what the device has for the model and all it brings (0: not known).
    """
    most = gpu_layers(header)
    if not has_gpu:
        return 0, "this build of llama.cpp has no GPU" if asked else ""
    if asked is not None:
        return min(asked, most), "" if asked else "models.gpu_layers = 0"
    short_bytes = sum(need(header, demand)) + gpu_need(header, demand) - room_bytes
    if room_bytes and short_bytes > 0:
        takes = bytes_text(gpu_need(header, demand))
        return 0, f"the GPU takes {takes} beside the model, {bytes_text(short_bytes)} of it are missing"
    return most, ""


def on_gpu_or_not(load: Callable[[int, str], LoadedT], wanted: int, most: int, why: str) -> LoadedT:
    """`load(layers, computed_by)` with the layers wanted, then half of them, then none; what is refused each time is
    in the words for people. Memory of a GPU is fragmented in ways that no figure tells. Raises what the last try
    raised."""
    for layers in dict.fromkeys((wanted, wanted // 2, 0)):
        computed_by = f"GPU: {layers} of {most} layers" if layers else ("CPU" if why else "")
        try:
            return load(layers, f"{computed_by}; {why}" if why else computed_by)
        except BackendError as error:
            if not layers:
                raise
            why = f"{layers} layers were refused: {error.what}"[:_WHY_CHARS]
    raise AssertionError("the last try has no layers")


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
