"""The processor's clock, and what holds it down: the throttle word of a Raspberry Pi, over-current on a Jetson.

The throttle word comes from sysfs (hexadecimal without 0x; the kernel refreshes it every 2 s) or, on kernels without
that file, from the firmware's mailbox (`get_throttled`, 0x...). Without either the hwmon alarm reports under-voltage
only. Bits: Raspberry Pi documentation, get_throttled. Bits 16 to 19 mean that bits 0 to 3 have been set since boot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.files import Gencmd, read_number, read_text

FLAGS = {0: "under-voltage", 1: "clock-capped", 2: "throttled", 3: "soft-temperature-limit"}
REMEDIES = {
    "under-voltage": "the supply or its cable is too weak: use the board's official one",
    "clock-capped": "the firmware holds the clock down, because of heat or a weak supply",
    "throttled": "the firmware slows the board down, because of heat or a weak supply: cool it, or check the supply",
    "soft-temperature-limit": "the board is hot: give it a heat sink, a fan, or more air",
}
SINCE_BOOT_SHIFT = 16
UNDER_VOLTAGE_NOW = 1


@dataclass(frozen=True, slots=True)
class Throttle:
    """The decoded word: the flags that are set now, and those that have been set since boot."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...]


def decode(word: int) -> Throttle:
    """Decode a throttle word; bits without a known meaning are ignored."""
    now = tuple(name for bit, name in FLAGS.items() if word >> bit & 1)
    since_boot = tuple(name for bit, name in FLAGS.items() if word >> (bit + SINCE_BOOT_SHIFT) & 1)
    return Throttle(now, since_boot)


def parse_word(text: str) -> int | None:
    """The word in '50005' (sysfs), '0x50005' or 'throttled=0x50005' (get_throttled); None for any other text."""
    found = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", text.strip())
    return int(found[1], 16) if found else None


def find_throttled(root: Path) -> str | None:
    """The sysfs file of the throttle word: under soc/soc:firmware or, on newer kernels, soc@.../soc@...:firmware."""
    found = sorted((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    return str(found[0]) if found else None


def find_under_voltage(root: Path) -> str | None:
    """The file of the hwmon alarm 'under-voltage within the last 2 s', for kernels without the word."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(str(folder / "name")).text == "rpi_volt":
            return str(folder / "in0_lcrit_alarm")
    return None


def find_over_current(root: Path) -> tuple[str, ...]:
    """The files of a Jetson's counters of over-current (often under-voltage) events, oc1 to 3_event_cnt."""
    return tuple(str(path) for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")))


def read_throttled(
    word_path: str | None, alarm_path: str | None, taken_s: float, gencmd: Gencmd | None = None
) -> Reading:
    """The throttle word as a reading of unit 'flags'; from the alarm only bit 0, and its source says so.

    Tried in order: the file, the firmware, the alarm. The reading has no value if none of them has one.
    """
    word: Reading | None = None
    if word_path is not None:
        text, reason = read_text(word_path)
        word = _word(text, reason, word_path, "get_throttled", taken_s)
    if (word is None or word.value is None) and gencmd is not None:
        asked = _ask_word(gencmd, taken_s)
        word = asked if word is None or asked.value is not None else word
    if word is not None and (word.value is not None or alarm_path is None):
        return word
    if alarm_path is not None:
        value, reason = read_number(alarm_path)
        if value is None:
            return unavailable("flags", "rpi_volt", taken_s, reason)
        return Reading(float(UNDER_VOLTAGE_NOW if value else 0), "flags", "rpi_volt (under-voltage only)", taken_s)
    return unavailable("flags", "get_throttled", taken_s, "this board does not report throttling")


def _ask_word(gencmd: Gencmd, taken_s: float) -> Reading:
    source = "firmware get_throttled"
    try:
        return _word(gencmd("get_throttled"), "", "the mailbox", source, taken_s)
    except OSError as problem:
        reason = f"{problem.filename or '/dev/vcio'}: {problem.strerror}; the user must be in the group video"
        return unavailable("flags", source, taken_s, reason)


def _word(text: str | None, reason: str, place: str, source: str, taken_s: float) -> Reading:
    if text is None:
        return unavailable("flags", source, taken_s, reason)
    word = parse_word(text)
    if word is None:
        return unavailable("flags", source, taken_s, f"{place}: {text[:40]!r} is not a throttle word")
    return Reading(float(word), "flags", source, taken_s)


def read_over_current(paths: tuple[str, ...], taken_s: float) -> Reading:
    """The sum of the over-current counters since boot; an increase means an event."""
    total = 0.0
    for path in paths:
        value, reason = read_number(path)
        if value is None:
            return unavailable("count", "oc_event_cnt", taken_s, reason)
        total += value
    if not paths:
        return unavailable("count", "oc_event_cnt", taken_s, "this board does not count over-current events")
    return Reading(total, "count", "oc_event_cnt", taken_s)


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
