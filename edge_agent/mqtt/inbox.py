"""Received messages that were not yet taken, bounded by number and by bytes, and shared between clients.

A file of its own because it knows no connection, as `outbox`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from edge_agent.base.limits import (
    INBOX_BYTES,
    INBOX_MESSAGE_BYTES,
    INBOX_MESSAGES,
    INFLIGHT_MESSAGES,
    RECEIVE_MAXIMUM,
)
from edge_agent.protocol.envelope import Inbound

IN_HAND = RECEIVE_MAXIMUM + INFLIGHT_MESSAGES
"""Messages of QoS 1 that are taken beyond the bounds: a broker may send so many unasked."""
PLACES_PER_FREE = 4
"""A client may hold four times as many places, and bytes, of the inbox as are free; see `core.admission`."""

TAKEN_AT_ONCE = 16
"""Messages that are taken before the event loop does something else: fewer than it reads in one go, so that what
stands in the socket is reached."""


def _cost_bytes(message: Inbound) -> int:
    """Bytes of memory that a waiting message takes: a count alone would let small ones take several MiB unseen."""
    return INBOX_MESSAGE_BYTES + len(message.payload)


class Inbox:
    """One reader, inside the event loop. Messages of QoS 1 come in order, since they are acknowledged in order; those
    of QoS 0 wait by client, and all take turns.

    `may_take` is False while nothing should be taken, because what answers it would find no room on the way out. What
    arrives is read as long as it can be held, so that a burst of one client does not stand in the socket before the
    messages of others. When the inbox is full, or a client has its share of it, the transport stops reading: TCP and
    the broker's queue hold the rest back, and nothing is dropped; `on_room` is called when there is room again. Where
    the socket must be read all the same, messages beyond the bounds are dropped and counted; those of QoS 1 the broker
    delivers again after the next connection.
    """

    def __init__(
        self,
        on_room: Callable[[], None],
        may_take: Callable[[], bool] = lambda: True,
        max_messages: int = INBOX_MESSAGES,
        max_bytes: int = INBOX_BYTES,
    ) -> None:
        self._queues: OrderedDict[str, deque[Inbound]] = OrderedDict()
        self._held_bytes: Counter[str] = Counter()
        # Those that had their share when they last put something in; `full` looks at no other.
        self._over_share: OrderedDict[str, None] = OrderedDict()
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
        return bool(self._over_share) or self._count >= self._max_messages or self._bytes >= self._max_bytes

    def __len__(self) -> int:
        return self._count

    def put(self, message: Inbound) -> bool:
        """Add a message; False when there is no room (the caller kept reading although the inbox was full)."""
        key = "" if message.qos else message.named_reply_topic() or "/"
        room = self._count < self._max_messages + IN_HAND if message.qos else self._has_room(key)
        if not room:
            self.dropped += 1
            return False
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque(maxlen=self._max_messages + IN_HAND)
        queue.append(message)
        self._count += 1
        self._held_bytes[key] += _cost_bytes(message)
        self._bytes += _cost_bytes(message)
        if self._has_share(key):
            self._over_share[key] = None
        self._wake.set()
        return True

    def _has_room(self, key: str) -> bool:
        within = self._count < self._max_messages and self._bytes < self._max_bytes
        return within and not (key in self._over_share and self._has_share(key))

    def _has_share(self, key: str) -> bool:
        """Whether a client holds as much as it may."""
        free, free_bytes = self._max_messages - self._count, self._max_bytes - self._bytes
        places = len(self._queues.get(key, ()))
        return places >= PLACES_PER_FREE * free or self._held_bytes[key] >= PLACES_PER_FREE * free_bytes

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
        taken = 0
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
            taken += 1
            if taken % TAKEN_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _pop(self) -> Inbound:
        key, queue = next(iter(self._queues.items()))
        message = queue.popleft()
        self._count -= 1
        self._bytes -= _cost_bytes(message)
        self._held_bytes[key] -= _cost_bytes(message)
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key], self._held_bytes[key]
        while self._over_share and not self._has_share(next(iter(self._over_share))):
            self._over_share.popitem(last=False)
        return message
