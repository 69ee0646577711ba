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
    """Predicted compute seconds of a batch of `rows` texts that hold `size_bytes` in all, at so many `threads`.

    Bytes stand for tokens: the daemon has no tokenizer, and within one language they are proportional. Until the first
    batch was measured, an expectation stands in where there is one: the package's figure from its host, scaled by what
    the golden probes took here, or what the device itself measured after the install.
    """

    def __init__(self, share: float = 0.9) -> None:
        self._share = share
        self._cells: dict[tuple[Hashable, int, int, int], Quantiles] = {}
        self._expected: dict[Hashable, tuple[int, float]] = {}

    def learn(self, model: Hashable, rows: int, size_bytes: int, compute_s: float, threads: int = 0) -> None:
        """A batch ran. `model` names everything else that the time depends on (model, variant)."""
        cell = self._cells.setdefault(_cell(model, rows, size_bytes, threads), Quantiles(COST_WINDOW))
        cell.add(compute_s)

    def expect(self, model: Hashable, row_bytes: int, row_s: float) -> None:
        """One text of about `row_bytes` is expected to take `row_s` at full threads."""
        if row_s > 0.0:
            self._expected[model] = (max(1, row_bytes), row_s)

    def predict_s(self, model: Hashable, rows: int, size_bytes: int, threads: int = 0) -> float | None:
        """A high quantile of what such a batch took: its own cell, the nearest larger, or scaled up from a smaller.

        What was only measured with other threads is scaled by them: half the threads, twice the time at worst.
        """
        own = _cell(model, rows, size_bytes, threads)
        if own in self._cells:
            return self._cells[own].quantile(self._share)
        counts = {cell[1] for cell in self._cells if cell[0] == model}
        if not counts:
            return self._expectation(model, rows, size_bytes)
        nearest = min(counts, key=lambda count: (abs(count - threads), -count))
        slower = nearest / threads if 0 < threads < nearest else 1.0
        return slower * self._from_neighbours(_cell(model, rows, size_bytes, nearest))

    def least_s(self, model: Hashable, rows: int, size_bytes: int, threads: int = 0) -> float | None:
        """The shortest time that one of the last `COST_WINDOW` such batches took; None where its cell has no sample.

        What cannot be done even in this time is hopeless; the high quantile would give up what may still succeed.
        """
        cell = self._cells.get(_cell(model, rows, size_bytes, threads))
        return cell.quantile(1e-9) if cell is not None else None

    def _from_neighbours(self, wanted: tuple[Hashable, int, int, int]) -> float:
        known = sorted((cell[2] * cell[3], cell) for cell in self._cells if cell[:2] == wanted[:2])
        wanted_work = wanted[2] * wanted[3]
        place = bisect.bisect_left([work for work, _ in known], wanted_work)
        work, cell = known[min(place, len(known) - 1)]
        measured = self._cells[cell].quantile(self._share) or 0.0
        return measured if work >= wanted_work else measured * wanted_work / work

    def _expectation(self, model: Hashable, rows: int, size_bytes: int) -> float | None:
        """In proportion to the work, and for less of it no less than one text takes."""
        if model not in self._expected:
            return None
        row_bytes, row_s = self._expected[model]
        return row_s * max(1.0, rows * max(16, size_bytes // max(1, rows)) / max(16, row_bytes))


def _cell(model: Hashable, rows: int, size_bytes: int, threads: int) -> tuple[Hashable, int, int, int]:
    return (model, threads, bucket(rows), bucket(max(16, size_bytes // max(1, rows))))
