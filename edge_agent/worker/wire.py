"""Frames between the daemon and a worker child: a length, then one msgpack map, over a socketpair.

Every frame is bounded (`limits.FRAME_BYTES`) in both directions, so neither side can exhaust the other.
Daemon to child: load attach detach submit cancel limits footprint close. Child to daemon: ok refused (answers
that carry the call's number), chunk done failed (what becomes of jobs), beat (a generator is at work).
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec

from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import FRAME_BYTES

HEADER = struct.Struct(">I")


def pack(message: dict[str, Any]) -> bytes:
    """One frame, header included. Raises WorkerError when the message is larger than a frame may be."""
    body = msgspec.msgpack.encode(message)
    check_length(len(body))
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The message of a frame's body. Raises WorkerError when it is not a map."""
    try:
        message = msgspec.msgpack.decode(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise WorkerError(f"a frame is not msgpack: {error}", "worker channel") from error
    if not isinstance(message, dict):
        raise WorkerError(f"a frame holds a {type(message).__name__}, a map is needed", "worker channel")
    return message


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
    """The child's end: blocking, one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: dict[str, Any]) -> None:
        """Write one frame; blocks while the daemon reads slowly (the frames in flight are bounded by credit)."""
        self._sock.sendall(pack(message))

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next message, or None when none began to arrive within `timeout_s` (None waits for ever).

        Raises EOFError when the daemon has gone.
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
        return unpack(self._exactly(check_length(length)))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._sock.recv(count)
            if not part:
                raise EOFError("the daemon closed the channel in mid-frame")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
