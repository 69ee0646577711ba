"""The program: answers one client on a socket. See the package's docstring for the protocol."""

import contextlib
import json
import mmap
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from typing import Any, Dict, Optional, Tuple

from .build_engine import build
from .device_access import HostFailure, load_modules, on_device, one_line, probe
from .loaded_engine import LoadedEngine

FRAME_BYTES = 1 << 20
READ_BYTES = 1 << 16
HEADER = struct.Struct(">I")
# Time for an orderly end after the client has gone; then the process ends whatever it is doing.
ORPHAN_S = 2.0


class HostServer:
    """Answers one client, one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._trt: Any = None
        self._cuda: Any = None
        self._device: Any = None
        self._engine: Optional[LoadedEngine] = None
        self._sending = threading.Lock()

    def serve(self, number: int = 0) -> None:
        """Answer until the client closes the connection or asks for the end."""
        threading.Thread(target=self._end_when_orphaned, daemon=True).start()
        with contextlib.ExitStack() as stack:
            while True:
                request, descriptor = self._receive()
                if request is None:
                    break
                try:
                    if self._cuda is None:
                        self._trt, self._cuda = load_modules()
                        self._device = stack.enter_context(on_device(self._cuda, number))
                        stack.callback(self._unload)
                    answer = self._answer(request, descriptor)
                    answer.update(id=request.get("id"), ok=True)
                except HostFailure as failure:
                    answer = self._refusal(request, failure.what, failure.remedy, failure.fatal or self._device is None)
                    answer["engine"] = failure.engine
                except self._foreign() as error:
                    # The state of the device is unknown after an error of CUDA: this process ends, another begins.
                    fatal = self._cuda is not None and isinstance(error, self._cuda.Error)
                    what = "{!r} failed: {}: {}".format(request.get("op"), type(error).__name__, one_line(error))
                    answer = self._refusal(request, what, "", fatal)
                finally:
                    if descriptor is not None:
                        os.close(descriptor)
                self._send(answer)
                if answer.get("fatal") or request.get("op") == "close":
                    break

    def _foreign(self) -> Tuple[Any, ...]:
        known = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, OSError, MemoryError)
        return known if self._cuda is None else known + (self._cuda.Error,)

    @staticmethod
    def _refusal(request: Dict[str, Any], what: str, remedy: str, fatal: bool) -> Dict[str, Any]:
        return {"id": request.get("id"), "ok": False, "error": what, "remedy": remedy, "fatal": fatal}

    def _answer(self, request: Dict[str, Any], descriptor: Optional[int]) -> Dict[str, Any]:
        op = request.get("op")
        if op == "run":
            started_s = time.perf_counter()
            shapes = self._loaded().run(request["shapes"], request.get("rows", 0), request.get("start", 0))
            return {"shapes": shapes, "compute_s": time.perf_counter() - started_s}
        if op == "write":
            started_s = time.perf_counter()
            self._loaded().write(request["position"], request.get("resident"))
            return {"compute_s": time.perf_counter() - started_s}
        if op == "probe":
            return probe(self._trt, self._cuda, self._device)
        if op == "build":
            return build(self._trt, request, lambda event: self._send(dict(event, id=request.get("id"))))
        if op == "load":
            return self._load(request)
        if op == "bind":
            return self._bind(request, descriptor)
        if op == "footprint":
            return self._footprint()
        if op == "close":
            return {}
        raise HostFailure("there is no operation {!r}".format(op))

    def _loaded(self) -> LoadedEngine:
        if self._engine is None:
            raise HostFailure("no engine is loaded")
        return self._engine

    def _load(self, request: Dict[str, Any]) -> Dict[str, Any]:
        if self._engine is not None:
            raise HostFailure("an engine is loaded already", "start another host")
        engine = LoadedEngine(self._trt, self._cuda, request["plan"], request.get("bank", []),
                              int(request.get("positions", 1)))  # fmt: skip
        self._engine = engine
        return {"tensors": engine.tensors(), "positions": engine.positions}

    def _bind(self, request: Dict[str, Any], descriptor: Optional[int]) -> Dict[str, Any]:
        import numpy

        if descriptor is None:
            raise HostFailure("the request brings no shared memory")
        size = int(request["bytes"])
        if os.fstat(descriptor).st_size < size:
            raise HostFailure("the shared memory is smaller than {} bytes".format(size))
        shared = numpy.frombuffer(mmap.mmap(descriptor, size), numpy.uint8)
        self._loaded().bind(
            shared, request["regions"], request["adapter"], int(request["stride"]), int(request["residents"])
        )
        return {"pinned": self._loaded().pinned}

    def _footprint(self) -> Dict[str, Any]:
        found: Dict[str, Any] = dict(self._loaded().footprint())
        with open("/proc/self/statm") as stream:
            found["resident_bytes"] = int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["free_bytes"], found["total_bytes"] = map(int, self._cuda.mem_get_info())
        # On a Jetson the device's memory is the board's.
        found["integrated"] = bool(self._device.get_attribute(self._cuda.device_attribute.INTEGRATED))
        return found

    def _unload(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _receive(self) -> Tuple[Optional[Dict[str, Any]], Optional[int]]:
        """The next request and the descriptor that came with it; (None, None) when the client has gone."""
        # A client sends its next request after the answer to the last one: a frame is all that can be here, and one
        # system call mostly brings it whole.
        content, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, socket.CMSG_SPACE(struct.calcsize("i")))
        descriptor = None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                (descriptor,) = struct.unpack("i", data[: struct.calcsize("i")])
        while content and (len(content) < HEADER.size or len(content) < HEADER.size + HEADER.unpack_from(content)[0]):
            part = self._sock.recv(READ_BYTES)
            if not part or len(content) > FRAME_BYTES:
                return None, descriptor
            content += part
        return (json.loads(content[HEADER.size :].decode("utf-8")) if content else None), descriptor

    def _send(self, message: Dict[str, Any]) -> None:
        body = json.dumps(message).encode("utf-8")
        with self._sending:
            self._sock.sendall(HEADER.pack(len(body)) + body)

    def _end_when_orphaned(self) -> None:
        """Nobody waits for a build or a run whose client has died: end it."""
        poll = select.poll()
        poll.register(self._sock, select.POLLHUP)
        poll.poll()
        time.sleep(ORPHAN_S)
        os._exit(3)


def main() -> int:
    """Serve the client at the socket whose descriptor is the first argument; the second is the CUDA device's number."""
    sock = socket.fromfd(int(sys.argv[1]), socket.AF_UNIX, socket.SOCK_STREAM)
    os.close(int(sys.argv[1]))
    # The worker's bound on private memory is for models that it loads itself; CUDA reserves far more than it uses.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        HostServer(sock).serve(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
