"""Is the wall clock synchronised? The question decides whether it may call a release expired."""

from __future__ import annotations

from pathlib import Path

# systemd-timesyncd touches it after the first answer of a time server (systemd 239 and newer). The kernel's own flag
# would tell of every time service, but adjtimex() is among the calls that the hardened unit takes away.
MARK = "run/systemd/timesync/synchronized"


def synchronised(sysroot: Path = Path("/")) -> bool:
    """True when systemd-timesyncd has set the clock since boot; False also where another service may have."""
    return (sysroot / MARK).exists()
