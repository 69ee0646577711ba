"""The choice of how a step is computed, on a bench whose timings are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from edge_forge.train import step_benchmark as speed


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
