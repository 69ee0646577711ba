"""How far an exported graph is from PyTorch, and the error when it is too far."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import BackendError

Array = NDArray[np.float32]


class Parity(NamedTuple):
    """Largest absolute differences over the sample texts; `effect` is how far the adapter moved the features."""

    features: float
    logits: float | None = None
    effect: float | None = None


def largest(found: Array, wanted: Array) -> float:
    """Largest absolute difference; infinite for other shapes or values that are not finite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max())


def demand(parity: Parity, tolerance: float, what: str) -> None:
    """Raise BackendError when `parity` is beyond `tolerance`, or when an adapter has no effect to speak of."""
    for name, off in (("features", parity.features), ("logits", parity.logits)):
        if off is not None and not off <= tolerance:
            raise BackendError(
                f"{what}: {name} differ from PyTorch by {off:.3g}, {tolerance:g} is tolerated",
                "export",
                "do not ship this graph; report the base's architecture",
            )
    if parity.effect is not None and not parity.effect > 10.0 * max(parity.features, 1e-6):
        raise BackendError(f"{what}: a test adapter moves the features by only {parity.effect:.3g}", "export")
