"""The /proc files of a simulated board: memory, page faults, pressure, and the bytes of processes.

A board starts with a base use of memory, to which programs add. When less than `NEAR` of all memory is available, the
simulated kernel drops pages that are needed again: the counts in vmstat grow, and PSI rises on boards whose kernel has
it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

NEAR = 0.06
"""Share of all memory below which dropped pages are read again, at a rate that grows linearly. Estimated."""
BACK_PER_S = 2000.0
"""Pages a second that are read again when no memory is left; an A1 memory card guarantees 1,500 random reads a second.
"""
BASE_SHARE = 0.15
"""Share of memory that the system uses without our programs."""
Write = Callable[[str, str], None]


class Used(NamedTuple):
    """Memory of programs: `kib` in total, and the text of smaps_rollup by process id."""

    kib: int = 0
    processes: Mapping[int, str] = {}


class ProcFiles:
    """Maintains `proc/meminfo`, `vmstat`, `pressure` and `proc/<pid>` under `root`."""

    def __init__(self, root: Path, write: Write, total_kib: int, pressure: bool) -> None:
        """`pressure`: this board's kernel reports PSI."""
        self._root, self._write = root, write
        self._total_kib = total_kib
        self._pressure = pressure
        self._faults = self._swapped = self._refaults = 0.0
        self._stalled_us = 0.0
        self._some = 0.0
        self._shown: set[int] = set()

    @property
    def base_kib(self) -> int:
        """KiB in use without our programs."""
        return int(BASE_SHARE * self._total_kib)

    def pass_time(self, used: Used, seconds: float) -> None:
        """Write what the kernel shows after `seconds` with this use of memory."""
        available = max(0, self._total_kib - self.base_kib - used.kib)
        missing = max(0.0, 1.0 - available / (NEAR * self._total_kib))
        back = BACK_PER_S * missing * seconds
        self._faults += back
        self._refaults += back
        self._memory(available)
        self._write(
            "proc/vmstat",
            f"pgmajfault {int(self._faults)}\npswpin {int(self._swapped)}\n"
            f"workingset_refault_anon 0\nworkingset_refault_file {int(self._refaults)}\n",
        )
        if self._pressure:
            self._some += (60.0 * missing - self._some) * min(1.0, seconds / 10.0)
            self._stalled_us += missing * seconds * 6e5
            self._stall()
        self._processes(used.processes)

    def _memory(self, available_kib: int) -> None:
        figures = {
            "MemTotal": self._total_kib,
            "MemFree": available_kib * 2 // 3,
            "MemAvailable": available_kib,
            "SwapTotal": 0,
            "SwapFree": 0,
        }
        self._write("proc/meminfo", "".join(f"{name + ':':<16}{value:>8} kB\n" for name, value in figures.items()))

    def _stall(self) -> None:
        lines = (("some", self._some, self._stalled_us), ("full", self._some / 4.0, self._stalled_us / 4.0))
        text = "".join(f"{kind} avg10={share:.2f} avg60=0.00 avg300=0.00 total={us:.0f}\n" for kind, share, us in lines)
        self._write("proc/pressure/memory", text)

    def _processes(self, processes: Mapping[int, str]) -> None:
        for pid in self._shown - set(processes):
            shutil.rmtree(self._root / f"proc/{pid}", ignore_errors=True)
        for pid, text in processes.items():
            self._write(f"proc/{pid}/smaps_rollup", text)
        self._shown = set(processes)
