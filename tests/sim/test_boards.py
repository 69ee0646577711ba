"""Simulated boards: the agent's own readers see what the plant does, and the plants match what was published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.app.wiring import governor_config
from edge_agent.config.settings import Settings, ThermalSettings
from edge_agent.sensors.suite import SensorSuite
from sim.board import LiveBoard
from sim.boards import BOARDS
from sim.plant import Plants
from sim.policies import GovernorControl
from sim.sysfs import BoardTree, Shown
from tests.support import sysfs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("key", sorted(BOARDS))
def test_the_agent_recognises_every_board_and_reads_its_temperature(key: str, tmp_path: Path) -> None:
    model = BOARDS[key]
    with BoardTree(tmp_path, model) as tree:
        tree.update(Shown(61.5, 7.0, 0.8, 1.0, 0.5))
        suite = SensorSuite(tmp_path, lambda: 1.0)
        readings = suite.sample()
        assert suite.board.key == model.board
        assert suite.board.soft_limit_c == model.soft_c
        assert (
            governor_config(Settings(), suite.board, 16, model.cores) == GovernorControl(model, 16, False, False).config
        )
        assert readings["temperature"].value == pytest.approx(61.5, abs=6.1)
        assert (readings["fan"].value is not None) == bool(model.fan.trips_c)


@pytest.mark.parametrize("key", ["pi-5-bare", "jetson-nano", "orin-nano"])
def test_power_is_read_where_the_board_measures_it(key: str, tmp_path: Path) -> None:
    with BoardTree(tmp_path, BOARDS[key]) as tree:
        tree.update(Shown(50.0, 7.25, 1.0, 1.0))
        suite = SensorSuite(tmp_path, lambda: 1.0)
        assert suite.sample()["power"].value == pytest.approx(7.25, abs=0.02)


def test_a_switched_off_zone_and_a_constant_one_do_not_disturb(tmp_path: Path) -> None:
    with BoardTree(tmp_path / "orin", BOARDS["orin-nano"]) as tree:
        readings = SensorSuite(tree.root, lambda: 1.0).sample()
        assert "switched off" in str(readings["temperature_cv0-thermal"].reason)
        assert readings["temperature"].value == pytest.approx(40.0)
    with BoardTree(tmp_path / "nano", BOARDS["jetson-nano"]) as tree:
        assert "temperature_PMIC-Die" not in SensorSuite(tree.root, lambda: 1.0).sample()


def test_a_hot_pi_raises_its_flags_and_remembers_them(tmp_path: Path) -> None:
    live = LiveBoard(BOARDS["pi-5-bare"], tmp_path, ambient_c=40.0)
    suite = SensorSuite(tmp_path, lambda: 1.0)
    assert suite.sample()["throttle"].value == 0.0
    for _ in range(120):
        live.second(1.0)
    hot = int(suite.sample()["throttle"].value or 0)
    assert hot & 0b1000
    assert live.shown.clock < 1.0
    for _ in range(300):
        live.second(0.0)
    assert int(suite.sample()["throttle"].value or 0) == hot & 0xF0000


def settle(key: str, share: float, ambient_c: float, seconds: int) -> Plants:
    plant = Plants([BOARDS[key]], np.array([ambient_c]), np.array([1.0]), 0)
    for second in range(seconds * 4):
        if second % 4 == 0:
            plant.second()
        plant.step(np.array([share]), np.array([1.0]), 0.25)
    return plant


def test_pi5_bare_matches_what_was_published() -> None:
    """Idle about 50 °C; 80 °C after 83 s of ORT; settles at 86.7 °C and 74 % of the clock (docs/boards.md)."""
    idle = settle("pi-5-bare", 0.0, 22.0, 1)
    assert float(idle.t1[0]) == pytest.approx(49.0, abs=2.0)
    early, late = settle("pi-5-bare", 1.0, 22.0, 60), settle("pi-5-bare", 1.0, 22.0, 110)
    assert float(early.t1[0]) < 80.0 < float(late.t1[0])
    settled = settle("pi-5-bare", 1.0, 22.0, 1500)
    assert float(settled.t1[0]) == pytest.approx(86.7, abs=1.0)
    assert float(settled.clock[0]) == pytest.approx(0.74, abs=0.03)


def test_pi5_ignores_a_clock_cap_above_80_degrees() -> None:
    plant = Plants([BOARDS["pi-5-bare"]] * 2, np.array([40.0, 20.0]), np.array([1.4, 0.7]), 0)
    plant.t1 += np.array([7.0, 0.0])
    plant.t2 += np.array([7.0, 0.0])
    for _ in range(5):
        plant.second()
        for _ in range(4):
            plant.step(np.array([0.2, 0.2]), np.array([0.625, 0.625]), 0.25)
    assert float(plant.t1[0]) > 80.0
    assert float(plant.clock[0]) > 0.7, "raised above the user's cap"
    assert float(plant.clock[1]) == pytest.approx(0.625, abs=0.01)


def test_a_jetson_nano_that_is_too_hot_switches_off() -> None:
    plant = Plants([BOARDS["jetson-nano"]], np.array([85.0]), np.array([1.4]), 0)
    for _ in range(1800):
        plant.second()
        for _ in range(4):
            plant.step(np.array([1.0]), np.array([1.0]), 0.25)
        if plant.off[0]:
            break
    assert plant.off[0]
    plant.step(np.array([1.0]), np.array([1.0]), 0.25)
    assert plant.power_w[0] == 0.0


def test_the_same_seed_gives_the_same_board() -> None:
    one, other = settle("pi-4", 1.0, 25.0, 60), settle("pi-4", 1.0, 25.0, 60)
    assert (one.t1 == other.t1).all()
    assert (one.sensor_c == other.sensor_c).all()


@pytest.mark.parametrize(("wanted_c", "taken_c"), [(None, 80.0), (70.0, 70.0), (83.0, 83.0), (90.0, 83.0)])
def test_an_operators_soft_limit_stays_below_the_boards_hard_one(
    tmp_path: Path, wanted_c: float, taken_c: float
) -> None:
    board = SensorSuite(sysfs.pi5(tmp_path).root, lambda: 0.0).board
    plan = governor_config(replace(Settings(), thermal=ThermalSettings(soft_limit_c=wanted_c)), board, 16, 4)
    assert (plan.soft_limit_c, plan.hard_limit_c, plan.firmware_soft_c) == (taken_c, 85.0, 80.0)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_what_was_started_on_a_board_ends_with_it(told: signal.Signals, tmp_path: Path) -> None:
    told_s, place = 20.0, tmp_path / "child"
    sleeper = [
        sys.executable,
        "-c",
        f"import os, time; open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(60)",
    ]
    command = [sys.executable, "-m", "sim.board", "--root", str(tmp_path / "board"), "--run", *sleeper]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as board:
        give_up_s = time.monotonic() + told_s
        while not (place.exists() and place.read_text()) and time.monotonic() < give_up_s:
            time.sleep(0.05)
        board.send_signal(told)
        board.wait(told_s)
    assert not Path(f"/proc/{place.read_text()}").exists()
