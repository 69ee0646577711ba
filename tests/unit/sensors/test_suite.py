"""A whole round over a board's sensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_agent.agent.ports import Sensors
from edge_agent.base.clock import ManualClock
from edge_agent.sensors.suite import SEARCH_AGAIN_S, SensorSuite
from edge_agent.sensors.throttle import parse_measured_clock, read_clocks
from tests.support import sysfs

ALWAYS = {
    "temperature", "throttle", "over_current", "power", "ram_total", "ram_available", "swap_total", "swap_free",
    "memory_pressure_some", "memory_pressure_full", "cgroup_limit", "cgroup_used", "cpu_clock",
    "cpu_clock_requested", "major_faults", "fan", "fan_rpm",
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
    assert found["cpu_clock_requested"].value == 1.5e9
    assert found["cpu_clock"].reason == "only the firmware knows it, and there is no /dev/vcio to ask it"


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


def test_power_rails_that_come_back_under_another_number_are_found(tmp_path: Path) -> None:
    """A driver that is loaded anew gets a new number; the temperature was there all the time."""
    tree = sysfs.orin_nano(tmp_path)
    clock = ManualClock()
    suite = SensorSuite(tree.root, clock.monotonic_s)
    before = suite.sample()["power"].value
    assert before is not None
    (hwmon,) = tree.root.glob("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon*")
    hwmon.rename(hwmon.with_name("hwmon9"))
    lost = suite.sample()
    assert (lost["power"].value, lost["temperature"].value is None) == (None, False)
    clock.advance(SEARCH_AGAIN_S)
    suite.sample()
    assert suite.sample()["power"].value == before


def test_the_quick_round_counts_waits_only_where_the_kernel_has_no_pressure_figures(tmp_path: Path) -> None:
    with_psi, without = sysfs.pi5(tmp_path / "5"), sysfs.pi4(tmp_path / "4")
    without.write("proc/vmstat", "pgmajfault 17\npswpin 3\nworkingset_refault_file 4\n")
    assert "swapped_in" not in SensorSuite(with_psi.root, ManualClock().monotonic_s).sample_memory()
    found = SensorSuite(without.root, ManualClock().monotonic_s).sample_memory()
    assert (found["major_faults"].value, found["swapped_in"].value, found["refaults"].value) == (17.0, 3.0, 4.0)


def test_losing_everything_raises_nothing(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path / "root")
    suite = SensorSuite(tree.root, ManualClock().monotonic_s)
    assert values(suite)
    shutil.rmtree(tree.root)
    assert values(suite) == {}


def test_a_jetson_tells_its_real_clock_by_file(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path)
    tree.write("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_cur_freq", "1500000\n")
    found = read_clocks(tree.root, "jetson", 1.0)
    assert (found["cpu_clock"].value, found["cpu_clock"].source) == (1.5e9, "cpufreq hardware")
    assert (found["cpu_clock_requested"].value, found["cpu_clock_requested"].source) == (1.728e9, "cpufreq requested")


def test_a_raspberry_pis_real_clock_is_its_firmwares(tmp_path: Path) -> None:
    tree = sysfs.pi5(tmp_path)
    tree.write("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_cur_freq", "2400000\n")
    tree.write("dev/vcio/measure_clock arm", "frequency(0)=1500345728\n")
    found = SensorSuite(tree.root, ManualClock().monotonic_s).sample()
    assert found["cpu_clock"].value == 1_500_345_728.0
    assert found["cpu_clock_requested"].value == 2.4e9
    (tmp_path / "dev/vcio/measure_clock arm").unlink()
    refused = SensorSuite(tree.root, ManualClock().monotonic_s).sample()["cpu_clock"]
    assert refused.value is None
    assert "the firmware refused 'measure_clock arm'" in str(refused.reason)


@pytest.mark.parametrize("text", ["", "frequency(0)=", "frequency(0)=0", "frequency(0)=99999999999", "error=1"])
def test_what_is_not_a_clock_is_none(text: str) -> None:
    assert isinstance(parse_measured_clock(text), str)


def test_the_mailbox_tells_the_throttle_word_where_no_file_does(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.device_tree("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b", "brcm,bcm2711")
    tree.write("dev/vcio/get_throttled", "throttled=0x50005\n")
    reading = SensorSuite(tree.root, ManualClock().monotonic_s).sample()["throttle"]
    assert (reading.value, reading.source) == (float(0x50005), "firmware get_throttled")


@pytest.mark.parametrize("build", [sysfs.pi4, sysfs.pi5, sysfs.nano, sysfs.orin_nano])
def test_power_alone_is_what_a_whole_round_says(tmp_path: Path, build: object) -> None:
    suite = SensorSuite(build(tmp_path).root, ManualClock().monotonic_s, gencmd=lambda _: sysfs.PMIC_ADC)  # type: ignore[operator]
    assert suite.sample_power() == suite.sample()["power"]
