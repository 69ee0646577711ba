"""What this CPU can compute, as the kernel names it.

A file of its own because two backends ask it, and neither imports the other.
"""

from __future__ import annotations

import re
from pathlib import Path


def cpu_words(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of this CPU by the kernel's names; empty where the kernel names none."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(lines[0].split()) if lines else frozenset()
