"""What a batch costs in time, learned from what was measured, as quantiles.

Two views of the same samples: `Quantiles` is a sliding window for reports (p50/p95/p99); `CostModel` predicts the
compute time of a batch from batches of the same model, variant, size and length bucket, falling back to neighbours.
Pure: samples come in as numbers. A prediction is None until something was measured; nobody guesses.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Hashable, Sequence

WINDOW = 512
COST_WINDOW = 32


class Quantiles:
    """The last `window` samples; any quantile of them."""

    def __init__(self, window: int = WINDOW) -> None:
        self._samples: deque[float] = deque(maxlen=window)
        self.count = 0

    def add(self, sample: float) -> None:
        """Take a sample, in whatever unit the owner uses."""
        self._samples.append(sample)
        self.count += 1

    def quantile(self, share: float) -> float | None:
        """The nearest-rank quantile, `share` in (0, 1]; None without samples."""
        if not self._samples:
            return None
        return _nearest_rank(sorted(self._samples), share)

    def summary(self) -> dict[str, float | None]:
        """p50, p95 and p99."""
        if not self._samples:
            return {"p50": None, "p95": None, "p99": None}
        ordered = sorted(self._samples)
        return {f"p{percent}": _nearest_rank(ordered, percent / 100) for percent in (50, 95, 99)}


def _nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed. 0.55 * 20 is a hair above 11, hence `round`."""
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(1, min(rank, len(ordered))) - 1]


def bucket(value: int) -> int:
    """The power of two at or above `value`: batches of 5 to 8 rows share one bucket."""
    return 1 << max(0, value - 1).bit_length()


class CostModel:
    """Predicted compute seconds of a batch of `rows` texts that hold `size_bytes` in all.

    Bytes stand for tokens: the daemon has no tokenizer, and within one language they are proportional.
    """

    def __init__(self, share: float = 0.9) -> None:
        self._share = share
        self._cells: dict[tuple[Hashable, int, int], Quantiles] = {}

    def learn(self, model: Hashable, rows: int, size_bytes: int, compute_s: float) -> None:
        """A batch ran. `model` names everything else that the time depends on (model, variant, governor level)."""
        cell = self._cells.setdefault(_cell(model, rows, size_bytes), Quantiles(COST_WINDOW))
        cell.add(compute_s)

    def predict_s(self, model: Hashable, rows: int, size_bytes: int) -> float | None:
        """A high quantile of what such a batch took: its own cell, the nearest larger, or scaled up from a smaller."""
        own = _cell(model, rows, size_bytes)
        if own in self._cells:
            return self._cells[own].quantile(self._share)
        _, wanted_rows, wanted_length = own
        known = sorted((cell[1] * cell[2], cell) for cell in self._cells if cell[0] == model)
        if not known:
            return None
        wanted = wanted_rows * wanted_length
        place = bisect.bisect_left([work for work, _ in known], wanted)
        work, cell = known[min(place, len(known) - 1)]
        measured = self._cells[cell].quantile(self._share) or 0.0
        return measured if work >= wanted else measured * wanted / work


def _cell(model: Hashable, rows: int, size_bytes: int) -> tuple[Hashable, int, int]:
    return (model, bucket(rows), bucket(max(16, size_bytes // max(1, rows))))
