"""Bytes to requests or refusals: each way to be wrong has its status word and its sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.protocol.decode import (
    Bounds,
    Cancel,
    Command,
    DesiredRefused,
    Refusal,
    Request,
    decode,
    decode_cancel,
    decode_command,
    decode_desired,
    decode_request,
)
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import AdapterOrder, Desired, InstallOrder, ModelOrder
from edge_agent.protocol.topics import Topics

TOPICS = Topics("edge/v1", "pi")
REPLY = TOPICS.client_reply("app", "1")
NOW_S = 1000.0

CAUSES = {
    400: Cause.MALFORMED,
    404: Cause.IMPOSSIBLE_NAME,
    408: Cause.EXPIRED,
    413: Cause.TOO_LARGE,
    415: Cause.MALFORMED,
    422: Cause.INVALID,
}
"""How telemetry counts what is refused before its model is looked up."""


def message(body: object, topic: str = TOPICS.infer("minilm"), **more: Any) -> Inbound:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Inbound(topic, payload, **({"response_topic": REPLY, "correlation": b"id-1"} | more))


def request(body: object, **more: Any) -> Request | Refusal:
    return decode_request(message(body, **more), topics=TOPICS, now_s=NOW_S)


def accepted(body: object, **more: Any) -> Request:
    taken = request(body, **more)
    assert isinstance(taken, Request), taken
    return taken


def refused(body: object, **more: Any) -> Refusal:
    taken = request(body, **more)
    assert isinstance(taken, Refusal), taken
    return taken


def test_a_request_of_mqtt_5() -> None:
    body = {"text": "hi", "adapter": "home-intents", "priority": 0, "params": {"top_k": 3}}
    taken = accepted(body, expiry_s=3.0, content_type="application/json", received_s=999.5)
    assert (taken.id, taken.client, taken.model, taken.adapter) == ("id-1", "app", "minilm", "home-intents")
    assert (taken.texts, taken.single, taken.priority, taken.params) == (("hi",), True, 0, {"top_k": 3})
    assert (taken.received_s, taken.deadline_s) == (999.5, 1002.5)
    assert (taken.reply_topic, taken.correlation, taken.protocol) == (REPLY, b"id-1", "v5")


def test_a_request_of_mqtt_3() -> None:
    body = {"texts": ["a", "b"], "id": "7", "reply_to": "edge/v1/pi/reply/app", "deadline_s": 0.25}
    taken = accepted(body, response_topic=None, correlation=None)
    assert (taken.id, taken.client, taken.texts, taken.single) == ("7", "~app", ("a", "b"), False)
    assert (taken.deadline_s, taken.reply_topic, taken.correlation) == (1000.25, "edge/v1/pi/reply/app", None)
    assert (taken.protocol, taken.priority) == ("v311", limits.PRIORITY_DEFAULT)


def test_a_request_through_a_pool() -> None:
    topics = Topics("edge/v1", "pi", pools=("hall",))
    taken = decode(message({"text": "x"}, "edge/v1/pool/hall/infer/m"), topics=topics, now_s=NOW_S)
    assert isinstance(taken, Request)
    assert (taken.model, taken.pool) == ("m", "hall")


@pytest.mark.parametrize(
    ("expiry_s", "asked", "deadline_s"),
    [
        (None, None, NOW_S + limits.DEADLINE_DEFAULT_S),
        (5.0, None, NOW_S + 5),
        (5.0, 0.5, NOW_S + 0.5),
        (1.0, 9, NOW_S + 1),
        (1e9, None, NOW_S + limits.DEADLINE_MAX_S),
        (None, 1e9, NOW_S + limits.DEADLINE_MAX_S),
    ],
)
def test_the_earlier_deadline_holds(expiry_s: float | None, asked: float | None, deadline_s: float) -> None:
    body = {"text": "x"} | ({} if asked is None else {"deadline_s": asked})
    assert accepted(body, expiry_s=expiry_s).deadline_s == deadline_s


@pytest.mark.parametrize(
    ("correlation", "request_id"),
    [(b"abc-1", "abc-1"), (b"\x00\xff", "00ff"), (b"a b", "612062"), ("ü".encode(), "c3bc")],
)
def test_correlation_data_becomes_the_id(correlation: bytes, request_id: str) -> None:
    assert accepted({"text": "x"}, correlation=correlation).id == request_id


def test_an_id_in_the_body_is_what_the_client_will_look_for() -> None:
    assert accepted({"text": "x", "id": "mine"}).id == "mine"


def test_requests_without_an_id_are_told_apart_by_their_arrival() -> None:
    first, second = (accepted({"text": "x"}, correlation=None, received_s=at).id for at in (999.0, 999.5))
    assert first != second
    assert first.startswith("anon-")


def test_a_pair_and_a_list_of_pairs() -> None:
    one = accepted({"text": "it rains", "text_pair": "the street is wet"})
    assert (one.texts, one.single) == ((("it rains", "the street is wet"),), True)
    several = accepted({"texts": ["a", "b"], "text_pairs": ["c", "d"]})
    assert (several.texts, several.single) == ((("a", "c"), ("b", "d")), False)


LONG = "x" * (limits.TEXT_BYTES + 1)
MANY = ["x"] * (limits.TEXTS_PER_REQUEST + 1)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"text":"x"} ', 200, ""),
        (b'{"text":"x"}x', 400, "not JSON"),
        (b'{"text":"\xff"}', 400, "not UTF-8 (byte 9)"),
        (b'\xef\xbb\xbf{"text":"x"}', 400, "not JSON"),
        (b'{"text":"\\ud800"}', 400, "not JSON"),
        (b'{"text":NaN}', 400, "not JSON"),
        (b"[" * 100, 400, "nests deeper than 16"),
        (b'{"params":' + b'{"a":' * 50_000, 413, "128.0 KiB"),
        (b'{"params":' + b'{"a":' * 2_000, 400, "nests deeper"),
        (b'{"text":"' + b"[" * 100 + b'"}', 200, ""),
        (b'{"text":"a","text":"b"}', 400, "key text stands twice"),
        (b'{"text":"a","te\\u0078t":"b"}', 400, "key text stands twice"),
        (b'{"text":"a","params":{"k":1,"k":2}}', 400, "key k stands twice"),
        (b'{"text":"\\"text\\":","id":"text"}', 200, ""),
        ([], 422, "Expected `object`"),
        ({}, 422, "here: none"),
        ({"text": "x", "texts": ["x"]}, 422, "here: text, texts"),
        ({"text": None}, 422, "$.text"),
        ({"text": 1}, 422, "Expected `str`, got `int` - at `$.text`"),
        ({"texts": "x"}, 422, "$.texts"),
        ({"texts": ["x", 1]}, 422, "$.texts[1]"),
        ({"texts": []}, 422, "texts: the list is empty"),
        ({"text": ""}, 422, "text: the text is empty"),
        ({"text": " \n\t"}, 422, "text: the text is empty"),
        ({"texts": ["x", " "]}, 422, "texts[1]: the text is empty"),
        ({"texts": MANY}, 413, "texts: 65 texts, at most 64"),
        ({"text": LONG}, 413, "text: longer than 32.0 KiB"),
        ({"text": "ä" * (limits.TEXT_BYTES // 2 + 1)}, 413, "text: longer than 32.0 KiB"),
        ({"prompt": " "}, 422, "prompt: the text is empty"),
        ({"messages": []}, 422, "messages: the list is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, 422, "messages[0].content: the text is empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 422, "robot"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, 422, "name"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, 422, "exactly one"),
        ({"prompt": LONG}, 413, "prompt: longer than 32.0 KiB"),
        ({"text": "x", "stream": True}, 422, "stream: only the answer"),
        ({"prompt": "x", "stream": "yes"}, 422, "stream"),
        ({"messages": [{"role": "root", "content": "x"}]}, 422, "root"),
        ({"text_pair": "x"}, 422, "here: none"),
        ({"text": "x", "text_pair": " "}, 422, "text_pair: the text is empty"),
        ({"text": "x", "text_pair": LONG}, 413, "text_pair: longer than 32.0 KiB"),
        ({"text": "x", "text_pairs": ["y"]}, 422, "text_pairs stands beside texts, and alone; here: text"),
        ({"texts": ["x"], "text_pair": "y"}, 422, "text_pair stands beside text, and alone; here: texts"),
        ({"text": "x", "text_pair": "y", "text_pairs": ["z"]}, 422, "here: text with text_pairs, too"),
        ({"texts": ["x", "y"], "text_pairs": ["z"]}, 422, "text_pairs: 1 texts for 2 in texts"),
        ({"texts": ["x", "y"], "text_pairs": ["z", ""]}, 422, "text_pairs[1]: the text is empty"),
        ({"texts": ["x"], "text_pairs": []}, 422, "text_pairs: 0 texts for 1"),
        ({"prompt": "x", "text_pair": "y"}, 422, "text_pair stands beside text, and alone; here: prompt"),
        ({"messages": [{"role": "user", "content": "x"}], "text_pair": "y"}, 422, "here: messages"),
        ({"text": "x", "text_pair": 1}, 422, "$.text_pair"),
        ({"text": "x", "colour": 1}, 422, "colour"),
        ({"text": "x", "priority": 10}, 422, "priority: 10 is not in 0..9"),
        ({"text": "x", "priority": -1}, 422, "priority: -1"),
        ({"text": "x", "priority": True}, 422, "$.priority"),
        ({"text": "x", "priority": "high"}, 422, "$.priority"),
        ({"text": "x", "adapter": 1}, 422, "$.adapter"),
        ({"text": "x", "adapter": "../x"}, 404, "no such adapter: ../x"),
        ({"text": "x", "params": []}, 422, "$.params"),
        ({"text": "x", "params": {"Top K": 1}}, 422, "Top K is not a parameter name"),
        ({"text": "x", "params": {"top_k": None}}, 422, "params.top_k"),
        ({"text": "x", "params": {f"p{n}": 1 for n in range(17)}}, 422, "17 parameters"),
        ({"text": "x", "params": {"stop": ["x"] * 1024}}, 422, "params: more than 1024 values"),
        (b'{"text":"x","params":{"seed":' + b"9" * 40 + b"}}", 422, "params.seed"),
        (b'{"text":"x","params":{"t":1e999}}', 422, "out of range"),
        ({"text": "x", "deadline_s": -1}, 422, "deadline_s"),
        ({"text": "x", "deadline_s": "soon"}, 422, "$.deadline_s"),
        ({"text": "x", "deadline_s": 0}, 408, "deadline passed"),
        ({"text": "x", "id": ""}, 422, "id: 1 to 128 bytes"),
        ({"text": "x", "id": "x" * 129}, 422, "id: 1 to 128 bytes"),
        ({"text": "x", "id": 7}, 422, "$.id"),
    ],
)
def test_a_body_that_is_wrong_is_refused_in_words(body: object, status: int, word: str) -> None:
    if status == 200:
        accepted(body)
        return
    refusal = refused(body)
    assert (refusal.status, refusal.cause, refusal.event) == (status, CAUSES[status], None)
    assert word in refusal.reason
    assert refusal.reply is not None
    assert (refusal.reply.topic, refusal.reply.correlation) == (REPLY, b"id-1")


@pytest.mark.parametrize(
    ("more", "status", "word"),
    [
        ({"content_type": "text/plain"}, 415, "text/plain is not application/json"),
        ({"content_type": "x" * 1000}, 415, "..."),
        ({"content_type": "Application/JSON; charset=utf-8"}, 200, ""),
        ({"expiry_s": 0.0}, 408, "had expired"),
        ({"expiry_s": 2.0, "received_s": NOW_S - 3}, 408, "deadline passed"),
        ({"correlation": b"x" * 129}, 400, "correlation data is longer than 128"),
        ({"topic": TOPICS.infer("no model!")}, 404, "no such model: no model!"),
        ({"topic": TOPICS.infer("x" * 65)}, 404, "no such model"),
    ],
)
def test_properties_that_are_wrong_are_refused_in_words(more: dict[str, Any], status: int, word: str) -> None:
    if status == 200:
        accepted({"text": "x"}, **more)
        return
    refusal = refused({"text": "x"}, **more)
    assert (refusal.status, refusal.cause) == (status, CAUSES[status])
    assert word in refusal.reason
    assert refusal.reply is not None


def test_without_a_reply_topic_there_is_an_event_and_no_answer() -> None:
    refusal = refused({"text": "x"}, response_topic=None)
    assert (refusal.reply, refusal.event) == (None, "request-unanswerable")


@pytest.mark.parametrize("topic", ["edge/v1/other/reply", "edge/v1/client/+/reply", "$SYS/x", "edge/v1/pi/cmd/remove"])
@pytest.mark.parametrize("form", ["v5", "v311"])
def test_a_reply_topic_outside_the_list_gets_an_event_and_no_answer(topic: str, form: str) -> None:
    if form == "v5":
        refusal = refused({"text": "x"}, response_topic=topic)
    else:
        refusal = refused({"text": "x", "reply_to": topic}, response_topic=None)
    assert (refusal.reply, refusal.event) == (None, "reply-denied")
    assert topic not in refusal.reason


def test_a_refusal_reaches_an_old_client_too() -> None:
    refusal = refused({"text": "x", "colour": 1, "id": "7", "reply_to": REPLY}, response_topic=None)
    assert refusal.reply is not None
    assert (refusal.reply.topic, refusal.reply.request_id, refusal.status) == (REPLY, "7", 422)


@pytest.mark.parametrize("topic", [TOPICS.infer("m"), TOPICS.cancel, TOPICS.command("rollback")])
def test_retained_messages_are_dropped_with_an_event(topic: str) -> None:
    for payload, event in ((b'{"text":"x"}', "retained-dropped"), (b"", None)):
        refusal = decode(Inbound(topic, payload, retained=True, response_topic=REPLY), topics=TOPICS, now_s=NOW_S)
        assert isinstance(refusal, Refusal)
        assert (refusal.reply, refusal.event) == (None, event)


def test_remote_text_is_cut_short() -> None:
    refusal = refused({"text": "x", "y" * 5000: 1})
    assert len(refusal.reason) <= 200
    assert refusal.reason.endswith("...")


def test_lower_bounds_hold() -> None:
    bounds = Bounds(message_bytes=64, texts=1, text_bytes=4, deadline_default_s=2.0)
    small = decode_request(message({"text": "abcd"}), topics=TOPICS, now_s=NOW_S, bounds=bounds)
    assert isinstance(small, Request)
    assert small.deadline_s == NOW_S + 2
    for body in ({"text": "abcde"}, {"texts": ["a", "b"]}, {"text": "x" * 100}):
        large = decode_request(message(body), topics=TOPICS, now_s=NOW_S, bounds=bounds)
        assert isinstance(large, Refusal)
        assert (large.status, large.cause) == (413, Cause.TOO_LARGE)


def test_cancel_by_id_or_by_correlation() -> None:
    by_id = decode_cancel(message({"id": "7", "reply_to": REPLY}, TOPICS.cancel, response_topic=None), topics=TOPICS)
    assert isinstance(by_id, Cancel)
    assert (by_id.id, by_id.client) == ("7", "app")
    bare = decode_cancel(message(b"", TOPICS.cancel), topics=TOPICS)
    assert isinstance(bare, Cancel)
    assert (bare.id, bare.client) == ("id-1", "app")
    nobody = decode_cancel(Inbound(TOPICS.cancel, b'{"id":"7"}'), topics=TOPICS)
    assert nobody == Cancel("7", None, None)
    nameless = decode_cancel(Inbound(TOPICS.cancel, b"{}"), topics=TOPICS)
    assert isinstance(nameless, Refusal)
    assert (nameless.status, nameless.cause) == (422, Cause.INVALID)
    assert nameless.event == "request-unanswerable"


def test_commands_carry_their_own_bodies() -> None:
    def command(name: str, body: object, **more: Any) -> Command | Refusal:
        return decode_command(message(body, TOPICS.command(name), **more), topics=TOPICS, now_s=NOW_S)

    install = command("install", {"package": "x.tar"})
    assert isinstance(install, Command)
    assert (install.name, install.id, install.body) == ("install", "id-1", InstallOrder(package="x.tar"))
    attach = command("attach", {"model": "m", "adapter": "a", "deadline_s": 5}, response_topic=None)
    assert isinstance(attach, Command)
    assert (attach.reply, attach.deadline_s) == (None, NOW_S + 5)
    assert isinstance(attach.body, AdapterOrder)
    load = command("load", {"model": "m"})
    assert isinstance(load, Command)
    assert isinstance(load.body, ModelOrder)
    assert isinstance(command("diag", b""), Command)
    unknown = command("selfdestruct", {})
    assert isinstance(unknown, Refusal)
    assert (unknown.status, unknown.cause) == (404, Cause.UNKNOWN_COMMAND)
    for name, body, status in (
        ("load", {}, 422),
        ("load", {"model": "m", "force": True}, 422),
        ("load", {"model": "../m"}, 404),
        ("attach", {"model": "m"}, 422),
        ("load", b"", 422),
    ):
        refusal = command(name, body)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.cause) == (status, CAUSES[status])
    denied = command("load", {"model": "m"}, response_topic="edge/v1/pi/cmd/remove")
    assert isinstance(denied, Refusal)
    assert denied.event == "reply-denied"


def test_other_topics_are_none_of_our_business() -> None:
    assert decode(Inbound(TOPICS.desired, b"{}"), topics=TOPICS, now_s=NOW_S) is None
    assert decode(Inbound("x", b"{}"), topics=TOPICS, now_s=NOW_S) is None
    foreign = decode_request(Inbound("x", b"{}"), topics=TOPICS, now_s=NOW_S)
    assert isinstance(foreign, Refusal)
    assert (foreign.status, foreign.cause) == (404, Cause.UNKNOWN_TOPIC)


A = "sha256:" + "a" * 64


def desired(body: object) -> Desired | DesiredRefused | None:
    return decode_desired(Inbound(TOPICS.desired, body if isinstance(body, bytes) else json.dumps(body).encode()))


def test_a_desired_state_names_models_and_adapters_by_package() -> None:
    body = {"version": 7, "models": [{"model": "m", "package": A, "adapters": [{"adapter": "a", "package": None}]}]}
    taken = desired(body)
    assert isinstance(taken, Desired)
    assert (taken.version, taken.policy.others, taken.policy.within_s) == (7, "keep", 86400.0)
    retained = decode_desired(Inbound(TOPICS.desired, json.dumps(body).encode(), retained=True))
    assert retained == taken, "the broker repeats it at every connection"
    assert desired(b"") is None


@pytest.mark.parametrize(
    ("body", "version", "reason"),
    [
        (b"{", None, "the body is not JSON"),
        ({"models": []}, None, "missing required field `version`"),
        ({"version": 3, "models": [], "hurry": 1}, 3, "unknown field `hurry`"),
        ({"version": 0, "models": []}, 0, "version: a whole number from 1"),
        ({"version": 3, "models": [{"model": "a b", "package": A}]}, 3, "models[0].model: a b is no name"),
        (
            {"version": 3, "models": [{"model": "m", "package": "latest"}]},
            3,
            "models[0].package: sha256: and 64 digits",
        ),
        ({"version": 3, "models": [{"model": "m"}, {"model": "m"}]}, 3, "models[1].model: m is named twice"),
        (
            {"version": 3, "models": [{"model": "m", "package": None, "adapters": [{"adapter": "a", "package": A}]}]},
            3,
            "models[0]: the model is to be removed",
        ),
        (
            {"version": 3, "models": [{"model": "m", "adapters": [{"adapter": "a", "package": A}] * 2}]},
            3,
            "models[0].adapters[1].adapter: a is named twice",
        ),
        (
            {"version": 3, "models": [], "sources": [{"package": "x", "url": "http://h/p"}]},
            3,
            "sources[0].package: sha256",
        ),
        (
            {"version": 3, "models": [], "sources": [{"package": A, "url": "file:///p"}]},
            3,
            "sources[0].url: http://HOST",
        ),
        ({"version": 3, "models": [], "sources": [{"package": A, "url": "http://u:p@h/p"}]}, 3, "sources[0].url: http"),
        ({"version": 3, "models": [], "policy": {"within_s": 1}}, 3, "policy.within_s: 60 to 2592000 seconds"),
        ({"version": 3, "models": [{"model": f"m{n}"} for n in range(129)]}, 3, "more than 128"),
    ],
)
def test_a_desired_state_that_cannot_be_taken_says_why(body: object, version: int | None, reason: str) -> None:
    refused = desired(body)
    assert isinstance(refused, DesiredRefused)
    assert refused.version == version and reason in refused.reason


@given(st.binary(max_size=300))
def test_no_bytes_on_the_desired_topic_raise(payload: bytes) -> None:
    assert isinstance(desired(payload), DesiredRefused) or payload == b""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.dictionaries(
    st.sampled_from(["text", "texts", "prompt", "adapter", "priority", "params", "id", "reply_to", "deadline_s", "x"]),
    JSON,
)
TARGETS = st.sampled_from([TOPICS.infer("m"), TOPICS.infer("ü"), TOPICS.cancel, TOPICS.command("attach"), "x", ""])


@given(
    topic=TARGETS,
    payload=st.binary()
    | JSON.map(lambda body: json.dumps(body).encode())
    | FIELDS.map(lambda b: json.dumps(b).encode()),
    response=st.none() | st.text() | st.just(REPLY),
    correlation=st.none() | st.binary(max_size=200),
    expiry_s=st.none() | st.integers(0, 2**32 - 1).map(float),
    retained=st.booleans(),
)
@example(TOPICS.infer("m"), b'{"a":' * 30_000, REPLY, None, None, False)
@example(TOPICS.infer("m"), b'"' * 1000, REPLY, None, None, False)
@example(TOPICS.infer("m"), b"\\" * 1000, REPLY, None, None, False)
def test_nothing_that_arrives_raises(
    topic: str, payload: bytes, response: str | None, correlation: bytes | None, expiry_s: float | None, retained: bool
) -> None:
    inbound = Inbound(
        topic,
        payload,
        response_topic=response,
        correlation=correlation,
        expiry_s=expiry_s,
        retained=retained,
    )
    taken = decode(inbound, topics=TOPICS, now_s=NOW_S)
    assert taken is None or isinstance(taken, Request | Cancel | Command | Refusal)
    if isinstance(taken, Refusal):
        assert taken.reason
        assert len(taken.reason) < 300
        assert taken.reason.isprintable()
    if isinstance(taken, Request):
        assert taken.deadline_s > NOW_S
        assert taken.texts


def test_a_parameter_holds_lists_and_objects_of_any_length_within_that_bound() -> None:
    schema = {"enum": [f"intent-{number}" for number in range(400)], "properties": {f"p{n}": {} for n in range(300)}}
    assert accepted({"text": "x", "params": {"json_schema": schema}}).params == {"json_schema": schema}


def test_parameters_have_a_bound_on_all_their_values_together() -> None:
    many = [[[] for _ in range(32)] for _ in range(32)]
    assert refused({"text": "x", "params": {"a": many}}).reason == "params: more than 1024 values"
    assert accepted({"text": "x", "params": {"a": many[:30]}}).params == {"a": many[:30]}
