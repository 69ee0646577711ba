"""The named points of a change at which a crash is tested: the kill tests cover every one of them.

Before 'switched' a reopened store shows the old state, from there on the new one. There is no state between, because
one rename of one file is the whole switch. A file of its own because the tests and the store share the
list.
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
"""The points of a rollback and of a removal."""

At = Callable[[str], None]
"""Called with the name of each point as it is reached."""

PHASES: Final = ("opened", "verified", "staged", "probing", "switched", "committed")
"""The points that are reported to the operator as progress."""


def nowhere(_point: str) -> None:
    """The hook in production: does nothing."""
