"""One connection to the broker, from CONNECT to its end, over one paho client that is used once.

paho's thread, its reconnecting and its queue of unacknowledged messages are not used: the event loop watches the socket
(docs/decisions/0050), and unacknowledged messages return to the outbox (0051). Only name resolution, TCP connect and
TLS handshake block; they run in a thread of their own that ends after them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.mqtt import packets, reconnect
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.packets import PackedProperties, PublishProperties, unpack
from edge_agent.mqtt.reconnect import Reason
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Subscription

# Bytes handed to paho and not yet written to the socket, above which the outbox keeps its messages to itself.
UNWRITTEN_BYTES = 256 * 1024
# Packets that are read before the event loop does something else.
PACKETS_AT_ONCE = 64
# How long a broker may take from CONNECT to CONNACK.
CONNACK_S = 5.0
# What paho's parsers and ours raise on a malformed packet; it ends the connection, and the transport reconnects.
_MALFORMED = (MQTTException, ValueError, LookupError, TypeError, AssertionError, struct.error, OSError)


@dataclass(frozen=True, slots=True)
class ConnAck:
    """What the broker grants in its CONNACK. `max_packet_bytes` is None where it names no limit."""

    session_present: bool
    receive_maximum: int
    max_packet_bytes: int | None
    version: int


class ConnectionListener(Protocol):
    """Receives the events of a connection, always inside the event loop."""

    def received(self, message: Inbound) -> None:
        """A message arrived; its `ack` is the connection's epoch * 65,536 + the packet id, for QoS 1."""

    def acknowledged(self, mid: int, code: int, name: str) -> None:
        """PUBACK: the broker has a QoS 1 message, or refuses it (`code` of 0x80 and above; `name` is its text)."""

    def writable(self) -> None:
        """The socket accepted everything that was waiting."""


class Connection:
    """Use once: `open`, then `publish`, `ack`, `subscribe` while `closed` is not done, then `close` or `drop`."""

    def __init__(
        self, options: MqttOptions, version: int, will: Outbound | None, listener: ConnectionListener, epoch: int
    ) -> None:
        self.version = version
        self._epoch = epoch
        self._options = options
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[ConnAck | Reason] = self._loop.create_future()
        self._dialled: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[Reason] = self._loop.create_future()
        self._subacks: dict[int, asyncio.Future[Sequence[ReasonCode]]] = {}
        self._sock: socket.socket | None = None
        self._watched: int | None = None
        self._reading = False
        self._read_planned = False
        self._flush_planned = False
        self._dropped = False
        self._unwritten = 0
        self._last_error = packets.LastErrorLogger()
        self._client = self._make_client(will)

    @property
    def congested(self) -> bool:
        """True while more than `UNWRITTEN_BYTES` handed to paho are not yet in the socket."""
        return self._unwritten > UNWRITTEN_BYTES

    async def open(self) -> ConnAck | Reason:
        """Connect and wait for CONNACK; a Reason when the broker refuses or does not answer in time."""
        threading.Thread(target=self._dial, name="mqtt-dial", daemon=True).start()
        try:
            # Name resolution, connect and handshake have timeouts of their own; the first wait bounds their sum.
            await asyncio.wait({self._dialled}, timeout=3 * self._options.connect_timeout_s)
            await asyncio.wait({self._opened}, timeout=CONNACK_S if self._dialled.done() else 0)
        except asyncio.CancelledError:
            self.drop()
            raise
        self._settle(
            Reason("transient", "no answer to CONNECT", "is it an MQTT broker?", silent="mute", place=self._where)
        )
        answer = self._opened.result()
        if isinstance(answer, Reason):
            self.drop()
        return answer

    async def subscribe(self, wanted: Sequence[Subscription], timeout_s: float) -> list[tuple[Subscription, str]]:
        """Subscribe; returns the filters that the broker refused, with its reason each.

        Raises TimeoutError, or ConnectionError when the connection ends meanwhile."""
        if self.closed.done():
            raise ConnectionError("the connection has ended")
        result, mid = self._client.subscribe(packets.subscribe_argument(wanted, self.version))
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise ConnectionError("not connected")
        future: asyncio.Future[Sequence[ReasonCode]] = self._loop.create_future()
        self._subacks[mid] = future
        codes = await asyncio.wait_for(future, timeout_s)
        pairs = zip(wanted, codes, strict=False)
        return [(sub, code.getName()) for sub, code in pairs if code.is_failure]

    def publish(self, message: Outbound) -> int | None:
        """Hand a message to the socket; returns its id, None when the connection is gone."""
        # paho asks its properties for nothing but `pack`.
        properties = cast("Properties", PackedProperties(message)) if self.version == 5 else None
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        self._unwritten += len(message.payload)
        return info.mid

    def ack(self, mid: int) -> None:
        """Send PUBACK for a QoS 1 message, so that the broker sends the next."""
        self._client.ack(mid, 1)

    def pause_reading(self) -> None:
        """Stop reading; TCP then holds back what arrives."""
        if self._reading and self._watched is not None:
            self._loop.remove_reader(self._watched)
        self._reading = False
        self._client.hold(True)

    def resume_reading(self) -> None:
        """Read again, beginning with what was taken from the socket already."""
        if not self._reading and self._watched is not None:
            self._reading = True
            self._client.hold(False)
            self._loop.add_reader(self._watched, self._on_readable)
            self._plan_reading()

    def keep_alive(self) -> None:
        """To be called about every second: sends PINGREQ when due, and ends the connection when no answer came."""
        if self._watched is not None:
            self._client.loop_misc()

    async def close(self, timeout_s: float) -> None:
        """Send DISCONNECT, which suppresses the will, and wait until it is sent."""
        if not self.closed.done():
            self._client.disconnect()
            await asyncio.wait({self.closed}, timeout=timeout_s)
        self.drop()

    def drop(self) -> None:
        """Close the socket at once; the broker will publish the will."""
        self._dropped = True
        self.lose(Reason("transient", "the connection was closed here"))
        if self._sock is not None:
            self._sock.close()

    def lose(self, reason: Reason) -> None:
        """End the connection for this reason, unless it has ended already."""
        self._unwatch()
        self._settle(reason)
        if not self.closed.done():
            self.closed.set_result(reason)
        for future in self._subacks.values():
            if not future.done():
                future.set_exception(ConnectionError(reason.text))
        self._subacks.clear()

    # ---- the dialling thread ---------------------------------------------------------------------------------------

    def _dial(self) -> None:
        try:
            packets.set_credentials(self._client, self._options)
            self._client.reconnect()
        except (OSError, ValueError, LookupError, ImportError) as error:
            # LookupError: the codec of host names is a module, and the interpreter's folder may have gone.
            self._call_in_loop(self._settle, reconnect.from_error(error, self._where))
        else:
            self._call_in_loop(self._attach)

    def _call_in_loop(self, what: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            # The event loop has ended: nobody waits for this connection any more.
            if self._sock is not None:
                self._sock.close()

    def _on_socket_open(self, _client: Client, _data: Any, sock: Any) -> None:
        if isinstance(sock, socket.socket):
            # Without it a QoS 1 round trip waits 40 to 90 ms for Nagle and the delayed acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock = sock

    # ---- the event loop --------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        if self._dropped or self._sock is None:
            self.drop()
            return
        self._dialled.set_result(None)
        self._watched = self._sock.fileno()
        self.resume_reading()
        self._flush()

    def _on_readable(self) -> None:
        try:
            for _ in range(PACKETS_AT_ONCE):
                if not self._reading:
                    return
                self._client.loop_read()
                if not self._read_ahead():
                    return
        except _MALFORMED as error:
            self.lose(Reason("transient", f"a packet from the broker makes no sense: {type(error).__name__}: {error}"))
        self._plan_reading()

    def _plan_reading(self) -> None:
        if self._reading and not self._read_planned:
            self._read_planned = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._read_planned = False
        self._on_readable()

    def _read_ahead(self) -> bool:
        """Whether there is something to read that the event loop cannot see: bytes in our buffer, or in that of TLS."""
        pending = getattr(self._sock, "pending", None)
        return self._watched is not None and (self._client.buffered or (pending is not None and pending() > 0))

    def _on_want_write(self, *_: object) -> None:
        if self._watched is not None and not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._watched is not None:
            self._client.loop_write()
        # Writing may have found the connection broken: then nothing is watched any more.
        fileno = self._watched
        if fileno is not None and self._client.want_write():
            self._loop.add_writer(fileno, self._flush)
        elif fileno is not None:
            self._loop.remove_writer(fileno)
            self._unwritten = 0
            self._listener.writable()

    def _on_connect(self, _c: Client, _d: Any, flags: ConnectFlags, code: ReasonCode, props: Properties | None) -> None:
        if code.is_failure:
            self._settle(reconnect.from_code(code.value, code.getName()))
            return
        # 65,535 is what the absence of the property means (MQTT 5, 3.2.2.3.3); 3.1.1 has no such limit either.
        receive_maximum = int(getattr(props, "ReceiveMaximum", 65_535))
        max_packet = getattr(props, "MaximumPacketSize", None)
        self._settle(ConnAck(bool(flags.session_present), receive_maximum, max_packet, self.version))

    def _on_disconnect(
        self, _c: Client, _d: Any, flags: DisconnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.lose(reconnect.from_code(code.value, code.getName()))
        else:
            in_tls = self._options.tls is not None and not self._opened.done()
            self.lose(reconnect.from_silence(self._where, self._last_error.text, self._last_error.cause, in_tls))

    def _on_publish_packet(self, flags: int, body: bytes) -> None:
        topic, mid, said, payload = packets.read_publish(flags, body, self.version)
        self._deliver(topic, payload, flags, said, mid)

    def _on_message(self, _c: Client, _d: Any, message: MQTTMessage) -> None:
        """Called by a paho without `_handle_publish` (see `packets.FastClient`)."""
        packed: bytes = message.properties.pack() if message.properties else b"\0"  # type: ignore[no-untyped-call]
        flags = message.qos << 1 | message.retain
        try:
            topic = message.topic.encode()
        except UnicodeDecodeError:
            topic = b"\xff"
        self._deliver(topic, bytes(message.payload), flags, unpack(packed)[0], message.mid)

    def _deliver(self, topic: bytes, payload: bytes, flags: int, said: PublishProperties, mid: int) -> None:
        token = self._epoch * 65_536 + mid if mid else None
        inbound = packets.inbound(topic, payload, flags, said, token, self._loop.time())
        if inbound is not None:
            self._listener.received(inbound)
        elif mid:
            self.ack(mid)

    def _on_publish(self, _c: Client, _d: Any, mid: int, code: ReasonCode, _p: Properties | None) -> None:
        self._listener.acknowledged(mid, code.value, code.getName() if code.value else "")

    def _on_subscribe(self, _c: Client, _d: Any, mid: int, codes: list[ReasonCode], _p: Properties | None) -> None:
        future = self._subacks.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(codes)

    def _on_socket_close(self, *_: object) -> None:
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched is not None:
            if self._reading:
                self._loop.remove_reader(self._watched)
            self._loop.remove_writer(self._watched)
        self._reading = False
        self._watched = None

    def _settle(self, answer: ConnAck | Reason) -> None:
        if not self._dialled.done():
            self._dialled.set_result(None)
        if not self._opened.done():
            self._opened.set_result(answer)

    @property
    def _where(self) -> str:
        return f"{self._options.host}:{self._options.port}"

    def _make_client(self, will: Outbound | None) -> packets.FastClient:
        client = packets.make_client(self._options, self.version, will)
        client.enable_logger(cast("logging.Logger", self._last_error))
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_want_write
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish_packet = self._on_publish_packet
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client
