"""Which channels of a tensor are so wide that INT8 multiplies them in float beside its codes.

A file of its own because the export finds them on a graph and a training in INT8's arithmetic on a model, and both must
find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST = 1e-30
"""Added to a token's largest magnitude: a token of zeros is not divided by zero."""
# Channels of a tensor that may be set apart; the least count that does nearly as well as the most is taken.
_APART_COUNTS = (0, 1, 2, 4, 8)
_APART_SHARE = 1 / 16
# Setting channels apart takes a tenth of the graph's time. It is worth it where tokens' scales fall by a sixth or more.
_APART_GAIN = 1.2
_NEAR_BEST = 0.9


def wide(magnitudes: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[int, ...]:
    """The channels to set apart of magnitudes [tokens, channels]: mostly 0 to 4."""
    order = np.argsort(-magnitudes.max(axis=0), kind="stable")
    whole = magnitudes.max(axis=1)
    gains = {}
    for count in _APART_COUNTS:
        if count <= len(order) * _APART_SHARE:
            rest = np.delete(magnitudes, order[:count], axis=1).max(axis=1)
            gains[count] = float(np.mean(whole / np.maximum(rest, LEAST)))
    best = max(gains.values())
    if best < _APART_GAIN:
        return ()
    count = min(count for count, gain in gains.items() if gain >= _NEAR_BEST * best)
    return tuple(sorted(int(channel) for channel in order[:count]))
