"""What a broker can be sent: to the byte, and not again what ended connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.mqtt.packet_limit import FORGET_CLIENTS_S, FORGET_S, PacketLimit
from edge_agent.mqtt.packets import PackedProperties, packet_bytes
from edge_agent.protocol.envelope import Outbound


def limit(named: int | None, version: int = 5) -> PacketLimit:
    found = PacketLimit()
    found.connected(version, named)
    return found


def paho_bytes(message: Outbound, version: int) -> int:
    """Bytes that paho hands to the socket."""
    protocol = MQTTProtocolVersion.MQTTv5 if version == 5 else MQTTProtocolVersion.MQTTv311
    client = Client(CallbackAPIVersion.VERSION2, "x", protocol=protocol)
    properties: Any = PackedProperties(message) if version == 5 else None
    sizes: list[int] = []
    queued: Any = lambda _command, packet, *_: sizes.append(len(packet))  # noqa: E731
    with mock.patch.object(client, "_sock", object()), mock.patch.object(client, "_packet_queue", queued):
        client._send_publish(
            7, message.topic.encode(), message.payload, message.qos, message.retain, False, None, properties
        )
    return sum(sizes)


messages = st.builds(
    Outbound,
    topic=st.text("abc/é", min_size=1, max_size=40),
    payload=st.integers(0, 20_000).map(bytes),
    qos=st.sampled_from((0, 1)),
    correlation=st.none() | st.binary(min_size=1, max_size=20),
    expiry_s=st.none() | st.floats(0.1, 99.0),
    user=st.dictionaries(st.text("ab", min_size=1, max_size=5), st.text("xyü", max_size=30), max_size=3),
    response_topic=st.none() | st.just("edge/v1/client/me/reply"),
)


@given(messages, st.sampled_from((5, 4)))
def test_a_packets_size_is_the_one_on_the_wire(message: Outbound, version: int) -> None:
    assert packet_bytes(message, version) == paho_bytes(message, version)


@given(messages, st.integers(20, 20_000), st.sampled_from((5, 4)))
def test_the_room_for_a_body_is_right_to_the_byte(message: Outbound, most: int, version: int) -> None:
    found = limit(most, version)
    room = found.payload_bytes(message)
    if room >= 0:
        assert packet_bytes(message, version, room) <= most
    assert room == MESSAGE_BYTES or packet_bytes(message, version, max(room, -1) + 1) > most
    fits = packet_bytes(message, version) <= most
    assert (found.refuses(message, 0.0) is None) is fits
    assert (len(message.payload) <= room) is fits


def test_a_broker_that_names_no_limit_gets_our_own() -> None:
    found = limit(None)
    assert found.payload_bytes(Outbound("t", b"")) == MESSAGE_BYTES
    assert found.refuses(Outbound("t", bytes(MESSAGE_BYTES)), 0.0) is None
    assert found.refuses(Outbound("t", bytes(MESSAGE_BYTES + 1)), 0.0) is not None


@pytest.mark.parametrize("more", [{}, {"client": "a"}])
def test_what_ended_connections_is_not_sent_again_nor_what_is_as_large(more: Mapping[str, Any]) -> None:
    found = limit(None, version=4)
    found.took(Outbound("status", bytes(1500)))
    found.ended_connections(Outbound("telemetry", bytes(3000), **more), 0.0)
    assert "ended connections" in str(found.refuses(Outbound("telemetry", bytes(3000)), 1.0))
    assert "ended connections" in str(found.refuses(Outbound("telemetry", bytes(2100)), 1.0)), "a little smaller"
    assert "ended connections" in str(found.refuses(Outbound("models", bytes(3100)), 1.0))
    assert found.refuses(Outbound("models", bytes(2000)), 1.0) is None
    assert found.packet_bytes == 2048
    found.ended_connections(Outbound("models", bytes(2000), **more), 0.0)
    assert found.packet_bytes is not None
    assert found.packet_bytes == packet_bytes(Outbound("status", bytes(1500)), 4), "that it has taken"
    later_s = FORGET_CLIENTS_S if more else FORGET_S
    assert found.refuses(Outbound("models", bytes(3100)), later_s - 1.0) is not None
    assert found.refuses(Outbound("models", bytes(3100)), later_s) is None


def test_a_topic_that_a_broker_hangs_up_on_limits_no_other() -> None:
    """Small, or smaller than what it has taken: it was not the size."""
    for body, taken in ((bytes(10), 0), (bytes(2000), 5000)):
        found = limit(None)
        found.took(Outbound("status", bytes(taken)))
        found.ended_connections(Outbound("forbidden", body), 0.0)
        assert found.refuses(Outbound("forbidden", body), 1.0) is not None
        assert found.refuses(Outbound("other", bytes(4000)), 1.0) is None
        assert found.refuses(Outbound("forbidden", body), FORGET_S) is None


def test_a_topic_is_named_once_until_the_broker_has_another_limit() -> None:
    found = limit(2048)
    assert [found.first_time("telemetry") for _ in range(3)] == [True, False, False]
    found.connected(5, 2048)
    assert not found.first_time("telemetry")
    found.connected(5, 4096)
    assert found.first_time("telemetry")
