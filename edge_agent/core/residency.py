"""Which models may be in memory: two questions, 'can this ever fit?' and 'does it fit now?', and whom to send away.

Bytes come from the package until a model was measured on this device, then from the measurement. A busy model is
never evicted. Pure: memory figures are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.base.limits import GIB, MIB
from edge_agent.base.units import bytes_text

RESERVE_SMALL_SHARE = 0.10
RESERVE_SMALL_BYTES = 200 * MIB
RESERVE_LARGE_SHARE = 0.15
SMALL_BOARD_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Memory:
    """What the host has: `total_bytes` and MemAvailable (both after cgroup and configured limits)."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model: what it holds, whether it works now, when it last did, how long it took to load."""

    name: str
    footprint_bytes: int
    busy: bool
    last_used_s: float
    load_s: float


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
    needed_bytes: int, memory: Memory, promised_bytes: int, residents: Sequence[Resident], now_s: float
) -> Fits | DoesNotFit:
    """Whether a model of `needed_bytes` can be loaded now; `promised_bytes` are spoken for by loads under way."""
    reserve = reserve_bytes(memory.total_bytes)
    ceiling = memory.total_bytes - reserve
    if needed_bytes > ceiling:
        return DoesNotFit(
            f"needs {bytes_text(needed_bytes)}, this board can give {bytes_text(max(0, ceiling))} "
            f"({bytes_text(memory.total_bytes)} less a reserve of {bytes_text(reserve)})",
            never=True,
        )
    free = memory.available_bytes - reserve - promised_bytes
    idle = sorted((one for one in residents if not one.busy), key=lambda one: _worth(one, now_s))
    evict: list[Resident] = []
    for resident in idle:
        if free >= needed_bytes:
            break
        evict.append(resident)
        free += resident.footprint_bytes
    if free >= needed_bytes:
        return Fits(tuple(resident.name for resident in _without_needless(evict, free - needed_bytes)))
    return DoesNotFit(
        f"needs {bytes_text(needed_bytes)}, {bytes_text(max(0, memory.available_bytes))} are available less a reserve "
        f"of {bytes_text(reserve)} and {bytes_text(promised_bytes)} promised; idle models would free "
        f"{bytes_text(sum(one.footprint_bytes for one in idle))}, busy ones stay",
        never=False,
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


def _worth(resident: Resident, now_s: float) -> float:
    """Cost to reload over time unused: what was slow to load and is in use stays longest."""
    return resident.load_s / max(1.0, now_s - resident.last_used_s)
