"""Singular values and vectors of a tuned weight beside its base: intruder dimensions, effective rank, their repair.

Intruder dimensions as in Shuttleworth et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence", algorithm 1:
of each of the first k left singular vectors of the tuned matrix the largest |cosine| to any left singular vector of
the base; one below the threshold is an intruder. The effective rank is exp(entropy) of the normalised singular values
(Roy and Vetterli 2007). numpy alone; the models are opened elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
_ENERGY = 0.9
_CURVE_POINTS = 64


@dataclass(frozen=True)
class WeightDiagnosis:
    """What tuning did to one weight [d_out, d_in].

    `cosines` are the largest cosines of the first k singular vectors of the tuned weight to any of the base's, in the
    order of their singular values; `intruders` are the places among them that lie below the threshold. `norm` and
    `change` are Frobenius norms of the base and of the update; `effective_rank` and `rank_90` (directions that hold
    90 % of the squared norm) are the update's, of at most `full_rank`. `energy` is the share of the update's squared
    norm in its first n directions, at `_CURVE_POINTS` places from 0 to `full_rank`.
    """

    name: str
    cosines: tuple[float, ...]
    intruders: tuple[int, ...]
    norm: float
    change: float
    effective_rank: float
    rank_90: int
    full_rank: int
    energy: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def diagnose(name: str, base: Matrix, tuned: Matrix, top: int, threshold: float) -> WeightDiagnosis:
    """Compare a tuned weight [d_out, d_in] with its base. Both are finite and of one shape."""
    cosines = largest_cosines(base, tuned, top)
    update = tuned - base
    values = np.linalg.svd(update, compute_uv=False).astype(np.float64)
    held = np.concatenate([[0.0], np.cumsum(values**2)])
    total = float(held[-1])
    places = np.linspace(0, len(values), _CURVE_POINTS)
    shares = held / total if total else np.zeros_like(held)
    return WeightDiagnosis(
        name=name,
        cosines=tuple(round(float(value), 6) for value in cosines),
        intruders=tuple(int(place) for place in np.flatnonzero(cosines < threshold)),
        norm=float(np.linalg.norm(base)),
        change=float(np.linalg.norm(update)),
        effective_rank=effective_rank(values),
        rank_90=int(np.searchsorted(shares, _ENERGY)) if total else 0,
        full_rank=len(values),
        energy=tuple(round(float(value), 5) for value in np.interp(places, np.arange(len(shares)), shares)),
    )


def largest_cosines(base: Matrix, tuned: Matrix, top: int) -> NDArray[np.float64]:
    """Of each of the first `top` left singular vectors of `tuned`: the largest |cosine| to any of `base`'s."""
    own, _, _ = np.linalg.svd(tuned, full_matrices=False)
    known, _, _ = np.linalg.svd(base, full_matrices=False)
    products: NDArray[np.float64] = np.abs(own[:, :top].T.astype(np.float64) @ known.astype(np.float64)).max(axis=1)
    return products


def effective_rank(values: NDArray[np.float64]) -> float:
    """exp(entropy) of singular values that are normalised to the sum 1; 0 of a zero matrix."""
    total = float(values.sum())
    if total <= 0.0:
        return 0.0
    shares = values[values > total * 1e-12] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def scaled_down(tuned: Matrix, places: tuple[int, ...], factor: float) -> Matrix:
    """The weight with the singular values at `places` multiplied by `factor`: 1 changes nothing, 0 removes them."""
    if not places:
        return tuned
    left, values, right = np.linalg.svd(tuned, full_matrices=False)
    chosen = list(places)
    part = (left[:, chosen] * values[chosen]) @ right[chosen]
    return np.asarray(tuned - (1.0 - factor) * part, dtype=np.float32)
