"""A new version on trial beside the one that answers, with a real broker, a real daemon and real workers.

Every request is answered, whatever the new version does; the good one becomes current, the bad ones go back by
themselves, with the figures in `reported`.
"""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import asyncapi, generators, tiny_gguf
from tests.support.agents import LABELS, AgentProcess, echo_package, running
from tests.support.desk import Desk, cli, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until
from tests.support.needs import need

DOCUMENT = asyncapi.load()
WAIT_S = 90.0
TERMS = {"least": 20, "most": 60, "agreement": 0.5, "failures": 0.4, "slower": 4.0, "confidence_drop": 0.5}
DELAY_S = 0.01


def trials(table: Desk) -> list[dict[str, Any]]:
    """Those of the newest `reported`."""
    return (table.bodies("reported") or [{"trials": []}])[-1].get("trials", [])


async def asked_until(table: Desk, done: Any, prefix: str = "q", **more: Any) -> int:
    """Ask one request after another until `done`; each is answered. How many there were."""
    number = 0
    while not done():
        number += 1
        body = more.get("body", {"text": f"request number {number} ~"})
        answer = await table.ask(f"{prefix}{number}", body, more.get("model", "echo"))
        assert answer["status"] == 200, answer
        await asyncio.sleep(0.03)
        assert number < 400, trials(table)
    return number


@pytest.mark.parametrize(
    ("newer", "state", "word", "more"),
    [
        ({}, "promoted", "agreement 1.000", {}),
        ({"labels": LABELS[::-1]}, "returned", "agreement 0.", {}),
        ({"die_token": ord("~")}, "returned", "its worker ended 3 times", {}),
        ({}, "promoted", "agreement 1.000", {"mode": "share", "share": 0.5}),
        ({"die_token": ord("~")}, "returned", "its worker ended 3 times", {"mode": "share", "share": 1.0}),
    ],
    ids=["good", "disagrees", "dies", "good-share", "dies-share"],
)
def test_a_version_on_trial_is_kept_or_returned_by_what_it_answers(
    tmp_path: Path, newer: dict[str, Any], state: str, word: str, more: dict[str, Any]
) -> None:
    first = echo_package(tmp_path / "one", delay_s=DELAY_S)
    second = echo_package(tmp_path / "two", counter=2, **{"delay_s": DELAY_S, **newer})
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(first)
        (agent.folder / "state" / "inbox").mkdir(exist_ok=True)
        (agent.folder / "state" / "inbox" / "two.tar").write_bytes(second.read_bytes())

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    assert (await table.ask("before", {"text": "x"}))["status"] == 200
                    done = await table.order("install", "install", {"package": "two.tar", "trial": TERMS | more})
                    assert done["status"] == 200, done
                    await table.event("trial-started")
                    assert await asked_until(table, lambda: table.events("trial-ended")) >= 3
                    ended = table.events("trial-ended")[-1]
                    assert (ended["data"]["state"], ended["data"]["sure"]) == (state, True), ended
                    assert word in ended["message"], ended
                    await until(lambda: trials(table)[-1:] and trials(table)[-1]["state"] == state, WAIT_S)
                    told = trials(table)[-1]
                    assert (told["model"], told["version"]) == ("echo", 2) and word in told["reason"]
                    assert (told["figures"]["answered"] > 0) == (bool(more) and state == "promoted"), told
                    version = 2 if state == "promoted" else 1
                    shown = lambda: table.bodies("models")[-1]["models"][0]["version"]  # noqa: E731
                    await until(lambda: shown() == version, WAIT_S)
                    if state == "returned":
                        await table.event("rolled-back")
                    assert (await table.ask("after", {"text": "x"}))["status"] == 200
                    for report in table.bodies("reported"):
                        asyncapi.check(DOCUMENT, "reported", json.dumps(report).encode())

        asyncio.run(run())
        listed = json.loads(cli("models", "--json", "--config", agent.config).stdout)
        assert listed[0]["version"] == (2 if state == "promoted" else 1)


def test_a_daemon_that_is_killed_in_mid_trial_goes_on_with_it(tmp_path: Path) -> None:
    first = echo_package(tmp_path / "one", delay_s=DELAY_S)
    second = echo_package(tmp_path / "two", counter=2, delay_s=DELAY_S, labels=LABELS[::-1])
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(first)

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    await asyncio.to_thread(agent.install, second, json.dumps(TERMS))
                    await table.event("trial-started")
                    await asked_until(table, lambda: trials(table) and len(table.replies("q8")), "q")
                    table.send("infer/echo", {"text": "in between"}, "while", qos=1)
                    agent.stop(signal.SIGKILL)
                    agent.start()
                    # The broker delivers it again where it was not answered.
                    assert (await table.answer("while", WAIT_S))["status"] == 200
                    assert (await table.ask("old", {"text": "x"}))["result"]["label"] in LABELS
                    assert trials(table)[-1]["state"] == "running", "the version before answers after a kill, too"
                    await asked_until(table, lambda: table.events("trial-ended"), "again")
                    assert table.events("trial-ended")[-1]["data"]["state"] == "returned"
                    await table.event("rolled-back")
                    assert table.bodies("models")[-1]["models"][0]["version"] == 1

        asyncio.run(run())


@pytest.mark.parametrize("by", ["command", "order"])
def test_a_person_ends_a_trial(tmp_path: Path, by: str) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        second = echo_package(tmp_path / "two", counter=2)
        agent.install(echo_package(tmp_path / "one"))
        assert "not on trial" in cli("promote", "echo", "--config", agent.config).stderr

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    await asyncio.to_thread(agent.install, second, "{}")
                    await table.event("trial-started")
                    assert table.bodies("models")[-1]["models"][0]["version"] == 1
                    assert "on trial: the version before answers" in cli("models", "--config", agent.config).stdout
                    if by == "command":
                        assert cli("promote", "echo", "--config", agent.config).returncode == 0
                    else:
                        assert (await table.order("promote", "promote", {"model": "echo"}))["status"] == 200
                    assert "on trial" not in cli("models", "--config", agent.config).stdout
                    await until(lambda: trials(table)[-1:] and trials(table)[-1]["state"] == "promoted", WAIT_S)
                    assert "ended on the device" in trials(table)[-1]["reason"]
                    await until(lambda: table.bodies("models")[-1]["models"][0]["version"] == 2, WAIT_S)

        asyncio.run(run())


def test_a_generator_is_tried_by_its_texts(tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("llamacpp",))
        agent.install(generators.base_package(tmp_path / "one"))
        second = generators.base_package(tmp_path / "two", counter=2, template=f"{tiny_gguf.TEMPLATE} ")

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    await asyncio.to_thread(agent.install, second, json.dumps({**TERMS, "slower": 50.0}))
                    await table.event("trial-started")
                    body = {"prompt": "Once upon a time", "params": {"max_tokens": 2}}
                    await asked_until(table, lambda: table.events("trial-ended"), body=body, model="tiny")
                    ended = table.events("trial-ended")[-1]
                    assert ended["data"]["state"] == "promoted" and ended["data"]["agreement"] == 1.0, ended

        asyncio.run(run())
