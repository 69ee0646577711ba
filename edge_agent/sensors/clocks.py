"""The processor's clock and the fan."""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.files import Gencmd, read_number, read_text

FAN_NAMES = frozenset({"pwmfan", "pwm-fan", "pwm_fan", "cooling_fan", "gpio_fan"})
TACH_NAMES = frozenset({"pwm_tach", "pwmfan", "cooling_fan", "gpio_fan"})
LEAST_HZ, HIGHEST_HZ = 1e7, 1e10
_CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"


def read_clocks(root: Path, family: str, taken_s: float, gencmd: Gencmd | None = None) -> dict[str, Reading]:
    """`cpu_clock`: the real clock of core 0 in hertz. `cpu_clock_requested`: the clock that the kernel requests.

    The firmware of a Raspberry Pi lowers the clock without the knowledge of the kernel, so there the real clock comes
    from the firmware or is not available. `family`: see `Board`.
    """
    if gencmd is not None:
        real = _measured(gencmd, taken_s)
    elif family == "raspberry-pi":
        reason = "only the firmware knows it, and there is no /dev/vcio to ask it"
        real = unavailable("hertz", "firmware measure_clock arm", taken_s, reason)
    else:
        real = _cpufreq(root, "cpuinfo_cur_freq", "cpufreq hardware", taken_s)
    return {
        "cpu_clock": real,
        "cpu_clock_requested": _cpufreq(root, "scaling_cur_freq", "cpufreq requested", taken_s),
    }


def parse_measured_clock(text: str) -> float | str:
    """Hertz in the answer to `measure_clock arm` ("frequency(48)=1500345728"), or why the value is implausible."""
    found = re.fullmatch(r"frequency\(\d{1,3}\)=(\d{1,11})", text.strip())
    if found is None:
        return f"{text[:40]!r} is not a clock"
    hertz = float(found[1])
    return hertz if LEAST_HZ <= hertz <= HIGHEST_HZ else f"{hertz:g} Hz cannot be true"


def _measured(gencmd: Gencmd, taken_s: float) -> Reading:
    source = "firmware measure_clock arm"
    try:
        value = parse_measured_clock(gencmd("measure_clock arm"))
    except OSError as problem:
        reason = f"{problem.filename or '/dev/vcio'}: {problem.strerror}; the user must be in the group video"
        return unavailable("hertz", source, taken_s, reason)
    if isinstance(value, str):
        return unavailable("hertz", source, taken_s, value)
    return Reading(value, "hertz", source, taken_s)


def _cpufreq(root: Path, name: str, source: str, taken_s: float) -> Reading:
    kilohertz, reason = read_number(str(root / _CPUFREQ / name))
    if kilohertz is None:
        return unavailable("hertz", source, taken_s, reason)
    return Reading(kilohertz * 1000.0, "hertz", source, taken_s)


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
