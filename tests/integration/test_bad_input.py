"""Bad requests: each gets its status word and a sentence, or silence and an event, and nothing else stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import PREFIX, REPLIES, Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until


@dataclass
class Place:
    """A broker and a device that serve a whole module."""

    broker: Mosquitto
    agent: AgentProcess


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad-input")
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "device", broker.port)
        base = echo_package(folder)
        agent.install(base)
        agent.install(echo_adapter_package(folder, base, "one"))
        agent.install(echo_package(folder, name="slow", delay_s=0.4))
        with running(agent, EDGE_AGENT__WORKER__MAX_ROWS="1"):
            yield Place(broker, agent)


def on_desk(place: Place, scenario: Any) -> None:
    """Run a scenario, and see that the device still serves afterwards."""

    async def run() -> None:
        async with desk(place.broker) as table:
            work: Coroutine[Any, Any, None] = scenario(table)
            await work
            assert (await table.ask("still-there", {"text": "x"}))["status"] == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "more", "status", "words"),
    [
        ({"text": "x"}, {"content_type": "text/plain"}, 415, "content type text/plain is not application/json"),
        (b'{"text": "x"', {}, 400, "not JSON"),
        (b"turn on the light", {}, 400, "not JSON"),
        (b"", {}, 400, ""),
        (b'{"text": "\xff"}', {}, 400, "not UTF-8"),
        (b'["x"]', {}, 422, "Expected `object`, got `array`"),
        ({"text": ["x"]}, {}, 422, "`$.text`"),
        ({"texts": "x"}, {}, 422, "`$.texts`"),
        ({"texts": []}, {}, 422, "texts"),
        ({"texts": ["x", ""]}, {}, 422, "empty"),
        ({"text": "x", "texts": ["x"]}, {}, 422, "text"),
        ({}, {}, 422, "text"),
        ({"text": "x", "priority": 10}, {}, 422, "priority"),
        ({"text": "x", "priority": "high"}, {}, 422, "priority"),
        ({"text": "x", "adapter": 5}, {}, 422, "adapter"),
        ({"text": "x", "params": []}, {}, 422, "params"),
        ({"text": "x", "deadline_s": -1}, {}, 422, "deadline_s"),
        ({"prompt": "tell me"}, {}, 422, "prompt"),
        ({"messages": [{"role": "user", "content": "hi"}]}, {}, 422, "messages"),
    ],
)
def test_a_body_that_does_not_fit(
    place: Place, body: dict[str, Any] | bytes, more: dict[str, Any], status: int, words: str
) -> None:
    async def scenario(table: Desk) -> None:
        reply = await table.ask("bad", body, **more)
        assert (reply["status"], words in reply["reason"]) == (status, True), reply
        assert reply["result"] is None
        print(f"\n{status}: {reply['reason']}")

    on_desk(place, scenario)


def test_without_a_response_topic_there_is_no_answer_but_an_event(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        table.send("infer/echo", {"text": "x"}, "nobody", response_topic=None)
        event = await table.event("request-unanswerable")
        assert "response topic" in event["message"]
        assert "reply_to" in event["message"]

    on_desk(place, scenario)


@pytest.mark.parametrize(
    "topic",
    ["edge/v1/dev2/infer/echo", "home/lock/set", "edge/v1/dev1/cmd/remove", f"{PREFIX}/client/a/b/reply", "$SYS/x"],
)
def test_an_answer_never_goes_outside_the_places_for_answers(place: Place, topic: str) -> None:
    async def scenario(table: Desk) -> None:
        before = len(table.events("reply-denied"))
        table.send("infer/echo", {"text": "x"}, "deputy", response_topic=topic)
        event = await table.event("reply-denied", before + 1)
        assert "the reply topic is refused" in event["message"]
        await table.ask("later", {"text": "x"})
        assert not [message for message in table.heard if message.topic == topic]

    on_desk(place, scenario)


@pytest.mark.parametrize("tail", ["infer/echo", "cmd/unload", "cancel"])
def test_a_retained_message_is_dropped_with_an_event(place: Place, tail: str) -> None:
    async def scenario(table: Desk) -> None:
        before = len(table.events("retained-dropped"))
        body = {"infer/echo": {"text": "x"}, "cmd/unload": {"model": "echo"}, "cancel": {"id": "x"}}[tail]
        table.send(tail, body, "kept", retain=True, expiry_s=None)
        event = await table.event("retained-dropped", before + 1)
        assert "without the retain flag" in event["message"]
        table.send(tail, b"", None, retain=True, expiry_s=None, response_topic=None)
        await table.ask("later", {"text": "x"})
        assert not table.replies("kept")
        assert len(table.events("retained-dropped")) == before + 1, "deleting it is the remedy, not an incident"

    on_desk(place, scenario)


def test_after_its_deadline_a_request_is_not_answered(place: Place) -> None:
    """One row each 0.4 s: the third of three has no time left, whether it is refused at once or expires in silence."""

    async def scenario(table: Desk) -> None:
        for number in range(3):
            table.send("infer/slow", {"text": "x", "deadline_s": 0.7}, f"late-{number}", expiry_s=1.0)
        await asyncio.sleep(1.6)
        statuses = [[reply["status"] for reply in table.replies(f"late-{number}")] for number in range(3)]
        assert statuses[0] == [200]
        assert statuses[2] in ([], [503]), "expired in silence, or refused with the numbers"

    on_desk(place, scenario)


def test_a_queued_and_a_running_request_can_be_cancelled(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        table.send("infer/slow", {"text": "x"}, "running")
        table.send("infer/slow", {"text": "x"}, "queued")
        table.send("infer/slow", {"text": "x"}, "kept")
        await asyncio.sleep(0.15)
        table.send("cancel", {"id": "queued"}, None)
        table.send("cancel", b"", "running")
        table.send("cancel", {"id": "never-asked"}, None)
        for name in ("queued", "running"):
            reply = await table.answer(name, 0.2)
            assert (reply["status"], reply["reason"]) == (499, "cancelled by the client")
        assert (await table.answer("kept"))["status"] == 200
        await asyncio.sleep(0.5)
        assert [len(table.replies(name)) for name in ("queued", "running", "kept")] == [1, 1, 1]

    on_desk(place, scenario)


def test_one_client_cannot_cancel_what_another_one_asked(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        table.send("infer/slow", {"text": "x"}, "mine")
        await asyncio.sleep(0.1)
        table.send("cancel", {"id": "mine", "reply_to": f"{PREFIX}/client/other/reply"}, None, response_topic=None)
        assert (await table.answer("mine"))["status"] == 200

    on_desk(place, scenario)


def test_the_urgent_ones_go_first(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        table.send("infer/slow", {"text": "x"}, "first")
        await asyncio.sleep(0.1)
        for priority in (9, 5, 0):
            table.send("infer/slow", {"text": "x", "priority": priority}, f"p{priority}")
        for priority in (9, 5, 0):
            await table.answer(f"p{priority}")
        order = [message.correlation for message in table.heard if message.topic == REPLIES]
        assert order[:4] == [b"first", b"p0", b"p5", b"p9"]

    on_desk(place, scenario)


def test_a_repetition_gets_one_answer_while_open_and_the_same_one_afterwards(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        for _ in range(3):
            table.send("infer/slow", {"text": "again"}, "twin")
        await table.answer("twin")
        await asyncio.sleep(0.6)
        assert len(table.replies("twin")) == 1
        table.send("infer/slow", {"text": "again"}, "twin")
        await until(lambda: len(table.replies("twin")) == 2)
        assert table.replies("twin")[0] == table.replies("twin")[1], "to the digit: it was not computed again"

    on_desk(place, scenario)


def test_requests_of_one_id_by_two_clients_are_two_requests(place: Place) -> None:
    async def scenario(table: Desk) -> None:
        topics = [f"{PREFIX}/client/{name}/reply" for name in ("a", "b")]
        for topic in topics:
            table.send("infer/echo", {"text": topic}, "1", response_topic=topic)
        for topic in topics:
            await until(lambda topic=topic: table.replies("1", topic))  # type: ignore[misc]
        assert [len(table.replies("1", topic)) for topic in topics] == [1, 1]

    on_desk(place, scenario)


def test_bad_ones_harm_no_neighbour(place: Place) -> None:
    """Good and bad requests interleaved: every one gets its own answer."""

    async def scenario(table: Desk) -> None:
        bodies = [{"text": "x"}, {"text": ""}, {"text": "x", "adapter": "one"}, {"text": "x", "adapter": "none"}] * 25
        for number, body in enumerate(bodies):
            table.send("infer/echo", body, f"n{number}")
        statuses = [(await table.answer(f"n{number}"))["status"] for number in range(len(bodies))]
        assert statuses == [200, 422, 200, 404] * 25

    on_desk(place, scenario)
