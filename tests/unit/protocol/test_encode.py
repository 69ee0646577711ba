"""Replies and states to messages."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.base.limits import EVENT_BYTES, MESSAGE_BYTES
from edge_agent.base.units import bytes_text
from edge_agent.protocol import encode
from edge_agent.protocol.messages import Energy, Event, Reply, Status, StreamChunk, Telemetry, Timing
from edge_agent.protocol.topics import ReplyAddress, Topics

TOPICS = Topics("edge/v1", "pi")
TO = ReplyAddress("edge/v1/client/app/reply", "id-1", "app", b"id-1", "v5")


def test_a_reply_carries_status_correlation_and_the_time_that_is_left() -> None:
    timing = Timing(1.0, 2.0, 3.0, 6.0)
    body = Reply(id="id-1", status=200, model="m", result={"label": "x"}, timing=timing, energy=Energy(None, "none"))
    message = encode.reply(body, TO, 2.2)
    assert (message.topic, message.qos, message.retain, message.keep) == (TO.topic, 1, False, "queue")
    assert (message.correlation, message.expiry_s, message.user) == (b"id-1", 2.2, {"status": "200"})
    fields = json.loads(message.payload)
    assert fields["timing"]["total_ms"] == 6.0
    assert fields["energy"] == {"joules": None, "method": "none"}
    assert "reason" not in fields
    assert "retry_after_s" not in fields


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    message = encode.refusal(RequestError(429, Cause.QUEUE_FULL, "256 jobs wait", 1.23456), TO, 5.0)
    fields = json.loads(message.payload)
    assert (fields["id"], fields["status"], fields["reason"]) == ("id-1", 429, "256 jobs wait")
    assert (fields["retry_after_s"], fields["cause"], fields["result"]) == (1.235, "queue-full", None)
    assert message.user == {"status": "429", "reason": "256 jobs wait"}


def test_a_reason_of_many_lines_is_one_line_in_its_property() -> None:
    message = encode.refusal(RequestError(500, Cause.WORKER_FAILED, "the runtime says:\n\tno such node\uffff"), TO, 5.0)
    assert message.user["reason"] == "the runtime says:  no such node "
    assert json.loads(message.payload)["reason"] == "the runtime says:\n\tno such node\uffff"


def test_an_answer_too_large_becomes_one_that_says_so() -> None:
    body = Reply(id="id-1", status=200, model="m", result="x" * MESSAGE_BYTES)
    message = encode.reply(body, TO, 5.0)
    fields = json.loads(message.payload)
    assert (fields["status"], fields["cause"], fields["result"], fields["model"]) == (413, "too-large", None, "m")
    size = bytes_text(len(msgspec.json.encode(body)))
    assert f"the answer has {size}, more than the 128.0 KiB that fit a message" in fields["reason"]
    assert message.user["status"] == "413"
    small = encode.reply(Reply(id="x", status=200, result="y" * 500), TO, 5.0, lambda _: 400)
    assert json.loads(small.payload)["status"] == 413


@given(st.floats(min_value=-5, max_value=1e6))
def test_an_expiry_is_whole_and_never_nothing(remaining_s: float) -> None:
    expiry_s = encode.whole_expiry_s(remaining_s)
    assert expiry_s is not None
    assert expiry_s >= max(1, remaining_s)
    assert expiry_s == int(expiry_s)
    assert encode.whole_expiry_s(None) is None


@pytest.mark.parametrize("done", [False, True])
def test_a_chunk_tells_its_status_when_it_is_the_last(done: bool) -> None:
    message = encode.chunk(StreamChunk(id="id-1", seq=0, text="x", done=done), TO, 1.0)
    assert message.user == ({"status": "200"} if done else {})
    assert json.loads(message.payload) == {"id": "id-1", "seq": 0, "text": "x", "done": done}


def test_states_are_retained_and_figures_are_not() -> None:
    status = Status(state="online", boot_id="b", seq=1, ts=1.0, heartbeat_s=10.0, reason="ready")
    message = encode.status(status, TOPICS)
    assert (message.topic, message.retain, message.qos, message.keep) == (TOPICS.status, True, 1, "latest")
    figures = Telemetry(
        boot_id="b",
        seq=1,
        ts=1.0,
        interval_s=10.0,
        uptime_s=1.0,
        models={},
        refusals={},
        queue_jobs=0,
        sensors={},
        energy=Energy(None, "none"),
        rss_bytes=None,
        governor={},
        memory={},
        events_waiting=0,
        events_lost=0,
    )
    telemetry = encode.telemetry(figures, TOPICS)
    assert (telemetry.retain, telemetry.qos, telemetry.expiry_s, telemetry.keep) == (False, 0, 30.0, "latest")


def test_an_event_waits_on_disk_and_loses_its_data_before_itself() -> None:
    event = Event(kind="evicted", ts=1.0, boot_id="b", seq=1, severity="info", message="m", data={"x": 1})
    message = encode.event(event, TOPICS)
    assert (message.topic, message.keep, message.user) == (TOPICS.event, "disk", {"kind": "evicted"})
    large = msgspec.structs.replace(event, data={"x": "y" * EVENT_BYTES})
    short = json.loads(encode.event(large, TOPICS).payload)
    assert (short["kind"], list(short["data"])) == ("evicted", ["left_out"])
