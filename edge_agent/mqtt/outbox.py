"""What is to be sent and was not yet, bounded by number and by bytes, and shared between clients.

States (`keep` = latest) are latest-wins per topic: a board that was offline for an hour has one telemetry message to
send, not three hundred. Everything else waits until its expiry, in order within a client, and the clients take turns.
What is expendable (a refusal at the door, an answer that is repeated) goes last, has a room of its own of which no
client gets all, and leaves it where an answer needs it: what was computed is never thrown away for a cheaper message.
What is kept on disk does not come here: see `spool`. A file of its own because it is pure: no event loop, no
connection.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from edge_agent.base.limits import INFLIGHT_MESSAGES, OUTBOX_BYTES, OUTBOX_MESSAGES
from edge_agent.protocol.envelope import Backlog, Outbound

# Topics on which a state may wait. The agent has a handful; the bound is against mistakes.
STATES = 64
# A message that was on its way at the end of so many connections is not sent again: it may be what ends them.
RETURNS = 3
EXPENDABLE_PART = 4
"""Expendable messages may take a fourth of the messages and bytes."""
PLACES_PER_FREE = 4
"""A client may hold four times as many expendable messages as are free there; see `core.admission`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message with the monotonic time after which it is worth nothing (None: never). `returns`: how many connections
    have ended while it was on its way."""

    message: Outbound
    due_s: float | None
    returns: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the body."""
        return len(self.message.payload)

    def late(self, now_s: float) -> bool:
        """True when it must not be sent any more."""
        return self.due_s is not None and self.due_s <= now_s

    def fresh(self, now_s: float) -> Outbound:
        """The message with the expiry that is left of it, in whole seconds."""
        left_s = None if self.due_s is None else float(max(1, math.ceil(self.due_s - now_s)))
        return self.message if left_s == self.message.expiry_s else replace(self.message, expiry_s=left_s)


class ClientTurns:
    """Messages in a queue per client, taken from one client after the other. `None` is the agent itself."""

    def __init__(self, max_messages: int) -> None:
        self._max_messages = max_messages
        self._queues: OrderedDict[str | None, deque[Waiting]] = OrderedDict()
        self._bytes: Counter[str | None] = Counter()
        self._places: Counter[str | None] = Counter()
        self._count = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        return (item for queue in self._queues.values() for item in queue)

    def of(self, client: str | None) -> tuple[int, int]:
        """(messages, bytes of their bodies) of a client."""
        return len(self._queues.get(client, ())), self._bytes[client]

    def places(self, client: str | None = None) -> int:
        """Messages that hold a place of the queue: all, or those to a client."""
        return self._places.total() if client is None else self._places[client]

    def add(self, item: Waiting) -> None:
        """Put a message behind the others of its client."""
        client = item.message.client
        queue = self._queues.get(client)
        if queue is None:
            queue = self._queues[client] = deque(maxlen=self._max_messages)
        queue.append(item)
        self._count += 1
        self._bytes[client] += item.size_bytes
        self._places[client] += item.message.holds_place
        self.size_bytes += item.size_bytes

    def pop(self, qos1: bool) -> Waiting | None:
        """The first message of the client whose turn it is; with `qos1` False only one that is sent at QoS 0."""
        for client, queue in self._queues.items():
            if qos1 or queue[0].message.qos == 0:
                item = queue.popleft()
                self._removed(client, queue, item)
                if queue:
                    self._queues.move_to_end(client)
                return item
        return None

    def remove(self, client: str | None, request_id: str | None) -> list[Waiting]:
        """Remove and return what answers this request of a client."""
        queue = self._queues.get(client)
        if queue is None or request_id is None:
            return []
        found = [item for item in queue if item.message.request_id == request_id]
        for item in found:
            queue.remove(item)
            self._removed(client, queue, item)
        return found

    def drop_of_largest(self) -> Waiting:
        """Remove the newest message of the client that has the most. Raises ValueError where there is none."""
        client, queue = max(self._queues.items(), key=lambda entry: len(entry[1]))
        item = queue.pop()
        self._removed(client, queue, item)
        return item

    def drop_late(self, now_s: float) -> int:
        """Remove what expired; returns how many that were."""
        late = [item for item in self if item.late(now_s)]
        if late:
            kept = [item for item in self if not item.late(now_s)]
            self._queues.clear()
            self._bytes.clear()
            self._places.clear()
            self._count = self.size_bytes = 0
            for item in kept:
                self.add(item)
        return len(late)

    def _removed(self, client: str | None, queue: deque[Waiting], item: Waiting) -> None:
        self._count -= 1
        self._bytes[client] -= item.size_bytes
        self._places[client] -= item.message.holds_place
        self.size_bytes -= item.size_bytes
        if not queue:
            del self._queues[client], self._bytes[client], self._places[client]


class Outbox:
    """The queue towards the broker. What it gives up is counted: `expired`, `lost` (there was no room for it) and
    `displaced` (expendable messages that made room for answers, or found none)."""

    def __init__(self, max_messages: int = OUTBOX_MESSAGES, max_bytes: int = OUTBOX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, Waiting] = OrderedDict()
        # What was on its way when a connection ended: in its order, before everything else.
        self._again: deque[Waiting] = deque(maxlen=max(max_messages, INFLIGHT_MESSAGES))
        self._answers = ClientTurns(max_messages)
        self._expendable = ClientTurns(max_messages)
        # By topic of a state: how many connections in a row ended while it was on its way. A newer one inherits it.
        self._state_returns: dict[str, int] = {}
        self._bytes = 0
        self.expired = 0
        self.lost = 0
        self.displaced = 0

    def __len__(self) -> int:
        return len(self._states) + self._queued

    @property
    def _queued(self) -> int:
        return len(self._again) + len(self._answers) + len(self._expendable)

    @property
    def nearly_full(self) -> bool:
        """True when half of the room is taken: nothing should be begun that ends in an answer."""
        return 2 * self._bytes > self._max_bytes or 2 * self._queued > self._max_messages

    @property
    def crowded(self) -> bool:
        """True when nothing should be taken in that may end in a refusal: the room for those is half taken."""
        return self.nearly_full or not self._expendable_fits(1 + self._max_messages // 2 // EXPENDABLE_PART, 0)

    def backlog(self, client: str) -> Backlog:
        """The answers that wait: the places that they hold and their bytes, of all clients and of this one."""
        again = [item for item in self._again if not item.message.expendable]
        own = [item for item in again if item.message.client == client]
        return Backlog(
            self._answers.places() + sum(item.message.holds_place for item in again),
            self._answers.size_bytes + sum(item.size_bytes for item in again),
            self._answers.places(client) + sum(item.message.holds_place for item in own),
            self._answers.of(client)[1] + sum(item.size_bytes for item in own),
        )

    def put(self, message: Outbound, now_s: float) -> bool:
        """Queue a message; False when there is no room for it."""
        due_s = None if message.expiry_s is None else now_s + message.expiry_s
        item = Waiting(message, due_s, self._state_returns.get(message.topic, 0) if message.keep == "latest" else 0)
        if message.keep == "latest":
            return self._put_state(item)
        if message.expendable:
            return self._put_expendable(item)
        if not self._make_room(1, item.size_bytes):
            return False
        # A refusal that waits still was for an earlier delivery of the request, which was decided anew.
        for refusal in self._expendable.remove(message.client, message.request_id):
            self._bytes -= refusal.size_bytes
            self.displaced += 1
        self._answers.add(item)
        self._bytes += item.size_bytes
        return True

    @property
    def suspicious(self) -> bool:
        """The next message was on its way when a connection ended, and the next one: it goes alone, so that no other
        pays for it. After one end, which is nearly always the network's, all go at once again."""
        first = next(iter(self._states.values()), None) or (self._again[0] if self._again else None)
        return first is not None and first.returns > 1

    def returned(self, on_its_way: Sequence[Waiting]) -> list[Waiting]:
        """Put back the messages in flight when the connection ended; returns those given up after `RETURNS` times.

        A state that was sent at QoS 0 is not put back: the next one of its topic will be.
        """
        items = [replace(item, returns=item.returns + 1) for item in on_its_way]
        for item in items:
            if item.message.keep == "latest":
                self._note_returns(item)
        back = [item for item in items if item.returns < RETURNS and item.message.qos]
        self.lost += self.put_back(back)
        return [item for item in items if item.returns >= RETURNS]

    def proven(self, topic: str) -> None:
        """The broker has a state of this topic: it is none that ends connections."""
        if self._state_returns.pop(topic, None) and (newer := self._states.get(topic)):
            self._states[topic] = replace(newer, returns=0)

    def _note_returns(self, item: Waiting) -> None:
        topic, returns = item.message.topic, item.returns if item.returns < RETURNS else 0
        self._state_returns[topic] = returns
        if len(self._state_returns) > STATES:
            del self._state_returns[next(iter(self._state_returns))]
        if newer := self._states.get(topic):
            self._states[topic] = replace(newer, returns=returns)

    def put_back(self, unsent: Iterable[Waiting]) -> int:
        """Queue again, in front and in their order, what could not be sent; returns how many found no room. A state
        does not replace a newer one of its topic."""
        lost = 0
        for item in reversed(list(unsent)):
            if item.message.keep == "latest":
                lost += item.message.topic not in self._states and not self._put_state(item)
            elif self._make_room(1, item.size_bytes):
                self._again.appendleft(item)
                self._bytes += item.size_bytes
            else:
                lost += 1
        return lost

    def take(self, now_s: float, qos1: bool, hurried: bool = False) -> Waiting | None:
        """The next message to send, or None. With `qos1` False (the in-flight window is full) only QoS 0, and with
        `hurried` also what is expendable."""
        while (item := self._pop(qos1, qos1 or hurried)) is not None:
            self._bytes -= item.size_bytes
            if not item.late(now_s):
                return item
            self.expired += 1
        return None

    def drop_late(self, now_s: float) -> None:
        """Forget what expired while it waited, so that it does not take the room of others."""
        again = [item for item in self._again if not item.late(now_s)]
        dropped = len(self._again) - len(again) + self._answers.drop_late(now_s) + self._expendable.drop_late(now_s)
        if dropped:
            self.expired += dropped
            self._again = deque(again, maxlen=self._again.maxlen)
            self._bytes = self._answers.size_bytes + self._expendable.size_bytes
            self._bytes += sum(item.size_bytes for item in (*again, *self._states.values()))

    def _put_state(self, item: Waiting) -> bool:
        old = self._states.get(item.message.topic)
        more_bytes = item.size_bytes - (old.size_bytes if old else 0)
        if (old is None and len(self._states) >= STATES) or not self._make_room(0, more_bytes):
            return False
        self._states[item.message.topic] = item
        self._bytes += more_bytes
        return True

    def _put_expendable(self, item: Waiting) -> bool:
        own, own_bytes = self._expendable.of(item.message.client)
        free = self._max_messages // EXPENDABLE_PART - len(self._expendable)
        free_bytes = self._max_bytes // EXPENDABLE_PART - self._expendable.size_bytes - item.size_bytes
        shared = own < PLACES_PER_FREE * free and own_bytes + item.size_bytes <= PLACES_PER_FREE * free_bytes
        if not shared or not self._fits(1, item.size_bytes):
            self.displaced += 1
            return False
        self._expendable.add(item)
        self._bytes += item.size_bytes
        return True

    def _expendable_fits(self, messages: int, size_bytes: int) -> bool:
        room, room_bytes = self._max_messages // EXPENDABLE_PART, self._max_bytes // EXPENDABLE_PART
        within = self._expendable.size_bytes + size_bytes <= room_bytes
        return len(self._expendable) + messages <= room and within

    def _fits(self, messages: int, size_bytes: int) -> bool:
        return self._queued + messages <= self._max_messages and self._bytes + size_bytes <= self._max_bytes

    def _make_room(self, messages: int, size_bytes: int) -> bool:
        """Whether so much more fits, once expendable messages have left as far as needed."""
        while not self._fits(messages, size_bytes) and len(self._expendable):
            self._bytes -= self._expendable.drop_of_largest().size_bytes
            self.displaced += 1
        return self._fits(messages, size_bytes)

    def _pop(self, qos1: bool, any_expendable: bool) -> Waiting | None:
        for topic, item in self._states.items():
            if qos1 or item.message.qos == 0:
                return self._states.pop(topic)
        if self._again and (qos1 or self._again[0].message.qos == 0):
            return self._again.popleft()
        return self._answers.pop(qos1) or self._expendable.pop(any_expendable)
