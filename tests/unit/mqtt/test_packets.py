"""Our properties against paho's: the same bytes, the same values, and no nonsense taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.mqtt.packets import USER_PROPERTIES, PackedProperties, PublishProperties, pack, read_publish, unpack
from edge_agent.protocol.envelope import Outbound

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
USERS = st.dictionaries(TEXT, TEXT, max_size=4)
MESSAGES = st.builds(
    Outbound,
    topic=st.just("t"),
    payload=st.just(b""),
    content_type=st.none() | TEXT,
    correlation=st.none() | st.binary(min_size=1, max_size=200),
    expiry_s=st.none() | st.integers(1, 2**32 - 1).map(float),
    user=USERS,
    response_topic=st.none() | TEXT,
)


@given(MESSAGES)
def test_paho_reads_what_we_write(message: Outbound) -> None:
    packed = PackedProperties(message).pack()
    theirs = Properties(PacketTypes.PUBLISH)
    _, length = theirs.unpack(packed)
    assert length == len(packed)
    assert getattr(theirs, "ContentType", None) == message.content_type
    assert getattr(theirs, "ResponseTopic", None) == message.response_topic
    assert getattr(theirs, "CorrelationData", None) == message.correlation
    assert getattr(theirs, "MessageExpiryInterval", None) == message.expiry_s
    assert dict(getattr(theirs, "UserProperty", [])) == message.user


@given(MESSAGES, st.none() | st.integers(1, 65_535), st.booleans())
def test_we_read_what_paho_writes(message: Outbound, subscription: int | None, text: bool) -> None:
    theirs = Properties(PacketTypes.PUBLISH)
    for name, value in (
        ("ContentType", message.content_type),
        ("ResponseTopic", message.response_topic),
        ("CorrelationData", message.correlation),
        ("MessageExpiryInterval", None if message.expiry_s is None else int(message.expiry_s)),
        ("UserProperty", list(message.user.items()) or None),
        ("SubscriptionIdentifier", subscription),
        ("PayloadFormatIndicator", int(text)),
        ("TopicAlias", 7),
    ):
        if value is not None:
            setattr(theirs, name, value)
    packed = theirs.pack()
    said, length = unpack(packed + b"payload")
    assert length == len(packed)
    assert said == PublishProperties(
        message.content_type, message.response_topic, message.correlation, message.expiry_s, dict(message.user)
    )


@given(st.binary(max_size=300))
def test_nonsense_is_a_value_error_and_nothing_else(data: bytes) -> None:
    for flags in (0x30, 0x32):
        try:
            read_publish(flags, data, 5)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05\x02\x00",
        b"\xff\xff\xff\xff\x01",
        b"\x02\x7f\x00",
        b"\x04\x01\x00\x01\x00",
        b"\x03\x08\x00\x05",
        b"\x04\x08\x00\x02\xff",
        b"\x03\x02\x00\x00",
        b"\x01\x26",
    ],
)
def test_what_is_cut_off_unknown_or_twice_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"property|properties|length|utf-8|twice"):
        unpack(data)


def test_user_properties_are_bounded() -> None:
    packed = pack(Outbound("t", b"", user={str(n): "x" for n in range(USER_PROPERTIES + 5)}))
    assert len(unpack(packed)[0].user) == USER_PROPERTIES


def test_a_user_property_that_comes_twice_is_a_list_and_no_longer_than_the_bound() -> None:
    one = b"\x26\x00\x01a\x00\x01"
    assert unpack(bytes([14]) + one + b"1" + one + b"2")[0].user == {"a": "1,2"}
    many = (one + b"1") * (USER_PROPERTIES + 1)
    assert len(unpack(bytes([len(many)]) + many)[0].user["a"]) == 2 * USER_PROPERTIES - 1


def test_a_publish_is_taken_apart() -> None:
    message = Outbound("t", b"", correlation=b"c", content_type=None)
    body = b"\x00\x03a/b" + b"\x00\x07" + pack(message) + b"payload"
    assert read_publish(0x32, body, 5) == (b"a/b", 7, PublishProperties(correlation=b"c"), b"payload")
    assert read_publish(0x30, b"\x00\x03a/bpayload", 4) == (b"a/b", 0, PublishProperties(), b"payload")
    for cut in (b"", b"\x00", b"\x00\x09a/b", b"\x00\x03a/b\x00"):
        with pytest.raises(ValueError, match="cut off"):
            read_publish(0x32, cut, 4)
