"""Which messages this broker can be sent: its Maximum Packet Size to the byte, and what has ended connections.

A broker of MQTT 5 names its limit in CONNACK. One of 3.1.1 cannot: it ends the connection when a packet is too large,
and so do brokers that do not permit a topic. `outbox` finds out which message it was; here is kept what follows from
it. Nothing of half its size or more is sent on its topic. Where it had more than 1 KiB, and more than whatever this
broker has taken before, nothing is sent on any topic that has more than the next power of two below: limits are set to
those, and a message that is a little smaller each time must not end three connections each time. That holds for a day,
since a broker's settings change; for ten minutes where the message answered a client, who may have chosen a topic that
the broker hangs up on.

Pure: no connection, and the time is an argument. A file of its own because the sizes of packets are.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.mqtt.packets import packet_bytes
from edge_agent.protocol.envelope import Outbound

FORGET_S, FORGET_CLIENTS_S = 86_400.0, 600.0
LEAST_BYTES = 1024
"""A packet that is not larger than this ended connections by its topic, not by its size."""
TOPICS_KEPT = 64
PACKET_BYTES_MAX = 268_435_455 + 5
"""The largest packet that MQTT has (1.5.5: a remaining length of four bytes, and the fixed header)."""


@dataclass(frozen=True, slots=True)
class _Learned:
    """A limit that was learned, and until when it holds."""

    packet_bytes: int
    until_s: float


class PacketLimit:
    """The limits of the broker that the transport is connected to."""

    def __init__(self) -> None:
        self._version = 5
        self._named: int | None = None
        self._largest_taken = self._largest_body = 0
        self._learned: _Learned | None = None
        self._topics: dict[str, _Learned] = {}
        self._told: set[str] = set()

    def connected(self, version: int, named: int | None) -> None:
        """A connection began: 5 or 4 (3.1.1), and the Maximum Packet Size of its CONNACK."""
        if named != self._named:
            self._told.clear()
        self._version, self._named = version, named
        if named is not None:
            self._learned = None

    @property
    def packet_bytes(self) -> int | None:
        """The largest packet that the broker takes, None where that is not known."""
        learned = self._learned.packet_bytes if self._learned else None
        known = [one for one in (self._named, learned) if one is not None]
        return min(known, default=None)

    def payload_bytes(self, message: Outbound) -> int:
        """Bytes of body that a message with this topic and these properties may have; negative where not even an empty
        one fits."""
        most = self.packet_bytes
        if most is None:
            return MESSAGE_BYTES
        most = min(most, PACKET_BYTES_MAX)
        room = most - packet_bytes(message, self._version, 0)
        # The length field of an empty packet is shorter than that of a full one, by up to three bytes.
        while room > 0 and packet_bytes(message, self._version, room) > most:
            room -= 1
        return min(MESSAGE_BYTES, room)

    def refuses(self, message: Outbound, now_s: float) -> str | None:
        """Why a message cannot be sent to this broker; None where it can."""
        if self._learned is not None and self._learned.until_s <= now_s:
            self._learned = None
        most = self.packet_bytes
        if most is None and not self._topics and len(message.payload) <= MESSAGE_BYTES:
            return None
        size = packet_bytes(message, self._version)
        if most is not None and size > most:
            how = "the broker takes packets of at most" if self._named is not None else "longer ones ended connections,"
            return f"it has {size:,} bytes as a packet, {how} {most:,} (max_packet_size or message_size_limit)"
        if len(message.payload) > MESSAGE_BYTES:
            return f"it has {len(message.payload):,} bytes, at most {MESSAGE_BYTES:,} are sent"
        known = self._topics.get(message.topic)
        if known is not None and known.until_s <= now_s:
            del self._topics[message.topic]
        elif known is not None and size >= known.packet_bytes:
            return "messages like it ended the connection again and again (is its topic in the broker's access list?)"
        return None

    def first_time(self, topic: str) -> bool:
        """Whether nobody was told yet that a message on this topic does not fit. A state's topic is told once."""
        if topic in self._told or len(self._told) >= TOPICS_KEPT:
            return False
        self._told.add(topic)
        return True

    def took(self, message: Outbound) -> None:
        """The broker has acknowledged this message."""
        if len(message.payload) > self._largest_body:
            self._largest_body = len(message.payload)
            self._largest_taken = max(self._largest_taken, packet_bytes(message, self._version))

    def ended_connections(self, message: Outbound, now_s: float) -> None:
        """This message, alone on its way, was there when connections ended."""
        size = packet_bytes(message, self._version)
        until_s = now_s + (FORGET_S if message.client is None else FORGET_CLIENTS_S)
        if size > max(self._largest_taken, LEAST_BYTES):
            below = 1 << (size - 1).bit_length() - 1
            self._learned = _Learned(max(self._largest_taken, below), until_s)
        if len(self._topics) >= TOPICS_KEPT:
            del self._topics[next(iter(self._topics))]
        self._topics[message.topic] = _Learned(size // 2, until_s)
