"""Frames between the daemon and a worker: four bytes of length (big endian), then one msgpack map, over a socketpair.

Every frame is bounded (`limits.FRAME_BYTES`) in both directions, so neither side can exhaust the other. What the maps
mean is in `protocol.worker_messages`. The worker's end is a `Channel`; the daemon reads its end in `worker.supervisor`.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import msgspec

from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import FRAME_BYTES, WORKER_BACKLOG_FRAMES
from edge_agent.protocol.worker_messages import AnyAnswer, AnyEvent, AnyRequest, CancelJob

HEADER = struct.Struct(">I")
_OPERATIONS = tuple(request.__struct_config__.tag for request in get_args(AnyRequest))
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_from_worker: msgspec.msgpack.Decoder[AnyAnswer | AnyEvent] = msgspec.msgpack.Decoder(AnyAnswer | AnyEvent)


class UnknownRequest(NamedTuple):
    """A map that is none of the requests: its call number where it has one, and what is wrong."""

    call: int | None
    reason: str


ReceivedRequest = AnyRequest | UnknownRequest


def pack(message: msgspec.Struct) -> bytes:
    """One frame, header included. Raises WorkerError when the message is larger than a frame may be."""
    body = _encoder.encode(message)
    check_length(len(body))
    return HEADER.pack(len(body)) + body


def unpack_request(body: bytes) -> ReceivedRequest:
    """The request in a frame's body. Raises WorkerError when it is no map."""
    try:
        return _requests.decode(body)
    except msgspec.ValidationError as error:
        fields, reason = _map_in(body), str(error)
    except (ValueError, RecursionError) as error:
        raise _no_msgpack(error) from error
    operation, number = fields.get("op"), fields.get("n")
    if operation in _OPERATIONS:
        reason = f"operation {operation!r} is malformed: {reason}"
    else:
        reason = f"unknown operation {operation!r}"
    return UnknownRequest(number if isinstance(number, int) else None, reason)


def unpack_answer(body: bytes) -> AnyAnswer | AnyEvent:
    """The answer or event in a frame's body. Raises WorkerError when it is neither."""
    try:
        return _from_worker.decode(body)
    except msgspec.ValidationError:
        fields = _map_in(body)
    except (ValueError, RecursionError) as error:
        raise _no_msgpack(error) from error
    kind, number = fields.get("ev"), fields.get("n")
    raise WorkerError(f"a frame with ev {kind!r:.40} and n {number!r:.40} is no event", "worker channel")


def _map_in(body: bytes) -> dict[Any, Any]:
    try:
        found = msgspec.msgpack.decode(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise _no_msgpack(error) from error
    if not isinstance(found, dict):
        raise WorkerError(f"a frame holds a {type(found).__name__}, a map is needed", "worker channel")
    return found


def _no_msgpack(error: Exception) -> WorkerError:
    return WorkerError(f"a frame is not msgpack: {error}", "worker channel")


def check_length(length: int) -> int:
    """The body length of a frame header, refused above the bound."""
    if length > FRAME_BYTES:
        raise WorkerError(
            f"a frame of {length} bytes is over the limit of {FRAME_BYTES}",
            "worker channel",
            "send fewer or shorter texts in one request",
        )
    return length


class Channel:
    """The worker's end: blocking, one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: msgspec.Struct) -> None:
        """Write one frame; blocks while the daemon reads slowly (the frames in flight are bounded by credit)."""
        self._sock.sendall(pack(message))

    def receive(self, timeout_s: float | None) -> ReceivedRequest | None:
        """The next request, or None when none began to arrive within `timeout_s` (None: no limit).

        Raises EOFError when the daemon has gone, WorkerError for a frame that is no map or is too large.
        """
        self._sock.settimeout(timeout_s)
        try:
            first = self._sock.recv(1)
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            # Also after an empty poll: an answer larger than the socket's buffer must wait, not fail.
            self._sock.settimeout(None)
        if not first:
            raise EOFError("the daemon closed the channel")
        header = first + self._exactly(HEADER.size - 1)
        (length,) = HEADER.unpack(header)
        return unpack_request(self._exactly(check_length(length)))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._sock.recv(count)
            if not part:
                raise EOFError("the daemon closed the channel in mid-frame")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class FrameReader:
    """Reads a channel in a thread of its own, so that a cancel takes effect within a step.

    Only for sessions whose steps can be interrupted (generators). `on_cancel` is called in that thread with a job's id;
    every request, the cancel too, goes through a bounded queue to the thread that computes, in order.
    """

    def __init__(self, channel: Channel, on_cancel: Callable[[str], object]) -> None:
        self._channel = channel
        self._on_cancel = on_cancel
        self._requests: queue.Queue[ReceivedRequest | Exception] = queue.Queue(maxsize=WORKER_BACKLOG_FRAMES)
        threading.Thread(target=self._read, name="frame-reader", daemon=True).start()

    def receive(self, timeout_s: float | None) -> ReceivedRequest | None:
        """See `Channel.receive`."""
        try:
            found = self._requests.get(timeout_s != 0.0, timeout_s or None)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def _read(self) -> None:
        try:
            while True:
                request = self._channel.receive(None)
                if request is None:
                    continue
                if isinstance(request, CancelJob):
                    self._on_cancel(request.id)
                self._requests.put(request)
        except (EOFError, OSError, WorkerError) as error:
            # The thread that computes raises it from `receive`, as if it had read the channel itself, and ends.
            self._requests.put(error)
