"""The edge to the C library: found, checked against this CPU before anything of it computes, its log caught.

llama.cpp reports most errors as a null pointer and a line in its log. A null pointer is an object that is false, not
None, so every pointer is looked at with `present`; the log's last warnings become the reason of the error.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edge_agent.base.errors import BackendError, BackendMissing

LOG_LINES = 12
LINE_CHARS = 300
# GGML_LOG_LEVEL_WARN and GGML_LOG_LEVEL_ERROR of ggml.h.
_REASONS = frozenset({2, 3})
_NOISE = ("llama_graph_n_input_tensors",)
_BUFFER = re.compile(r"(KV|compute|output|LoRA)\s+buffer size\s*=\s*([0-9.]+) MiB")

# What a build can need, as ggml names it, and the kernel's word for it (x86: flags, ARM: Features in /proc/cpuinfo).
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
    """The last lines in which llama.cpp said what is wrong, and the sizes of the buffers that it allocated."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self.buffer_mib: dict[str, float] = {}

    def take(self, level: int, line: bytes, _context: object) -> None:
        """One line from the library; called by it, so nothing may be raised here."""
        text = line.decode("utf-8", "replace").strip()[:LINE_CHARS]
        found = _BUFFER.search(text)
        if found:
            self.buffer_mib[found[1]] = self.buffer_mib.get(found[1], 0.0) + float(found[2])
        if level in _REASONS and text and not text.startswith(_NOISE):
            self._lines.append(text)

    def begin(self) -> None:
        """Forget what was said so far."""
        self._lines.clear()
        self.buffer_mib.clear()

    def reason(self) -> str:
        """What was said since `begin`, in one line."""
        return "; ".join(dict.fromkeys(self._lines)) or "it gives no reason"


class Library:
    """llama.cpp's functions (`api`, the low-level module of llama-cpp-python) and its log."""

    def __init__(self, api: Any, version: str) -> None:
        self.api = api
        self.version = version
        self.log = Log()
        # The library keeps the pointer: this object must live as long as the process.
        self._callback = api.llama_log_callback(self.log.take)
        api.llama_log_set(self._callback, None)
        api.llama_backend_init()


_opened: list[Library] = []


def open_library() -> Library:
    """The one library of this process. Raises BackendMissing when it is not installed or not for this CPU."""
    if not _opened:
        # An assertion inside it must end the process at once, not start a debugger for a backtrace.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        try:
            module = importlib.import_module("llama_cpp")
            api = importlib.import_module("llama_cpp.llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendMissing(
                f"llama-cpp-python cannot be imported: {error}", "llamacpp", "pip install edge-agent[llamacpp]"
            ) from error
        missing = missing_instructions(_built_for(Path(str(module.__file__)).parent / "lib"), cpu_words())
        if missing:
            raise BackendMissing(
                f"this build of llama.cpp needs {', '.join(missing)}, which this CPU does not have",
                "llamacpp",
                "build it on this board: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary :all: llama-cpp-python",
            )
        _opened.append(Library(api, str(module.__version__)))
    return _opened[0]


def present(pointer: Any) -> bool:
    """Whether a pointer from the library points somewhere."""
    return bool(pointer)


def missing_instructions(built_for: Iterable[str], has: frozenset[str]) -> list[str]:
    """The instruction sets that a build uses and this CPU lacks; empty where the kernel names none (not Linux)."""
    return [name for name in built_for if INSTRUCTIONS[name] not in has] if has else []


def cpu_words(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this CPU can do, in the kernel's words."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(lines[0].split()) if lines else frozenset()


def _built_for(folder: Path) -> list[str]:
    """Instruction sets that the CPU part was compiled with; its `ggml_cpu_has_*` return constants of the build."""
    path = folder / "libggml-cpu.so"
    try:
        part = ctypes.CDLL(str(path))
    except OSError:
        # Linked in one piece or built with one part per CPU: the latter chooses for itself.
        return []
    found = []
    for name in INSTRUCTIONS:
        ask: Callable[[], int] | None = getattr(part, f"ggml_cpu_has_{name}", None)
        if ask is not None and ask():
            found.append(name)
    return found


def never(what: str, where: str, log: Log) -> BackendError:
    """The error for something that llama.cpp would not do, with what it said about it."""
    return BackendError(f"{what}: {log.reason()}", where)
