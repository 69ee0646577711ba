"""What is to be sent and was not yet, bounded by number and by bytes.

States (`keep` = latest) are latest-wins per topic: a board that was offline for an hour has one telemetry message to
send, not three hundred. Everything else waits in order until its expiry. What is kept on disk does not come here: see
`spool`. A file of its own because it is pure: no event loop, no connection.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edge_agent.base.limits import OUTBOX_BYTES, OUTBOX_MESSAGES
from edge_agent.protocol.envelope import Outbound

# Topics on which a state may wait. The agent has a handful; the bound is against mistakes.
STATES = 64
# A message that was on its way at the end of so many connections is not sent again: it may be what ends them.
RETURNS = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message with the monotonic time after which it is worth nothing (None: never). `returns`: how many connections
    have ended while it was on its way."""

    message: Outbound
    due_s: float | None
    returns: int = 0

    def late(self, now_s: float) -> bool:
        """True when it must not be sent any more."""
        return self.due_s is not None and self.due_s <= now_s

    def fresh(self, now_s: float) -> Outbound:
        """The message with the expiry that is left of it, in whole seconds."""
        left_s = None if self.due_s is None else float(max(1, math.ceil(self.due_s - now_s)))
        return self.message if left_s == self.message.expiry_s else replace(self.message, expiry_s=left_s)


class Outbox:
    """The queue towards the broker."""

    def __init__(self, max_messages: int = OUTBOX_MESSAGES, max_bytes: int = OUTBOX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._queue: deque[Waiting] = deque(maxlen=max_messages)
        self._states: OrderedDict[str, Waiting] = OrderedDict()
        self._bytes = 0
        self.expired = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._states)

    def put(self, message: Outbound, now_s: float) -> bool:
        """Queue a message; False when there is no room for it."""
        due_s = None if message.expiry_s is None else now_s + message.expiry_s
        return self._add(Waiting(message, due_s), front=False)

    @property
    def suspicious(self) -> bool:
        """The next message was on its way when a connection ended, and the next one: it goes alone, so that no other
        pays for it. After one end, which is nearly always the network's, all go at once again."""
        return bool(self._queue) and self._queue[0].returns > 1

    def returned(self, on_its_way: Sequence[Waiting]) -> list[Waiting]:
        """Put back the messages in flight when the connection ended; returns those given up after `RETURNS` times."""
        items = [replace(item, returns=item.returns + 1) for item in on_its_way]
        self.lost += self.put_back(item for item in items if item.returns < RETURNS)
        return [item for item in items if item.returns >= RETURNS]

    def put_back(self, unsent: Iterable[Waiting]) -> int:
        """Queue again, in front and in their order, what could not be sent; returns how many found no room. A state
        does not replace a newer one of its topic."""
        lost = 0
        for item in reversed(list(unsent)):
            newer = item.message.keep == "latest" and item.message.topic in self._states
            lost += not newer and not self._add(item, front=True)
        return lost

    def take(self, now_s: float, qos1: bool) -> Waiting | None:
        """The next message to send, or None. With `qos1` False only QoS 0 (the in-flight window is full)."""
        while (item := self._pop(qos1)) is not None:
            self._bytes -= len(item.message.payload)
            if not item.late(now_s):
                return item
            self.expired += 1
        return None

    def drop_late(self, now_s: float) -> None:
        """Forget what expired while it waited, so that it does not take the room of others."""
        kept = [item for item in self._queue if not item.late(now_s)]
        if len(kept) < len(self._queue):
            self.expired += len(self._queue) - len(kept)
            self._queue = deque(kept, maxlen=self._max_messages)
            self._bytes = sum(len(item.message.payload) for item in (*kept, *self._states.values()))

    def _add(self, item: Waiting, front: bool) -> bool:
        message = item.message
        size_bytes = len(message.payload)
        state = message.keep == "latest"
        old = self._states.get(message.topic) if state else None
        old_bytes = len(old.message.payload) if old else 0
        if self._bytes + size_bytes - old_bytes > self._max_bytes:
            return False
        if state:
            if old is None and len(self._states) >= STATES:
                return False
            self._states[message.topic] = item
        elif len(self._queue) >= self._max_messages:
            return False
        elif front:
            self._queue.appendleft(item)
        else:
            self._queue.append(item)
        self._bytes += size_bytes - old_bytes
        return True

    def _pop(self, qos1: bool) -> Waiting | None:
        for topic, item in self._states.items():
            if qos1 or item.message.qos == 0:
                return self._states.pop(topic)
        if self._queue and (qos1 or self._queue[0].message.qos == 0):
            return self._queue.popleft()
        return None
