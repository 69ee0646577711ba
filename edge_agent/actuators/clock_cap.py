"""The clock cap: the highest frequency of the processor and, on a Jetson, of the GPU. Implements `agent.ports.Clocks`.

It is written to cpufreq's `scaling_max_freq` and devfreq's `max_freq`, the same files that a power mode of nvpmodel
sets. A cap that exists already (from nvpmodel or the operator) is never exceeded. The original values are stored in the
state folder before the first change, so that after a kill the next start of the daemon restores them. A power mode that
is set meanwhile brings caps of its own, which become the original ones. Never raises: a board that refuses a cap is
reported once and is then not capped.

A file of its own because it is the only code that changes the board; the daemon makes it where the settings allow it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.actuators.power_mode import STATUS

STATE_FILE = "clocks.json"
STATE_BYTES = 16 * 1024
BOOT, MODE = "boot_id", "power_mode"
_BOOT_ID = "proc/sys/kernel/random/boot_id"
_CPU_POLICIES = "sys/devices/system/cpu/cpufreq"
_GPU_FOLDERS = ("*.gpu", "*.ga10b", "*.gm20b", "*.gv11b")
"""The GPU's devfreq folder by kernel: Orin 17000000.gpu or .ga10b, Nano 57000000.gpu or .gm20b, Xavier .gv11b."""
LEAST_SHARE = 0.3
"""No lower cap: below a third of the clock idle power dominates, so that the board gets slower and hardly cooler."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A clock domain: the file of its cap, and the possible frequencies (Hz or kHz, as in the file), ascending."""

    path: Path
    steps: tuple[int, ...]

    @property
    def highest(self) -> int:
        """The frequency without our cap."""
        return self.steps[-1]

    def step(self, share: float) -> int:
        """The highest frequency at or below `share` of the highest one; the lowest if there is none."""
        below = [one for one in self.steps if one <= share * self.highest * 1.001]
        return max(below, default=self.steps[0])


class ClockCap:
    """All clock domains of the board under `root`; the original caps are stored in `state_dir`."""

    def __init__(self, root: Path, state_dir: Path) -> None:
        self._state = state_dir / STATE_FILE
        self._root = root
        self._boot = _text(root / _BOOT_ID) or ""
        self._mode = self._mode_now()
        self._put_back()
        self._domains = find_domains(root)
        self._originals: dict[str, str] = {}

    @property
    def shares(self) -> tuple[float, ...]:
        """Possible caps as shares of the highest processor clock, descending from 1; empty without a clock domain."""
        if not self._domains:
            return ()
        first = self._domains[0]
        found = {round(step / first.highest, 4) for step in first.steps}
        return tuple(sorted((share for share in found if share >= LEAST_SHARE), reverse=True))

    def set(self, share: float) -> str | None:
        """Cap every domain at this share of its highest clock; None, or the sentence why it was refused."""
        if self._mode_now() != self._mode:
            self._begin_anew()
        try:
            self._remember()
            for domain in self._domains:
                domain.path.write_text(f"{domain.step(share)}\n")
        except OSError as error:
            return (
                f"{error.filename}: {error.strerror}; the service needs the drop-in `clock` to set clocks, "
                "or thermal.set_clock = false"
            )
        return None

    def restore(self) -> None:
        """Restore the original caps."""
        self._originals = {}
        self._put_back()

    def _mode_now(self) -> str:
        return _text(self._root / STATUS) or ""

    def _begin_anew(self) -> None:
        """After another power mode: its caps are the original ones now, and the stored ones are outdated."""
        self._mode, self._originals = self._mode_now(), {}
        self._domains = find_domains(self._root)
        with contextlib.suppress(OSError):
            self._state.unlink()

    def _remember(self) -> None:
        if self._originals:
            return
        self._originals = {str(domain.path): domain.path.read_text().strip() for domain in self._domains}
        self._state.parent.mkdir(parents=True, exist_ok=True)
        self._state.write_text(json.dumps({BOOT: self._boot, MODE: self._mode, **self._originals}))

    def _put_back(self) -> None:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads(self._state.read_bytes()[:STATE_BYTES])
            # After a boot the caps are those of the kernel or of a newly chosen power mode; stored ones are outdated.
            now = {BOOT: self._boot, MODE: self._mode_now()}
            same = isinstance(kept, dict) and all(kept.get(key, value) == value for key, value in now.items())
            for path, text in _paths(kept).items() if same else ():
                with contextlib.suppress(OSError):
                    Path(path).write_text(f"{text}\n")
            self._state.unlink()


def find_domains(root: Path) -> tuple[Domain, ...]:
    """The clock domains of the processor, then of the GPU; a domain whose files cannot be read is left out."""
    policies = sorted((root / _CPU_POLICIES).glob("policy*"))
    gpus = sorted(folder for pattern in _GPU_FOLDERS for folder in (root / "sys/class/devfreq").glob(pattern))
    found = [_domain(folder, "scaling_max_freq", "scaling_available_frequencies", "cpuinfo_min_freq")
             for folder in policies]  # fmt: skip
    found += [_domain(folder, "max_freq", "available_frequencies", "min_freq") for folder in gpus]
    return tuple(one for one in found if one is not None)


def parse_steps(available: str | None, lowest: str | None, highest: str) -> tuple[int, ...]:
    """The possible frequencies, ascending, up to the present cap: those listed, else eight evenly spaced ones."""
    top = int(highest)
    if available is not None:
        steps = sorted({int(word) for word in available.split()} | {top})
    else:
        bottom = min(int(lowest) if lowest is not None else top // 2, top)
        steps = sorted({bottom + (top - bottom) * index // 7 for index in range(8)})
    return tuple(step for step in steps if 0 < step <= top)


def _domain(folder: Path, cap: str, available: str, lowest: str) -> Domain | None:
    try:
        highest = (folder / cap).read_text()
        steps = parse_steps(_text(folder / available), _text(folder / lowest), highest)
    except (OSError, ValueError):
        return None
    return Domain(folder / cap, steps) if len(steps) > 1 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _paths(kept: object) -> Mapping[str, str]:
    """The caps in a state file; only known names and numbers, since the file may have been edited."""
    if not isinstance(kept, dict):
        return {}
    names = ("scaling_max_freq", "max_freq")
    return {path: text for path, text in kept.items() if Path(path).name in names and str(text).isdigit()}
