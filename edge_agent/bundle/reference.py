"""How a package says what confidence its answers had on the test set: ten shares among its metrics.

The host writes them, the device compares (`core.drift`). Bin i holds top scores from i/10 to
(i+1)/10, the last one 1, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CONFIDENCE_BINS = 10


def reference_key(index: int) -> str:
    """The name of a bin's share in a package's metrics."""
    return f"confidence-bin-{index}"


def histogram(scores: Sequence[float]) -> list[int]:
    """Counts of top scores, from 0 to 1, by bin."""
    counts = [0] * CONFIDENCE_BINS
    for score in scores:
        counts[max(0, min(CONFIDENCE_BINS - 1, int(score * CONFIDENCE_BINS)))] += 1
    return counts


def to_metrics(shares: Sequence[float]) -> dict[str, float]:
    """The shares as metrics, rounded so that they read well."""
    return {reference_key(index): round(share, 5) for index, share in enumerate(shares)}


def reference(metrics: Mapping[str, float]) -> tuple[float, ...] | None:
    """The package's histogram, None where it has none."""
    found = [metrics.get(reference_key(index)) for index in range(CONFIDENCE_BINS)]
    shares = [value for value in found if value is not None and value >= 0.0]
    return tuple(shares) if len(shares) == CONFIDENCE_BINS and sum(shares) > 0.0 else None
