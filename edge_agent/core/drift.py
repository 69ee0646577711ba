"""Data drift: how far today's texts differ from those that the model was evaluated on.

The population stability index (PSI) compares a histogram of the device with the one in the package, of the confidence
of the answers and of how texts split into tokens:

    PSI = sum over bins of (p - q) ln(p / q)

the symmetric Kullback-Leibler divergence of two histograms (Jeffreys, 1946). Credit scoring takes 0.1 for a small shift
and 0.25 for a large one. `unknown_share` adds the share of tokens that the tokenizer does not know.

Pure. In a file of its own because the statistic is tested by itself; `agent.status_builder` counts the histograms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST_TEXTS = 50
"""With fewer texts the bins are mostly noise."""
FLOOR = 0.001
"""The share of an empty bin; with 0 the index would be infinite."""


def psi(counts: Sequence[int], expected: Sequence[float]) -> float | None:
    """The index of `counts` against the `expected` shares; None with fewer than `LEAST_TEXTS`."""
    total, mass = sum(counts), sum(expected)
    if total < LEAST_TEXTS or mass <= 0.0:
        return None
    index = 0.0
    for count, share in zip(counts, expected, strict=True):
        p, q = max(FLOOR, count / total), max(FLOOR, share / mass)
        index += (p - q) * math.log(p / q)
    return index


def unknown_share(unknown: int, tokens: int, texts: int) -> float | None:
    """Unknown tokens as a share of all tokens, in [0, 1]; None with fewer than `LEAST_TEXTS`."""
    if texts < LEAST_TEXTS:
        return None
    return unknown / tokens if tokens else 0.0
