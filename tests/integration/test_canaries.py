"""Golden probes of a model and of its attached adapters, asked again of real workers while they are idle."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import asyncapi, generators
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until
from tests.support.needs import need

DOCUMENT = asyncapi.load()

OTHER_RUNTIME = """
from edge_agent.backends.echo import EchoSession

usual = EchoSession._outputs


def _outputs(self, job, rows):
    found = usual(self, job, rows)
    if job.adapter == "two":
        found["features"] = [[value * 1.01 for value in row] for row in found["features"]]
    return found


EchoSession._outputs = _outputs
"""
"""As after an upgrade: adapter `two` comes out by a hundredth off. Python imports it at its start."""


async def canaries(table: Desk, model: str, *names: str) -> dict[str, Any]:
    """What telemetry says of the model, once it and all these adapters have been probed."""

    def told() -> dict[str, Any]:
        reports = table.bodies("telemetry")
        found: dict[str, Any] = reports[-1]["canaries"].get(model, {}) if reports else {}
        return found

    def all_probed() -> bool:
        adapters = told().get("adapters", {})
        return all(one.get("age_s") is not None for one in (told(), *(adapters.get(name, {}) for name in names)))

    await until(all_probed, 60.0)
    return told()


def often(agent: AgentProcess) -> AgentProcess:
    """Probes every two seconds, as soon as the model is idle."""
    agent.config.write_text(agent.config.read_text().replace("[telemetry]\n", "[telemetry]\ncanary_s = 2.0\n"))
    return agent


@pytest.mark.parametrize("upgraded", [False, True])
def test_an_adapter_that_computes_something_else_on_this_device_is_an_event(tmp_path: Path, upgraded: bool) -> None:
    environment = {}
    with Mosquitto(tmp_path) as broker:
        agent = often(AgentProcess(tmp_path / "device", broker.port))
        base = echo_package(tmp_path)
        agent.install(base)
        for name in ("one", "two", "three"):
            agent.install(echo_adapter_package(tmp_path, base, name))
        if upgraded:
            (tmp_path / "newer").mkdir()
            (tmp_path / "newer" / "sitecustomize.py").write_text(OTHER_RUNTIME)
            environment["PYTHONPATH"] = f"{tmp_path / 'newer'}:{Path(__file__).resolve().parents[2]}"

        async def look() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            async with desk(broker) as table:
                for name in ("one", "two"):
                    assert (await table.ask(name, {"text": "hello", "adapter": name}))["status"] == 200
                found = await canaries(table, "echo", "one", "two")
                return found, table.events("verify-failed")

        with running(agent, **environment):
            told, events = asyncio.run(look())
    assert (told["ok"], told["reason"]) == (True, "2 golden probes hold, alone and in company")
    assert {name: one["ok"] for name, one in told["adapters"].items()} == {"one": True, "two": not upgraded}
    assert [event["data"] for event in events] == ([{"model": "echo", "adapter": "two"}] if upgraded else [])
    if upgraded:
        assert "adapter 'two' of model 'echo' computes something else" in events[0]["message"]


def test_a_generator_and_its_attached_adapter_are_probed(tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    with Mosquitto(tmp_path) as broker:
        agent = often(AgentProcess(tmp_path / "device", broker.port, backends=("llamacpp",)))
        base = generators.base_package(tmp_path)
        agent.install(base)
        for seed, name in enumerate(("one", "two"), start=1):
            agent.install(generators.adapter_package(tmp_path, base, name, seed))

        async def look() -> tuple[dict[str, Any], dict[str, Any]]:
            async with desk(broker) as table:
                body = {"prompt": "Once upon a time", "adapter": "one", "params": {"max_tokens": 4}}
                before = await table.ask("before", body, model="tiny")
                found = await canaries(table, "tiny", "one")
                after = await table.ask("after", body, model="tiny")
                assert before["result"]["text"] == after["result"]["text"], "a probe leaves nothing behind"
                for report in table.bodies("telemetry"):
                    asyncapi.check(DOCUMENT, "telemetry", json.dumps(report).encode())
                return found, after

        with running(agent):
            told, after = asyncio.run(look())
    assert after["status"] == 200
    assert told["ok"] is True
    assert {name: (one["ok"], one["reason"]) for name, one in told["adapters"].items()} == {
        "one": (True, "2 golden probes hold, alone and in company")
    }
