"""The C library of llama.cpp: found, checked against this CPU before any of its code runs, its log captured.

llama.cpp reports most errors as a null pointer and a line in its log. A null pointer is an object that is false, not
None, so every pointer is tested with `present`; the last warnings in the log become the reason of the error.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edge_agent.backends.cpu_words import cpu_words
from edge_agent.base.errors import BackendError, BackendMissing, MemoryRefused

CPU_PART, CPU_PARTS = "libggml-cpu.so", "libggml-cpu-*.so"
LOG_LINES = 12
LINE_CHARS = 300
# GGML_LOG_LEVEL_WARN and GGML_LOG_LEVEL_ERROR of ggml.h (2 is INFO).
_REASONS = frozenset({3, 4})
_NOISE = ("llama_graph_n_input_tensors",)
_NO_MEMORY = re.compile(
    r"fail\w* to (?:m|c|re)?alloc|bad_alloc|insufficient memory|out of memory|ENOMEM", re.IGNORECASE
)
_BUFFER = re.compile(r"(KV|compute|output|LoRA)\s+buffer size\s*=\s*([0-9.]+) MiB")
# 'CUDA0 model buffer size', 'CUDA0 KV buffer size'; not CPU, CPU_Mapped, CUDA_Host, which is the processor's memory.
_GPU_BUFFER = re.compile(r"\b[A-Z][A-Za-z]*[0-9]+\s+(?:model|KV|compute|output|RS)\s+buffer size\s*=\s*([0-9.]+) MiB")

# Instruction sets that a build can need: ggml's name and the kernel's (x86: flags, ARM: Features in /proc/cpuinfo).
INSTRUCTIONS: Final[Mapping[str, str]] = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "avx": "avx",
    "avx_vnni": "avx_vnni",
    "avx2": "avx2",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "avx512": "avx512f",
    "avx512_vbmi": "avx512vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "neon": "asimd",
    "fp16_va": "asimdhp",
    "dotprod": "asimddp",
    "matmul_int8": "i8mm",
    "sve": "sve",
    "sme": "sme",
}


class Log:
    """The last warnings and errors of llama.cpp, and the sizes of the buffers that it allocated."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self.buffer_mib: dict[str, float] = {}
        self.gpu_mib = 0.0

    def take(self, level: int, line: bytes, _context: object) -> None:
        """One line from the library; called by it, so nothing may be raised here."""
        text = line.decode("utf-8", "replace").strip()[:LINE_CHARS]
        found = _BUFFER.search(text)
        if found:
            self.buffer_mib[found[1]] = self.buffer_mib.get(found[1], 0.0) + float(found[2])
        found = _GPU_BUFFER.search(text)
        if found:
            self.gpu_mib += float(found[1])
        if level in _REASONS and text and not text.startswith(_NOISE):
            self._lines.append(text)

    def begin(self) -> None:
        """Drop the lines so far."""
        self._lines.clear()
        self.buffer_mib.clear()
        self.gpu_mib = 0.0

    def reason(self) -> str:
        """The lines since `begin`, joined to one."""
        return "; ".join(dict.fromkeys(self._lines)) or "it gives no reason"


class LlamaLibrary:
    """llama.cpp's functions (`api`, the low-level module of llama-cpp-python) and its log.

    `unchecked` says why it is not known whether this CPU has the instructions of this build; '' where it is known.
    """

    def __init__(self, api: Any, version: str, unchecked: str) -> None:
        self.api = api
        self.version = version
        self.unchecked = unchecked
        self.log = Log()
        # The library keeps the pointer: this object must live as long as the process.
        self._callback = api.llama_log_callback(self.log.take)
        api.llama_log_set(self._callback, None)
        api.llama_backend_init()

    @property
    def has_gpu(self) -> bool:
        """Whether this build computes on a GPU, and there is one."""
        return bool(self.api.llama_supports_gpu_offload())


_opened: list[LlamaLibrary] = []


def open_library() -> LlamaLibrary:
    """The one library of this process. Raises BackendMissing when it is not installed or not for this CPU."""
    if not _opened:
        # An assertion inside it must end the process at once, not start a debugger for a backtrace.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        try:
            unchecked = _demand_instructions(library_folder(), cpu_words())
            module = importlib.import_module("llama_cpp")
            api = importlib.import_module("llama_cpp.llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendMissing(
                f"llama-cpp-python cannot be imported: {error}",
                "llamacpp",
                "install edge-agent with its extra llamacpp",
            ) from error
        _opened.append(LlamaLibrary(api, str(module.__version__), unchecked))
    return _opened[0]


def library_folder() -> Path:
    """The folder of llama-cpp-python's libraries, found without importing it. Raises ImportError."""
    other = os.environ.get("LLAMA_CPP_LIB_PATH")
    if other is not None:
        return Path(other)
    found = importlib.util.find_spec("llama_cpp")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'llama_cpp'")
    return Path(found.submodule_search_locations[0]) / "lib"


def _demand_instructions(folder: Path, has: frozenset[str]) -> str:
    """Refuse a build that this CPU cannot run, before more of it is loaded than the CPU library.

    Returns why that could not be checked, '' where it was. Opening the CPU library alone runs no code of it: it has no
    initialisers. The libraries that are loaded after it have some.
    """
    if not has:
        return "the kernel does not say which instructions this CPU has"
    if not (folder / CPU_PART).exists() and any(folder.glob(CPU_PARTS)):
        return ""  # a build with one library per CPU type: llama.cpp itself chooses the one that fits
    try:
        built_for = _built_for(folder)
    except OSError as error:
        return f"its CPU part cannot be asked which instructions it needs: {error}"
    missing = missing_instructions(built_for, has)
    if missing:
        raise BackendMissing(
            f"this build of llama.cpp needs {', '.join(missing)}, which this CPU does not have",
            "llamacpp",
            "build it on this board: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary :all: llama-cpp-python",
        )
    return ""


def present(pointer: Any) -> bool:
    """Whether a pointer from the library points somewhere."""
    return bool(pointer)


def missing_instructions(built_for: Iterable[str], has: frozenset[str]) -> list[str]:
    """The instruction sets that a build uses and this CPU lacks; empty where the kernel names none (not Linux)."""
    return [name for name in built_for if INSTRUCTIONS[name] not in has] if has else []


def _built_for(folder: Path) -> list[str]:
    """Instruction sets that the CPU part was compiled with; its `ggml_cpu_has_*` return constants of the build.

    Raises OSError where there is no such part, or one without those functions.
    """
    part = ctypes.CDLL(str(folder / CPU_PART))
    asked: dict[str, Callable[[], int] | None] = {
        name: getattr(part, f"ggml_cpu_has_{name}", None) for name in INSTRUCTIONS
    }
    if not any(asked.values()):
        raise OSError(f"{CPU_PART} has no ggml_cpu_has_*")
    return [name for name, ask in asked.items() if ask is not None and ask()]


def never(what: str, where: str, log: Log) -> BackendError:
    """The error for a call that llama.cpp refused, with the reason from its log; for a failed allocation, which has no
    code of its own, the log's words are the sign."""
    if _NO_MEMORY.search(log.reason()):
        return MemoryRefused("llama.cpp got less memory than it asked for")
    return BackendError(f"{what}: {log.reason()}", where)
