"""Measure at the start of a run how a step is computed fastest: precision, threads, tokens at once.

The measurement has a time budget: on a slow or busy machine the rest is not measured and safe values are taken. The
record keeps the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from edge_forge.models.sequence_classifier import SequenceClassifier
from edge_forge.train.batches import RowDataset, collate, split
from edge_forge.train.classifier_trainer import StepPlan
from edge_forge.train.methods import method
from edge_forge.train.settings import TrainSettings

_REPEATS = 2
_TURNS = 3
# The measurement ends after so long; a single step that is under way is not interrupted.
_BUDGET_S = 12.0
# Fewer tokens at once may cost so much more time: they are taken for their memory.
_TOLERATED = 1.04
_TOKENS_AT_ONCE = (256, 512, 1024, 2048, 4096)
# While precision and threads are measured.
_TOKENS_FOR_OTHERS = 512
# Another precision or fewer threads must be so much faster to be taken.
_WORTH = 0.95
# A case that is so many times slower than another by one timing each is not timed further.
_CLEAR = 1.5
# A batch longer than this share of batches is timed: there the tokens at once matter.
_LONG = 0.8


@dataclass(frozen=True)
class ComputeChoice:
    """How steps are computed, and the milliseconds per batch (forward and backward) that decided it."""

    precision: str
    threads: int
    micro_batch_tokens: int
    measured_ms: dict[str, float]

    @property
    def plan(self) -> StepPlan:
        """The same for the loop."""
        return StepPlan(self.micro_batch_tokens, self.precision == "bf16")

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def choose(model: SequenceClassifier, adapted: Any, data: RowDataset, settings: TrainSettings) -> ComputeChoice:
    """Measure precision, threads and tokens at once, one after another, on a long batch, unless the settings fix them.

    The model's weights are left as they were; its adapted linears compute in the way that fits the precision.
    """
    world = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    bench = _Bench(
        model, partial(method(settings.method).choose_forward, adapted), data, max(1, settings.batch_size // world)
    )
    precision = settings.precision if settings.precision != "auto" else _best_precision(bench)
    threads = settings.threads or _best_threads(bench, precision, world)
    torch.set_num_threads(threads)
    tokens = settings.micro_batch_tokens or _best_tokens(bench, precision)
    bench.compute_for(precision)
    return ComputeChoice(precision, threads, tokens, bench.measured_ms)


def _best_precision(bench: _Bench) -> str:
    """bf16 where both a bare product and the model's step are faster in it; a CPU without bf16 units is found out by
    the product alone, since there a whole step takes twenty times as long."""
    device = bench.model.head.weight.device
    products = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.ones(64, 384, dtype=kind, device=device)
        right = torch.ones(384, 384, dtype=kind, device=device)
        products[name] = bench.keep(f"{name} product", [_product_ms(left, right) for _ in range(6)][1:])
    if products["bf16"] > products["fp32"]:
        return "fp32"
    timings = bench.in_turn({name: (torch.get_num_threads(), name) for name in ("fp32", "bf16")})
    return "bf16" if timings["bf16"] < timings["fp32"] * _WORTH else "fp32"


def _product_ms(left: torch.Tensor, right: torch.Tensor) -> float:
    start_s = time.perf_counter()
    torch.matmul(left, right)
    return (time.perf_counter() - start_s) * 1000


def _best_threads(bench: _Bench, precision: str, world: int) -> int:
    most = torch.get_num_threads()
    if world > 1 or most == 1 or bench.spent:
        return most
    fewer = max(1, most // 2)
    names = {count: f"{count} thread{'s'[: count > 1]}" for count in (fewer, most)}
    timings = bench.in_turn({name: (count, precision) for count, name in names.items()})
    return fewer if timings[names[fewer]] < timings[names[most]] * _WORTH else most


def _best_tokens(bench: _Bench, precision: str) -> int:
    """The fewest tokens at once that cost at most 4 % more than the fastest.

    From few to many, until more gains nothing: what is never tried does not raise the peak of memory either.
    """
    best, best_ms = _TOKENS_AT_ONCE[0], float("inf")
    for tokens in _TOKENS_AT_ONCE:
        if bench.spent:
            return max(best, _TOKENS_FOR_OTHERS)
        took_ms = bench.time(f"{tokens} tokens at once", tokens, precision)
        if best_ms <= took_ms * _TOLERATED:
            break
        best, best_ms = tokens, took_ms
        if tokens >= bench.tokens:
            break
    return best


def _are_clear(least_ms: Sequence[float]) -> bool:
    fastest_ms, *others_ms = sorted(least_ms)
    return all(other_ms >= _CLEAR * fastest_ms for other_ms in others_ms)


class _Bench:
    """Times forward and backward of one long batch of `rows` rows, split by tokens."""

    def __init__(
        self, model: SequenceClassifier, compute_for: Callable[[str], None], data: RowDataset, rows: int
    ) -> None:
        self.model = model
        self.compute_for = compute_for
        self.measured_ms: dict[str, float] = {}
        self._ends_s = time.perf_counter() + _BUDGET_S
        order = np.argsort(data.rows.lengths, kind="stable")
        end = max(min(rows, len(order)), int(len(order) * _LONG))
        self._batch = collate([data[int(row)] for row in order[max(0, end - rows) : end]])
        self.tokens = int(self._batch["attention_mask"].numel())

    @property
    def spent(self) -> bool:
        """Whether the time for measuring is over."""
        return time.perf_counter() >= self._ends_s

    def time(self, name: str, tokens: int, precision: str) -> float:
        """Least milliseconds of the batch at `tokens` at once, after one warm-up; kept under `name`.

        Where the warm-up alone uses up the time for measuring, its time is taken.
        """
        self.compute_for(precision)
        taken_ms = [self._step(tokens, precision)]
        if not self.spent:
            taken_ms = [self._step(tokens, precision) for _ in range(_REPEATS)]
        return self.keep(name, taken_ms)

    def in_turn(self, cases: dict[str, tuple[int, str]]) -> dict[str, float]:
        """Least milliseconds per case (threads, precision), timed in turn, so that other load affects all alike.

        It ends after one timing each, beside the warm-up, where all others are `_CLEAR` times slower than the fastest.
        """
        taken_ms: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(_TURNS + 1):
            if turn > 1 and (self.spent or _are_clear([min(found[1:]) for found in taken_ms.values()])):
                break
            for name, (threads, precision) in cases.items():
                torch.set_num_threads(threads)
                self.compute_for(precision)
                taken_ms[name].append(self._step(_TOKENS_FOR_OTHERS, precision))
        return {name: self.keep(name, found[1:]) for name, found in taken_ms.items()}

    def keep(self, name: str, taken_ms: list[float]) -> float:
        """Keep the least under `name` and return it: other programs on the machine only add time."""
        self.measured_ms[name] = round(min(taken_ms), 3)
        return self.measured_ms[name]

    def _step(self, tokens: int, precision: str) -> float:
        device = self.model.head.weight.device
        start_s = time.perf_counter()
        for part in split({name: value.to(device) for name, value in self._batch.items()}, tokens):
            with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = self.model(**part)["loss"]
            loss.backward()
        took_ms = (time.perf_counter() - start_s) * 1000
        self.model.zero_grad(set_to_none=True)
        return took_ms
