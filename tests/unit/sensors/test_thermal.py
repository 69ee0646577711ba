"""Temperatures: hottest zone that counts, nothing believed that cannot be true, nothing raised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.boards import match, read_board
from edge_agent.sensors.thermal import (
    COLDEST_C,
    HOTTEST_C,
    find_hwmon_temps,
    find_zones,
    governing,
    parse_temp,
    read_firmware,
    read_zones,
    second_source,
)
from tests.support import sysfs


@pytest.mark.parametrize(("text", "celsius"), [("48200", 48.2), ("48200\n", 48.2), ("-5000", -5.0), ("0", 0.0)])
def test_millidegrees(text: str, celsius: float) -> None:
    assert parse_temp(text) == celsius


@pytest.mark.parametrize("text", ["-256000", "-274000", "200000", "", "hot", "4.2", "٤٢", "1e3", "--5"])
def test_what_is_no_temperature_gives_a_reason(text: str) -> None:
    assert isinstance(parse_temp(text), str)


@given(st.text(max_size=30) | st.integers().map(str))
def test_every_text_gives_a_believable_temperature_or_a_reason(text: str) -> None:
    value = parse_temp(text)
    assert value if isinstance(value, str) else COLDEST_C <= value <= HOTTEST_C


def test_the_hottest_counted_zone_governs(tmp_path: Path) -> None:
    tree = sysfs.nano(tmp_path)
    zones = find_zones(tree.root)
    assert "PMIC-Die" not in zones, "it says 100 degrees for ever"
    board = read_board(tree.root)
    found = governing(read_zones(zones, 5.0), board, 5.0)
    assert (found.value, found.source, found.taken_s, found.unit) == (41.5, "AO-therm", 5.0, "celsius")
    tree.temp("GPU-therm", 70.25)
    tree.temp("thermal-fan-est", 90.0)
    found = governing(read_zones(zones, 6.0), board, 6.0)
    assert (found.value, found.source) == (70.25, "GPU-therm")


def test_a_power_gated_zone_is_absent_and_the_others_count(tmp_path: Path) -> None:
    """A FIFO with a silent writer, opened without blocking, answers EAGAIN as a gated Jetson zone does."""
    tree = sysfs.orin_nano(tmp_path)
    path = tree.temp_path("gpu-thermal")
    path.unlink()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        readings = read_zones(find_zones(tree.root), 1.0)
    finally:
        os.close(writer)
    assert readings["gpu-thermal"].value is None
    assert "power domain is switched off" in str(readings["gpu-thermal"].reason)
    assert governing(readings, read_board(tree.root), 1.0).source == "tj-thermal"


def test_minus_256_never_becomes_a_value(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path)
    tree.temp("gpu-thermal", -256.0)
    reading = read_zones(find_zones(tree.root), 1.0)["gpu-thermal"]
    assert reading.value is None
    assert "-256 °C cannot be true" in str(reading.reason)


def test_when_every_counted_zone_is_lost_there_is_no_temperature(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    tree.zone("ambient", 20.0)
    zones = find_zones(tree.root)
    tree.temp_path("cpu-thermal").unlink()
    found = governing(read_zones(zones, 1.0), read_board(tree.root), 1.0)
    assert found.value is None
    assert "does not have it" in str(found.reason)


def test_on_an_unknown_machine_every_zone_counts(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.zone("x86_pkg_temp", 61.0)
    tree.zone("acpitz", 27.8)
    found = governing(read_zones(find_zones(tree.root), 1.0), match(()), 1.0)
    assert (found.value, found.source) == (61.0, "x86_pkg_temp")


def test_a_known_board_with_strange_zone_names_uses_what_it_has(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.zone("new-name", 61.0)
    board = match(("raspberrypi,5-model-b",))
    assert governing(read_zones(find_zones(tree.root), 1.0), board, 1.0).value == 61.0


def test_without_zones_there_is_a_reason(tmp_path: Path) -> None:
    assert find_zones(tmp_path) == {}
    assert governing({}, match(()), 1.0).reason == "this machine has no thermal zone"


def test_hwmon_serves_machines_without_zones(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.hwmon(4, "k10temp", temp1_input="55000")
    tree.hwmon(5, "nvme", temp1_input="70000")
    assert read_zones(find_hwmon_temps(tree.root), 1.0)["k10temp"].value == 55.0


def test_the_firmware_tells_two_temperatures() -> None:
    answers = {"measure_temp": "temp=48.3'C", "measure_temp pmic": "temp=41.0'C"}
    found = read_firmware(answers.__getitem__, 5.0)
    assert {key: reading.value for key, reading in found.items()} == {
        "temperature_firmware": 48.3,
        "temperature_pmic": 41.0,
    }
    assert "is not a temperature" in str(read_firmware(lambda _: "VCHI failed", 5.0)["temperature_pmic"].reason)
    assert "cannot be true" in str(read_firmware(lambda _: "temp=-274.0'C", 5.0)["temperature_pmic"].reason)


@pytest.mark.parametrize(
    ("first", "die", "beside", "second"),
    [
        (50.0, 51.0, 40.0, 51.0),
        (None, 51.0, 40.0, 51.0),
        (50.0, None, 40.0, None),
        (50.0, None, 65.0, 65.0),
        (None, None, 65.0, None),
        (50.0, None, None, None),
    ],
)
def test_the_power_chip_contradicts_but_never_stands_in(
    first: float | None, die: float | None, beside: float | None, second: float | None
) -> None:
    def reading(value: float | None) -> Reading:
        lost = unavailable("celsius", "test", 0.0, "lost")
        return lost if value is None else Reading(value, "celsius", "test", 0.0)

    found = second_source(reading(first), {"temperature_firmware": reading(die), "temperature_pmic": reading(beside)})
    assert (found.value if found is not None else None) == second
