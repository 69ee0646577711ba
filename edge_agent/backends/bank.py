"""Where in the adapter bank each row of a batch goes. Pure arithmetic; `slots.py` does the copying it asks for.

The bank has a fixed number of positions, each holding one adapter. A mixed batch of n rows is given n neighbouring
positions (a view, no copy), and its rows are put in the order in which those positions hold their adapters. Only a row
whose adapter is not in the window costs a write. So popular adapters come to hold several positions by themselves, and
the positions that have not been used for longest are overwritten first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Plan(NamedTuple):
    """Batch row i is row `order[i]` of the request and lies at position `start + i`; do `writes` first.

    `writes` are (position, adapter) pairs. Adapters are names; '' stands for the base alone.
    """

    start: int
    order: tuple[int, ...]
    writes: tuple[tuple[int, str], ...]


class PositionalCache:
    """What each position holds, and when it was last used (a count of batches, no clock)."""

    def __init__(self, positions: int) -> None:
        self._holds: list[str | None] = [None] * positions
        self._used = [0] * positions
        self._batch = 0

    @property
    def holds(self) -> tuple[str | None, ...]:
        """The adapter at every position; None where nothing was written yet."""
        return tuple(self._holds)

    def place(self, rows: Sequence[str]) -> Plan:
        """Positions for a batch whose row i needs adapter `rows[i]`; the cache then holds what the plan writes.

        `rows` must be no longer than the number of positions.
        """
        count = len(rows)
        if not 0 < count <= len(self._holds):
            raise ValueError(f"{count} rows do not fit {len(self._holds)} positions")
        start = self._window(Counter(rows), count)
        self._batch += 1
        plan = self._assign(rows, start)
        for position, adapter in plan.writes:
            self._holds[position] = adapter
        for position in range(start, start + count):
            self._used[position] = self._batch
        return plan

    def forget(self, adapter: str) -> None:
        """Positions with this adapter hold nothing any more (it was detached, or replaced by another version)."""
        for position, held in enumerate(self._holds):
            if held == adapter:
                self._holds[position] = None
                self._used[position] = 0

    def _window(self, needed: dict[str, int], count: int) -> int:
        """The start of the window with the most rows already in place; among equals, the one longest unused."""
        inside = Counter(self._holds[:count])
        best, best_key = 0, (-1, 0)
        for start in range(len(self._holds) - count + 1):
            if start:
                inside[self._holds[start - 1]] -= 1
                inside[self._holds[start + count - 1]] += 1
            hits = sum(min(number, inside[adapter]) for adapter, number in needed.items())
            key = (hits, -sum(self._used[start : start + count]))
            if key > best_key or start == 0:
                best, best_key = start, key
        return best

    def _assign(self, rows: Sequence[str], start: int) -> Plan:
        waiting: dict[str, list[int]] = {}
        for row in reversed(range(len(rows))):
            waiting.setdefault(rows[row], []).append(row)
        order = [-1] * len(rows)
        for place in range(len(rows)):
            held = self._holds[start + place]
            if held is not None and waiting.get(held):
                order[place] = waiting[held].pop()
        left = sorted((row for group in waiting.values() for row in group), reverse=True)
        writes = []
        for place in range(len(rows)):
            if order[place] < 0:
                order[place] = left.pop()
                writes.append((start + place, rows[order[place]]))
        return Plan(start, tuple(order), tuple(writes))
