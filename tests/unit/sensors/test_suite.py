"""A whole round over a board's sensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_agent.agent.ports import Sensors
from edge_agent.base.clock import ManualClock
from edge_agent.sensors.clocks import read_clock
from edge_agent.sensors.suite import SEARCH_AGAIN_S, SensorSuite
from tests.support import sysfs

ALWAYS = {
    "temperature", "throttle", "over_current", "power", "ram_total", "ram_available", "swap_total", "swap_free",
    "memory_pressure_some", "memory_pressure_full", "cgroup_limit", "cgroup_used", "cpu_clock", "fan", "fan_rpm",
}  # fmt: skip


def values(suite: SensorSuite) -> dict[str, float]:
    return {key: reading.value for key, reading in suite.sample().items() if reading.value is not None}


@pytest.mark.parametrize("build", [sysfs.pi4, sysfs.pi5, sysfs.nano, sysfs.orin_nano, sysfs.Tree])
def test_every_key_is_there_on_every_board(tmp_path: Path, build: object) -> None:
    clock = ManualClock()
    suite: Sensors = SensorSuite(build(tmp_path).root, clock.monotonic_s)  # type: ignore[operator]
    readings = suite.sample()
    assert set(readings) >= ALWAYS
    assert {reading.taken_s for reading in readings.values()} == {clock.monotonic_s()}
    assert all(reading.reason is None or len(reading.reason) > 10 for reading in readings.values())


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    suite = SensorSuite(sysfs.pi4(tmp_path).root, ManualClock().monotonic_s)
    found = suite.sample()
    assert (found["temperature"].value, found["throttle"].value) == (48.2, 0.0)
    assert found["power"].reason == "no power sensor was found"
    assert found["cgroup_limit"].reason == "the kernel runs without the memory cgroup"
    assert found["cpu_clock"].value == 1.5e9


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    tree = sysfs.pi5(tmp_path)
    found = SensorSuite(tree.root, ManualClock().monotonic_s, gencmd=lambda command: sysfs.PMIC_ADC).sample()
    assert found["power"].value == pytest.approx(4.97, abs=1.0)
    assert found["fan"].value == pytest.approx(75 / 255 * 100)
    assert found["fan_rpm"].value == 2900.0
    alone = SensorSuite(tree.root, ManualClock().monotonic_s).sample()
    assert alone["power"].reason == "neither /dev/vcio_gencmd nor /dev/vcio is there to ask the PMIC"


def test_jetsons(tmp_path: Path) -> None:
    nano = values(SensorSuite(sysfs.nano(tmp_path / "nano").root, ManualClock().monotonic_s))
    assert (nano["power"], nano["power_POM_5V_CPU"], nano["temperature"]) == (4.21, 1.18, 41.5)
    assert nano["fan"] == pytest.approx(120 / 255 * 100)
    orin = values(SensorSuite(sysfs.orin_nano(tmp_path / "orin").root, ManualClock().monotonic_s))
    assert (orin["temperature"], orin["temperature_cv0-thermal"], orin["over_current"]) == (47.5, 44.0, 2.0)
    assert orin["fan_rpm"] == 1840.0


def test_a_change_is_seen_at_the_next_round(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    clock = ManualClock()
    suite = SensorSuite(tree.root, clock.monotonic_s)
    suite.sample()
    tree.temp("cpu-thermal", 81.0)
    clock.advance(1)
    reading = suite.sample()["temperature"]
    assert (reading.value, reading.taken_s) == (81.0, clock.monotonic_s())


def test_a_sensor_that_comes_late_is_found(tmp_path: Path) -> None:
    clock = ManualClock()
    suite = SensorSuite(tmp_path, clock.monotonic_s)
    assert suite.sample()["temperature"].value is None
    sysfs.Tree(tmp_path).zone("cpu-thermal", 40.0)
    clock.advance(SEARCH_AGAIN_S - 1)
    suite.sample()
    assert suite.sample()["temperature"].value is None, "it does not search in every round"
    clock.advance(1)
    suite.sample()
    assert suite.sample()["temperature"].value == 40.0


def test_losing_everything_raises_nothing(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path / "root")
    suite = SensorSuite(tree.root, ManualClock().monotonic_s)
    assert values(suite)
    shutil.rmtree(tree.root)
    assert values(suite) == {}


def test_the_real_clock_goes_before_the_requested_one(tmp_path: Path) -> None:
    tree = sysfs.pi5(tmp_path)
    tree.write("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_cur_freq", "1500000\n")
    reading = read_clock(tree.root, 1.0)
    assert (reading.value, reading.source) == (1.5e9, "cpufreq hardware")


@pytest.mark.parametrize("build", [sysfs.pi4, sysfs.pi5, sysfs.nano, sysfs.orin_nano])
def test_power_alone_is_what_a_whole_round_says(tmp_path: Path, build: object) -> None:
    suite = SensorSuite(build(tmp_path).root, ManualClock().monotonic_s, gencmd=lambda _: sysfs.PMIC_ADC)  # type: ignore[operator]
    assert suite.sample_power() == suite.sample()["power"]
