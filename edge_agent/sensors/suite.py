"""Samples all sensors of a board. Implements `agent.ports.Sensors`.

The paths are searched once, and again after a sensor was lost, because drivers may load late and hwmon numbers change.
A sample then only reads files. This module owns no clock: the caller passes one in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors import files, memory, power, thermal, throttle
from edge_agent.sensors.boards import Board, read_board
from edge_agent.sensors.jtop import JtopSource

SEARCH_AGAIN_S = 60.0
"""Shortest time between two searches; a search lists folders and takes some milliseconds."""

FOUND = ("temperature", "throttle", "power", "fan")
"""Readings whose paths are searched again when they are lost: a driver that is loaded again gets other paths."""


class SensorSuite:
    """The sensors under `root` (normally /). `sample` reads all of them and never raises."""

    def __init__(
        self, root: Path, clock_s: Callable[[], float], gencmd: files.Gencmd | None = None, jtop: bool = False
    ) -> None:
        """`clock_s` returns monotonic seconds. `gencmd`: see `sensors.power` (None: use the device under `root`).
        `jtop`: also read the jtop service by its socket under `root`; the caller keeps `self.jtop` open in a thread.
        """
        self._root = root
        self._clock_s = clock_s
        self._given_gencmd = gencmd
        self.board: Board = read_board(root)
        self.jtop = JtopSource(root / "run/jtop.sock", self.board.zones) if jtop else None
        self._searched_s = clock_s()
        self._had: set[str] = set()
        self._search()

    def sample(self) -> Mapping[str, Reading]:
        """One reading per key.

        Always present: temperature, throttle, over_current, power, ram_total, ram_available, swap_total, swap_free,
        major_faults, swapped_in, refaults, memory_pressure_some, memory_pressure_full, cgroup_limit, cgroup_used,
        cpu_clock (the real clock), cpu_clock_requested, fan, fan_rpm.
        Where the board has them: temperature_<zone>, temperature_second (a second source of the temperature),
        temperature_firmware, temperature_pmic, power_<rail>, nvmap_used; with jtop temperature_jtop, power_jtop and
        nvmap_jtop, which replace what sysfs does not show and are the second temperature.
        """
        now_s = self._clock_s()
        readings: dict[str, Reading] = {}
        zones = thermal.read_zones(self._zones, now_s)
        readings["temperature"] = thermal.governing(zones, self.board, now_s)
        readings.update({f"temperature_{kind}": reading for kind, reading in zones.items()})
        if self._gencmd is not None:
            firmware = thermal.read_firmware(self._gencmd, now_s)
            readings.update(firmware)
            second = thermal.second_source(readings["temperature"], firmware)
            if second is not None:
                readings["temperature_second"] = second
        readings["throttle"] = throttle.read_throttled(self._throttled, self._under_voltage, now_s, self._gencmd)
        readings["over_current"] = throttle.read_over_current(self._over_current, now_s)
        readings.update(self._power(now_s))
        readings.update(self.sample_memory())
        readings.update(memory.read_faults(self._root, now_s))
        readings.update(memory.read_free_blocks(self._root, now_s))
        if self.jtop is not None:
            _stand_in(readings, self.jtop.read(now_s))
        readings.update(throttle.read_clocks(self._root, self.board.family, now_s, self._gencmd))
        readings.update(thermal.read_fan(self._fan, now_s))
        there = {key for key in FOUND if readings[key].value is not None}
        self._had |= there
        lost = readings["temperature"].value is None or bool(self._had - there)
        if lost and now_s - self._searched_s >= SEARCH_AGAIN_S:
            self._searched_s = now_s
            self._search()
        return readings

    def sample_memory(self) -> Mapping[str, Reading]:
        """The memory readings of `sample`: four small files, fast enough to be read at any time.

        Includes the fault counts where the kernel has no PSI.
        """
        now_s = self._clock_s()
        pressure = memory.read_pressure(self._root, now_s)
        if pressure["memory_pressure_some"].value is None:
            pressure |= memory.read_faults(self._root, now_s)
        return {**memory.read_meminfo(self._root, now_s), **pressure, **memory.read_cgroup(self._root, now_s)}

    def sample_power(self) -> Reading:
        """The board's power alone, for callers that ask many times a second."""
        return self._power(self._clock_s())["power"]

    def process_bytes(self, pid: int) -> Mapping[str, Reading]:
        """Bytes of a process and those that it started: `pss`, and `mapped`, the part from files. Slow: the kernel
        walks all their pages."""
        return memory.read_held(self._root, pid, self._clock_s(), children=True)

    def _search(self) -> None:
        root = self._root
        self._zones = thermal.find_zones(root) or thermal.find_hwmon_temps(root)
        self._throttled = throttle.find_throttled(root)
        self._under_voltage = throttle.find_under_voltage(root)
        self._over_current = throttle.find_over_current(root)
        self._rails = power.find_rails(root)
        self._gencmd = self._given_gencmd or files.find_gencmd(root)
        self._fan = thermal.find_fan(root)

    def _power(self, now_s: float) -> dict[str, Reading]:
        if self.board.power == "pmic":
            if self._gencmd is None:
                reason = "neither /dev/vcio_gencmd nor /dev/vcio is there to ask the PMIC"
                return {"power": unavailable("watts", "pmic", now_s, reason)}
            return {"power": power.read_pmic(self._gencmd, now_s)}
        rails = power.read_rails(self._rails, now_s)
        found = {f"power_{name}": reading for name, reading in rails.items()}
        return {"power": power.board_power(rails, now_s), **found}


def _stand_in(readings: dict[str, Reading], jtop: Mapping[str, Reading]) -> None:
    """Add jtop's readings under their own names, and in the place of missing ones."""
    readings.update(jtop)
    for key, other in (("temperature", "temperature_jtop"), ("power", "power_jtop"), ("nvmap_used", "nvmap_jtop")):
        known = readings.get(key)
        if (known is None or known.value is None) and jtop[other].value is not None:
            readings[key] = jtop[other]
    if "temperature_second" not in readings and readings["temperature"] is not jtop["temperature_jtop"]:
        readings["temperature_second"] = jtop["temperature_jtop"]
