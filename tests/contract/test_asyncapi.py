"""docs/asyncapi.yaml says what the code does: schemas, topics, references, and messages made by the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.protocol import encode
from edge_agent.protocol.messages import ORDERS, Energy, Event, Reply, Status, StreamChunk, Timing
from edge_agent.protocol.topics import ReplyAddress, RolloutTopics, Topics
from tests.support import asyncapi

DOCUMENT = asyncapi.load()
TOPICS = Topics("edge/v1", "device")
TO = ReplyAddress("edge/v1/client/app/reply", "id-1", "app", b"id-1", "v5")


RESULTS: dict[str, dict[str, Any]] = {
    "classify": {
        "label": "x", "score": 0.5, "labels": [{"label": "x", "score": 0.5}], "out_of_scope": False, "tokens": 3,
        "truncated": False,
    },
    "slots": {
        "spans": [{"label": "room", "start": 8, "end": 15, "text": "kitchen", "score": 0.9}], "tokens": 5,
        "truncated": False,
    },
    "answers": {
        "answer": None, "start": None, "end": None, "score": 0.1, "no_answer_score": 0.8, "tokens": 40, "windows": 2,
    },
    "embed": {"embedding": [0.6, 0.8], "tokens": 3, "truncated": False},
}  # fmt: skip


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_every_reference_leads_somewhere() -> None:
    found = list(references(DOCUMENT))
    assert len(found) > 50
    for reference in found:
        node = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_it_has_the_shape_of_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"].startswith("3.")
    parts = {"asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"}
    assert set(DOCUMENT) == parts
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
    for name, channel in DOCUMENT["channels"].items():
        address = channel["address"]
        named = set() if address is None else {part[1:-1] for part in address.split("/") if part.startswith("{")}
        assert named == set(channel.get("parameters", {})), name


def test_it_has_what_linters_of_asyncapi_ask_for() -> None:
    """Spectral's rules for AsyncAPI warn where a contact, servers, tags or the description of an operation are left
    out."""
    assert set(DOCUMENT["info"]["contact"]) == {"name", "url", "email"}
    tags = {tag["name"] for tag in DOCUMENT["info"]["tags"]}
    assert {server["protocol"] for server in DOCUMENT["servers"].values()} == {"mqtt", "mqtts"}
    for name, operation in DOCUMENT["operations"].items():
        assert operation["description"].strip(), name
        assert operation["tags"], name
        assert {tag["name"] for tag in operation["tags"]} <= tags, name


def test_the_schemas_are_those_of_the_code() -> None:
    remedy = "run: python -m tests.support.asyncapi"
    assert DOCUMENT["components"]["schemas"] == msgspec.to_builtins(asyncapi.schemas()), remedy
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_topics_are_those_of_the_code() -> None:
    addresses = {name: channel["address"] for name, channel in DOCUMENT["channels"].items()}
    here = {name: address.replace("{device}", "device") for name, address in addresses.items() if address}
    for name in ("status", "info", "models", "telemetry", "event", "cancel"):
        assert here[name] == getattr(TOPICS, name)
    rollout = RolloutTopics("edge/v1")
    assert here["rolloutState"] == rollout.state
    assert here["rolloutAbort"] == rollout.abort
    assert here["rolloutRecord"] == rollout.record("device")
    assert here["rolloutSync"] == rollout.sync("{client}")
    assert here["infer"] == TOPICS.infer("{model}")
    assert here["command"] == TOPICS.command("{command}")
    assert tuple(DOCUMENT["components"]["parameters"]["command"]["enum"]) == tuple(ORDERS)


def test_the_command_channel_has_the_body_of_every_order() -> None:
    channel = DOCUMENT["channels"]["command"]["messages"]
    messages = DOCUMENT["components"]["messages"]
    bodies = [messages[reference["$ref"].rpartition("/")[2]]["payload"]["$ref"] for reference in channel.values()]
    assert sorted(bodies) == sorted({f"#/components/schemas/{body.__name__}" for body in ORDERS.values()})


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("reply", encode.refusal(RequestError(429, Cause.QUEUE_FULL, "full", 0.5), TO, 1.0).payload),
        (
            "reply",
            encode.reply(
                Reply(
                    id="1",
                    status=200,
                    model="m",
                    adapter="a",
                    variant="sha256:0",
                    result=RESULTS["classify"],
                    timing=Timing(1, 2, 3, 6),
                    batch=8,
                    energy=Energy(0.25, "rail"),
                    temperature_c=51.0,
                ),
                TO,
                1.0,
            ).payload,
        ),
        ("streamChunk", encode.chunk(StreamChunk(id="1", seq=0, text="x", done=False), TO, 1.0).payload),
        (
            "status",
            encode.status(
                Status(state="online", boot_id="b", seq=1, ts=1.0, heartbeat_s=10.0, reason="ready"), TOPICS
            ).payload,
        ),
        (
            "event",
            encode.event(
                Event(kind="evicted", ts=1.0, boot_id="b", seq=1, severity="info", message="m"), TOPICS
            ).payload,
        ),
        ("inferRequest", b'{"texts":["a"],"adapter":"x","params":{"top_k":3},"priority":0}'),
        ("inferRequest", b'{"text":"a","id":"1","reply_to":"edge/v1/client/a/reply","deadline_s":2.5}'),
        ("install", b'{"package":"x.tar"}'),
    ],
)
def test_messages_fit_their_schema(name: str, payload: bytes) -> None:
    asyncapi.check(DOCUMENT, name, payload)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("inferRequest", b'{"text":"a","colour":1}'),
        ("inferRequest", b'{"text":1}'),
        ("status", b'{"state":"asleep"}'),
        ("reply", b'{"id":"1"}'),
    ],
)
def test_messages_that_do_not_fit_are_found(name: str, payload: bytes) -> None:
    with pytest.raises(jsonschema.ValidationError):
        asyncapi.check(DOCUMENT, name, payload)


@pytest.mark.parametrize("task", RESULTS)
def test_the_result_of_a_task_is_told_and_one_without_a_field_of_it_does_not_fit(task: str) -> None:
    whole = RESULTS[task]
    for fits, result in ((True, whole), (True, [whole, whole]), *((False, _without(whole, key)) for key in whole)):
        payload = encode.reply(Reply(id="1", status=200, result=result), TO, 1.0).payload
        if fits:
            asyncapi.check(DOCUMENT, "reply", payload)
        else:
            with pytest.raises(jsonschema.ValidationError):
                asyncapi.check(DOCUMENT, "reply", payload)


def _without(result: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != key}
