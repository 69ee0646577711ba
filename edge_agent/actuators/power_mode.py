"""The power modes of a Jetson: what `/etc/nvpmodel.conf` lists, which one is set, and how another one is.

nvpmodel writes the mode that it last set to `/var/lib/nvpmodel/status`, as "pmode:0002", and sets it again at boot;
jetson-stats reads the same file. To read needs no permission, to set needs root. Modes that change which parts of the
GPU or processor are powered need a reboot: nvpmodel asks for it, and is answered no (docs/decisions/0214).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import EdgeError, UsageError

PROGRAM, CONF, STATUS = "usr/sbin/nvpmodel", "etc/nvpmodel.conf", "var/lib/nvpmodel/status"
TIMEOUT_S = 60.0
_BYTES = 256 * 1024
_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]{1,64})\s*>", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>", re.MULTILINE)
_CURRENT = re.compile(r"pmode:\s*(\d{1,6})")


@dataclass(frozen=True, slots=True)
class PowerMode:
    """A mode by its number and its name ('MAXN', '15W'; '' where the file names none). Which number is which differs by
    board and JetPack."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (mode {self.number})" if self.name else f"mode {self.number}"


@dataclass(frozen=True, slots=True)
class PowerModes:
    """The modes of a board; `current` None: not known, and then `reason` says why."""

    listed: Sequence[PowerMode]
    current: PowerMode | None
    reason: str = ""

    def find(self, wanted: str) -> PowerMode | None:
        """The mode of that name, capitals or not, or of that number."""
        for mode in self.listed:
            if wanted.casefold() == mode.name.casefold():
                return mode
        return next((mode for mode in self.listed if wanted == str(mode.number)), None)


def read_modes(root: Path) -> PowerModes | None:
    """The modes of the board under `root`; None where there is no nvpmodel."""
    if not os.path.lexists(root / CONF):
        return None
    conf, reason = _text(root / CONF)
    listed = tuple(PowerMode(int(number), name) for number, name in _MODE.findall(conf or ""))
    status, unread = _text(root / STATUS) if os.path.lexists(root / STATUS) else (None, "")
    # Before nvpmodel first ran there is no status: the board runs in the default mode, set at boot.
    found = _CURRENT.search(status) if status is not None else _DEFAULT.search(conf or "")
    if found is None:
        return PowerModes(listed, None, reason or unread or f"/{STATUS} has no pmode")
    number = int(found[1])
    current = next((mode for mode in listed if mode.number == number), PowerMode(number, ""))
    return PowerModes(listed, current)


def set_mode(root: Path, wanted: str) -> str:
    """Set a mode by name or number and return the sentence that says so.

    Raises UsageError for a mode that the board has not; EdgeError where there is no nvpmodel, where it may not, and for
    a mode that needs a reboot, after which the board is as before.
    """
    modes = read_modes(root)
    if modes is None:
        raise EdgeError("this machine has no power modes", f"/{CONF}", "they are those of a Jetson with nvpmodel")
    mode = modes.find(wanted)
    if mode is None:
        there = ", ".join(f"{one.name} ({one.number})" for one in modes.listed) or "none"
        raise UsageError(f"this board has no power mode {wanted!r}", None, f"there are: {there}")
    if mode == modes.current:
        return f"the power mode is {mode} already"
    said = _run(root, mode)
    after = read_modes(root)
    if after is not None and after.current == mode:
        return f"the power mode is {mode}; before: {modes.current or 'not known'}"
    if asks_for_reboot(said):
        raise EdgeError(
            f"{mode} needs a reboot, so it was not set", "nvpmodel", f"sudo nvpmodel -m {mode.number}, and answer yes"
        )
    last = said.strip().splitlines()[-1:] or ["it gave no reason"]
    raise EdgeError(
        f"the power mode is not {mode}: {last[0][:200]}", "nvpmodel", f"sudo edge-agent power-mode {mode.name}"
    )


def asks_for_reboot(said: str) -> bool:
    """Whether nvpmodel wants to reboot: 'NVPM WARN: Reboot required for changing to this power mode: 3'."""
    return "reboot required" in said.casefold()


def _run(root: Path, mode: PowerMode) -> str:
    """What nvpmodel said. Without an answer it waits for one."""
    command = [str(root / PROGRAM), "-m", str(mode.number)]
    try:
        done = subprocess.run(
            command, input="NO\n", capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise EdgeError(f"nvpmodel cannot be run: {error.strerror}", command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise EdgeError(f"nvpmodel has not ended after {TIMEOUT_S:.0f} s and was killed", command[0]) from error
    return f"{done.stdout}\n{done.stderr}"


def _text(path: Path) -> tuple[str | None, str]:
    """(text, ''), or (None, why not)."""
    try:
        with path.open("rb") as stream:
            return stream.read(_BYTES).decode("utf-8", "replace"), ""
    except OSError as error:
        return None, f"/{path.name}: {error.strerror}"
