"""The worker's end of `engine_host`: starts it with the board's interpreter and speaks its protocol.

    host = EngineHost(python)                    a process; nothing of CUDA is in ours
    host.probe()                                 what is there
    host.build(onnx=..., plan=..., ...)          an engine file; in a host of its own, which `kill` ends at any time
    host.load(plan, bank, positions, residents)  the engine, its tensors, shared memory for all of them
    host.put(resident, arrays)                   an adapter into the shared memory, where it stays
    host.write(position, resident)               a resident adapter into one bank position
    host.run(inputs, rows, start)                outputs; row i used position start + i

Every failure is a BackendError with a remedy where there is one. After a failure that leaves the device in doubt, after
a timeout or a death, the host is gone (`alive` is False) and a new one must be started. Used by one thread, except
`kill`.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.base.child_python import module_command
from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.units import bytes_text

# Run as a package of its own, so that its modules find each other and nothing else of this distribution.
PROGRAM = Path(__file__).with_name("engine_host")
Array = npt.NDArray[Any]
Progress = Callable[[Mapping[str, Any]], None]

_HEADER = struct.Struct(">I")
_FRAME_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_ALIGNMENT = 4096
# Of the host's last words on stderr, for a death without an answer.
_STDERR_BYTES = 2000
_HELD = re.compile(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", re.MULTILINE)
START_S = 60.0
BUILD_S = 3600.0
MEMORY_LOOK_S = 0.1
LOAD_S = 300.0
RUN_S = 30.0
CLOSE_S = 20.0


@dataclass(frozen=True)
class EngineTensor:
    """An input, output or bank input: numpy type, shape with -1 for free axes, the largest shape it can have."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def region_bytes(self) -> int:
        """Bytes in the shared memory: the largest shape, or one position of a bank input."""
        lengths = self.shape[1:] if self.role == "bank" else self.largest
        return math.prod(lengths) * np.dtype(self.dtype).itemsize


class EngineHost:
    """One host process. `python` is the interpreter that has tensorrt and pycuda; `device` the CUDA device's number."""

    def __init__(self, python: str, device: int = 0, env: Mapping[str, str] | None = None) -> None:
        self._python = python
        self._next_id = 0
        self._killed = False
        self._last_words = ""
        self.blames_engine = False
        """True after a load that failed by the engine file: it is of another device, damaged, or ended the process."""
        self.pinned = False
        """True when the device copies from and to the shared memory without a detour."""
        self._tensors: dict[str, EngineTensor] = {}
        self._regions: dict[str, npt.NDArray[np.uint8]] = {}
        self._adapters: list[dict[str, npt.NDArray[np.uint8]]] = []
        self._timeout_s = 0.0
        self._unread = bytearray()
        self._over_bytes = self._most_bytes = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock = ours
        command = module_command(str(PROGRAM), str(theirs.fileno()), str(device), python=python)
        command[1:1] = ["-u", "-B"]
        try:
            self._process = subprocess.Popen(
                command, env=dict(env) if env is not None else None, stdin=subprocess.DEVNULL,
                stdout=self._stderr, stderr=self._stderr, pass_fds=[theirs.fileno()], close_fds=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self._stderr.close()
            raise BackendMissing(
                f"the interpreter {python} cannot be started: {error.strerror}", "tensorrt",
                "name the interpreter that has tensorrt and pycuda",
            ) from error  # fmt: skip
        finally:
            theirs.close()

    @property
    def alive(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The host's process id."""
        return self._process.pid

    @property
    def tensors(self) -> Mapping[str, EngineTensor]:
        """The loaded engine's tensors by name."""
        return self._tensors

    def probe(self) -> Mapping[str, Any]:
        """Versions, device, memory: see `device_access.probe`. Raises BackendMissing with what to install."""
        try:
            return self._call({"op": "probe"}, START_S)
        except BackendError as error:
            raise BackendMissing(error.what, error.where, error.remedy) from error

    def build(self, progress: Progress | None = None, most_bytes: int = 0, **request: Any) -> Mapping[str, Any]:
        """Build an engine file; fields as in `build_engine.build`. `progress` is called with every event. The process
        is ended where it holds more than `most_bytes` (0: not looked at)."""
        with contextlib.ExitStack() as watching:
            if most_bytes:
                over = threading.Event()
                watching.callback(over.set)
                threading.Thread(target=self._watch_memory, args=(most_bytes, over), daemon=True).start()
            return self._call({"op": "build", **request}, BUILD_S, progress)

    def _watch_memory(self, most_bytes: int, over: threading.Event) -> None:
        """End the process when it holds too much. Not a limit of the kernel's: CUDA reserves far more than it uses, and
        such a limit would count that."""
        path = f"/proc/{self.pid}/status"
        while not over.wait(MEMORY_LOOK_S) and self.alive:
            held_bytes = _held_bytes(path)
            if held_bytes > most_bytes:
                self._over_bytes = held_bytes
                self._most_bytes = most_bytes
                self._process.kill()
                return

    def load(
        self, plan: str, bank: Sequence[str] = (), positions: int = 1, residents: int = 1
    ) -> Mapping[str, EngineTensor]:
        """Load an engine and share memory with it. `bank` names the inputs that hold one adapter per row, in one of
        `positions` places on the device; `residents` adapters stay in the shared memory."""
        answer = self._call({"op": "load", "plan": plan, "bank": list(bank), "positions": positions}, LOAD_S)
        for entry in answer["tensors"]:
            tensor = EngineTensor(
                entry["name"], entry["role"], entry["dtype"], tuple(entry["shape"]), tuple(entry["largest"])
            )
            self._tensors[tensor.name] = tensor
        self._share(residents)
        return self._tensors

    def put(self, resident: int, arrays: Mapping[str, Array]) -> None:
        """Keep an adapter in the shared memory, in the engine's types: every bank input without its first axis."""
        wanted = {name for name, tensor in self._tensors.items() if tensor.role == "bank"}
        if set(arrays) != wanted:
            raise BackendError(f"an adapter must fill {sorted(wanted ^ set(arrays))[:3]}", "tensorrt")
        if not 0 <= resident < len(self._adapters):
            raise BackendError(f"there is no place {resident} for an adapter", "tensorrt")
        for name, value in arrays.items():
            tensor = self._tensors[name]
            if value.shape != tensor.shape[1:]:
                raise BackendError(f"{name} has the shape {value.shape}, the bank takes {tensor.shape[1:]}", "tensorrt")
            np.copyto(_as_array(self._adapters[resident][name], tensor, value.shape), value, casting="same_kind")

    def write(self, position: int, resident: int | None) -> float:
        """Copy a resident adapter into a bank position; None writes zeros, which is the base. The host's seconds."""
        return float(self._call({"op": "write", "position": position, "resident": resident}, RUN_S)["compute_s"])

    def run(
        self, inputs: Mapping[str, Array], rows: int = 0, start: int = 0, timeout_s: float = RUN_S
    ) -> tuple[dict[str, Array], float]:
        """Outputs by name (views: valid until the next run) and the host's seconds. `inputs` are those without a bank.

        An input's values must fit the engine's type: TensorRT 8 makes int64 inputs int32.
        """
        for name, value in inputs.items():
            tensor = self._tensors.get(name)
            if tensor is None or tensor.role != "input":
                raise BackendError(f"the engine has no input {name!r}", "tensorrt")
            if value.ndim != len(tensor.largest) or any(map(int.__gt__, value.shape, tensor.largest)):
                raise BackendError(f"{name} has the shape {value.shape}, at most {tensor.largest} fits", "tensorrt")
            np.copyto(_as_array(self._regions[name], tensor, value.shape), value, casting="same_kind")
        shapes = {name: list(value.shape) for name, value in inputs.items()}
        answer = self._call({"op": "run", "shapes": shapes, "rows": rows, "start": start}, timeout_s)
        outputs = {
            name: _as_array(self._regions[name], self._tensors[name], tuple(shape))
            for name, shape in answer["shapes"].items()
        }
        return outputs, float(answer["compute_s"])

    def footprint(self) -> Mapping[str, int]:
        """Bytes: see `engine_host`'s `footprint`."""
        return self._call({"op": "footprint"}, RUN_S)

    def close(self) -> None:
        """Ask the engine host's process to free the device and end; kill it if it does not."""
        if self.alive:
            with contextlib.suppress(BackendError):
                self._call({"op": "close"}, CLOSE_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """End the process at once, whatever it does. May be called from another thread, and again."""
        if self.alive:
            self._killed = True
            self._process.kill()
        self._process.wait()
        self._sock.close()
        if not self._stderr.closed:
            self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
            self._last_words = " ".join(self._stderr.read().decode(errors="replace").split())[-300:]
            self._stderr.close()

    def _share(self, residents: int) -> None:
        """Memory that both processes see: a region for each tensor, then the resident adapters. It has no name and goes
        with its last user."""
        regions: dict[str, int] = {}
        adapter: dict[str, int] = {}
        size = stride = 0
        for name, tensor in self._tensors.items():
            length = -(-tensor.region_bytes // _ALIGNMENT) * _ALIGNMENT
            if tensor.role == "bank":
                adapter[name], stride = stride, stride + length
            else:
                regions[name], size = size, size + length
        adapter = {name: size + offset for name, offset in adapter.items()}
        total = size + residents * stride
        descriptor = os.memfd_create("tensorrt-tensors", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, total)
            shared = np.frombuffer(mmap.mmap(descriptor, total), np.uint8)
            layout = {"regions": regions, "adapter": adapter, "stride": stride, "residents": residents}
            answer = self._call({"op": "bind", "bytes": total, **layout}, START_S, descriptor=descriptor)
        finally:
            os.close(descriptor)
        self.pinned = bool(answer["pinned"])
        self._regions = {name: shared[offset:] for name, offset in regions.items()}
        self._adapters = [
            {name: shared[offset + number * stride :] for name, offset in adapter.items()}
            for number in range(residents)
        ]

    def _call(
        self, request: dict[str, Any], timeout_s: float, progress: Progress | None = None, descriptor: int | None = None
    ) -> dict[str, Any]:
        self._next_id += 1
        body = json.dumps({**request, "id": self._next_id}).encode()
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
        try:
            if timeout_s != self._timeout_s:
                self._sock.settimeout(timeout_s)
                self._timeout_s = timeout_s
            content = _HEADER.pack(len(body)) + body
            sent = self._sock.sendmsg([content], rights)
            if sent < len(content):
                self._sock.sendall(content[sent:])
            while True:
                answer = self._receive()
                if "event" not in answer:
                    break
                if progress is not None:
                    progress(answer)
        except TimeoutError as error:
            self.kill()
            raise BackendError(
                f"the engine host did not answer {request['op']!r} within {timeout_s:g} s and was ended", "tensorrt"
            ) from error
        except (OSError, EOFError, ValueError) as error:
            raise self._death(request["op"]) from error
        if not answer["ok"]:
            self.blames_engine = bool(answer.get("engine"))
            if answer["fatal"]:
                self.kill()
            raise BackendError(answer["error"], "tensorrt", answer["remedy"] or None)
        return answer

    def _receive(self) -> dict[str, Any]:
        """The next frame; what came after it (progress comes in bursts) is kept for the next call."""
        while len(self._unread) < _HEADER.size or len(self._unread) < self._frame_bytes():
            part = self._sock.recv(_READ_BYTES)
            if not part:
                raise EOFError
            self._unread += part
        length = self._frame_bytes()
        answer = json.loads(bytes(self._unread[_HEADER.size : length]))
        del self._unread[:length]
        if not isinstance(answer, dict):
            raise ValueError("a frame that is no object")
        return answer

    def _frame_bytes(self) -> int:
        length = _HEADER.size + int(_HEADER.unpack_from(self._unread)[0])
        if length > _FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        return length

    def _death(self, op: str) -> BackendError:
        """The host is gone: how it ended, and what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_S)
        self.kill()
        code = self._process.returncode
        # A crash, and not an end from outside: a damaged file may be what TensorRT does not survive.
        self.blames_engine = op == "load" and not self._killed and code not in (-signal.SIGKILL, -signal.SIGTERM)
        if self._over_bytes:
            held, most = bytes_text(self._over_bytes), bytes_text(self._most_bytes)
            what = f"the engine host held {held} during {op!r}, {most} are free for it, and was ended"
            way_out = "end other programs or unload other models, or set a smaller worker.max_rows"
            return BackendError(what, "tensorrt", way_out)
        how = (
            "was ended" if self._killed else f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
        )
        said = f": {self._last_words}" if self._last_words else ""
        remedy = "free memory: the kernel ends builds and engines first" if code == -9 and not self._killed else None
        return BackendError(f"the engine host {how} during {op!r}{said}", "tensorrt", remedy)


def _held_bytes(status: str) -> int:
    """What a process holds of the memory and the swap by its /proc/PID/status; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return 1024 * sum(int(kib) for kib in _HELD.findall(Path(status).read_text()))
    return 0


def _as_array(memory: npt.NDArray[np.uint8], tensor: EngineTensor, shape: tuple[int, ...]) -> Array:
    """The first bytes of a region as an array."""
    dtype = np.dtype(tensor.dtype)
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
