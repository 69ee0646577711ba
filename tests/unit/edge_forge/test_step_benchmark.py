"""The choice of how a step is computed, on a bench whose timings are given; and the parts of a step."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edge_forge.train import step_benchmark as speed
from edge_forge.train.classifier_trainer import ClassifierTrainer


@dataclass
class GivenBench:
    """Stands in for the bench: `ms` per tokens at once; time is up after `budget` timings."""

    ms: dict[int, float]
    tokens: int = 4096
    budget: int = 100
    tried: list[int] = field(default_factory=list)

    @property
    def spent(self) -> bool:
        return len(self.tried) >= self.budget

    def time(self, _name: str, tokens: int, _precision: str) -> float:
        self.tried.append(tokens)
        return self.ms[tokens]


def best(bench: Any) -> int:
    return speed._best_tokens(bench, "fp32")


def test_more_tokens_at_once_are_tried_until_they_gain_nothing() -> None:
    bench = GivenBench({256: 100.0, 512: 80.0, 1024: 79.0, 2048: 10.0})
    assert best(bench) == 512
    assert bench.tried == [256, 512, 1024]


def test_a_batch_that_fits_whole_is_not_tried_larger() -> None:
    bench = GivenBench({256: 100.0, 512: 80.0}, tokens=300)
    assert best(bench) == 512
    assert bench.tried == [256, 512]


@pytest.mark.parametrize(("budget", "chosen"), [(0, 512), (1, 512), (3, 1024)])
def test_when_time_is_up_the_best_so_far_is_taken(budget: int, chosen: int) -> None:
    bench = GivenBench({256: 100.0, 512: 80.0, 1024: 60.0, 2048: 40.0, 4096: 30.0}, budget=budget)
    assert best(bench) == chosen


def test_gradients_are_exchanged_once_a_batch_whatever_the_number_of_its_parts():
    """Two processes whose batches have other numbers of parts waited for each other for ever."""

    class Accelerator:
        def __init__(self):
            self.apart, self.exchanged = False, []

        @contextmanager
        def no_sync(self, model):
            self.apart = True
            yield
            self.apart = False

        def backward(self, loss):
            self.exchanged.append(not self.apart)

    class Model(torch.nn.Module):
        def forward(self, attention_mask, labels):
            return {"loss": torch.ones(())}

    trainer = SimpleNamespace(
        _prepare_inputs=lambda batch: batch, _tokens_at_once=4, compute_loss_context_manager=nullcontext,
        accelerator=Accelerator(),
    )  # fmt: skip
    batch = {"attention_mask": torch.ones(3, 4), "labels": torch.zeros(3)}
    loss = ClassifierTrainer.training_step(trainer, Model(), batch)
    assert trainer.accelerator.exchanged == [False, False, True] and float(loss) == pytest.approx(1.0)


def in_turn(monkeypatch: pytest.MonkeyPatch, ms: dict[str, list[float]]) -> tuple[dict[str, float], int]:
    """(what is found for cases whose steps take `ms` one after another, steps that were timed)."""
    bench = object.__new__(speed._Bench)
    bench.measured_ms, bench._ends_s, bench.compute_for = {}, float("inf"), lambda _: None
    left, timed = {name: iter(values) for name, values in ms.items()}, []
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(bench, "_step", lambda _, name: timed.append(name) or next(left[name]))
    return bench.in_turn({name: (1, name) for name in ms}), len(timed)


def test_a_case_that_is_clearly_slower_is_timed_once_after_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, steps = in_turn(monkeypatch, {"fp32": [9.0, 2.0, 1.0], "bf16": [9.0, 3.0, 1.0]})
    assert found == {"fp32": 2.0, "bf16": 3.0} and steps == 4


def test_cases_that_are_close_are_timed_in_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    found, steps = in_turn(monkeypatch, {"fp32": [9.0, 2.0, 2.1, 2.2], "bf16": [9.0, 2.5, 1.9, 2.4]})
    assert found == {"fp32": 2.0, "bf16": 1.9} and steps == 8
