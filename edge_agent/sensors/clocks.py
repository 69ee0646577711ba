"""The processor's clock and the fan: what else an operator wants to see when a board is hot."""

from __future__ import annotations

from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.files import read_number, read_text

FAN_NAMES = frozenset({"pwmfan", "pwm-fan", "pwm_fan", "cooling_fan", "gpio_fan"})
TACH_NAMES = frozenset({"pwm_tach", "pwmfan", "cooling_fan", "gpio_fan"})
_CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"


def read_clock(root: Path, taken_s: float) -> Reading:
    """The clock of core 0 in hertz: the hardware's where it may be read, else the requested one; the source says which.

    A Raspberry Pi's firmware can hold the real clock below the requested one without the kernel's knowledge.
    """
    for name, source in (("cpuinfo_cur_freq", "cpufreq hardware"), ("scaling_cur_freq", "cpufreq requested")):
        kilohertz, reason = read_number(str(root / _CPUFREQ / name))
        if kilohertz is not None:
            return Reading(kilohertz * 1000.0, "hertz", source, taken_s)
    return unavailable("hertz", "cpufreq", taken_s, reason)


def find_fan(root: Path) -> dict[str, str]:
    """Paths of `fan` (duty, 0 to 255) and `fan_rpm`; hwmon numbers change from boot to boot, names do not."""
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
    """`fan` in percent of full duty and `fan_rpm`; a board without a fan has neither value."""
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
