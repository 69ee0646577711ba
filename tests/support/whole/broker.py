"""A broker as one device sees it: a session that outlives connections, redelivery, a receive maximum, and its faults.

`SimConnection` stands in for `mqtt.connection.Connection`, so that the real link, outbox, inbox and spool run above it.
What travels keeps its order within a connection; what is on its way when the connection breaks is lost, and an
acknowledgement that is lost means that the message comes again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from edge_agent.mqtt.connection import ConnAck, ConnectionListener
from edge_agent.mqtt.reconnect import Reason
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import SELF, Subscription

RECEIVE_MAXIMUM = 20
QUEUE_MESSAGES = 1000
KEEPALIVE_S = 45.0
REFUSED = 0x87


@dataclass(slots=True)
class Held:
    """A message that the broker holds for the device until it is acknowledged. `due_s`: when it expires there."""

    message: Inbound
    due_s: float


class Process(Protocol):
    """The daemon's process, as its sockets see it: `effect` raises when it is gone before the packet left."""

    dead: bool

    def effect(self) -> None:
        """See `lives.Life.effect`."""


class SimBroker:
    """`send` hands it a client's message; `heard` is called with whatever the device's packets bring, when sent."""

    def __init__(self, dice: Random, heard: Callable[[Outbound, float], None], complain: Callable[[str], None]) -> None:
        self._dice = dice
        self._heard = heard
        self._complain = complain
        self.up = True
        self.refuses_events = False
        self.connection: SimConnection | None = None
        self.delivered: Callable[[Inbound], None] = lambda _message: None
        self.on_ack: Callable[[Inbound, int], None] = lambda _message, _held: None
        # Retained, by topic; the last will goes here, too.
        self.retained: dict[str, Outbound] = {}
        self._session = False
        self._queue: deque[Held] = deque(maxlen=QUEUE_MESSAGES)
        self._inflight: OrderedDict[int, Held] = OrderedDict()
        self._mid = 0
        self.connections = 0

    def send(self, message: Inbound, due_s: float) -> None:
        """A client publishes to the device; kept while the device is away."""
        self._queue.append(Held(message, due_s))
        self.flush()

    def flush(self) -> None:
        """Deliver what waits, as far as the receive maximum lets."""
        connection = self.connection
        now_s = asyncio.get_running_loop().time()
        while connection is not None and connection.subscribed and self._queue:
            if len(self._inflight) >= RECEIVE_MAXIMUM:
                return
            held = self._queue.popleft()
            if held.due_s <= now_s:
                continue
            if held.message.qos == 0:
                connection.carry_in(0, held)
                continue
            self._mid = self._mid % 65_000 + 1
            self._inflight[self._mid] = held
            connection.carry_in(self._mid, held)

    def welcome(self, connection: SimConnection) -> bool:
        """A connection is accepted; True when the session was still there. A second one takes over from the first."""
        if self.connection is not None:
            self.connection.lose(Reason("transient", "another connection took over"))
        present, self._session = self._session, True
        self.connection = connection
        self.connections += 1
        if not present:
            self._queue.clear()
        again = list(self._inflight.values()) if present else []
        self._inflight.clear()
        self._queue.extendleft(reversed(again))
        return present

    def acknowledged(self, mid: int) -> None:
        """The device took a message. One it does not know would be a protocol error."""
        if mid not in self._inflight:
            self._complain(f"the device acknowledged packet {mid}, which it did not get or acknowledged before")
        elif mid != next(iter(self._inflight)):
            self._complain("MQTT wants acknowledgements in order")
        held = self._inflight.get(mid)
        if held is not None:
            self.on_ack(held.message, len(self._inflight))
        self._inflight.pop(mid, None)
        self.flush()

    def took(self, message: Outbound) -> None:
        """A packet of the device arrived."""
        if message.retain:
            self.retained[message.topic] = message
        if message.topic.endswith(f"/{SELF}"):  # the device's message to itself
            self.send(Inbound(message.topic, message.payload, qos=1), asyncio.get_running_loop().time() + 10.0)
        self._heard(message, asyncio.get_running_loop().time())

    def left(self, connection: SimConnection) -> None:
        """A connection is gone; whoever did not say goodbye left a will."""
        if self.connection is connection:
            self.connection = None
            if connection.will is not None and not connection.said_goodbye:
                self.retained[connection.will.topic] = connection.will

    def held_messages(self) -> list[Inbound]:
        """What the device did not acknowledge."""
        return [held.message for held in self._inflight.values()]

    def break_connection(self, forget_session: bool = False) -> None:
        """The connection ends here and now; a broker that lost its state forgets the session, too."""
        if forget_session:
            self._session = False
            self._queue.clear()
            self._inflight.clear()
        if self.connection is not None:
            self.connection.lose(Reason("transient", "the connection was reset"))

    @property
    def unacknowledged(self) -> int:
        """Messages the device has and did not acknowledge."""
        return len(self._inflight)


class SimConnection:
    """See `mqtt.connection.Connection`: one connection, used once."""

    def __init__(
        self,
        broker: SimBroker,
        dice: Random,
        listener: ConnectionListener,
        epoch: int,
        will: Outbound | None,
        process: Process,
    ) -> None:
        self._broker = broker
        self.will = will
        self._process = process
        self.version = 5
        self.said_goodbye = False
        # Whatever was sent on it arrived.
        self.never_troubled = True
        self._dice = dice
        self._listener = listener
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[Reason] = self._loop.create_future()
        self.congested = False
        self.subscribed = False
        self.mute_since_s: float | None = None
        self._reading = True
        self._unread: deque[tuple[int, Inbound, float]] = deque(maxlen=QUEUE_MESSAGES)
        self._latency_s = dice.choice((0.0003, 0.002, 0.05))
        self._busy_until_s = 0.0
        self._mid = 0

    async def open(self) -> ConnAck | Reason:
        """See `Connection.open`."""
        self._process.effect()
        await asyncio.sleep(self._latency_s)
        if not self._broker.up:
            if self._dice.random() < 0.3:
                await asyncio.sleep(5.0)
            reason = Reason("transient", "the connection was refused")
            self.lose(reason)
            return reason
        present = self._broker.welcome(self)
        # A session that is still there is subscribed already, and the broker does not wait.
        if present:
            self._later(self._subscribed)
        return ConnAck(present, self._dice.choice((20, 64, 65_535)), None, 5)

    def _subscribed(self) -> None:
        self.subscribed = True
        self._broker.flush()

    async def subscribe(self, wanted: Sequence[Subscription], timeout_s: float) -> list[tuple[Subscription, str]]:
        """See `Connection.subscribe`."""
        await asyncio.sleep(2 * self._latency_s)
        if self.closed.done():
            raise ConnectionError("the connection has ended")
        self._later(self._subscribed)
        return []

    def publish(self, message: Outbound) -> int | None:
        """See `Connection.publish`."""
        self._process.effect()
        if self.closed.done():
            return None
        self._mid = self._mid % 65_000 + 1
        self._broker.took(message)
        if message.qos and self.mute_since_s is None:
            code = REFUSED if self._broker.refuses_events and message.keep == "disk" else 0
            self._later(lambda mid=self._mid: self._listener.acknowledged(mid, code, "not authorized" if code else ""))
        return self._mid

    def ack(self, mid: int) -> None:
        """See `Connection.ack`."""
        self._process.effect()
        if not self.closed.done() and self.mute_since_s is None:
            self._broker.acknowledged(mid)

    def pause_reading(self) -> None:
        """See `Connection.pause_reading`."""
        self._reading = False

    def resume_reading(self) -> None:
        """See `Connection.resume_reading`."""
        self._reading = True
        while self._unread and self._reading and not self.closed.done():
            self._arrive(*self._unread.popleft())

    def keep_alive(self) -> None:
        """See `Connection.keep_alive`."""
        if self.mute_since_s is not None and self._loop.time() - self.mute_since_s > KEEPALIVE_S:
            self.lose(Reason("transient", "no answer to PINGREQ", silent=""))

    async def close(self, timeout_s: float) -> None:
        """See `Connection.close`."""
        await asyncio.sleep(self._latency_s)
        self.said_goodbye = not self.closed.done() and self.mute_since_s is None
        self.drop()

    def drop(self) -> None:
        """See `Connection.drop`."""
        self.lose(Reason("transient", "the connection was closed here"))

    def lose(self, reason: Reason) -> None:
        """See `Connection.lose`."""
        if not self.closed.done():
            self.closed.set_result(reason)
        self._broker.left(self)

    # ---- the simulation's side -------------------------------------------------------------------------------------

    def carry_in(self, mid: int, held: Held) -> None:
        """A message travels to the device, with the expiry that is left of it as it leaves the broker."""
        left_s = held.due_s - self._loop.time()
        self._later(lambda: self._arrive(mid, held.message, left_s))

    def congest(self, seconds: float) -> None:
        """The socket takes nothing for a while."""
        self.congested = True
        self.never_troubled = False
        self._loop.call_later(seconds, self._relieve)

    def _relieve(self) -> None:
        self.congested = False
        if not self.closed.done() and not self._process.dead:
            self._listener.writable()

    def _arrive(self, mid: int, sent: Inbound, left_s: float) -> None:
        if not self._reading:
            self._unread.append((mid, sent, left_s))
            return
        ack = self._epoch * 65_536 + mid if mid else None
        message = replace(sent, ack=ack, expiry_s=left_s, received_s=self._loop.time())
        self._broker.delivered(message)
        self._listener.received(message)

    def _later(self, what: Callable[[], None]) -> None:
        """In order, after the latency; never on a connection that has ended or gone mute."""
        self._busy_until_s = max(self._loop.time() + self._latency_s, self._busy_until_s + 1e-5)
        self._loop.call_at(self._busy_until_s, self._unless_gone, what)

    def _unless_gone(self, what: Callable[[], None]) -> None:
        if not self.closed.done() and self.mute_since_s is None and not self._process.dead:
            what()
