"""The drift reference: how a package describes its test set, among its metrics. It consists of a histogram of the
answers' confidence, one of tokens per byte of the texts, and the share of tokens that the tokenizer did not know.

The host writes it, the device compares with it (`core.drift`). Bin i of the confidence holds top scores from i/10 to
(i+1)/10, the last one 1, too. Fragmentation is tokens per byte of UTF-8, of a whole text and without special tokens: it
means the same for every tokenizer and every script, which tokens per word does not. Its bins end at 0.1 x 1.25^i:
misspelling, another language or codes multiply the tokens of a text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

BINS: Final = 10
FRAGMENTATION_EDGES: Final = tuple(0.1 * 1.25**index for index in range(BINS - 1))
UNKNOWN_SHARE: Final = "out-of-vocabulary"
"""Unknown tokens as a share of all tokens of the test set; absent where the tokenizer has none."""

Kind = Literal["confidence", "fragmentation"]


def reference_key(index: int, kind: Kind = "confidence") -> str:
    """The name of a bin's share in a package's metrics."""
    return f"{kind}-bin-{index}"


def histogram(scores: Iterable[float]) -> list[int]:
    """Counts of top scores, from 0 to 1, by bin."""
    counts = [0] * BINS
    for score in scores:
        counts[max(0, min(BINS - 1, int(score * BINS)))] += 1
    return counts


def fragmentation_histogram(texts: Iterable[tuple[int, int]]) -> list[int]:
    """Counts of texts, each (bytes, tokens), by bin of their tokens per byte; one without bytes counts as one byte."""
    counts = [0] * BINS
    for size_bytes, tokens in texts:
        counts[bisect_right(FRAGMENTATION_EDGES, tokens / max(1, size_bytes))] += 1
    return counts


def to_metrics(shares: Sequence[float], kind: Kind = "confidence") -> dict[str, float]:
    """The shares as metrics, rounded to five places."""
    return {reference_key(index, kind): round(share, 5) for index, share in enumerate(shares)}


def reference(metrics: Mapping[str, float], kind: Kind = "confidence") -> tuple[float, ...] | None:
    """The package's histogram, None where it has none."""
    found = [metrics.get(reference_key(index, kind)) for index in range(BINS)]
    shares = [value for value in found if value is not None and value >= 0.0]
    return tuple(shares) if len(shares) == BINS and sum(shares) > 0.0 else None


def unknown_share(metrics: Mapping[str, float]) -> float | None:
    """The share of unknown tokens in the package's test set, from 0 to 1; None where it says none."""
    found = metrics.get(UNKNOWN_SHARE)
    return found if found is not None and 0.0 <= found <= 1.0 else None
