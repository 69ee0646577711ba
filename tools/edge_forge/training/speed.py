"""How a step is computed fastest here: a short measurement at start, whose figures go into the record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_forge.training.adapters import compute_in_place, compute_plainly
from edge_forge.training.batches import RowDataset, collate
from edge_forge.training.classifier import SequenceClassifier
from edge_forge.training.loop import StepPlan
from edge_forge.training.settings import TrainSettings

_REPEATS = 3
# A smaller micro-batch may cost so much more time: it is taken for its memory.
_TOLERATED = 1.04
_SMALLEST_TOKENS = 128
# A precision must be so much faster to be taken over float32.
_WORTH = 0.95


@dataclass(frozen=True)
class Choice:
    """How steps are computed, and the milliseconds per batch (forward and backward) that decided it."""

    precision: str
    threads: int
    micro_batch_size: int
    accumulation: int
    measured_ms: dict[str, float]

    def plan(self, folder: Path) -> StepPlan:
        """The same for the loop."""
        return StepPlan(self.micro_batch_size, self.accumulation, self.precision == "bf16", folder)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def choose(model: SequenceClassifier, peft_model: Any, data: RowDataset, settings: TrainSettings) -> Choice:
    """Measure precision, threads and micro-batch one after another on a typical batch, unless the settings fix them.

    The model's weights are left as they were. Every process of a launcher measures for itself; only rows per step
    must agree between them, so a launched run does not measure the micro-batch.
    """
    world = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    bench = _Bench(model, peft_model, data)
    share = max(1, settings.batch_size // world)
    rows = settings.micro_batch_size or min(share, len(data))
    precision = settings.precision if settings.precision != "auto" else _best_precision(bench, rows, share)
    threads = settings.threads or _best_threads(bench, rows, share, precision, world)
    torch.set_num_threads(threads)
    micro = settings.micro_batch_size
    if not micro:
        micro = share if world > 1 else _best_micro(bench, share, precision)
    if peft_model is not None and precision == "fp32":
        compute_in_place(peft_model)
    model.zero_grad(set_to_none=True)
    return Choice(precision, threads, micro, max(1, share // micro), bench.measured_ms)


def _best_precision(bench: _Bench, rows: int, share: int) -> str:
    """bf16 where both a bare product and the model's step are faster in it; a CPU without bf16 units is found out by
    the product alone, since there a whole step takes twenty times as long."""
    device = bench.model.head.weight.device
    products = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.ones(256, 384, dtype=kind, device=device)
        right = torch.ones(384, 1536, dtype=kind, device=device)
        products[name] = bench.keep(f"{name} product", [_product_ms(left, right) for _ in range(4)][1:])
    if products["bf16"] > products["fp32"]:
        return "fp32"
    timings = {name: bench.time(name, rows, share, name) for name in ("fp32", "bf16")}
    return "bf16" if timings["bf16"] < timings["fp32"] * _WORTH else "fp32"


def _product_ms(left: torch.Tensor, right: torch.Tensor) -> float:
    start_s = time.perf_counter()
    torch.matmul(left, right)
    return (time.perf_counter() - start_s) * 1000


def _best_threads(bench: _Bench, rows: int, share: int, precision: str, world: int) -> int:
    most = torch.get_num_threads()
    if world > 1 or most == 1:
        return most
    options = sorted({most, max(1, most // 2)})
    timings = {}
    for threads in options:
        torch.set_num_threads(threads)
        timings[threads] = bench.time(f"{threads} threads", rows, share, precision)
    return min(options, key=lambda threads: timings[threads])


def _best_micro(bench: _Bench, share: int, precision: str) -> int:
    """The smallest divisor of the batch that costs at most 4 % more than the fastest."""
    typical = max(1, int(np.median(bench.data.rows.lengths)))
    options = [micro for micro in _halves(share) if micro == share or micro * typical >= _SMALLEST_TOKENS]
    timings = {micro: bench.time(f"{micro} rows at once", micro, share, precision) for micro in options}
    fastest = min(timings.values())
    return min(micro for micro, took in timings.items() if took <= fastest * _TOLERATED)


def _halves(size: int) -> Iterator[int]:
    yield size
    while size % 2 == 0:
        size //= 2
        yield size


class _Bench:
    """Times forward and backward of one typical batch, split into micro-batches."""

    def __init__(self, model: SequenceClassifier, peft_model: Any, data: RowDataset) -> None:
        self.model = model
        self.peft_model = peft_model
        self.data = data
        self.measured_ms: dict[str, float] = {}
        self._middle = np.argsort(data.rows.lengths, kind="stable")

    def time(self, name: str, micro: int, share: int, precision: str) -> float:
        """Median milliseconds of one batch of `share` rows, `micro` at once, after one warm-up; kept under `name`."""
        if self.peft_model is not None:
            (compute_in_place if precision == "fp32" else compute_plainly)(self.peft_model)
        middle, half = len(self._middle) // 2, share // 2
        rows = self._middle[max(0, middle - half) :][:share]
        parts = [collate([self.data[int(row)] for row in rows[at : at + micro]]) for at in range(0, len(rows), micro)]
        return self.keep(name, [self._step(parts, precision) for _ in range(_REPEATS + 1)][1:])

    def keep(self, name: str, taken_ms: list[float]) -> float:
        """Keep the median under `name` and return it."""
        self.measured_ms[name] = round(float(np.median(taken_ms)), 3)
        return self.measured_ms[name]

    def _step(self, parts: list[dict[str, torch.Tensor]], precision: str) -> float:
        device = self.model.head.weight.device
        start_s = time.perf_counter()
        for part in parts:
            inputs = {key: value.to(device) for key, value in part.items()}
            with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = self.model(**inputs)["loss"]
            loss.backward()
        took_ms = (time.perf_counter() - start_s) * 1000
        self.model.zero_grad(set_to_none=True)
        return took_ms
