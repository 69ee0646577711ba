"""Counters and latency windows of the running agent, for telemetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.core.latency import Quantiles


@dataclass(slots=True)
class ModelStats:
    """One model's share since the last report. Latencies in milliseconds, answered requests only."""

    total_ms: Quantiles = field(default_factory=Quantiles)
    compute_ms: Quantiles = field(default_factory=Quantiles)
    answered: int = 0
    rows: int = 0
    truncated: int = 0
    out_of_scope: int = 0
    batch_rows: int = 0
    classified: int = 0
    confidence_sum: float = 0.0
    joules: float | None = None
    statuses: Counter[int] = field(default_factory=Counter)

    def note_answer(
        self,
        rows: int,
        batch_rows: int,
        total_ms: float,
        compute_ms: float,
        results: Sequence[Mapping[str, Any]],
        joules: float | None,
    ) -> None:
        """A request was answered with these results."""
        self.answered += 1
        self.rows += rows
        self.batch_rows += batch_rows
        self.total_ms.add(total_ms)
        self.compute_ms.add(compute_ms)
        self.truncated += sum(1 for result in results if result.get("truncated"))
        self.out_of_scope += sum(1 for result in results if result.get("out_of_scope"))
        scores = [result["score"] for result in results if "score" in result]
        self.classified += len(scores)
        self.confidence_sum += sum(scores)
        if joules is not None:
            self.joules = (self.joules or 0.0) + joules


@dataclass(slots=True)
class Stats:
    """The whole agent's, since the last report."""

    models: dict[str, ModelStats] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    expired: int = 0
    duplicates: int = 0
    energy_method: str | None = None

    def model(self, name: str) -> ModelStats:
        """That model's share, begun when first asked for. Callers pass installed names only, which bounds it."""
        return self.models.setdefault(name, ModelStats())

    def take(self) -> Stats:
        """What was gathered, leaving a fresh start behind: a report covers one interval."""
        taken = Stats(self.models, self.statuses, self.expired, self.duplicates, self.energy_method)
        self.models, self.statuses, self.expired, self.duplicates = {}, Counter(), 0, 0
        self.energy_method = None
        return taken
