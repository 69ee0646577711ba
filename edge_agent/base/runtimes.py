"""The runtimes that packages may name, and what the rest of the agent has to know of each: one row per runtime.

Rooms that must not import a backend (`agent`, `store`, `bundle`) decide by these facts. What a runtime can do on the
machine at hand is a different question, which its backend answers (`backends.api.Capabilities`). `OPENMP_ENVIRONMENT`
says to every process that computes how its OpenMP threads wait for each other.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

RUNTIME_CRASH_REMEDY = (
    "its library is damaged or not made for this processor: install it again, or take it out of worker.backends"
)
"""What to do about a runtime that is installed and ends the process that imports it."""


@dataclass(frozen=True, slots=True)
class RuntimeTraits:
    """What holds for a runtime wherever it runs.

    `weight_suffixes` are the endings of its weight files in a package. `speed_rank` orders runtimes before anything was
    measured, 0 first.
    `bandwidth_bound`: its steps wait for memory and not for arithmetic, so that a lower clock costs it little speed.
    `slow_float16`: its CPU kernels convert float16 to float32 for every product. `context_sized`: a generator's context
    and number of sequences are chosen at the load, and its file's header says what they take (`bundle.gguf_memory`).
    `compiles`: its first load on a device compiles the model, for minutes.
    `package_options`: the options that a package may set; None: its options are not known here. Every other option of
    a load is one of DEVICE_OPTIONS.
    """

    weight_suffixes: tuple[str, ...] = ()
    speed_rank: int = 3
    bandwidth_bound: bool = False
    slow_float16: bool = False
    context_sized: bool = False
    compiles: bool = False
    package_options: frozenset[str] | None = None


RUNTIMES: Mapping[str, RuntimeTraits] = {
    "onnx": RuntimeTraits(
        weight_suffixes=(".onnx",),
        speed_rank=1,
        # Half the file, at up to four times the time of float32 (onnxruntime#25824 on a Pi 5; about twice on x86-64).
        slow_float16=True,
        package_options=frozenset({"base_id", "positions"}),
    ),
    "llamacpp": RuntimeTraits(
        weight_suffixes=(".gguf",),
        speed_rank=1,
        bandwidth_bound=True,
        context_sized=True,
        package_options=frozenset(
            {"base_id", "context", "sequences", "kv_type", "batch", "prompt_chunk", "turn_steps", "repack"}
        ),
    ),
    # Engines of a GPU come before the kernels of a CPU. They are built on the device from a graph in the package.
    "tensorrt": RuntimeTraits(
        weight_suffixes=(".onnx",),
        speed_rank=0,
        compiles=True,
        package_options=frozenset({"base_id", "positions", "precision"}),
    ),
    # No adapters: merged models and embeddings. Its INT8 kernels are the fastest here (docs/decisions/0213).
    "litert": RuntimeTraits(weight_suffixes=(".tflite",), speed_rank=1, package_options=frozenset({"base_id"})),
    # Answers without a model, for tests and installations that are tried out.
    "echo": RuntimeTraits(
        speed_rank=2,
        package_options=frozenset({"base_id", "labels", "delay_s", "hold_mib", "fail_token", "die_token"}),
    ),
}
WEIGHT_SUFFIXES = (
    *dict.fromkeys(suffix for one in RUNTIMES.values() for suffix in one.weight_suffixes),
    ".safetensors",
)
"""The endings that a weight file in a package may have; adapters of every runtime may be safetensors."""
_PLUG_IN = RuntimeTraits()


def traits(runtime: str) -> RuntimeTraits:
    """The row of a runtime; for a plug-in's, which has none, the least that can be said."""
    return RUNTIMES.get(runtime, _PLUG_IN)


# OpenMP threads that only spin burn power, and are suspended for milliseconds whenever another process needs their
# core. Threads that sleep at once pay a wake-up after each of several hundred operations per token. So they spin for a
# short time and then sleep (docs/decisions/0094 and 0135).
#
# Iterations of GNU OpenMP's waiting loop, about two microseconds in all. On x86-64 each contains a pause instruction,
# so that fewer are needed.
_SPINS = {"x86_64": 100}.get(platform.machine(), 1000)
OPENMP_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(_SPINS)}
"""Environment of a process that computes with OpenMP, set before its library is loaded. GOMP_SPINCOUNT takes precedence
over OMP_WAIT_POLICY in GNU OpenMP; other implementations only know the latter."""

TENSORRT_PYTHON_VARIABLE = "EDGE_TENSORRT_PYTHON"
"""Tells a worker which interpreter has tensorrt and pycuda; unset: the worker's own."""
ENGINE_FOLDER_VARIABLE = "EDGE_ENGINE_FOLDER"
"""Tells a worker where TensorRT's engines are kept; unset: in a temporary folder, so that every load builds one."""
ENGINE_ROLE = "engine:"
"""Role of an engine among the files of a load, before its key: one that came with the package."""
LITERT_DELEGATE_VARIABLE = "EDGE_LITERT_DELEGATE"
"""Tells a worker which library of an accelerator LiteRT is to use; unset: none."""
GPU_LAYERS_VARIABLE = "EDGE_GPU_LAYERS"
"""Tells a worker how many layers of a generator the GPU is to compute; unset: as many as the memory holds."""

DEVICE_OPTIONS = frozenset(
    {"max_rows", "max_tokens", "threads", "decode_threads", "memory_bytes", "shrink", "spinning", "build", "room_bytes"}
)
"""Options of a load that the device decides, by its settings and its memory. A package that sets one is refused."""
