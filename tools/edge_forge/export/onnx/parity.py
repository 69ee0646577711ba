"""Whether a graph computes what PyTorch computes: at every length, with and without padding, for ids of the whole
table.

A mask, a window of attention or a table of positions shows only beyond some length; a short sample text sees none of
them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.base.errors import BackendError
from edge_forge.models.encoder import Encoder

Array = NDArray[np.float32]
# Multiply-adds that the PyTorch side of a check may take: seconds on one core. MiniLM has 10.6 million weights in its
# layers, so that all lengths up to 128 (8,256 tokens) take half of it.
BUDGET = 2.0e11
_ALL_UP_TO = 32
_MIXED_ROWS = 16
_SEED = 11


class Parity(NamedTuple):
    """Largest absolute differences over the sample texts; `effect` is how far the adapter moved the features."""

    features: float
    logits: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens that are compared, and how they were chosen."""

    chosen: tuple[int, ...]
    longest: int

    @property
    def said(self) -> str:
        """For the record: 'all of 1 to 128', or how many of them."""
        if len(self.chosen) == self.longest:
            return f"all of 1 to {self.longest}"
        return f"{len(self.chosen)} of 1 to {self.longest}, among them every edge of a window or a bucket of positions"


def choose_lengths(longest: int, weights: int, edges: Collection[int], budget: float = BUDGET) -> Lengths:
    """All lengths up to `longest` where `budget` multiply-adds suffice; else the short ones, edges, and an even spread.

    `weights` is the number of weights that a token is multiplied with.
    """
    every = range(1, longest + 1)
    if sum(every) * weights <= budget:
        return Lengths(tuple(every), longest)
    near = {edge + off for edge in (*edges, longest) for off in (-2, -1, 0, 1, 2)}
    chosen = {length for length in (*range(1, _ALL_UP_TO + 1), *near) if 1 <= length <= longest}
    left = budget / max(1, weights) - sum(chosen)
    count = max(0, int(2 * left / longest))
    if count:
        chosen |= {max(1, round(longest * step / count)) for step in range(1, count + 1)}
    return Lengths(tuple(sorted(chosen)), longest)


def edges_of(config: Any) -> tuple[int, ...]:
    """Lengths at which an encoder's masks or positions may change: windows, their halves, buckets, powers of two."""
    found = {2**power for power in range(3, 14)}
    names = ("local_attention", "sliding_window", "attention_window", "position_buckets", "max_relative_positions",
             "relative_attention_num_buckets", "original_max_position_embeddings")  # fmt: skip
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            found |= {value, value // 2}
    return tuple(sorted(found))


def rows_of(vocabulary: int, lengths: Sequence[int], ends: tuple[Sequence[int], Sequence[int]]) -> list[list[int]]:
    """A row of ids for every length. The ids go through the whole table in a mixed order, again from its start when it
    ends.

    `ends` are what the tokenizer puts before and after every text; a row too short for both is of ids alone.
    """
    random = np.random.default_rng(_SEED)
    table = random.permutation(vocabulary)
    place, rows = 0, []
    before, after = list(ends[0]), list(ends[1])
    for length in lengths:
        inner = length - len(before) - len(after)
        count = inner if inner > 0 else length
        taken = [int(table[(place + step) % vocabulary]) for step in range(count)]
        place += count
        rows.append([*before, *taken, *after] if inner > 0 else taken)
    return rows


def batches_of(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of rows in batches: every row alone, then batches of long and short rows, in which the short ones are
    padded."""
    alone = [[place] for place in range(len(rows))]
    count = max(1, min(4, len(rows) // _MIXED_ROWS))
    step = max(1, len(rows) // (count * _MIXED_ROWS))
    picked = list(range(len(rows) - 1, -1, -step))
    mixed = [picked[start::count][:_MIXED_ROWS] for start in range(count)]
    return alone + [places for places in mixed if len(places) > 1]


def reference(encoder: Encoder, rows: Sequence[Sequence[int]]) -> Array:
    """Features [rows, width] of every row alone, by PyTorch as transformers computes it, on one thread.

    One row is little work: a second thread mostly waits for the first, and on a busy machine each waits for its turn.
    """
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for row in rows:
                ids = torch.tensor([list(row)])
                found.append(encoder.features(ids, torch.ones_like(ids)).float().numpy()[0])
    finally:
        torch.set_num_threads(threads)
    return np.stack(found)


def weights_per_token(encoder: Encoder) -> int:
    """Weights that every token is multiplied with, shared ones as often as they run."""
    modules = dict(encoder.model.named_modules())
    return sum(modules[name].weight.numel() for name in encoder.survey.linears)


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


def as_dict(lengths: Lengths, off: float) -> dict[str, Any]:
    """For the step's record."""
    return {"features": off, "lengths": lengths.said, **asdict(lengths)}
