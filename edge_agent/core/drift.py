"""Whether the texts of today look like those that the model was tested on: the population stability index (PSI) of the
confidence of its answers, and of how its texts fall apart into tokens, against the histograms that the package carries;
and the share of tokens that its tokenizer does not know.

PSI = sum over bins of (p - q) ln(p / q), the symmetric Kullback-Leibler divergence of two histograms (Jeffreys, 1946;
used so in credit scoring, where 0.1 is taken for a small shift and 0.25 for a large one). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST_TEXTS = 50
"""Below that the bins are mostly noise and the index says nothing."""
FLOOR = 0.001
"""An empty bin counts as this share, so that one text in it does not make the index infinite."""


def psi(counts: Sequence[int], expected: Sequence[float]) -> float | None:
    """The index of these counts against the expected shares; None for too few texts."""
    total, mass = sum(counts), sum(expected)
    if total < LEAST_TEXTS or mass <= 0.0:
        return None
    index = 0.0
    for count, share in zip(counts, expected, strict=True):
        p, q = max(FLOOR, count / total), max(FLOOR, share / mass)
        index += (p - q) * math.log(p / q)
    return index


def unknown_share(unknown: int, tokens: int, texts: int) -> float | None:
    """Unknown tokens as a share of all of them, from 0 to 1; None for too few texts."""
    if texts < LEAST_TEXTS:
        return None
    return unknown / tokens if tokens else 0.0
