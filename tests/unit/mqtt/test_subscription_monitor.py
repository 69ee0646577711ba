"""Refused subscriptions, and those that are granted and not served."""

from __future__ import annotations

import pytest

from edge_agent.mqtt.subscription_monitor import CHECK_S, RETURN_S, SubscriptionMonitor
from edge_agent.protocol.topics import Topics

TOPICS = Topics("edge/v1", "dev", ("hall",))
WANTED = TOPICS.subscriptions()
INFER, COMMAND = TOPICS.self_checks()


@pytest.fixture
def monitor() -> SubscriptionMonitor:
    found = SubscriptionMonitor(WANTED, TOPICS.self_checks())
    found.connected(0.0)
    return found


def test_what_comes_back_is_heard(monitor: SubscriptionMonitor) -> None:
    assert monitor.due(0.0)
    assert set(monitor.begin(0.0)) == {INFER, COMMAND}
    assert not monitor.due(CHECK_S - 1.0)
    monitor.arrived(INFER)
    monitor.arrived(TOPICS.command("diag"))  # whatever comes through the same filter shows the same
    monitor.look(RETURN_S)
    assert monitor.troubles == ()
    assert monitor.again() == ()
    assert monitor.due(CHECK_S)


def test_what_does_not_come_back_is_said_and_subscribed_to_again(monitor: SubscriptionMonitor) -> None:
    monitor.begin(0.0)
    monitor.arrived(COMMAND)
    monitor.look(RETURN_S - 0.1)
    assert monitor.troubles == ()
    monitor.look(RETURN_S)
    assert len(monitor.troubles) == 1
    assert "nothing arrives on edge/v1/dev/infer/+" in monitor.troubles[0]
    assert [one.topic_filter for one in monitor.again()] == ["edge/v1/dev/infer/+"]
    monitor.disconnected()
    monitor.connected(100.0)
    assert monitor.troubles, "a new connection alone shows nothing"
    monitor.begin(100.0)
    monitor.arrived(INFER)
    assert monitor.troubles == ()


def test_a_refused_subscription_is_said_until_it_is_granted(monitor: SubscriptionMonitor) -> None:
    monitor.subscribed([(WANTED[0], "Not authorized"), (WANTED[-1], "Quota exceeded")], WANTED)
    (text,) = monitor.troubles
    assert "edge/v1/dev/infer/+: Not authorized" in text
    assert "$share/hall/edge/v1/pool/hall/infer/+: Quota exceeded" in text
    assert monitor.again() == (WANTED[0], WANTED[-1])
    assert monitor.begin(0.0) == (COMMAND,), "what is refused need not be listened for"
    monitor.arrived(COMMAND)
    monitor.subscribed([], monitor.again())
    assert monitor.troubles == ()


def test_a_message_to_oneself_that_the_broker_refuses_shows_nothing(monitor: SubscriptionMonitor) -> None:
    monitor.begin(0.0)
    assert monitor.not_sent(INFER)
    assert not monitor.not_sent("edge/v1/dev/status")
    monitor.arrived(COMMAND)
    monitor.look(RETURN_S)
    assert monitor.troubles == ()


def test_a_connection_that_ends_leaves_nothing_to_wait_for(monitor: SubscriptionMonitor) -> None:
    monitor.begin(0.0)
    monitor.disconnected()
    monitor.look(2 * RETURN_S)
    assert monitor.troubles == ()
    assert not monitor.due(1000.0)


def test_a_topic_that_nothing_matches_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no subscription matches"):
        SubscriptionMonitor(WANTED, ["edge/v1/dev/other/x"])
