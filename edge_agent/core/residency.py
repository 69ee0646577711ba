"""Which models may be in memory: whether one can ever fit, whether it fits now, and which models are evicted for it.

Predicted and reserved bytes come from `memory_ledger`. A busy model is never evicted, but one that has been in memory
for long enough makes room for a waiting one between two batches (`turn_is_over`). Pure: memory figures are arguments.
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
"""Time constant of `Popularity`: after five minutes a use counts as 1/e."""
TURN_LOADS, TURN_LEAST_S = 4.0, 1.0
"""A model in use stays in memory for four times the load time of the waiting one, so that at most a fifth of the time
is spent on loading."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory: `total_bytes` and MemAvailable, both within the limit of the control group.

    Set by the operator: `configured_reserve_bytes` stay free for the host (None: `default_reserve_bytes`);
    `budget_bytes` is the most that all models together may take (None: all that the host can give).
    """

    total_bytes: int
    available_bytes: int
    configured_reserve_bytes: int | None = None
    budget_bytes: int | None = None

    @property
    def reserve_bytes(self) -> int:
        """Bytes that stay free for the host."""
        configured = self.configured_reserve_bytes
        return default_reserve_bytes(self.total_bytes) if configured is None else configured

    @property
    def ceiling_bytes(self) -> int:
        """The most that a single model could have on this board."""
        most = max(0, self.total_bytes - self.reserve_bytes)
        return most if self.budget_bytes is None else min(most, self.budget_bytes)


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory: bytes that it frees when evicted, whether it computes now, seconds that its load took.

    `uses`: its `Popularity`.
    """

    name: str
    footprint_bytes: int
    busy: bool
    last_used_s: float
    load_s: float
    uses: float = 0.0


@dataclass(slots=True)
class Popularity:
    """How often a model is used: a count of uses that decays exponentially with `POPULAR_S`."""

    count: float = 0.0
    at_s: float = -math.inf

    def note(self, now_s: float) -> None:
        """Count a use."""
        self.count, self.at_s = self.now(now_s) + 1.0, now_s

    def now(self, now_s: float) -> float:
        """The decayed count."""
        return self.count * math.exp(-max(0.0, now_s - self.at_s) / POPULAR_S) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Fits:
    """The model can be loaded once the models in `evict` have been evicted (empty: without any eviction)."""

    evict: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """The model cannot be loaded now, or never on this board; `reason` holds the arithmetic."""

    reason: str
    never: bool


def default_reserve_bytes(total_bytes: int) -> int:
    """What stays free for the host: max(10 %, 200 MiB) with up to 2 GiB of RAM, 15 % with more.

    Estimated: a small system needs about 200 MiB whatever its size; a larger one runs more beside the agent.
    """
    if total_bytes <= SMALL_BOARD_BYTES:
        return max(int(RESERVE_SMALL_SHARE * total_bytes), RESERVE_SMALL_BYTES)
    return int(RESERVE_LARGE_SHARE * total_bytes)


def decide(
    needed_bytes: int, memory: HostMemory, promised_bytes: int, residents: Sequence[ResidentModel], now_s: float
) -> Fits | DoesNotFit:
    """Whether a model of `needed_bytes` can be loaded now.

    `promised_bytes` are reserved for models in memory, although the host still counts them as available.
    """
    if needed_bytes > memory.ceiling_bytes:
        return DoesNotFit(too_large(needed_bytes, memory), never=True)
    free = memory.available_bytes - memory.reserve_bytes - promised_bytes
    # The operator's budget is compared with what the models hold, since it does not depend on other programs.
    if memory.budget_bytes is not None:
        free = min(free, memory.budget_bytes - sum(one.footprint_bytes for one in residents))
    idle = sorted((one for one in residents if not one.busy), key=lambda one: worth(one, now_s))
    evict: list[ResidentModel] = []
    for resident in idle:
        if free >= needed_bytes:
            break
        evict.append(resident)
        free += resident.footprint_bytes
    if free >= needed_bytes:
        return Fits(tuple(resident.name for resident in _without_needless(evict, free - needed_bytes)))
    return DoesNotFit(_not_now(needed_bytes, memory, promised_bytes, residents), never=False)


def room_bytes(memory: HostMemory, promised_bytes: int, others_bytes: int) -> int:
    """The most that a model may take while it is loaded: what the host has free and nobody was promised, and what the
    others leave of the operator's budget. The host's reserve is in it: a load takes more for a moment than its model
    holds afterwards."""
    free = memory.available_bytes - promised_bytes
    return max(0, free if memory.budget_bytes is None else min(free, memory.budget_bytes - others_bytes))


def turn_is_over(loaded_s: float, waiting_load_s: float, now_s: float) -> bool:
    """Whether a model in use that was loaded at `loaded_s` makes room for one that takes `waiting_load_s` to load."""
    return now_s - loaded_s >= max(TURN_LEAST_S, TURN_LOADS * waiting_load_s)


def too_large(needed_bytes: int, memory: HostMemory) -> str:
    """The sentence why a model never fits on this board, with the figures."""
    budget = memory.budget_bytes
    if budget is not None and budget == memory.ceiling_bytes:
        return f"needs {bytes_text(needed_bytes)}, the configured budget of all models is {bytes_text(budget)}"
    return (
        f"needs {bytes_text(needed_bytes)}, this board can give {bytes_text(memory.ceiling_bytes)} "
        f"({bytes_text(memory.total_bytes)} less a reserve of {bytes_text(memory.reserve_bytes)})"
    )


def _not_now(needed_bytes: int, memory: HostMemory, promised_bytes: int, residents: Sequence[ResidentModel]) -> str:
    idle_bytes = sum(one.footprint_bytes for one in residents if not one.busy)
    budget = ""
    if memory.budget_bytes is not None:
        taken_bytes = sum(one.footprint_bytes for one in residents)
        budget = f"{bytes_text(taken_bytes)} of the budget of {bytes_text(memory.budget_bytes)} are taken; "
    return (
        f"needs {bytes_text(needed_bytes)}, {bytes_text(max(0, memory.available_bytes))} are available less a reserve "
        f"of {bytes_text(memory.reserve_bytes)} and {bytes_text(promised_bytes)} promised; {budget}idle models would "
        f"free {bytes_text(idle_bytes)}, busy ones stay"
    )


def _without_needless(evict: Sequence[ResidentModel], spare_bytes: int) -> list[ResidentModel]:
    """Leave out the evictions that a later, larger one made unnecessary; models of the highest worth are kept first."""
    leaving = []
    # From the most valuable one: each that still fits into the spare bytes stays in memory.
    for resident in reversed(evict):
        if resident.footprint_bytes <= spare_bytes:
            spare_bytes -= resident.footprint_bytes
        else:
            leaving.append(resident)
    return leaving[::-1]


def worth(resident: ResidentModel, now_s: float) -> float:
    """Value of keeping a model in memory: load time times popularity; the lowest is evicted first.

    The added 1 / (seconds since the last use) orders models whose uses have all decayed by their last use.
    """
    return resident.load_s * (resident.uses + 1.0 / max(1.0, now_s - resident.last_used_s))
