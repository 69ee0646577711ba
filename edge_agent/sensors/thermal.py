"""Temperatures from the kernel's thermal zones. The zone numbers change from boot to boot: zones go by their type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.boards import Board
from edge_agent.sensors.files import parse_number, read_text

COLDEST_C = -40.0
HOTTEST_C = 130.0
"""Silicon that runs Linux is between these; −256 (jtop for 'off') and −274 are not temperatures."""

CONSTANT_ZONES = frozenset({"PMIC-Die", "PMIC-therm"})
"""The Jetson Nano's PMIC zone says 100 degrees for ever."""


def parse_temp(text: str) -> float | str:
    """Degrees Celsius of a zone's `temp` (millidegrees), or the reason why they cannot be believed."""
    millidegrees = parse_number(text.strip())
    if millidegrees is None:
        return f"{text[:40]!r} is not a temperature"
    celsius = millidegrees / 1000.0
    if not COLDEST_C <= celsius <= HOTTEST_C:
        return f"{celsius:g} °C cannot be true; the sensor is off or broken"
    return celsius


def find_zones(root: Path) -> dict[str, str]:
    """Zone type -> path of its `temp` file, without zones that only repeat a constant."""
    zones: dict[str, str] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = read_text(str(folder / "type")).text
        if kind is not None and kind not in CONSTANT_ZONES:
            zones.setdefault(kind, str(folder / "temp"))
    return zones


def find_hwmon_temps(root: Path) -> dict[str, str]:
    """The processor's hwmon temperatures, for machines without thermal zones."""
    names = {"cpu_thermal", "coretemp", "k10temp", "soc_thermal"}
    found: dict[str, str] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(str(folder / "name")).text
        if name in names:
            found.setdefault(str(name), str(folder / "temp1_input"))
    return found


def read_zone(kind: str, path: str, taken_s: float) -> Reading:
    """One zone's temperature."""
    text, reason = read_text(path)
    if text is None:
        return unavailable("celsius", kind, taken_s, reason)
    value = parse_temp(text)
    if isinstance(value, str):
        return unavailable("celsius", kind, taken_s, f"{path}: {value}")
    return Reading(value, "celsius", kind, taken_s)


def read_zones(zones: Mapping[str, str], taken_s: float) -> dict[str, Reading]:
    """All zones by type."""
    return {kind: read_zone(kind, path, taken_s) for kind, path in zones.items()}


def governing(zones: Mapping[str, Reading], board: Board, taken_s: float) -> Reading:
    """The temperature that counts: the hottest of the board's zones that has a value; its source names the zone.

    On an unknown board every zone counts. When none has a value the reason names the first one's.
    """
    counted = [zones[kind] for kind in board.zones if kind in zones] if board.zones else list(zones.values())
    hottest = _hottest(counted)
    if hottest is not None:
        return hottest
    if counted:
        return unavailable("celsius", counted[0].source, taken_s, counted[0].reason or "no zone has a value")
    if zones and (spare := _hottest(zones.values())) is not None:
        return spare
    return unavailable("celsius", "thermal", taken_s, "this machine has no thermal zone")


def parse_measured(text: str) -> float | str:
    """Degrees Celsius of the Raspberry Pi firmware's `measure_temp` ("temp=48.3'C"), or why they cannot be believed."""
    found = re.fullmatch(r"temp=(-?\d{1,3}(?:\.\d{1,3})?)'C", text.strip())
    if found is None:
        return f"{text[:40]!r} is not a temperature"
    return parse_temp(f"{1000 * float(found[1]):.0f}")


def read_firmware(gencmd: Callable[[str], str], taken_s: float) -> dict[str, Reading]:
    """`temperature_firmware`, the processor as its firmware sees it; `temperature_pmic`, the power chip beside it."""
    found: dict[str, Reading] = {}
    for key, command in (("temperature_firmware", "measure_temp"), ("temperature_pmic", "measure_temp pmic")):
        source = f"firmware {command}"
        try:
            value = parse_measured(gencmd(command))
        except OSError as problem:
            found[key] = unavailable("celsius", source, taken_s, f"/dev/vcio: {problem.strerror}")
            continue
        if isinstance(value, str):
            found[key] = unavailable("celsius", source, taken_s, value)
        else:
            found[key] = Reading(value, "celsius", source, taken_s)
    return found


def second_source(first: Reading, firmware: Mapping[str, Reading]) -> Reading | None:
    """What may contradict `first`, or stand in for it when it is lost; None where there is nothing.

    The firmware reads the same die by another way. The power chip lies beside it and is cooler under load: it cannot
    stand in, but where it is the hotter one the die's figure is wrong.
    """
    die, beside = firmware.get("temperature_firmware"), firmware.get("temperature_pmic")
    if die is not None and die.value is not None:
        return die
    if beside is not None and beside.value is not None and first.value is not None and beside.value > first.value:
        return beside
    return None


def _hottest(readings: Iterable[Reading]) -> Reading | None:
    return max((item for item in readings if item.value is not None), key=lambda item: item.value or 0.0, default=None)
