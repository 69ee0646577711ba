"""The named moments of an install at which the power may go. The kill tests take them from here, every one.

Before 'switched' a reopened store shows the old state, from there on the new one; nothing lies between, because one
rename of one record is the whole switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

INSTALL_POINTS: Final = (
    "opened",
    "verified",
    "blob-begun",
    "blob-written",
    "blob-placed",
    "staged",
    "trial-recorded",
    "probing",
    "probed",
    "trial-cleared",
    "root-stored",
    "record-written",
    "switched",
    "collected",
    "committed",
)
ROLLBACK_POINTS: Final = ("record-written", "switched", "collected")
"""Of a rollback, and of a removal."""

At = Callable[[str], None]
"""Called with the name of each point as it is reached."""

PHASES: Final = ("opened", "verified", "staged", "probing", "switched", "committed")
"""The points that an operator is told about."""


def nowhere(_point: str) -> None:
    """The hook of production: nothing happens at a point."""
