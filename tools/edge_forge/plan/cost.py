"""What a build will cost, said before its longest step begins.

A file of its own because it is arithmetic about a recipe and this host alone; it runs no step. The figures are a range:
the present speed of this host is taken from one matrix product, and other programs may come or go.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from edge_forge.progress import duration, size

_RANGE = (0.4, 2.0)
"""Banking77 with LoRA in bf16 on one thread took 0.47 times its products in FP32 by processor time (240 s against
514 s); FP32 takes twice that, and short batches, evaluation and attention come on top."""
_OTHERS_FLOPS_A_BYTE = 3.5e4
"""The other steps (export, number formats, measuring) cost about so many operations per byte of the base."""
_LITERT_FLOPS_A_BYTE, _LITERT_S = 2.6e3, 4.0
"""For each length that LiteRT's converter lowers, and once for its libraries: MiniLM took 18.1 s of processor time for
four lengths and 6.2 s for one, at 5.0e10 operations per second."""
_MEASURED_S = 0.2
_SHAPE = (512, 384, 1536)


class TrainingWork(NamedTuple):
    """What a training reads: its rows and their tokens (cut), passes at most, weights of the layers, the share of the
    layers that is computed once, bytes of the base, and passes forward alone, which ask a reference before training."""

    rows: int
    tokens: int
    epochs: int
    weights: int
    frozen_share: float
    base_bytes: int
    reference_passes: float = 0.0


def training_flops(work: TrainingWork) -> float:
    """Floating-point operations of the products: 2 per weight and token forward, 4 backward; frozen layers run once,
    and a reference forward alone."""
    adapted = 6.0 * work.weights * (1.0 - work.frozen_share) * work.epochs
    return work.tokens * (2.0 * work.weights * (work.frozen_share + work.reference_passes) + adapted)


def host_flops_per_s() -> float:
    """The speed of a product of matrices on this host now, with the threads that numpy takes."""
    import numpy as np

    rows, inner, columns = _SHAPE
    one, other = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    one @ other
    count, begun_s = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - begun_s) < _MEASURED_S:
        one @ other
        count += 1
    return 2.0 * rows * inner * columns * count / spent_s


def foretold(work: TrainingWork, flops_per_s: float, litert_lengths: int = 0) -> str:
    """One line: what is trained, and how long that and the steps after it take at that speed.

    `litert_lengths`: signatures of the LiteRT form, 0 where there is none.
    """
    rest_s = work.base_bytes * _OTHERS_FLOPS_A_BYTE / flops_per_s
    return (
        f"{foretold_training(work, flops_per_s)}, the steps after it about {duration(rest_s)} more (base: "
        f"{size(work.base_bytes)})"
        f"{_litert(work, flops_per_s, litert_lengths)}"
    )


def foretold_training(work: TrainingWork, flops_per_s: float) -> str:
    """The same line of the training alone."""
    low, high = (duration(factor * training_flops(work) / flops_per_s) for factor in _RANGE)
    passes = "1 epoch" if work.epochs == 1 else f"at most {work.epochs} epochs"
    return (
        f"cost: {work.rows} texts of {work.tokens / work.rows:.0f} tokens, {passes}: training takes about {low} to "
        f"{high} at this host's present speed"
    )


def _litert(work: TrainingWork, flops_per_s: float, lengths: int) -> str:
    if not lengths:
        return ""
    lasting_s = _LITERT_S + lengths * work.base_bytes * _LITERT_FLOPS_A_BYTE / flops_per_s
    return f"; LiteRT's converter about {duration(lasting_s)} for {lengths} length{'s' if lengths > 1 else ''}"


def foretold_trials(trials: int, work: tuple[TrainingWork, TrainingWork], flops_per_s: float, ends_early: bool) -> str:
    """One line on so many trainings, each between the two in passes. What is ended early is counted as trained."""
    one, other = (training_flops(bound) / flops_per_s for bound in work)
    low, high = trials * _RANGE[0] * (one + other) / 2, trials * _RANGE[1] * (one + other) / 2
    passes = (
        f"{work[0].epochs} to {work[1].epochs} epochs"
        if work[0].epochs != work[1].epochs
        else (f"{work[0].epochs} epoch{'s' * (work[0].epochs != 1)}")
    )
    less = "; less where trials fall behind and are ended" if ends_early else ""
    return (
        f"cost: {trials} trials of {passes} on {work[0].rows} rows of {work[0].tokens / max(1, work[0].rows):.0f} "
        f"tokens: about {duration(low)} to {duration(high)} at this host's present speed, and some seconds for each "
        f"start{less}"
    )
