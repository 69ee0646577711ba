"""Board power: the INA3221 rails of a Jetson, or the PMIC of a Raspberry Pi 5. Other boards have no sensor.

INA3221: P = V * I per rail. The total is the input rail where the board has one, else the sum of its rails.
PMIC: the firmware command `pmic_read_adc` returns volts and amperes of 12 rails, without the 5 V rail (USB, HAT, fan).
The power at the board's input is fitted: P = 1.1451 * sum(V * I) + 0.5879 W (jfikar/RPi5-power, measured on one board;
assume an error of 10 %).

A file of its own because `suite` reads one module for each kind of sensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.files import Gencmd, read_number, read_text

PMIC_SLOPE = 1.1451
PMIC_OFFSET_W = 0.5879
INPUT_RAILS = ("POM_5V_IN", "VDD_IN")
HIGHEST_W = 200.0
"""No listed board takes more; a larger value is a misread register."""


@dataclass(frozen=True, slots=True)
class Rail:
    """The files of one rail: `power_mw`, or `voltage_mv` and `current_ma`, whose product is used."""

    name: str
    power_mw: str | None
    voltage_mv: str
    current_ma: str


def parse_pmic(text: str) -> dict[str, float]:
    """Watts per rail in the answer to `pmic_read_adc`; rails without a line for both amperes and volts are ignored."""
    lines = re.findall(
        r"^\s*(\w{1,32})_([AV]) (?:current|volt)\(\d+\)=(\d{1,6}(?:\.\d{1,12})?)[AV]\s*$", text, re.MULTILINE
    )
    values = {(rail, kind): float(value) for rail, kind, value in lines}
    return {rail: amperes * values[rail, "V"] for (rail, kind), amperes in values.items()
            if kind == "A" and (rail, "V") in values}  # fmt: skip


def pmic_board_w(rails: Mapping[str, float]) -> float:
    """Watts at the board's input, by the fit in the module docstring."""
    return PMIC_SLOPE * sum(rails.values()) + PMIC_OFFSET_W


def read_pmic(gencmd: Gencmd, taken_s: float) -> Reading:
    """Board power of a Raspberry Pi 5."""
    try:
        text = gencmd("pmic_read_adc")
    except OSError as problem:
        reason = f"{problem.filename or '/dev/vcio'}: {problem.strerror}; the user must be in the group video"
        return unavailable("watts", "pmic", taken_s, reason)
    rails = parse_pmic(text)
    if not rails:
        return unavailable("watts", "pmic", taken_s, f"the firmware answered {text[:60]!r} to pmic_read_adc")
    return Reading(pmic_board_w(rails), "watts", "pmic (fitted, +-10 %)", taken_s)


def find_rails(root: Path) -> tuple[Rail, ...]:
    """The INA3221 rails of a Jetson, without unconnected ones ('NC') and the sum channel of the chip."""
    drivers = root / "sys/bus/i2c/drivers"
    return (*_iio_rails(drivers / "ina3221x"), *_hwmon_rails(drivers / "ina3221"))


def _iio_rails(driver: Path) -> list[Rail]:
    """Kernel 4.9 (Jetson Nano): rail_name_N, in_powerN_input in mW."""
    rails: list[Rail] = []
    for label in sorted(driver.glob("*/iio:device*/rail_name_*")):
        name = read_text(str(label)).text
        number, folder = label.name.rpartition("_")[2], label.parent
        if name is not None and _connected(name):
            paths = [str(folder / f"in_{kind}{number}_input") for kind in ("power", "voltage", "current")]
            rails.append(Rail(name, paths[0], paths[1], paths[2]))
    return rails


def _hwmon_rails(driver: Path) -> list[Rail]:
    """Kernel 5.10 and later (Orin): inN_label, inN_input in mV, currN_input in mA; channel 7 is a sum."""
    rails: list[Rail] = []
    for label in sorted(driver.glob("*/hwmon/hwmon*/in*_label")):
        name = read_text(str(label)).text
        number, folder = label.name[2:].removesuffix("_label"), label.parent
        if name is not None and _connected(name) and number in ("1", "2", "3"):
            rails.append(Rail(name, None, str(folder / f"in{number}_input"), str(folder / f"curr{number}_input")))
    return rails


def _connected(name: str) -> bool:
    return name != "" and "NC" not in re.split(r"[^A-Za-z0-9]+", name.upper()) and not name.lower().startswith("sum of")


def read_rail(rail: Rail, taken_s: float) -> Reading:
    """Watts of one rail."""
    value, reason = read_number(rail.power_mw) if rail.power_mw is not None else (None, "")
    if value is not None:
        watts = value / 1000.0
    else:
        millivolts, volt_reason = read_number(rail.voltage_mv)
        milliamperes, ampere_reason = read_number(rail.current_ma)
        if millivolts is None or milliamperes is None:
            return unavailable("watts", rail.name, taken_s, reason or volt_reason or ampere_reason)
        watts = millivolts * milliamperes / 1e6
    if not 0.0 <= watts <= HIGHEST_W:
        return unavailable("watts", rail.name, taken_s, f"{watts:g} W cannot be true")
    return Reading(watts, "watts", rail.name, taken_s)


def read_rails(rails: tuple[Rail, ...], taken_s: float) -> dict[str, Reading]:
    """Watts of every rail by its name."""
    return {rail.name: read_rail(rail, taken_s) for rail in rails}


def board_power(rails: Mapping[str, Reading], taken_s: float) -> Reading:
    """Power of the whole board: its input rail, else the sum of all rails, of which none may be missing."""
    for name in INPUT_RAILS:
        if name in rails:
            rail = rails[name]
            source = f"ina3221 {name}"
            if rail.value is None:
                return unavailable("watts", source, taken_s, rail.reason or "no value")
            return Reading(rail.value, "watts", source, taken_s)
    if not rails:
        return unavailable("watts", "power", taken_s, "no power sensor was found")
    source = "ina3221 " + " + ".join(sorted(rails))
    lost = next((rail for rail in rails.values() if rail.value is None), None)
    if lost is not None:
        return unavailable("watts", source, taken_s, f"{lost.source}: {lost.reason}")
    return Reading(sum(rail.value or 0.0 for rail in rails.values()), "watts", source, taken_s)
