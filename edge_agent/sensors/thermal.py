"""Temperatures from the kernel's thermal zones, and the fan, each identified by name: numbers change between boots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.boards import Board
from edge_agent.sensors.files import parse_number, read_number, read_text

COLDEST_C = -40.0
HOTTEST_C = 130.0
"""Plausible temperatures of a running processor. −256 °C (jtop: sensor off) and −274 °C are not."""

CONSTANT_ZONES = frozenset({"PMIC-Die", "PMIC-therm"})
"""The PMIC zone of a Jetson Nano always reads 100 °C."""

FAN_NAMES = frozenset({"pwmfan", "pwm-fan", "pwm_fan", "cooling_fan", "gpio_fan"})
TACH_NAMES = frozenset({"pwm_tach", "pwmfan", "cooling_fan", "gpio_fan"})


def parse_temp(text: str) -> float | str:
    """°C of a zone's `temp` file, which is in millidegrees, or why the value is implausible."""
    millidegrees = parse_number(text.strip())
    if millidegrees is None:
        return f"{text[:40]!r} is not a temperature"
    celsius = millidegrees / 1000.0
    if not COLDEST_C <= celsius <= HOTTEST_C:
        return f"{celsius:g} °C cannot be true; the sensor is off or broken"
    return celsius


def find_zones(root: Path) -> dict[str, str]:
    """Path of the `temp` file by zone type, without zones that always read the same."""
    zones: dict[str, str] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = read_text(str(folder / "type")).text
        if kind is not None and kind not in CONSTANT_ZONES:
            zones.setdefault(kind, str(folder / "temp"))
    return zones


def find_hwmon_temps(root: Path) -> dict[str, str]:
    """Paths of the processor's hwmon temperatures by name, for machines without thermal zones."""
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
    """The hottest of the board's zones that has a value; its source names the zone.

    On an unknown board all zones are used. Without any value the reason is that of the first zone.
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
    """°C in the firmware's answer to `measure_temp` ("temp=48.3'C"), or why the value is implausible."""
    found = re.fullmatch(r"temp=(-?\d{1,3}(?:\.\d{1,3})?)'C", text.strip())
    if found is None:
        return f"{text[:40]!r} is not a temperature"
    return parse_temp(f"{1000 * float(found[1]):.0f}")


def read_firmware(gencmd: Callable[[str], str], taken_s: float) -> dict[str, Reading]:
    """`temperature_firmware`: the processor by the firmware; `temperature_pmic`: the power chip beside it."""
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
    """A second source of the temperature `first`; None without one.

    The firmware reads the same die in another way. The power management chip is cooler than the processor under load,
    so it cannot replace `first`; but if it is the hotter one, `first` is wrong.
    """
    die, beside = firmware.get("temperature_firmware"), firmware.get("temperature_pmic")
    if die is not None and die.value is not None:
        return die
    if beside is not None and beside.value is not None and first.value is not None and beside.value > first.value:
        return beside
    return None


def _hottest(readings: Iterable[Reading]) -> Reading | None:
    return max((item for item in readings if item.value is not None), key=lambda item: item.value or 0.0, default=None)


def find_fan(root: Path) -> dict[str, str]:
    """Paths of `fan` (PWM duty, 0 to 255) and `fan_rpm`, found by name: hwmon numbers change between boots."""
    found: dict[str, str] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(str(folder / "name")).text
        for key, names, file in (("fan", FAN_NAMES, "pwm1"), ("fan_rpm", TACH_NAMES, "fan1_input")):
            if name in names and (folder / file).exists():
                found.setdefault(key, str(folder / file))
    legacy = root / "sys/devices/pwm-fan"
    for key, file in (("fan", "target_pwm"), ("fan_rpm", "rpm_measured")):
        if key not in found and (legacy / file).exists():
            found[key] = str(legacy / file)
    return found


def read_fan(paths: dict[str, str], taken_s: float) -> dict[str, Reading]:
    """`fan` in percent of full duty, and `fan_rpm`; without values on a board without a fan."""
    found: dict[str, Reading] = {}
    for key, unit, scale in (("fan", "percent", 100.0 / 255.0), ("fan_rpm", "rpm", 1.0)):
        if key not in paths:
            found[key] = unavailable(unit, "fan", taken_s, "no fan is known here")
            continue
        value, reason = read_number(paths[key])
        if value is None:
            found[key] = unavailable(unit, "fan", taken_s, reason)
        else:
            found[key] = Reading(value * scale, unit, "fan", taken_s)
    return found
