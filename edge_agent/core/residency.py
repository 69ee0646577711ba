"""Which models may be in memory: two questions, 'can this ever fit?' and 'does it fit now?', and whom to send away.

Predictions and promises are `footprints`' figures. A busy model is never evicted; but one that has had its turn lets a
waiting one in between two batches (`turn_is_over`). Pure: memory figures are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.base.limits import GIB, MIB
from edge_agent.base.units import bytes_text

RESERVE_SMALL_SHARE = 0.10
RESERVE_SMALL_BYTES = 200 * MIB
RESERVE_LARGE_SHARE = 0.15
SMALL_BOARD_BYTES = 2 * GIB
POPULAR_S = 300.0
"""A use counts for less and less: after five minutes for a third."""
TURN_LOADS, TURN_LEAST_S = 4.0, 1.0
"""A model in use keeps its place for four times what the waiting one takes to load: a fifth of the time goes into
loading at worst."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What the host has: `total_bytes` and MemAvailable (both after the control group's limit).

    Configured: `spare_bytes` are left to the host (None: `reserve_bytes`), `budget_bytes` is what all models together
    may take (None: all that the host can give).
    """

    total_bytes: int
    available_bytes: int
    spare_bytes: int | None = None
    budget_bytes: int | None = None

    @property
    def kept_bytes(self) -> int:
        """What is left to the host."""
        return reserve_bytes(self.total_bytes) if self.spare_bytes is None else self.spare_bytes

    @property
    def ceiling_bytes(self) -> int:
        """What a model alone on this board could have."""
        most = max(0, self.total_bytes - self.kept_bytes)
        return most if self.budget_bytes is None else min(most, self.budget_bytes)


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model: what it holds, whether it works now, when it last did, how long it took to load.

    `uses`: how often it was used lately, see `Popularity`.
    """

    name: str
    footprint_bytes: int
    busy: bool
    last_used_s: float
    load_s: float
    uses: float = 0.0


@dataclass(slots=True)
class Popularity:
    """How often a model is used: a count in which a use fades with `POPULAR_S`."""

    count: float = 0.0
    at_s: float = -math.inf

    def note(self, now_s: float) -> None:
        """The model is used."""
        self.count, self.at_s = self.now(now_s) + 1.0, now_s

    def now(self, now_s: float) -> float:
        """The faded count."""
        return self.count * math.exp(-max(0.0, now_s - self.at_s) / POPULAR_S) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Fits:
    """Load it, after sending `evict` away (empty: it fits as things are)."""

    evict: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """Not now, or (`never`) not on this board; `reason` carries the arithmetic."""

    reason: str
    never: bool


def reserve_bytes(total_bytes: int) -> int:
    """What is left to the host: max(10 %, 200 MiB) up to 2 GiB of RAM, 15 % above (facts/boards.md E)."""
    if total_bytes <= SMALL_BOARD_BYTES:
        return max(int(RESERVE_SMALL_SHARE * total_bytes), RESERVE_SMALL_BYTES)
    return int(RESERVE_LARGE_SHARE * total_bytes)


def decide(
    needed_bytes: int, memory: HostMemory, promised_bytes: int, residents: Sequence[Resident], now_s: float
) -> Fits | DoesNotFit:
    """Whether a model of `needed_bytes` can be loaded now; `promised_bytes` are spoken for though still available."""
    if needed_bytes > memory.ceiling_bytes:
        return DoesNotFit(too_large(needed_bytes, memory), never=True)
    free = memory.available_bytes - memory.kept_bytes - promised_bytes
    if memory.budget_bytes is not None:
        free = min(free, memory.budget_bytes - sum(one.footprint_bytes for one in residents))
    idle = sorted((one for one in residents if not one.busy), key=lambda one: worth(one, now_s))
    evict: list[Resident] = []
    for resident in idle:
        if free >= needed_bytes:
            break
        evict.append(resident)
        free += resident.footprint_bytes
    if free >= needed_bytes:
        return Fits(tuple(resident.name for resident in _without_needless(evict, free - needed_bytes)))
    return DoesNotFit(_not_now(needed_bytes, memory, promised_bytes, residents), never=False)


def turn_is_over(loaded_s: float, waiting_load_s: float, now_s: float) -> bool:
    """Whether a model in use, in memory since `loaded_s`, lets one in that takes `waiting_load_s` to load."""
    return now_s - loaded_s >= max(TURN_LEAST_S, TURN_LOADS * waiting_load_s)


def too_large(needed_bytes: int, memory: HostMemory) -> str:
    """Why a model never fits on this board, with the figures."""
    budget = memory.budget_bytes
    if budget is not None and budget == memory.ceiling_bytes:
        return f"needs {bytes_text(needed_bytes)}, the configured budget of all models is {bytes_text(budget)}"
    return (
        f"needs {bytes_text(needed_bytes)}, this board can give {bytes_text(memory.ceiling_bytes)} "
        f"({bytes_text(memory.total_bytes)} less a reserve of {bytes_text(memory.kept_bytes)})"
    )


def _not_now(needed_bytes: int, memory: HostMemory, promised_bytes: int, residents: Sequence[Resident]) -> str:
    idle_bytes = sum(one.footprint_bytes for one in residents if not one.busy)
    budget = ""
    if memory.budget_bytes is not None:
        taken_bytes = sum(one.footprint_bytes for one in residents)
        budget = f"{bytes_text(taken_bytes)} of the budget of {bytes_text(memory.budget_bytes)} are taken; "
    return (
        f"needs {bytes_text(needed_bytes)}, {bytes_text(max(0, memory.available_bytes))} are available less a reserve "
        f"of {bytes_text(memory.kept_bytes)} and {bytes_text(promised_bytes)} promised; {budget}idle models would free "
        f"{bytes_text(idle_bytes)}, busy ones stay"
    )


def _without_needless(evict: Sequence[Resident], spare_bytes: int) -> list[Resident]:
    """Without those that a later, larger one made needless; the most worthy are spared first."""
    leaving = []
    for resident in reversed(evict):
        if resident.footprint_bytes <= spare_bytes:
            spare_bytes -= resident.footprint_bytes
        else:
            leaving.append(resident)
    return leaving[::-1]


def worth(resident: Resident, now_s: float) -> float:
    """Cost to reload times popularity: what was slow to load and is used often stays longest.

    Among models without a use that still counts, the one that was used last stays.
    """
    return resident.load_s * (resident.uses + 1.0 / max(1.0, now_s - resident.last_used_s))
