"""Received messages that were not yet taken, bounded by number and by bytes, and shared between clients.

A file of its own because it knows no connection, as `outbox`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from edge_agent.base.limits import INBOX_BYTES, INBOX_MESSAGES, INFLIGHT_MESSAGES, RECEIVE_MAXIMUM
from edge_agent.protocol.envelope import Inbound

IN_HAND = RECEIVE_MAXIMUM + INFLIGHT_MESSAGES
"""Messages that may still come after reading was stopped: paho reads several packets at once."""
PLACES_PER_FREE = 4
"""A client may hold four times as many places of the inbox as are free; see `core.admission`."""


class Inbox:
    """One reader, inside the event loop. Messages of QoS 1 come in order, since they are acknowledged in order; those
    of QoS 0 wait by client, and all take turns.

    `may_take` is False while nothing should be taken, because what answers it would find no room on the way out. When
    the inbox is full the transport stops reading the socket: TCP and the broker's queue hold the rest back, and nothing
    is dropped; `on_room` is called when there is room again. Where the socket must be read all the same, messages
    beyond the bounds are dropped and counted; those of QoS 1 the broker delivers again after the next connection.
    """

    def __init__(
        self,
        on_room: Callable[[], None],
        may_take: Callable[[], bool] = lambda: True,
        max_messages: int = INBOX_MESSAGES,
        max_bytes: int = INBOX_BYTES,
    ) -> None:
        self._queues: OrderedDict[str, deque[Inbound]] = OrderedDict()
        self._on_room = on_room
        self._may_take = may_take
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._count = 0
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self.dropped = 0

    @property
    def full(self) -> bool:
        """True when nothing more should be read from the socket: no room, or a client has its share of it."""
        most = max((len(queue) for queue in self._queues.values()), default=0)
        shared = most >= PLACES_PER_FREE * (self._max_messages - self._count)
        return shared or self._bytes >= self._max_bytes

    def __len__(self) -> int:
        return self._count

    def put(self, message: Inbound) -> bool:
        """Add a message; False when there is no room (the caller kept reading although the inbox was full)."""
        key = "" if message.qos else message.response_topic or "/"
        queue = self._queues.get(key)
        free = self._max_messages - self._count
        if message.qos:
            room = free + IN_HAND > 0
        else:
            room = len(queue or ()) < PLACES_PER_FREE * free and self._bytes < self._max_bytes
        if not room:
            self.dropped += 1
            return False
        if queue is None:
            queue = self._queues[key] = deque(maxlen=self._max_messages + IN_HAND)
        queue.append(message)
        self._count += 1
        self._bytes += len(message.payload)
        self._wake.set()
        return True

    def look_again(self) -> None:
        """What `may_take` says may have changed."""
        if self._count and self._may_take():
            self._wake.set()

    def close(self) -> None:
        """End the iteration after the waiting messages were taken."""
        self._closed = True
        self._wake.set()

    async def stream(self) -> AsyncIterator[Inbound]:
        """Messages until closed: of QoS 1 in order of arrival, of QoS 0 in order of arrival within a client."""
        while True:
            while not self._count or not (self._closed or self._may_take()):
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
            was_full = self.full
            message = self._pop()
            if was_full and not self.full:
                self._on_room()
            yield message

    def _pop(self) -> Inbound:
        key, queue = next(iter(self._queues.items()))
        message = queue.popleft()
        self._count -= 1
        self._bytes -= len(message.payload)
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key]
        return message
