"""Quantities as text, for messages that contain figures.

In a file of its own because refusals, events and the command line of all rooms use it.
"""

from __future__ import annotations

from edge_agent.base.limits import GIB, KIB, MIB


def bytes_text(count: float) -> str:
    """Bytes in the largest unit in which the printed figure is at least 1: 1536 -> '1.5 KiB'."""
    for size, below, unit in ((GIB, MIB, "GiB"), (MIB, KIB, "MiB"), (KIB, 10, "KiB")):
        if abs(count) >= size - 0.05 * below:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def duration_text(seconds: float) -> str:
    """A duration for a person: 0.0042 -> '4.2 ms', 75 -> '1 min 15 s'."""
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds < 0.99995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def energy_text(joules: float) -> str:
    """Joules with three digits: 0.0123 -> '12.3 mJ', 2.5 -> '2.5 J'."""
    return f"{joules:.3g} J" if joules >= 0.9995 else f"{1000 * joules:.3g} mJ"
