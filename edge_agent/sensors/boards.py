"""Recognises the board from its device tree, and states what is known about it.

Temperature limits: Raspberry Pi documentation (frequency management), and the thermal trips in NVIDIA's device trees.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.sensors.files import read_text


@dataclass(frozen=True, slots=True)
class Board:
    """What is known about a kind of board.

    `soft_limit_c`: °C from which firmware or kernel begin to throttle. `hard_limit_c`: °C from which they throttle hard
    (None: not known). `zones`: thermal zones of which the hottest is used; empty: all plausible ones. `power`: 'pmic',
    'ina3221' or None (no sensor). `family`: 'raspberry-pi', 'jetson' or 'other'.
    """

    key: str
    name: str
    family: str
    soft_limit_c: float
    hard_limit_c: float | None
    cores: int
    power: str | None
    zones: tuple[str, ...]
    compatible: tuple[str, ...] = ()

    @property
    def set_point_c(self) -> float:
        """The temperature at which the governor holds the board: 2.5 °C below the soft limit."""
        return self.soft_limit_c - SET_POINT_BELOW_C

    @property
    def flags_c(self) -> float | None:
        """The temperature that the board's throttle flags stand for; None for a board without such flags."""
        return self.soft_limit_c if self.family == "raspberry-pi" else None

    @property
    def known(self) -> bool:
        """False for a machine that is not listed."""
        return self.family != "other"


SET_POINT_BELOW_C = 2.5
UNKNOWN_SOFT_LIMIT_C = 80.0
"""For a machine that is not listed: the lowest limit of the current boards, which is safe for all of them."""

_PI_ZONES = ("cpu-thermal", "cpu_thermal")
_ORIN_ZONES = ("tj-thermal", "cpu-thermal", "gpu-thermal", "soc0-thermal", "soc1-thermal", "soc2-thermal",
               "CPU-therm", "GPU-therm", "tj-therm")  # fmt: skip
_NANO_ZONES = ("CPU-therm", "GPU-therm", "PLL-therm", "AO-therm")

BOARDS = (
    Board("pi-zero-2", "Raspberry Pi Zero 2 W", "raspberry-pi", 80.0, 85.0, 4, None, _PI_ZONES,
          ("raspberrypi,model-zero-2-w", "raspberrypi,model-zero-2")),
    Board("pi-3b-plus", "Raspberry Pi 3 Model B+", "raspberry-pi", 60.0, 85.0, 4, None, _PI_ZONES,
          ("raspberrypi,3-model-b-plus", "raspberrypi,3-model-a-plus")),
    Board("pi-3", "Raspberry Pi 3", "raspberry-pi", 80.0, 85.0, 4, None, _PI_ZONES,
          ("raspberrypi,3-model-b", "brcm,bcm2837")),
    Board("pi-4", "Raspberry Pi 4", "raspberry-pi", 80.0, 85.0, 4, None, _PI_ZONES,
          ("raspberrypi,4-model-b", "raspberrypi,400", "raspberrypi,4-compute-module", "brcm,bcm2711")),
    Board("pi-5", "Raspberry Pi 5", "raspberry-pi", 80.0, 85.0, 4, "pmic", _PI_ZONES,
          ("raspberrypi,5-model-b", "raspberrypi,500", "raspberrypi,5-compute-module", "brcm,bcm2712")),
    Board("jetson-nano", "NVIDIA Jetson Nano", "jetson", 97.0, 100.5, 4, "ina3221", _NANO_ZONES,
          ("nvidia,jetson-nano", "nvidia,p3450-0000", "nvidia,tegra210")),
    Board("orin-nano", "NVIDIA Jetson Orin Nano", "jetson", 95.0, 99.0, 6, "ina3221", _ORIN_ZONES,
          ("nvidia,p3767-0003", "nvidia,p3767-0004", "nvidia,p3767-0005")),
    Board("orin-nx", "NVIDIA Jetson Orin NX", "jetson", 95.0, 99.0, 8, "ina3221", _ORIN_ZONES,
          ("nvidia,p3767-0000", "nvidia,p3767-0001")),
    Board("orin", "NVIDIA Jetson Orin", "jetson", 95.0, 99.0, 12, "ina3221", _ORIN_ZONES, ("nvidia,tegra234",)),
)  # fmt: skip


def parse_compatible(text: str) -> tuple[str, ...]:
    """The names in the device tree's `compatible`, which are separated by NUL; the most specific comes first."""
    return tuple(part.strip() for part in text.split("\0") if part.strip())


def match(compatible: tuple[str, ...], model: str | None = None, cores: int = 1) -> Board:
    """The board of the first name that is listed; else an unknown one with safe limits."""
    for text in compatible:
        for board in BOARDS:
            if text in board.compatible or any(part in board.compatible for part in _parts(text)):
                return board
    return Board("unknown", model or "unknown machine", "other", UNKNOWN_SOFT_LIMIT_C, None, cores, None, ())


def _parts(text: str) -> list[str]:
    """Split 'carrier+module': 'nvidia,p3768-0000+p3767-0005-super' -> [..., 'nvidia,p3767-0005']."""
    vendor, _, rest = text.partition(",")
    return [f"{vendor},{part.removesuffix('-super')}" for part in rest.split("+")]


def read_board(root: Path) -> Board:
    """The board whose file system is under `root`."""
    base = root / "sys/firmware/devicetree/base"
    compatible = read_text(str(base / "compatible")).text
    model = read_text(str(base / "model")).text
    return match(parse_compatible(compatible or ""), model, read_cores(root))


def parse_cpu_list(text: str) -> int:
    """Number of processors in a kernel list: 4 for '0-3', 3 for '0,2-3'; parts that cannot be parsed are ignored."""
    count = 0
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
            count += max(0, last - first + 1)
    return count


def read_cores(root: Path) -> int:
    """Number of processors that are online, at least 1."""
    text = read_text(str(root / "sys/devices/system/cpu/online")).text
    return max(1, parse_cpu_list(text) if text else (os.cpu_count() or 1))


def parse_cpu_features(text: str) -> frozenset[str]:
    """The processor features in /proc/cpuinfo: the line 'Features' on Arm, 'flags' on x86."""
    found = re.search(r"^(?:Features|flags)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def read_cpu_features(root: Path) -> frozenset[str]:
    """The processor features; empty if they cannot be read."""
    return parse_cpu_features(read_text(str(root / "proc/cpuinfo")).text or "")
