"""The runtimes' own readers of weight files, in a process of their own: they may end it (an assertion of ggml does).

`python -m tests.fuzz.runtimes gguf|onnx` answers each frame on its input, a length (big endian, four bytes) and as many
bytes, with a line of JSON: null for a file that the runtime refuses, else what it read. `Reader` is the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

DIED = "the runtime's process ended"


class Reader:
    """Asks the process, which is started at the first question and again after it died."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, data: bytes) -> Any:
        """What the runtime read, None where it refuses, DIED where it ended its process."""
        process = self._process or subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.runtimes", self._kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(struct.pack(">I", len(data)) + data)
            process.stdin.flush()
            line = process.stdout.readline()
        if line:
            return json.loads(line)
        self.close()
        return DIED

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class _Params(ctypes.Structure):
    """`struct gguf_init_params` of ggml's gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@functools.cache
def _ggml() -> ctypes.CDLL:
    """ggml as llama-cpp-python brings it, without its log."""
    import llama_cpp

    name = "libggml-base.dylib" if sys.platform == "darwin" else "libggml-base.so"
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / name))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = (ctypes.c_char_p, _Params)
    library.gguf_get_tensor_name.restype = ctypes.c_char_p
    library.gguf_get_tensor_size.restype = ctypes.c_size_t
    for function in ("gguf_get_n_tensors", "gguf_get_n_kv"):
        getattr(library, function).restype = ctypes.c_int64
        getattr(library, function).argtypes = (ctypes.c_void_p,)
    for function in ("gguf_get_tensor_name", "gguf_get_tensor_size", "gguf_get_tensor_offset"):
        getattr(library, function).argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.gguf_free.argtypes = (ctypes.c_void_p,)
    return library


def _gguf(data: bytes) -> object:
    """Number of keys, and the bytes of each tensor by name."""
    library = _ggml()
    with open(os.memfd_create("gguf"), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.flush()
        found = library.gguf_init_from_file(f"/proc/self/fd/{file.fileno()}".encode(), _Params(True, None))
    if not found:
        return None
    sizes = [
        (
            library.gguf_get_tensor_name(found, place).decode("utf-8", "replace"),
            library.gguf_get_tensor_size(found, place),
        )
        for place in range(library.gguf_get_n_tensors(found))
    ]
    keys = library.gguf_get_n_kv(found)
    library.gguf_free(found)
    return {"keys": keys, "tensors": dict(sizes)}


def _onnx(data: bytes) -> object:
    """Names of inputs and outputs, and the metadata; `unreadable` where Python cannot be told them."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with contextlib.redirect_stdout(sys.stderr):
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its errors share no other class
        return None
    try:
        return {
            "inputs": [one.name for one in session.get_inputs()],
            "outputs": [one.name for one in session.get_outputs()],
            "metadata": session.get_modelmeta().custom_metadata_map,
        }
    except UnicodeDecodeError as error:
        return {"unreadable": str(error)}


def _serve(read: Callable[[bytes], object]) -> None:
    while len(head := sys.stdin.buffer.read(4)) == 4:
        found = read(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _serve(cast("Callable[[bytes], object]", {"gguf": _gguf, "onnx": _onnx}[sys.argv[1]]))
