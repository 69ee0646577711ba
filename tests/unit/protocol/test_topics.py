"""The topic tree and the reply allow-list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import CLIENT_ID_BYTES, TOPIC_BYTES
from edge_agent.protocol.messages import ORDERS
from edge_agent.protocol.topics import (
    CancelTarget,
    CommandTarget,
    DesiredTarget,
    InferTarget,
    ReplyAllowed,
    ReplyDenied,
    Topics,
)

TOPICS = Topics("edge/v1", "pi-7", pools=("hall",))


def test_every_topic_that_is_listened_to_is_understood() -> None:
    assert TOPICS.parse(TOPICS.infer("minilm")) == InferTarget("minilm")
    assert TOPICS.parse(TOPICS.cancel) == CancelTarget()
    assert TOPICS.parse(TOPICS.desired) == DesiredTarget()
    assert TOPICS.parse(TOPICS.pool_infer("hall", "minilm")) == InferTarget("minilm", "hall")
    for name in ORDERS:
        assert TOPICS.parse(TOPICS.command(name)) == CommandTarget(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edge/v1",
        "edge/v1/",
        "edge/v1/pi-7",
        "edge/v1/pi-7/status",
        "edge/v1/pi-7/infer",
        "edge/v1/pi-7/infer/",
        "edge/v1/pi-7/infer/a/b",
        "edge/v1/pi-8/infer/minilm",
        "edge/v1/pool/other/infer/minilm",
        "edge/v2/pi-7/infer/minilm",
        "x/edge/v1/pi-7/infer/minilm",
    ],
)
def test_other_topics_are_not_ours(topic: str) -> None:
    assert TOPICS.parse(topic) is None


def test_subscriptions_never_replay_orders() -> None:
    by_filter = {one.topic_filter: one for one in TOPICS.subscriptions()}
    assert set(by_filter) == {
        "edge/v1/pi-7/infer/+",
        "edge/v1/pi-7/cancel",
        "edge/v1/pi-7/cmd/+",
        "edge/v1/pi-7/desired",
        "$share/hall/edge/v1/pool/hall/infer/+",
    }
    assert [name for name, one in by_filter.items() if one.replay] == ["edge/v1/pi-7/desired"]
    assert all(one.qos == 1 and one.keep_retain for one in by_filter.values())


@pytest.mark.parametrize(
    ("topic", "client"),
    [
        ("edge/v1/client/app/reply", "app"),
        ("edge/v1/client/app/reply/1/2/3", "app"),
        ("edge/v1/client/Zoë's phone/reply/x", "Zoë's phone"),
        ("edge/v1/pi-7/reply", "~"),
        ("edge/v1/pi-7/reply/app/1", "~app"),
    ],
)
def test_answers_may_go_to_reply_topics(topic: str, client: str) -> None:
    assert TOPICS.reply_allowed(topic) == ReplyAllowed(client)


@pytest.mark.parametrize(
    ("topic", "word"),
    [
        ("edge/v1/client/app/replyx", "answers go only to"),
        ("edge/v1/client/reply/x", "answers go only to"),
        ("edge/v1/client/~app/reply", "answers go only to"),
        ("edge/v1/pi-8/reply/x", "answers go only to"),
        ("edge/v1/pi-7/cmd/install", "answers go only to"),
        ("edge/v1/pi-7/infer/minilm", "answers go only to"),
        ("homeassistant/device/x/config", "answers go only to"),
        ("edge/v1/client/app/reply/#", "wildcard"),
        ("edge/v1/client/+/reply", "wildcard"),
        ("$SYS/broker", "wildcard or a $"),
        ("edge/v1/client/$x/reply", "wildcard or a $"),
        ("$share/g/edge/v1/client/app/reply", "wildcard or a $"),
        ("edge/v1/client//reply", "empty level"),
        ("edge/v1/client/app/reply/", "empty level"),
        ("/edge/v1/client/app/reply", "empty level"),
        ("", "empty level"),
        ("edge/v1/client/a\x00b/reply", "control character"),
        ("edge/v1/client/app/reply/\n", "control character"),
        ("edge/v1/client/app/reply/\uffff", "cannot be printed"),
        ("edge/v1/client/app/reply/\ufdd0", "cannot be printed"),
        ("edge/v1/client/app/reply" + "/a" * 12, "more than 16 levels"),
        ("edge/v1/client/app/reply/\ud800", "not valid UTF-8"),
        ("edge/v1/client/app/reply/" + "x" * TOPIC_BYTES, f"longer than {TOPIC_BYTES}"),
        ("edge/v1/client/" + "ä" * CLIENT_ID_BYTES + "/reply", f"longer than {CLIENT_ID_BYTES}"),
    ],
)
def test_answers_go_nowhere_else(topic: str, word: str) -> None:
    denied = TOPICS.reply_allowed(topic)
    assert isinstance(denied, ReplyDenied)
    assert word in denied.reason


@given(st.text())
def test_whatever_is_allowed_lies_under_a_reply_level(topic: str) -> None:
    allowed = TOPICS.reply_allowed(topic)
    if isinstance(allowed, ReplyAllowed):
        assert topic.startswith(("edge/v1/client/", "edge/v1/pi-7/reply"))
        assert TOPICS.parse(topic) is None


@given(st.lists(st.sampled_from(["edge", "v1", "client", "pi-7", "reply", "cmd", "x", "", "+", "#", "$"]), max_size=7))
def test_whatever_is_built_of_our_own_words_and_allowed_is_a_reply_topic(levels: list[str]) -> None:
    topic = "/".join(levels)
    if isinstance(TOPICS.reply_allowed(topic), ReplyAllowed):
        assert levels[:2] == ["edge", "v1"]
        assert levels[3:4] == ["reply"] if levels[2] == "pi-7" else (levels[2], levels[4]) == ("client", "reply")


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "$x", "client", "pool", "group", "a b", "x" * 65, "-x"])
def test_a_device_needs_a_name_that_is_a_plain_level(device: str) -> None:
    with pytest.raises(ConfigError, match=r"device\.id"):
        Topics("edge/v1", device)


@pytest.mark.parametrize("prefix", ["", "/", "edge/", "/edge", "edge//v1", "edge/+", "$SYS"])
def test_a_prefix_is_made_of_plain_levels(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.prefix"):
        Topics(prefix, "pi")
