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
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from edge_agent.base.limits import INFLIGHT_MESSAGES
from edge_agent.mqtt.connection import ConnAck, Connection
from edge_agent.mqtt.inbox import Inbox
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.outbox import RETURNS, Outbox, Waiting
from edge_agent.mqtt.packet_limit import LEAST_BYTES, PacketLimit
from edge_agent.mqtt.packets import subscribe_bytes
from edge_agent.mqtt.reconnect import Reason, Retry
from edge_agent.mqtt.spool import Spool
from edge_agent.mqtt.subscription_monitor import SubscriptionMonitor
from edge_agent.protocol.envelope import NO_LISTENER, Backlog, Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.topics import Subscription

log = logging.getLogger(__name__)

TICK_S = 1.0
SUBACK_S = 10.0
FINAL_MESSAGES_S = 2.0
DISCONNECT_S = 1.0
# A spooled event that the broker refused is tried again after so long: its access list may have been corrected.
REFUSED_EVENT_S = 60.0


# MQTT 5's reason code "No matching subscribers" in a PUBACK: the broker took the message and delivers it to nobody.
NO_MATCHING_SUBSCRIBERS = 0x10


class MqttTransport:
    """Implements `agent.ports.Transport`. Everything happens inside one event loop, its construction too.

    `will` is what the broker publishes when the connection breaks. `spool` keeps what is published with keep='disk'.
    `own_topics` are for messages to itself, which show whether the subscriptions are served; whoever reads the messages
    acknowledges and ignores them.
    """

    def __init__(
        self,
        options: MqttOptions,
        subscriptions: Sequence[Subscription] = (),
        will: Outbound | None = None,
        *,
        spool: Spool | None = None,
        own_topics: Sequence[str] = (),
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
        self._inbox = Inbox(self._resume, lambda: not self._outbox.crowded)
        self._packet_limit = PacketLimit()
        self._monitor = SubscriptionMonitor(self._subscriptions, own_topics)
        self._checking: asyncio.Task[None] | None = None
        # By packet id: what is on its way, or the spool's token of an event.
        self._inflight: dict[int, Waiting | int] = {}
        # States that were sent at QoS 0: a PUBACK for something that was sent later shows that the broker took them.
        self._unproven: dict[str, tuple[int, Waiting]] = {}
        self._connection: Connection | None = None
        self._connack: ConnAck | None = None
        self._epoch = 0
        self._subscribed = False
        self._said: tuple[bool, str] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ticked_s = 0.0
        self._event_sent = False
        # Connections in a row that ended while the oldest event was on its way.
        self._event_returns = 0
        self._events_held_until_s = 0.0
        # The largest message that was on its way when the last connection ended.
        self._on_its_way: str | None = None
        self._unsendable = 0
        self._dropped: dict[str, int] = {}
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
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with the connection although it is up: refused or unserved subscriptions; a sentence each."""
        return self._monitor.troubles if self.connected else ()

    @property
    def nearly_full(self) -> bool:
        """True while so much waits to be sent that no work should be begun that ends in another answer."""
        return self._outbox.nearly_full

    def waiting_of(self, client: str) -> Backlog:
        """The answers that wait to be sent: all, and those to this client."""
        return self._outbox.backlog(client)

    def take_dropped(self) -> dict[str, int]:
        """What was given up since the last call, by cause: see `messages.Telemetry.dropped`."""
        now = {
            "outbox-full": self._outbox.lost,
            "gave-way": self._outbox.displaced,
            "expired-unsent": self._outbox.expired,
            "unread": self._inbox.dropped,
            "unsendable": self._unsendable,
        }
        before, self._dropped = self._dropped, now
        return {cause: count - before.get(cause, 0) for cause, count in now.items() if count > before.get(cause, 0)}

    def payload_limit(self, message: Outbound) -> int:
        """Bytes of body that a message with this topic and these properties may have: our own limit, or what a packet
        of the broker leaves."""
        return self._packet_limit.payload_bytes(message)

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
        if not self._sendable(message):
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
            told = self._retry.explain(reason, lasted_s, self._on_its_way)
            self._report(LinkChange(False, told.kind, str(told), detail=told.detail))
            pause_s = self._retry.pause_s(reason, lasted_s, self._random01())
            log.debug("dialling again in %.1f s (last attempt took %.1f s)", pause_s, self._now_s() - began_s)
            await asyncio.sleep(pause_s)

    async def _connect_once(self) -> tuple[Reason, float]:
        """One connection from connecting to its end: why it ended, and for how many seconds it was up."""
        self._epoch += 1
        self._on_its_way = None
        connection = Connection(self._options, self._retry.version, self._will, self, self._epoch)
        self._connection = connection
        answer = await connection.open()
        if isinstance(answer, Reason):
            return answer, 0.0
        self._retry.connected()
        since_s = self._now_s()
        try:
            self._packet_limit.connected(answer.version, answer.max_packet_bytes)
            if not (answer.session_present and self._subscribed):
                await self._subscribe(connection, self._subscriptions)
                self._subscribed = True
            self._begin(answer)
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

    def _begin(self, connack: ConnAck) -> None:
        self._connack = connack
        self._monitor.connected(self._now_s())
        self._report_connected(connack)
        self._pump()

    def _report_connected(self, connack: ConnAck) -> None:
        troubles = "".join(f"; {text}" for text in self._monitor.troubles)
        where = f"{self._options.host}:{self._options.port}"
        version = "MQTT 5" if connack.version == 5 else "MQTT 3.1.1"
        kind = "subscription-refused" if troubles else "connected"
        self._report(LinkChange(True, kind, f"connected to {where} with {version}{troubles}", connack.version))

    async def _subscribe(self, connection: Connection, wanted: Sequence[Subscription]) -> None:
        """Subscribe, in packets that the broker takes."""
        most = self._packet_limit.packet_bytes
        together = sum(subscribe_bytes(one, connection.version) for one in wanted)
        if not wanted:
            return
        for part in [wanted] if most is None or together <= most else [[one] for one in wanted]:
            self._monitor.subscribed(await connection.subscribe(part, SUBACK_S), part)

    async def _check_subscriptions(self, connection: Connection, connack: ConnAck) -> None:
        """Subscribe again to what was refused or is not served, and send messages to oneself."""
        try:
            await self._subscribe(connection, self._monitor.again())
        except (asyncio.TimeoutError, ConnectionError):
            return  # the connection has ended, or hangs, which PINGREQ finds out
        for topic in self._monitor.begin(self._now_s()):
            self.publish(Outbound(topic, b"{}", content_type=None, expiry_s=10.0))
        self._report_connected(connack)

    def _end_connection(self) -> None:
        """Return unacknowledged messages to the front of the outbox, to be sent again unless they have expired."""
        self._connection = None
        self._connack = None
        self._monitor.disconnected()
        if self._checking is not None:
            self._checking.cancel()
        unsent = [item for item in self._inflight.values() if isinstance(item, Waiting)]
        unsent += [item for _, item in self._unproven.values()]
        largest = max(unsent, key=lambda item: item.size_bytes, default=None)
        if largest is not None and largest.size_bytes > LEAST_BYTES:
            self._on_its_way = f"{largest.message.topic} with {largest.size_bytes:,} bytes"
        self._event_came_back()
        self._inflight.clear()
        self._unproven.clear()
        self._event_sent = False
        self._events_held_until_s = 0.0
        lost = self._outbox.lost
        for item in self._outbox.returned(unsent):
            self._packet_limit.ended_connections(item.message, self._now_s())
            self._give_up(item.message, "the connection broke each time it was sent")
        if self._outbox.lost > lost:
            log.warning("%d messages were lost with the connection: the outbox is full", self._outbox.lost - lost)

    def _event_came_back(self) -> None:
        """The connection ended while an event was on its way: after `RETURNS` times in a row it is given up."""
        token = next((item for item in self._inflight.values() if isinstance(item, int)), None)
        if token is None or self._spool is None:
            return
        self._event_returns += 1
        oldest = self._spool.oldest()
        if self._event_returns >= RETURNS and oldest is not None and oldest[0] == token:
            self._packet_limit.ended_connections(oldest[1], self._now_s())
            self._give_up(oldest[1], "the connection broke each time it was sent")
            self._spool.give_up(token)
            self._event_returns = 0

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._ticked_s = self._now_s()
            self._outbox.drop_late(self._ticked_s)
            if self._connection is not None:
                self._connection.keep_alive()
            self._look_at_subscriptions()
            self._pump()

    def _look_at_subscriptions(self) -> None:
        connection, connack, now_s = self._connection, self._connack, self._now_s()
        if connection is None or connack is None or (self._checking is not None and not self._checking.done()):
            return
        self._monitor.look(now_s)
        self._report_connected(connack)
        if self._monitor.due(now_s):
            work = self._check_subscriptions(connection, connack)
            self._checking = asyncio.create_task(work, name="mqtt-subscriptions")

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
            suspicious = self._outbox.suspicious
            # What may have ended connections goes alone, so that no other pays for it.
            if self._inflight and (suspicious or (self._event_sent and self._event_returns > 1)):
                break
            free = len(self._inflight) < most
            item = self._outbox.take(self._now_s(), qos1=free, hurried=self._inbox.full)
            if item is None:
                break
            if item.message.qos and not free:
                # Acknowledgements come behind the requests that wait for this: it does not wait for one itself.
                item = replace(item, message=replace(item.message, qos=0))
            if suspicious and not item.message.qos:
                # Sent at QoS 1 it is known afterwards whether it was this one.
                item = replace(item, message=replace(item.message, qos=1))
            message = item.fresh(self._now_s())
            if not self._sendable(message):
                continue
            mid = connection.publish(message)
            if mid is None:
                self._outbox.put_back([item])
                break
            if item.message.qos:
                self._inflight[mid] = item
            elif item.message.keep == "latest":
                self._unproven[item.message.topic] = (mid, item)
        self._pump_events(connection, most)
        self._inbox.look_again()

    def _pump_events(self, connection: Connection, window: int) -> None:
        """Send one spooled event at a time, oldest first. It leaves the disk when the broker has acknowledged it."""
        if self._spool is None or self._event_sent or len(self._inflight) >= window or connection.closed.done():
            return
        alone = self._event_returns > 1 or any(
            isinstance(item, Waiting) and item.returns > 1 for item in self._inflight.values()
        )
        if alone and self._inflight:
            return
        event = None if self._now_s() < self._events_held_until_s else self._spool.oldest()
        while event is not None and not self._sendable(event[1]):
            # Written while there was no broker, or another one: it would stand before all others for ever.
            self._spool.give_up(event[0])
            event = self._spool.oldest()
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
        self._monitor.arrived(message.topic)
        connection = self._connection
        self._inbox.put(message)
        # TCP and the broker's queue hold the rest back. While answers fill the outbox and wait for PUBACKs the socket
        # is read on, since those come through it, too. (Refusals do not wait for PUBACKs while the inbox is full.)
        if connection is not None and self._inbox.full and (connection.congested or not self._outbox.nearly_full):
            connection.pause_reading()
            self._pump()

    def acknowledged(self, mid: int, code: int, name: str) -> None:
        """See `connection.ConnectionListener`."""
        if mid not in self._inflight:
            return
        item = self._inflight.pop(mid)
        failed = code >= 0x80
        self._note_taken(mid, item, failed)
        if failed and not (isinstance(item, Waiting) and self._monitor.not_sent(item.message.topic)):
            self._say_failure(item, f"{name} (0x{code:02X})")
        if isinstance(item, int) and self._spool is not None:
            self._event_sent = False
            self._event_returns = 0
            if failed:
                self._events_held_until_s = self._now_s() + REFUSED_EVENT_S
            else:
                self._spool.pop(item)
        elif code and isinstance(item, Waiting):
            nobody = code == NO_MATCHING_SUBSCRIBERS
            if not (nobody and item.message.retain):
                self._listener.undelivered(item.message, "nobody listens there" if nobody else name)
        self._pump()

    def writable(self) -> None:
        """See `connection.ConnectionListener`."""
        if len(self._outbox):
            self._pump()
        if not self._inbox.full:
            self._resume()

    def _note_taken(self, mid: int, item: Waiting | int, failed: bool) -> None:
        """The broker has answered to a message: what was sent before it has arrived, too. Packet ids count up, and
        begin anew after 65,535."""
        for topic in [topic for topic, (sent, _) in self._unproven.items() if (mid - sent) % 65_536 < 32_768]:
            self._outbox.proven(topic)
            del self._unproven[topic]
        if isinstance(item, Waiting) and item.message.keep == "latest":
            self._outbox.proven(item.message.topic)
        if isinstance(item, Waiting) and not failed:
            self._packet_limit.took(item.message)

    def _sendable(self, message: Outbound) -> bool:
        """Whether this broker can be sent the message; where not, that is counted, and said once by its topic."""
        why = self._packet_limit.refuses(message, self._now_s())
        if why is not None:
            self._give_up(message, why)
        return why is None

    def _give_up(self, message: Outbound, why: str) -> None:
        self._unsendable += 1
        # What answers requests is said to those who asked; only what the agent says by itself is reported.
        if self._packet_limit.first_time(message.topic if message.client is None else "answers"):
            log.warning("what is to be sent on %s is given up: %s", message.topic, why)
            if message.keep != "disk":
                self._listener.unsendable(message.topic, why)

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
