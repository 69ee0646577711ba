"""The runtimes that packages may name, and what the rest of the agent has to know of each: one row per runtime.

Rooms that must not import a backend (`agent`, `store`, `bundle`) decide by these facts. What a runtime can do on the
machine at hand is a different question, which its backend answers (`backends.api.Capabilities`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuntimeTraits:
    """What holds for a runtime wherever it runs.

    `backend` is the place of its class, 'module:class'; '' for one whose backend is a plug-in. `weight_suffixes` are
    the endings of its weight files in a package. `speed_rank` orders runtimes before anything was measured, 0 first.
    `bandwidth_bound`: its steps wait for memory and not for arithmetic, so that a lower clock costs it little speed.
    `slow_float16`: its CPU kernels convert float16 to float32 for every product. `context_sized`: a generator's context
    and number of sequences are chosen at the load, and its file's header says what they take (`bundle.gguf_memory`).
    """

    backend: str = ""
    weight_suffixes: tuple[str, ...] = ()
    speed_rank: int = 3
    bandwidth_bound: bool = False
    slow_float16: bool = False
    context_sized: bool = False


RUNTIMES: Mapping[str, RuntimeTraits] = {
    "onnx": RuntimeTraits(
        backend="edge_agent.backends.onnx:OnnxBackend",
        weight_suffixes=(".onnx",),
        speed_rank=1,
        # Half the file, at up to four times the time of float32 (onnxruntime#25824 on a Pi 5; about twice on x86-64).
        slow_float16=True,
    ),
    "llamacpp": RuntimeTraits(
        backend="edge_agent.backends.llamacpp.backend:LlamaBackend",
        weight_suffixes=(".gguf",),
        speed_rank=1,
        bandwidth_bound=True,
        context_sized=True,
    ),
    # Engines of a GPU come before the kernels of a CPU.
    "tensorrt": RuntimeTraits(weight_suffixes=(".engine", ".plan"), speed_rank=0),
    # Answers without a model, for tests and installations that are tried out.
    "echo": RuntimeTraits(backend="edge_agent.backends.echo:EchoBackend", speed_rank=2),
}
WEIGHT_SUFFIXES = (*(suffix for one in RUNTIMES.values() for suffix in one.weight_suffixes), ".safetensors")
"""The endings that a weight file in a package may have; adapters of every runtime may be safetensors."""
_PLUG_IN = RuntimeTraits()


def traits(runtime: str) -> RuntimeTraits:
    """The row of a runtime; for a plug-in's, which has none, the least that can be said."""
    return RUNTIMES.get(runtime, _PLUG_IN)
