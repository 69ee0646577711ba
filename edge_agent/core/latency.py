"""Measured durations as quantiles, and the predicted compute time of a batch.

`QuantileWindow` holds the last samples for reports (p50, p95, p99). `CostModel` predicts the compute time of a batch
from measured batches of the same model, variant, threads, rows and text length, or from the nearest of them. Pure:
samples come in as numbers. A prediction is None until something was measured or the package states a figure.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Hashable, Sequence

WINDOW = 512
"""Samples in a report's window: enough for a p99 with five samples above it."""
COST_WINDOW = 32
"""Samples per kind of batch: few, so that a prediction follows a change of load within some seconds."""
LEAST_TEXT_BYTES = 16
"""Shorter texts are predicted like texts of this length: the fixed cost of a step outweighs their tokens."""


class QuantileWindow:
    """The last `window` samples, and quantiles of them."""

    def __init__(self, window: int = WINDOW) -> None:
        self._samples: deque[float] = deque(maxlen=window)
        self.count = 0

    def add(self, sample: float) -> None:
        """Add a sample, in the unit of the owner."""
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
    """The smallest sample that at least `share` of all samples do not exceed."""
    # In floating point 0.55 * 20 is slightly above 11 and would give rank 12 without the rounding.
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(1, min(rank, len(ordered))) - 1]


def bucket(value: int) -> int:
    """The power of two at or above `value`; batches of 5 to 8 rows are in one bucket."""
    return 1 << max(0, value - 1).bit_length()


class CostModel:
    """Predicts the compute seconds of a batch: `rows` texts of `size_bytes` in all, with `threads`.

    Bytes replace tokens, because the daemon has no tokenizer; within one language they are proportional. Until the
    first batch was measured, an expectation is used where there is one: the time measured on this device at the
    install, or the package's figure from its host, scaled by what the golden probes took on this device.
    """

    def __init__(self, quantile: float = 0.9) -> None:
        self._quantile = quantile
        self._cells: dict[tuple[Hashable, int, int, int], QuantileWindow] = {}
        self._expected: dict[Hashable, tuple[int, float]] = {}

    def learn(self, model: Hashable, rows: int, size_bytes: int, compute_s: float, threads: int = 0) -> None:
        """Add a measured batch: `rows` texts of `size_bytes` in all took `compute_s` with `threads` (0: not stated).

        `model` identifies everything else that the time depends on (model, variant).
        """
        cell = self._cells.setdefault(_cell(model, rows, size_bytes, threads), QuantileWindow(COST_WINDOW))
        cell.add(compute_s)

    def expect(self, model: Hashable, row_bytes: int, row_s: float) -> None:
        """Set the expectation: one text of about `row_bytes` takes `row_s` with all threads."""
        if row_s > 0.0:
            self._expected[model] = (max(1, row_bytes), row_s)

    def predict_s(self, model: Hashable, rows: int, size_bytes: int, threads: int = 0) -> float | None:
        """The predicted seconds of a batch: the `quantile` of measured batches; None without a measurement.

        Measured are batches of the same buckets; else the next larger ones; else the largest, scaled up in proportion.
        Batches that were measured with more threads only are scaled by the ratio of threads, which is the worst case.
        """
        own = _cell(model, rows, size_bytes, threads)
        if own in self._cells:
            return self._cells[own].quantile(self._quantile)
        counts = {cell[1] for cell in self._cells if cell[0] == model}
        if not counts:
            return self._expectation(model, rows, size_bytes)
        # On a tie the larger number of threads: scaling its time up is pessimistic, and never too optimistic.
        nearest = min(counts, key=lambda count: (abs(count - threads), -count))
        slower = nearest / threads if 0 < threads < nearest else 1.0
        return slower * self._from_neighbours(_cell(model, rows, size_bytes, nearest))

    def least_s(self, model: Hashable, rows: int, size_bytes: int, threads: int = 0) -> float | None:
        """The shortest of the last `COST_WINDOW` batches of the same buckets; None without a measurement.

        For giving up: a job that not even this time permits is hopeless, while the quantile of `predict_s` would give
        up jobs that may still succeed.
        """
        cell = self._cells.get(_cell(model, rows, size_bytes, threads))
        # A share near 0 is the minimum.
        return cell.quantile(1e-9) if cell is not None else None

    def _from_neighbours(self, wanted: tuple[Hashable, int, int, int]) -> float:
        known = sorted((cell[2] * cell[3], cell) for cell in self._cells if cell[:2] == wanted[:2])
        wanted_work = wanted[2] * wanted[3]
        place = bisect.bisect_left([work for work, _ in known], wanted_work)
        work, cell = known[min(place, len(known) - 1)]
        measured = self._cells[cell].quantile(self._quantile) or 0.0
        # A smaller batch takes at most as long as a larger one; a larger one is scaled in proportion to its bytes.
        return measured if work >= wanted_work else measured * wanted_work / work

    def _expectation(self, model: Hashable, rows: int, size_bytes: int) -> float | None:
        """In proportion to the work, and for less of it no less than one text takes."""
        if model not in self._expected:
            return None
        row_bytes, row_s = self._expected[model]
        return row_s * max(
            1.0, rows * max(LEAST_TEXT_BYTES, size_bytes // max(1, rows)) / max(LEAST_TEXT_BYTES, row_bytes)
        )


def _cell(model: Hashable, rows: int, size_bytes: int, threads: int) -> tuple[Hashable, int, int, int]:
    return (model, threads, bucket(rows), bucket(max(LEAST_TEXT_BYTES, size_bytes // max(1, rows))))
