"""The power modes of a Jetson: what `/etc/nvpmodel.conf` lists, and which one is set.

nvpmodel writes the mode that it last set to `/var/lib/nvpmodel/status`, as "pmode:0002"; jetson-stats reads the same
file. Nothing here needs a permission. A file of its own because `doctor` reads modes without setting any.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONF, STATUS = "etc/nvpmodel.conf", "var/lib/nvpmodel/status"
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


def _text(path: Path) -> tuple[str | None, str]:
    """(text, ''), or (None, why not)."""
    try:
        with path.open("rb") as stream:
            return stream.read(_BYTES).decode("utf-8", "replace"), ""
    except OSError as error:
        return None, f"/{path.name}: {error.strerror}"
