"""Whether the wall clock is synchronised. A file of its own because install (may a release be called expired?) and
`doctor` (is the clock set?) need the same answer and belong to different rooms.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

# systemd-timesyncd creates it after the first answer of a time server (systemd 239 and newer). The kernel's own flag
# covers every time service, but adjtimex() is among the calls that the hardened unit denies.
TIMESYNCD_MARK = "run/systemd/timesync/synchronized"
TIMESYNCD_FOLDER = "run/systemd/timesync"
CHRONY_FOLDER = "run/chrony"


class ClockSync(Enum):
    """What is known of the wall clock."""

    SYNCHRONISED = "synchronised"
    """systemd-timesyncd has set it since boot."""
    MANAGED = "managed"
    """chrony runs, which sets it when it can; whether it has is not known."""
    UNSYNCHRONISED = "unsynchronised"
    """systemd-timesyncd runs and has not set it."""
    UNKNOWN = "unknown"
    """No time service was found."""


def clock_sync(sysroot: Path = Path("/")) -> ClockSync:
    """The state of the wall clock by the files that time services leave under `sysroot`."""
    if (sysroot / TIMESYNCD_MARK).exists():
        return ClockSync.SYNCHRONISED
    if (sysroot / CHRONY_FOLDER).exists():
        return ClockSync.MANAGED
    return ClockSync.UNSYNCHRONISED if (sysroot / TIMESYNCD_FOLDER).is_dir() else ClockSync.UNKNOWN
