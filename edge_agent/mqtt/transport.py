"""The Transport port over MQTT: connects, and connects again after every failure.

One task connects, waits for the end of the connection, and connects again. It keeps a bounded inbox and a bounded
outbox, a window of unacknowledged messages as wide as the broker allows, and for events a spool on disk. A change is
reported once, when it happens, to the log and to the listener; being offline is not a failure.

Not here: packets and sockets (`connection`), what to do about a failure (`reconnect`), what messages mean (`protocol`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from edge_agent.base.limits import INBOX_BYTES, INBOX_MESSAGES, INFLIGHT_MESSAGES, MESSAGE_BYTES
from edge_agent.mqtt.connection import ConnAck, Connection
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.outbox import Outbox, Waiting
from edge_agent.mqtt.reconnect import Reason, Retry
from edge_agent.mqtt.spool import Spool
from edge_agent.protocol.envelope import NO_LISTENER, Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.topics import Subscription

log = logging.getLogger(__name__)

TICK_S = 1.0
SUBACK_S = 10.0
FINAL_MESSAGES_S = 2.0
DISCONNECT_S = 1.0
# A packet is topic, properties and body; this much is left for the first two when a broker limits packets.
PACKET_OVERHEAD_BYTES = 2048
# A spooled event that the broker refused is tried again after so long: its access list may have been corrected.
REFUSED_EVENT_S = 60.0


# MQTT 5's reason code "No matching subscribers" in a PUBACK: the broker took the message and delivers it to nobody.
NO_MATCHING_SUBSCRIBERS = 0x10


class MqttTransport:
    """Implements `agent.ports.Transport`. Everything happens inside one event loop, its construction too.

    `will` is what the broker publishes when the connection breaks. `spool` keeps what is published with keep='disk'.
    """

    def __init__(
        self,
        options: MqttOptions,
        subscriptions: Sequence[Subscription] = (),
        will: Outbound | None = None,
        *,
        spool: Spool | None = None,
        random01: Callable[[], float] = random.random,
    ) -> None:
        self._options = options
        self._subscriptions = tuple(subscriptions)
        self._will = will
        self._listener = NO_LISTENER
        self._random01 = random01
        self._spool = spool
        self._retry = Retry(options)
        self._outbox = Outbox()
        self._inbox = Inbox(self._resume)
        # By packet id: what is on its way, or the spool's token of an event.
        self._inflight: dict[int, Waiting | int] = {}
        self._connection: Connection | None = None
        self._connack: ConnAck | None = None
        self._epoch = 0
        self._subscribed = False
        self._said: tuple[bool, str] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ticked_s = 0.0
        self._event_sent = False
        self._events_held_until_s = 0.0
        self.publish_failures = 0

    @property
    def connected(self) -> bool:
        """True from CONNACK and SUBACK until the connection ends."""
        return self._connack is not None

    @property
    def events_waiting(self) -> int:
        """Events on disk that the broker has not acknowledged yet."""
        return 0 if self._spool is None else len(self._spool)

    @property
    def events_lost(self) -> int:
        """Events that were given up since the start: the spool was full, or the disk failed."""
        return 0 if self._spool is None else self._spool.lost

    @property
    def max_payload_bytes(self) -> int:
        """The largest body that can be sent now: our own limit, or the broker's if that is smaller."""
        packet = self._connack.max_packet_bytes if self._connack else None
        return MESSAGE_BYTES if packet is None else max(1024, min(MESSAGE_BYTES, packet - PACKET_OVERHEAD_BYTES))

    def alive(self) -> bool:
        """Whether the transport's tasks still run, connected or not; for the watchdog."""
        running = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return running and asyncio.get_running_loop().time() - self._ticked_s < 10 * TICK_S

    async def start(self, listener: LinkListener = NO_LISTENER) -> None:
        """Start connecting, and reconnecting for ever with full jitter; returns at once. `listener` is called from now
        on."""
        self._listener = listener
        self._ticked_s = asyncio.get_running_loop().time()
        own = {"link": self._run(), "tick": self._tick(), "sync": self._sync()}
        self._tasks = [asyncio.create_task(work, name=f"mqtt-{name}") for name, work in own.items()]

    def messages(self) -> AsyncIterator[Inbound]:
        """Messages in order of arrival; ends after `stop`."""
        return self._inbox.stream()

    def ack(self, message: Inbound) -> None:
        """Acknowledge a QoS 1 message. For one of an earlier connection nothing is sent: the broker has forgotten its
        packet id and will deliver it again."""
        if message.ack is None or self._connection is None:
            return
        epoch, mid = divmod(message.ack, 65_536)
        if epoch == self._epoch and not self._connection.closed.done():
            self._connection.ack(mid)

    def publish(self, message: Outbound) -> bool:
        """Queue a message without waiting. It is sent now or, as `keep` says, later.

        False when there is no room or it can never be sent (larger than the broker takes).
        """
        if len(message.payload) > self.max_payload_bytes:
            return False
        if message.keep == "disk" and self._spool is not None:
            self._spool.append(message)
            taken = True
        else:
            taken = self._outbox.put(message, self._now_s())
        self._pump()
        return taken

    async def stop(self, last_words: Sequence[Outbound]) -> None:
        """Publish `last_words`, wait a bounded time for them, disconnect cleanly (which suppresses the will)."""
        for message in last_words:
            self.publish(message)
        if self.connected:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained(), FINAL_MESSAGES_S)
        for task in self._tasks:
            task.cancel()
        if self._connection is not None:
            await self._connection.close(DISCONNECT_S)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end_connection()
        if self._spool is not None:
            self._spool.close()
        self._inbox.close()

    # ---- connecting ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            began_s = self._now_s()
            reason, lasted_s = await self._connect_once()
            told = self._retry.explain(reason, lasted_s)
            self._report(LinkChange(False, told.kind, str(told), detail=told.detail))
            pause_s = self._retry.pause_s(reason, lasted_s, self._random01())
            log.debug("dialling again in %.1f s (last attempt took %.1f s)", pause_s, self._now_s() - began_s)
            await asyncio.sleep(pause_s)

    async def _connect_once(self) -> tuple[Reason, float]:
        """One connection from connecting to its end: why it ended, and for how many seconds it was up."""
        self._epoch += 1
        connection = Connection(self._options, self._retry.version, self._will, self, self._epoch)
        self._connection = connection
        answer = await connection.open()
        if isinstance(answer, Reason):
            return answer, 0.0
        self._retry.connected()
        since_s = self._now_s()
        try:
            self._begin(answer, await self._subscribe(connection, answer))
            # Not `await connection.closed`: a cancelled task would cancel that future with it.
            await asyncio.wait({connection.closed})
        except asyncio.TimeoutError:
            connection.lose(Reason("transient", "the broker does not answer to SUBSCRIBE"))
        except ConnectionError:
            pass  # It ended while we subscribed; `closed` says why.
        connection.drop()
        reason = connection.closed.result()
        self._end_connection()
        return reason, max(self._now_s() - since_s, 1e-6)

    def _begin(self, connack: ConnAck, refused: Sequence[str]) -> None:
        self._connack = connack
        note = f"; the broker refuses subscriptions, check its access list: {', '.join(refused)}" if refused else ""
        where = f"{self._options.host}:{self._options.port}"
        version = "MQTT 5" if connack.version == 5 else "MQTT 3.1.1"
        text = f"connected to {where} with {version}{note}"
        self._report(LinkChange(True, "subscription-refused" if refused else "connected", text, connack.version))
        self._pump()

    async def _subscribe(self, connection: Connection, connack: ConnAck) -> list[str]:
        if not self._subscriptions or (connack.session_present and self._subscribed):
            return []
        refused = await connection.subscribe(self._subscriptions, SUBACK_S)
        self._subscribed = not refused
        return refused

    def _end_connection(self) -> None:
        """Return unacknowledged messages to the front of the outbox, to be sent again unless they have expired."""
        self._connection = None
        self._connack = None
        unsent = [item for item in self._inflight.values() if isinstance(item, Waiting)]
        self._inflight.clear()
        self._event_sent = False
        self._events_held_until_s = 0.0
        lost = self._outbox.lost
        for item in self._outbox.returned(unsent):
            log.warning("a message on %s is given up: the connection broke each time it was sent", item.message.topic)
        if self._outbox.lost > lost:
            log.warning("%d messages were lost with the connection: the outbox is full", self._outbox.lost - lost)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._ticked_s = self._now_s()
            self._outbox.drop_late(self._ticked_s)
            if self._connection is not None:
                self._connection.keep_alive()
            self._pump()

    async def _sync(self) -> None:
        """Sync events to the disk in a thread: an SD card that stalls for seconds must not break the connection."""
        said = None
        while True:
            await asyncio.sleep(TICK_S)
            if self._spool is None:
                continue
            if self._spool.trouble != said:
                said = self._spool.trouble
                log.warning("%s", said or "events go to the disk again")
            if unsynced := self._spool.take_unsynced():
                await asyncio.to_thread(Spool.sync, unsynced)

    def _report(self, change: LinkChange) -> None:
        """Log and report a change, unless it repeats the last one."""
        if self._said == (change.connected, change.text):
            return
        self._said = (change.connected, change.text)
        level = logging.INFO if change.kind == "connected" else logging.WARNING
        log.log(level, "%s", change.text if change.connected else f"no broker: {change.text}")
        self._listener.changed(change)

    # ---- sending ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        connection, connack = self._connection, self._connack
        if connection is None or connack is None:
            return
        most = min(INFLIGHT_MESSAGES, connack.receive_maximum)
        while not connection.congested and not connection.closed.done():
            window = 1 if self._outbox.suspicious else most
            item = self._outbox.take(self._now_s(), qos1=len(self._inflight) < window)
            if item is None:
                break
            mid = connection.publish(item.fresh(self._now_s()))
            if mid is None:
                self._outbox.put_back([item])
                break
            if item.message.qos:
                self._inflight[mid] = item
        self._pump_events(connection, most)

    def _pump_events(self, connection: Connection, window: int) -> None:
        """Send one spooled event at a time, oldest first. It leaves the disk when the broker has acknowledged it."""
        if self._spool is None or self._event_sent or len(self._inflight) >= window or connection.closed.done():
            return
        event = None if self._now_s() < self._events_held_until_s else self._spool.oldest()
        if event is not None and (mid := connection.publish(event[1])) is not None:
            self._inflight[mid] = event[0]
            self._event_sent = True

    async def _drained(self) -> None:
        while self.connected and (len(self._outbox) or self._inflight):
            self._pump()
            await asyncio.sleep(0.005)

    # ---- connection.ConnectionListener ------------------------------------------------------------------------------

    def received(self, message: Inbound) -> None:
        """See `connection.ConnectionListener`."""
        self._inbox.put(message)
        if self._inbox.full and self._connection is not None:
            self._connection.pause_reading()

    def acknowledged(self, mid: int, code: int, name: str) -> None:
        """See `connection.ConnectionListener`."""
        if mid not in self._inflight:
            return
        item = self._inflight.pop(mid)
        failed = code >= 0x80
        if failed:
            self._say_failure(item, f"{name} (0x{code:02X})")
        if isinstance(item, int) and self._spool is not None:
            self._event_sent = False
            if failed:
                self._events_held_until_s = self._now_s() + REFUSED_EVENT_S
            else:
                self._spool.pop(item)
        elif code and isinstance(item, Waiting):
            nobody = code == NO_MATCHING_SUBSCRIBERS
            self._listener.undelivered(item.message, "nobody listens there" if nobody else name)
        self._pump()

    def writable(self) -> None:
        """See `connection.ConnectionListener`."""
        if len(self._outbox):
            self._pump()

    def _say_failure(self, item: Waiting | int, failure: str) -> None:
        topic = item.message.topic if isinstance(item, Waiting) else "the event topic"
        self.publish_failures += 1
        level = logging.WARNING if self.publish_failures == 1 else logging.DEBUG
        log.log(level, "the broker refuses a message on %s: %s (check its access list)", topic, failure)

    def _resume(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


class Inbox:
    """Received messages that were not yet taken, bounded by number and by bytes; one reader, inside the event loop.

    When it is full the transport stops reading the socket: TCP and the broker's queue hold the rest back, and nothing
    is dropped. `on_room` is called when it has room again.
    """

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
