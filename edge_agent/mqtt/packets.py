"""Conversions between our values and paho's: client, credentials, messages, and the properties of a PUBLISH.

The MQTT 5 properties of a PUBLISH (MQTT 5, 2.2.2 and 3.3.2.3) are packed and unpacked here. paho does it too, at some
0.2 ms a direction on a fast desktop, which is more than the rest of a request's way through the agent
(docs/decisions/0052). Tests compare both with paho's.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.base.limits import KIB, MESSAGE_BYTES, RECEIVE_MAXIMUM
from edge_agent.base.named_file import open_named
from edge_agent.mqtt.options import MqttOptions, TlsOptions
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Subscription

USER_PROPERTIES = 16

_FORMAT, _EXPIRY, _CONTENT_TYPE, _RESPONSE, _CORRELATION = 0x01, 0x02, 0x03, 0x08, 0x09
_SUBSCRIPTION, _ALIAS, _USER = 0x0B, 0x23, 0x26


_Value = int | str | bytes | tuple[str, str]


class PublishProperties(NamedTuple):
    """What a PUBLISH of MQTT 5 says beside topic and body; absent ones are None."""

    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    user: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default; never written to


class PackedProperties:
    """Properties in the form that paho asks for: something that packs itself."""

    def __init__(self, message: Outbound) -> None:
        self._bytes = pack(message)

    def pack(self) -> bytes:
        """Length and properties."""
        return self._bytes


def pack(message: Outbound) -> bytes:
    """The property length and the properties of a message."""
    parts: list[bytes] = []
    if message.expiry_s is not None:
        parts.append(struct.pack("!BI", _EXPIRY, math.ceil(max(1.0, message.expiry_s))))
    if message.content_type is not None:
        parts.append(b"\x03" + _string(message.content_type))
    if message.response_topic is not None:
        parts.append(b"\x08" + _string(message.response_topic))
    if message.correlation is not None:
        parts.append(struct.pack("!BH", _CORRELATION, len(message.correlation)) + message.correlation)
    parts.extend(b"\x26" + _string(key) + _string(value) for key, value in message.user.items())
    body = b"".join(parts)
    return _varint(len(body)) + body


def packet_bytes(message: Outbound, version: int, payload_bytes: int | None = None) -> int:
    """Bytes of the PUBLISH of a message (MQTT 5, 3.3), or of one with a body of `payload_bytes`, in this version."""
    variable = 2 + len(message.topic.encode()) + (2 if message.qos else 0)
    variable += len(pack(message)) if version == 5 else 0
    variable += len(message.payload) if payload_bytes is None else payload_bytes
    return 1 + len(_varint(variable)) + variable


def subscribe_bytes(one: Subscription, version: int) -> int:
    """Bytes of the SUBSCRIBE of one filter (MQTT 5, 3.8)."""
    return 2 + 2 + (1 if version == 5 else 0) + 2 + len(one.topic_filter.encode()) + 1


def unpack(data: bytes) -> tuple[PublishProperties, int]:
    """Properties at the start of `data`, and how many bytes they take. Raises ValueError for a malformed one."""
    length, at = _read_varint(data, 0)
    end = at + length
    if end > len(data):
        raise ValueError("the properties are longer than the packet")
    found: dict[int, _Value] = {}
    user: dict[str, str] = {}
    pairs = 0
    while at < end:
        kind = data[at]
        value, at = _read(kind, data, at + 1)
        if isinstance(value, tuple):
            if pairs < USER_PROPERTIES:
                # One name may come several times (3.3.2.3.7): joined as HTTP joins its headers.
                user[value[0]] = f"{user[value[0]]},{value[1]}" if value[0] in user else value[1]
            pairs += 1
        elif kind in found and kind != _SUBSCRIPTION:
            raise ValueError("a property stands twice")
        else:
            found[kind] = value
    if at != end:
        raise ValueError("a property is cut off")
    expiry = found.get(_EXPIRY)
    known = (found.get(_CONTENT_TYPE), found.get(_RESPONSE), found.get(_CORRELATION))
    return PublishProperties(*known, None if expiry is None else float(expiry), user), end  # type: ignore[arg-type]


def _read(kind: int, data: bytes, at: int) -> tuple[_Value, int]:
    try:
        if kind in (_CONTENT_TYPE, _RESPONSE):
            return _read_string(data, at)
        if kind == _EXPIRY:
            return struct.unpack_from("!I", data, at)[0], at + 4
        if kind == _CORRELATION:
            end = at + 2 + struct.unpack_from("!H", data, at)[0]
            return data[at + 2 : end], end
        if kind == _USER:
            key, at = _read_string(data, at)
            value, at = _read_string(data, at)
            return (key, value), at
        if kind == _FORMAT:
            return data[at], at + 1
        if kind == _ALIAS:
            return struct.unpack_from("!H", data, at)[0], at + 2
        if kind == _SUBSCRIPTION:
            return _read_varint(data, at)
    except (struct.error, IndexError) as error:
        raise ValueError("a property is cut off") from error
    raise ValueError(f"a PUBLISH has no property 0x{kind:02X}")


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int(struct.unpack_from("!H", data, at)[0])
    return data[at + 2 : end].decode(), end


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a length makes no sense")


# A broker silently discards what is above our Maximum Packet Size. It is set well above the size that is accepted, so
# that a message between the two is answered with 413.
MAX_PACKET_BYTES = 2 * MESSAGE_BYTES + 8 * 1024
_VERSIONS = {5: MQTTProtocolVersion.MQTTv5, 4: MQTTProtocolVersion.MQTTv311}


READ_BYTES = 64 * KIB


class FastClient(Client):
    """paho's client, except that `read_publish` decodes a PUBLISH and that the socket is read in large pieces.

    It overrides private names of paho. Should a later release remove them, paho calls `on_message` and reads by itself,
    which is slower; a test covers that path.
    """

    on_publish_packet: Callable[[int, bytes], None] | None = None
    _received = b""
    _read_bytes = 0
    _held = False

    @property
    def buffered(self) -> bool:
        """True while bytes were read from the socket and not yet looked at."""
        return self._read_bytes < len(self._received)

    def hold(self, held: bool) -> None:
        """While held, no further packet is begun; paho reads several in one call."""
        self._held = held

    def _sock_recv(self, bufsize: int) -> bytes:
        """paho asks for the first bytes of a packet one by one, and each would be a system call."""
        if self._held and not self._in_packet["command"]:
            raise BlockingIOError
        if not self.buffered:
            self._received, self._read_bytes = super()._sock_recv(READ_BYTES), 0
        data = self._received[self._read_bytes : self._read_bytes + bufsize]
        self._read_bytes += len(data)
        return data

    def _handle_publish(self) -> MQTTErrorCode:
        if self.on_publish_packet is None:
            return super()._handle_publish()
        packet = self._in_packet
        self.on_publish_packet(packet["command"], bytes(packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        """As in paho, but a socket whose handshake fails is closed instead of being left to the garbage collector."""
        if self._ssl_context is None:
            return super()._ssl_wrap_socket(tcp_sock)
        sock = self._ssl_context.wrap_socket(tcp_sock, server_hostname=self._host, do_handshake_on_connect=False)
        try:
            sock.settimeout(self.connect_timeout)
            sock.do_handshake()
        except OSError:
            sock.close()
            raise
        return sock


class LastErrorLogger:
    """A logger for paho that keeps the last error: paho reports what a socket raised nowhere else.

    `text` is the logged line, `cause` the OSError in it.
    """

    def __init__(self) -> None:
        self.text: str | None = None
        self.cause: OSError | None = None

    def log(self, level: int, text: str, *args: object) -> None:
        """See `logging.Logger.log`."""
        if level >= logging.ERROR:
            self.text = (text % args)[:200]
            self.cause = next((one for one in args if isinstance(one, OSError)), None)


def make_client(options: MqttOptions, version: int, will: Outbound | None) -> FastClient:
    """A paho client without automatic reconnect or acknowledgement. `version` is 5 or 4 (which is 3.1.1)."""
    clean = options.session_expiry_s == 0
    client = FastClient(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if version == 5 else clean,
        protocol=_VERSIONS[version],
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = options.connect_timeout_s
    # `transport` keeps the window (the broker's Receive Maximum), so paho must never hold a message back.
    client.max_inflight_messages_set(0)
    if will is not None:
        properties = _will_properties(will) if version == 5 else None
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
    if version == 5:
        client.connect_async(
            options.host,
            options.port,
            options.keepalive_s,
            clean_start=clean,
            properties=_connect_properties(options),
        )
    else:
        client.connect_async(options.host, options.port, options.keepalive_s)
    return client


def set_credentials(client: Client, options: MqttOptions) -> None:
    """Password and certificates, read anew. Raises OSError or ValueError. Blocks: for the dialling thread."""
    if options.username is not None:
        password = options.password
        if options.password_file is not None:
            with open_named(Path(options.password_file)) as file:
                password = file.read().decode("utf-8").strip("\r\n")
        client.username_pw_set(options.username, password)
    if options.tls is not None:
        client.tls_set_context(_tls_context(options.tls))


def inbound(
    topic: bytes, payload: bytes, flags: int, said: PublishProperties, ack: int | None, now_s: float
) -> Inbound | None:
    """A received message as a value; None when its topic is not UTF-8. `flags` is the packet's first byte."""
    try:
        name = topic.decode()
    except UnicodeDecodeError:
        return None
    return Inbound(
        topic=name,
        payload=payload,
        qos=(flags >> 1) & 3,
        retained=bool(flags & 1),
        content_type=said.content_type,
        response_topic=said.response_topic,
        correlation=said.correlation,
        expiry_s=said.expiry_s,
        user=said.user,
        ack=ack,
        received_s=now_s,
    )


def read_publish(flags: int, body: bytes, version: int) -> tuple[bytes, int, PublishProperties, bytes]:
    """Topic, packet id (0 for QoS 0), properties and payload of a PUBLISH. Raises ValueError for a malformed one.

    MQTT 5, 3.3; 3.1.1 is the same without properties.
    """
    try:
        at = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:at]
        mid = 0
        if flags & 0x06:
            mid = int(struct.unpack_from("!H", body, at)[0])
            at += 2
    except struct.error as error:
        raise ValueError("a PUBLISH is cut off") from error
    if at > len(body):
        raise ValueError("a PUBLISH is cut off")
    if version != 5:
        return topic, mid, PublishProperties(), body[at:]
    said, length = unpack(body[at:])
    return topic, mid, said, body[at + length :]


def subscribe_argument(wanted: Sequence[Subscription], version: int) -> list[tuple[str, Any]]:
    """The subscriptions in the form that paho's `subscribe` takes for this protocol version."""
    if version != 5:
        return [(one.topic_filter, one.qos) for one in wanted]
    return [
        (
            one.topic_filter,
            SubscribeOptions(
                qos=one.qos,
                retainAsPublished=one.keep_retain,
                retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
                if one.replay
                else SubscribeOptions.RETAIN_DO_NOT_SEND,
            ),
        )
        for one in wanted
    ]


def _connect_properties(options: MqttOptions) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = options.session_expiry_s
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


def _will_properties(will: Outbound) -> Properties:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    if will.content_type is not None:
        properties.ContentType = will.content_type
    return properties


def _tls_context(tls: TlsOptions) -> ssl.SSLContext:
    for path in filter(None, (tls.ca_file, tls.cert_file, tls.key_file)):
        # Opened first, because an error of the ssl module does not name the file.
        open_named(Path(path)).close()
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.ca_file is not None:
        # Python 3.13 made strict RFC 5280 checks the default. Private authorities (`openssl x509 -req`, in most broker
        # guides) leave out what it asks for; signature, dates and host name are checked as before.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context
