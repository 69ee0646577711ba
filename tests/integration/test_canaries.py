"""Golden probes of a model and of its attached adapters, asked again of real workers while they are idle."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

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


async def canaries(table: Desk, *names: str) -> dict[str, Any]:
    """What telemetry says of the model, once all these adapters have been probed."""

    def told() -> dict[str, Any]:
        reports = table.bodies("telemetry")
        found: dict[str, Any] = reports[-1]["canaries"].get("echo", {"adapters": {}}) if reports else {"adapters": {}}
        return found

    await until(lambda: all(told()["adapters"].get(name, {}).get("age_s") is not None for name in names), 60.0)
    return told()


@pytest.mark.parametrize("upgraded", [False, True])
def test_an_adapter_that_computes_something_else_on_this_device_is_an_event(tmp_path: Path, upgraded: bool) -> None:
    environment = {}
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.config.write_text(agent.config.read_text().replace("[telemetry]\n", "[telemetry]\ncanary_s = 2.0\n"))
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
                found = await canaries(table, "one", "two")
                return found, table.events("verify-failed")

        with running(agent, **environment):
            told, events = asyncio.run(look())
    assert (told["ok"], told["reason"]) == (True, "2 golden probes hold")
    assert {name: one["ok"] for name, one in told["adapters"].items()} == {"one": True, "two": not upgraded}
    assert [event["data"] for event in events] == ([{"model": "echo", "adapter": "two"}] if upgraded else [])
    if upgraded:
        assert "adapter 'two' of model 'echo' computes something else" in events[0]["message"]
