"""The whole agent on a simulated Orin Nano that moves: sensors, jtop and the governor's figures arrive in telemetry."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import AgentProcess, echo_package
from tests.support.desk import desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

ROOT = Path(__file__).resolve().parents[2]


def test_telemetry_shows_a_board_that_is_simulated(tmp_path: Path) -> None:
    pytest.importorskip("jtop", reason="jetson-stats is not installed (pip install jetson-stats)")
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, extra="[sensors]\njtop = true\n")
        agent.install(echo_package(tmp_path))
        board = tmp_path / "board"
        (board / "run").mkdir(parents=True)
        command = [sys.executable, "-m", "sim.board", "--board", "orin-nano", "--root", str(board), "--speed", "5",
                   "--ambient", "35", "--jtop", str(board / "run/jtop.sock"),
                   "--run", sys.executable, "-W", "ignore", "-m", "edge_agent", "run", "--config",
                   str(agent.config)]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            report = asyncio.run(_telemetry(broker))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    sensors = report["sensors"]
    assert sensors["temperature_jtop"]["source"].startswith("jtop ")
    assert abs(sensors["temperature"]["value"] - sensors["temperature_jtop"]["value"]) < 10.0
    assert sensors["temperature_second"] == sensors["temperature_jtop"]
    assert 2.0 < sensors["power"]["value"] < 30.0
    assert report["governor"]["headroom_c"] is not None


async def _telemetry(broker: Mosquitto) -> dict[str, Any]:
    async with desk(broker) as table:

        def seen() -> list[dict[str, Any]]:
            reports = table.bodies("telemetry")
            return [one for one in reports if one["sensors"].get("temperature_jtop", {}).get("value") is not None]

        await until(lambda: bool(seen()), 90.0)
        return seen()[-1]
