"""docs/asyncapi.yaml against a live agent: every message that it publishes is as written there, to the field."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from edge_agent.protocol.envelope import Inbound
from tests.support import asyncapi
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import PREFIX, REPLIES, Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until


def closed(node: Any) -> Any:
    """The document with every object closed: what is published and not written down is a fault too."""
    if isinstance(node, dict):
        found = {key: closed(value) for key, value in node.items()}
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            found.setdefault("additionalProperties", False)
        return found
    return [closed(item) for item in node] if isinstance(node, list) else node


DOCUMENT = closed(copy.deepcopy(asyncapi.load()))


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Inbound]]:
    """Everything that an agent published in a life with answers, refusals, orders, a death and an end."""
    folder = tmp_path_factory.mktemp("live")
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "device", broker.port)
        base = echo_package(folder)
        agent.install(base)
        agent.install(echo_adapter_package(folder, base, "one"))
        with running(agent, EDGE_AGENT__TELEMETRY__HOME_ASSISTANT="true"):
            yield asyncio.run(_live(agent, broker))


async def _live(agent: AgentProcess, broker: Mosquitto) -> list[Inbound]:
    async with desk(broker) as table:
        await until(lambda: table.bodies("info") and table.bodies("info")[-1]["runtimes"], 40.0)
        await _talk(table)
        os.kill(agent.workers()[0], signal.SIGKILL)
        await table.event("worker-died")
        await table.ask("after", {"text": "x"})
        count = len(table.bodies("telemetry"))
        await until(lambda: len(table.bodies("telemetry")) > count + 1)
        await asyncio.to_thread(agent.stop)
        await until(lambda: table.bodies("status")[-1]["state"] == "offline")
        return table.heard


async def _talk(table: Desk) -> None:
    await table.ask("one", {"text": "x", "adapter": "one", "params": {"top_k": 2}})
    await table.ask("many", {"texts": ["x", "a much longer text " * 40]})
    await table.ask("refused", {"text": "x", "adapter": "nobody"})
    await table.ask("malformed", b"{")
    await table.order("diag", "diag", {})
    await table.order("load", "load", {"model": "echo"})
    await table.order("unknown", "load", {"model": "nobody"})
    await table.order("undecodable", "load", {})
    await table.order("no-such-order", "dance", {})
    table.send("infer/echo", {"text": "x"}, "nowhere", response_topic=None)
    await table.event("request-unanswerable")


def of(heard: list[Inbound], tail: str) -> list[Inbound]:
    return [message for message in heard if message.topic == f"{PREFIX}/dev1/{tail}"]


def answers(heard: list[Inbound]) -> dict[str, Inbound]:
    return {(message.correlation or b"").decode(): message for message in heard if message.topic == REPLIES}


@pytest.mark.parametrize("name", ["status", "info", "models", "telemetry", "event"])
def test_what_the_agent_says_of_itself(heard: list[Inbound], name: str) -> None:
    messages = of(heard, name)
    assert messages
    for message in messages:
        asyncapi.check(DOCUMENT, name, message.payload)
        assert message.qos == (0 if name == "telemetry" else 1)
    if name != "status":  # the last will is written by the broker, from a packet that names no content type
        assert {message.content_type for message in messages} == {"application/json"}
    assert {message.expiry_s is not None for message in messages} == {name == "telemetry"}


def test_telemetry_fills_in_what_it_can(heard: list[Inbound]) -> None:
    reports = [json.loads(message.payload) for message in of(heard, "telemetry")]
    shares = [report["models"]["echo"] for report in reports if "echo" in report["models"]]
    assert sum(share["requests"] for share in shares) >= 3
    assert sum(share["truncated"] for share in shares) >= 1, "a text of 160 words was cut to 64 tokens"
    assert any(share["confidence_mean"] is not None for share in shares)
    assert all(report["rss_bytes"] > 1_000_000 for report in reports)
    assert len({report["seq"] for report in reports}) == len(reports)


def test_info_tells_runtimes_and_limits(heard: list[Inbound]) -> None:
    info = json.loads(of(heard, "info")[-1].payload)
    assert [(runtime["name"], runtime["reason"]) for runtime in info["runtimes"]] == [("echo", None)]
    assert info["limits"]["queue_jobs"] > 0


@pytest.mark.parametrize(
    ("request_id", "status", "kind"),
    [
        ("one", 200, "reply"),
        ("many", 200, "reply"),
        ("refused", 404, "reply"),
        ("malformed", 400, "reply"),
        ("diag", 200, "commandReply"),
        ("load", 200, "commandReply"),
        ("unknown", 404, "commandReply"),
        ("undecodable", 422, "commandReply"),
        ("no-such-order", 404, "commandReply"),
    ],
)
def test_answers(heard: list[Inbound], request_id: str, status: int, kind: str) -> None:
    message = answers(heard)[request_id]
    asyncapi.check(DOCUMENT, kind, message.payload)
    body = json.loads(message.payload)
    assert (body["id"], body["status"]) == (request_id, status)
    headers = {"correlationData": request_id, "messageExpiryInterval": int(message.expiry_s or 0), **message.user}
    jsonschema.Draft202012Validator(DOCUMENT["components"]["schemas"]["ReplyHeaders"]).validate(headers)
    assert headers["status"] == str(status)
    assert ("reason" in headers) == (status != 200)


def test_nothing_is_published_on_topics_that_are_not_written_down(heard: list[Inbound]) -> None:
    addresses = [channel["address"] for channel in DOCUMENT["channels"].values() if channel["address"]]
    known = {address.replace("{device}", "dev1") for address in addresses}
    asked = (f"{PREFIX}/dev1/infer/", f"{PREFIX}/dev1/cmd/", REPLIES)
    others = {message.topic for message in heard if not message.topic.startswith(asked)} - known
    assert others == {"homeassistant/device/dev1/config"}


def test_a_field_that_is_not_written_down_would_be_found(heard: list[Inbound]) -> None:
    body = json.loads(of(heard, "models")[-1].payload)
    body["models"][0]["adapters"][0]["colour"] = "red"
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        asyncapi.check(DOCUMENT, "models", json.dumps(body).encode())
