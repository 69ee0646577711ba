"""The whole agent on simulated boards that move: what their sensors say arrives in telemetry, with where it is from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import AgentProcess, echo_package
from tests.support.desk import desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

ROOT = Path(__file__).resolve().parents[2]
HOLD_MIB = 40
OTHERS_MIB = 1024
PATIENCE_S = 45.0
Report = dict[str, Any]


@contextlib.contextmanager
def on_board(agent: AgentProcess, board: str, root: Path, *options: str) -> Iterator[None]:
    """`edge-agent run --sysroot` on a board that the agent itself heats and whose memory it takes."""
    command = [sys.executable, "-m", "sim.board", "--board", board, "--root", str(root), "--speed", "5",
               "--ambient", "35", *options, "--run", sys.executable, "-W", "ignore", "-m", "edge_agent", "run",
               "--config", str(agent.config)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.mark.parametrize(
    ("board", "power", "clock", "throttle"),
    [
        ("pi-5-bare", "pmic (fitted, +-10 %)", "firmware measure_clock arm", 0.0),
        ("jetson-nano", "ina3221 POM_5V_IN", "cpufreq hardware", None),
    ],
)
def test_a_board_is_watched_whole(board: str, power: str, clock: str, throttle: float | None, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, extra="[models]\nresident = []\n")
        agent.install(echo_package(tmp_path, hold_mib=HOLD_MIB))
        root = tmp_path / "board"
        root.mkdir()
        with on_board(agent, board, root):
            idle, loaded, crowded = asyncio.run(_life(broker, root))
    for report in (idle, loaded, crowded):
        sensors = report["sensors"]
        assert 35.0 < sensors["temperature"]["value"] < 110.0
        assert (sensors["power"]["source"], sensors["cpu_clock"]["source"]) == (power, clock)
        assert 1.5 < sensors["power"]["value"] < 12.0
        # A report of a second in which a request was answered says over what it was integrated.
        assert report["energy"]["method"] in (power, f"{power} over the request's share of the compute")
        assert sensors["cpu_clock"]["value"] > 5e8
        assert sensors["cpu_clock_requested"]["value"] > 5e8
        assert sensors["throttle"]["value"] == throttle
        assert throttle is not None or sensors["throttle"]["reason"] == "this board does not report throttling"
        assert sensors["memory_pressure_some"]["value"] is None, "neither board's stock kernel has PSI"
        assert sensors["refaults"]["value"] is not None
        assert report["governor"]["headroom_c"] is not None
    available = [report["sensors"]["ram_available"]["value"] / 2**20 for report in (idle, loaded, crowded)]
    print(f"\n{board}: available {available[0]:.0f} MiB idle, {available[1]:.0f} loaded, {available[2]:.0f} crowded")
    assert available[0] - available[1] > HOLD_MIB / 2
    assert available[1] - available[2] == pytest.approx(OTHERS_MIB, abs=HOLD_MIB)
    assert loaded["memory"]["models"]["echo"]["held_bytes"] > HOLD_MIB * 2**20, "the worker is measured on the board"


async def _life(broker: Mosquitto, root: Path) -> tuple[Report, Report, Report]:
    """Telemetry before a model is loaded, with one, and with other programs beside it."""
    async with desk(broker) as table:

        async def report(wanted: Callable[[Report], bool]) -> Report:
            for _ in range(int(PATIENCE_S)):
                await asyncio.sleep(1.0)
                reports = table.bodies("telemetry")
                if reports and wanted(reports[-1]):
                    return reports[-1]
            raise AssertionError(f"telemetry never showed it: {reports[-1:]}")

        def available_mib(one: Report) -> float:
            return float((one["sensors"]["ram_available"]["value"] or 0.0) / 2**20)

        idle = await report(lambda one: one["sensors"]["power"]["value"] is not None)
        assert (await table.ask("1", {"text": "are you there?"}))["status"] == 200
        # A worker is measured ten seconds after its load; until then its own figure stands.
        loaded = await report(
            lambda one: (
                available_mib(idle) - available_mib(one) > HOLD_MIB / 2
                and one["memory"]["models"]["echo"]["held_bytes"] > HOLD_MIB * 2**20
            )
        )
        (root / "others").write_text(str(OTHERS_MIB))
        crowded = await report(lambda one: available_mib(loaded) - available_mib(one) > OTHERS_MIB / 2)
        return idle, loaded, crowded


def test_an_orins_jtop_is_a_second_source(tmp_path: Path) -> None:
    pytest.importorskip("jtop", reason="jetson-stats is not installed (pip install jetson-stats)")
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, extra="[sensors]\njtop = true\n")
        agent.install(echo_package(tmp_path))
        board = tmp_path / "board"
        (board / "run").mkdir(parents=True)
        with on_board(agent, "orin-nano", board, "--jtop", str(board / "run/jtop.sock")):
            report = asyncio.run(_telemetry(broker))
    sensors = report["sensors"]
    assert sensors["temperature_jtop"]["source"].startswith("jtop ")
    assert abs(sensors["temperature"]["value"] - sensors["temperature_jtop"]["value"]) < 10.0
    assert sensors["temperature_second"] == sensors["temperature_jtop"]
    assert 2.0 < sensors["power"]["value"] < 30.0
    assert sensors["memory_pressure_some"]["value"] is not None
    assert report["governor"]["headroom_c"] is not None


async def _telemetry(broker: Mosquitto) -> Report:
    async with desk(broker) as table:

        def seen() -> list[Report]:
            reports = table.bodies("telemetry")
            return [one for one in reports if one["sensors"].get("temperature_jtop", {}).get("value") is not None]

        await until(lambda: bool(seen()), 90.0)
        return seen()[-1]
