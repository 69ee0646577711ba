"""Orders to a device over MQTT, and a store changed behind its back: carried out, answered, served from then on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.protocol.messages import ORDERS
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

BODIES = {
    "install": {"package": "x.tar"},
    "remove": {"model": "nobody"},
    "rollback": {"model": "nobody"},
    "load": {"model": "nobody"},
    "unload": {"model": "nobody"},
    "attach": {"model": "nobody", "adapter": "x"},
    "detach": {"model": "nobody", "adapter": "x"},
}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with Mosquitto(tmp_path) as broker:
        found = AgentProcess(tmp_path / "device", broker.port)
        found.broker = broker  # type: ignore[attr-defined]
        found.install(echo_package(tmp_path))
        with running(found):
            yield found


def entry(table: Desk, name: str = "echo") -> dict[str, object] | None:
    """What the newest `models` message says of a model."""
    models = table.bodies("models")[-1]["models"] if table.bodies("models") else []
    found: dict[str, object] | None = next((model for model in models if model["name"] == name), None)
    return found


def test_a_packages_whole_life_over_mqtt(agent: AgentProcess, tmp_path: Path) -> None:
    """Install, ask, attach, detach, a newer version, back again, the adapter away, the model away."""
    base = tmp_path / "echo-1.tar"
    inbox = agent.folder / "state" / "inbox"
    for package in (echo_adapter_package(tmp_path, base, "one"), echo_package(tmp_path, counter=2)):
        shutil.copy(package, inbox)

    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            done = await table.order("i1", "install", {"package": "one-1.tar"})
            assert (done["status"], done["result"]["models"]) == (200, ["echo"])
            assert done["result"]["package"].startswith("sha256:")
            assert (await table.event("installed"))["severity"] == "info"
            assert not (inbox / "one-1.tar").exists(), "removed after its install"
            assert (inbox / "echo-2.tar").exists(), "another one stays"
            await until(lambda: (entry(table) or {}).get("adapters"))
            assert (await table.ask("q1", {"text": "x", "adapter": "one"}))["status"] == 200
            assert (await table.order("d1", "detach", {"model": "echo", "adapter": "one"}))["result"] == {
                "attached": []
            }
            attached = await table.order("a1", "attach", {"model": "echo", "adapter": "one"})
            assert attached["result"] == {"attached": ["one"]}
            done = await table.order("i2", "install", {"package": "echo-2.tar"})
            assert (done["status"], done["result"]["counter"]) == (200, 2)
            assert not list(inbox.iterdir())
            await until(lambda: (entry(table) or {}).get("version") == 3)
            assert (await table.ask("q2", {"text": "x", "adapter": "one"}))["status"] == 200, "carried to the new base"
            done = await table.order("r1", "rollback", {"model": "echo"})
            assert (done["status"], done["result"]["version"]) == (200, 2)
            await table.event("rolled-back")
            await until(lambda: (entry(table) or {}).get("version") == 2)
            assert (await table.order("x1", "remove", {"model": "echo", "adapter": "one"}))["status"] == 200
            await until(lambda: not (entry(table) or {"adapters": 1})["adapters"])
            assert (await table.ask("q3", {"text": "x", "adapter": "one"}))["status"] == 404
            assert (await table.order("x2", "remove", {"model": "echo"}))["status"] == 200
            await until(lambda: entry(table) is None)
            gone = await table.ask("q4", {"text": "x"})
            assert (gone["status"], gone["reason"]) == (404, "no model 'echo' on this device; there are none")
            await until(lambda: not agent.workers())

    asyncio.run(run())


def test_unload_gives_the_memory_back_and_the_next_request_loads_again(agent: AgentProcess) -> None:
    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            await table.ask("q1", {"text": "x"})
            await until(lambda: len(agent.workers()) == 1, 30.0)  # the child that was asked for runtimes has gone
            assert (await table.order("u1", "unload", {"model": "echo"}))["status"] == 200
            assert not agent.workers()
            loaded = await table.order("l1", "load", {"model": "echo"})
            assert loaded["status"] == 200
            assert loaded["result"]["footprint_bytes"] > 0
            assert len(agent.workers()) == 1
            assert (await table.order("u2", "unload", {"model": "echo"}))["status"] == 200
            assert (await table.ask("q2", {"text": "x"}))["status"] == 200

    asyncio.run(run())


def test_diag_tells_models_and_sensors_with_reasons(agent: AgentProcess) -> None:
    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            answer = await table.order("d1", "diag", {})
            assert answer["status"] == 200
            assert [model["name"] for model in answer["result"]["models"]] == ["echo"]
            for reading in answer["result"]["sensors"].values():
                assert (reading["value"] is None) == (reading["reason"] is not None)

    asyncio.run(run())


def test_orders_that_cannot_be_carried_out(agent: AgentProcess, tmp_path: Path) -> None:
    """Each gets a status and a sentence that names the thing; the device serves on."""
    outside = echo_package(tmp_path, name="outside")

    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            refused = {}
            for name, body in BODIES.items():
                refused[name] = await table.order(f"bad-{name}", name, body)
            refused["frobnicate"] = await table.order("bad-name", "frobnicate", {})
            refused["no model"] = await table.order("bad-body", "load", {})
            refused["unknown field"] = await table.order("bad-field", "load", {"model": "echo", "force": True})
            refused["no adapter"] = await table.order("bad-adapter", "attach", {"model": "echo", "adapter": "none"})
            refused["no version before"] = await table.order("bad-version", "rollback", {"model": "echo"})
            refused["a path"] = await table.order("bad-path", "install", {"package": str(outside)})
            refused["a NUL"] = await table.order("bad-nul", "install", {"package": "x\0.tar"})
            refused["a line break"] = await table.order("bad-line", "install", {"package": "x\n.tar"})
            refused["a way up"] = await table.order("bad-up", "install", {"package": "../../echo-1.tar"})
            for name, answer in refused.items():
                print(f"\n{name}: {answer['status']} {answer['reason']}")
            statuses = {name: answer["status"] for name, answer in refused.items()}
            assert statuses.pop("install") == statuses.pop("a path") == statuses.pop("a way up") == 422
            unfit = ("no model", "unknown field", "no version before", "a NUL", "a line break")
            assert {statuses.pop(name) for name in unfit} == {422}
            assert set(statuses.values()) == {404}, statuses
            assert "frobnicate" not in ORDERS
            causes = {name: answer["cause"] for name, answer in refused.items()}
            assert causes["no version before"] == "no-earlier-version", "from the process that carried it out"
            assert causes["frobnicate"] == "unknown-command"
            assert {causes[name] for name in ("a path", "a way up", "a NUL", "no model")} == {"invalid"}
            assert {causes[name] for name in ("load", "remove", "rollback")} == {"unknown-model"}
            assert (causes["install"], causes["no adapter"]) == ("source", "unknown-adapter")
            assert (await table.ask("q", {"text": "x"}))["status"] == 200

    asyncio.run(run())


def test_a_second_order_is_told_to_come_back(agent: AgentProcess, tmp_path: Path) -> None:
    shutil.copy(echo_package(tmp_path, name="more"), agent.folder / "state" / "inbox")

    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            table.send("cmd/install", {"package": "more-1.tar"}, "first")
            await asyncio.sleep(0.1)
            second = await table.order("second", "diag", {})
            assert (second["status"], second["retry_after_s"]) == (429, 5.0)
            assert "another command is being carried out" in second["reason"]
            assert (await table.answer("first", 60.0))["status"] == 200

    asyncio.run(run())


def test_a_package_that_is_refused_stays_in_the_inbox(agent: AgentProcess) -> None:
    refused = agent.folder / "state" / "inbox" / "refused.tar"
    refused.write_bytes(b"no package")

    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            answer = await table.order("i1", "install", {"package": refused.name})
            assert (answer["status"], answer["cause"]) == (422, "package-refused"), answer

    asyncio.run(run())
    assert refused.read_bytes() == b"no package"


def test_what_the_command_line_changes_is_an_event_each(agent: AgentProcess, tmp_path: Path) -> None:
    """Install, rollback and removal on the board, without a word to the daemon."""

    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            await asyncio.to_thread(agent.install, echo_package(tmp_path, counter=2))
            assert (await table.event("installed"))["data"]["model"] == "echo"
            for verb, kind in (("rollback", "rolled-back"), ("remove", "removed")):
                command = [sys.executable, "-m", "edge_agent", verb, "--config", str(agent.config), "echo"]
                await asyncio.to_thread(subprocess.run, command, check=True)
                assert (await table.event(kind))["data"]["model"] == "echo"

    asyncio.run(run())


def test_sighup_takes_over_what_the_command_line_installed(agent: AgentProcess, tmp_path: Path) -> None:
    async def run() -> None:
        async with desk(agent.broker) as table:  # type: ignore[attr-defined]
            await asyncio.to_thread(agent.install, echo_package(tmp_path, name="second"))
            os.kill(agent.pid, signal.SIGHUP)
            await until(lambda: entry(table, "second"))
            assert (await table.ask("q", {"text": "x"}, model="second"))["status"] == 200
            assert "the store is read again" in agent.log

    asyncio.run(run())
