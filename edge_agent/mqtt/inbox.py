"""Received messages that were not yet taken, bounded by number and by bytes.

When it is full the transport stops reading the socket: TCP and the broker's queue hold the rest back, and nothing is
dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from edge_agent.base.limits import INBOX_BYTES, INBOX_MESSAGES
from edge_agent.protocol.envelope import Inbound


class Inbox:
    """A queue with one reader, used only inside the event loop. `on_room` is called when it has room again."""

    def __init__(
        self,
        on_room: Callable[[], None],
        max_messages: int = INBOX_MESSAGES,
        max_bytes: int = INBOX_BYTES,
    ) -> None:
        self._waiting: deque[Inbound] = deque(maxlen=max_messages + 1)
        self._on_room = on_room
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def full(self) -> bool:
        """True when nothing more should be read from the socket."""
        return len(self._waiting) >= self._max_messages or self._bytes >= self._max_bytes

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Inbound) -> bool:
        """Add a message; False when there is no room (the caller kept reading although the inbox was full)."""
        if len(self._waiting) > self._max_messages:
            return False
        self._waiting.append(message)
        self._bytes += len(message.payload)
        self._wake.set()
        return True

    def close(self) -> None:
        """End the iteration after the waiting messages were taken."""
        self._closed = True
        self._wake.set()

    async def stream(self) -> AsyncIterator[Inbound]:
        """Messages in order of arrival, until closed."""
        while True:
            while not self._waiting:
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
            was_full = self.full
            message = self._waiting.popleft()
            self._bytes -= len(message.payload)
            if was_full and not self.full:
                self._on_room()
            yield message
