"""Counters and latency windows of the running agent, for telemetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edge_agent.base.causes import Cause, telemetry_word
from edge_agent.bundle.drift_reference import BINS, fragmentation_histogram, histogram
from edge_agent.core.latency import QuantileWindow

ADAPTERS_TOLD = 16
"""Adapters of a model that telemetry reports by name: those with the most answers."""

Wording = Sequence[tuple[int, int, int | None]]
"""Per text: bytes, tokens, and unknown tokens among them (None: the tokenizer has no unknown token)."""


@dataclass(slots=True)
class TextStatistics:
    """Statistics of the texts of one adapter, for drift: counts by bin of `bundle.drift_reference`, tokens, and unknown
    tokens among them (None: the tokenizer has no unknown token)."""

    confidence: list[int] = field(default_factory=lambda: [0] * BINS)
    fragmentation: list[int] = field(default_factory=lambda: [0] * BINS)
    tokens: int = 0
    unknown: int | None = None

    def note(self, scores: Sequence[float], wording: Wording) -> None:
        """Count an answer: the top scores of its texts, where they have any, and how they were tokenised."""
        self.confidence = _added(self.confidence, histogram(scores))
        self.fragmentation = _added(self.fragmentation, fragmentation_histogram(text[:2] for text in wording))
        self.tokens += sum(tokens for _, tokens, _ in wording)
        known = [unknown for _, _, unknown in wording if unknown is not None]
        if known:
            self.unknown = (self.unknown or 0) + sum(known)


def _added(counts: list[int], more: list[int]) -> list[int]:
    return [one + other for one, other in zip(counts, more, strict=True)]


@dataclass(slots=True)
class ModelStats:
    """Figures of one model since the last report. Latencies in milliseconds, of answered requests only."""

    total_ms: QuantileWindow = field(default_factory=QuantileWindow)
    compute_ms: QuantileWindow = field(default_factory=QuantileWindow)
    answered: int = 0
    rows: int = 0
    truncated: int = 0
    out_of_scope: int = 0
    batch_rows: int = 0
    classified: int = 0
    confidence_sum: float = 0.0
    joules: float | None = None
    statuses: Counter[int] = field(default_factory=Counter)
    adapters: dict[str, QuantileWindow] = field(default_factory=dict)
    seen: dict[str | None, TextStatistics] = field(default_factory=dict)

    def closed(self, status: int) -> None:
        """Count the status with which a job ended."""
        self.statuses[status] += 1

    def note_adapter(
        self, adapter: str | None, total_ms: float, results: Sequence[Mapping[str, Any]], wording: Wording = ()
    ) -> None:
        """Count an answer by adapter (None: the model alone)."""
        if adapter is not None:
            self.adapters.setdefault(adapter, QuantileWindow()).add(total_ms)
        scores = [result["score"] for result in results if "score" in result]
        if scores or wording:
            self.seen.setdefault(adapter, TextStatistics()).note(scores, wording)

    def note_answer(
        self,
        rows: int,
        batch_rows: int,
        total_ms: float,
        compute_ms: float,
        results: Sequence[Mapping[str, Any]],
        joules: float | None,
    ) -> None:
        """Count a request that was answered with these results."""
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
    """Figures of the whole agent since the last report."""

    models: dict[str, ModelStats] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    causes: Counter[Cause] = field(default_factory=Counter)
    expired: int = 0
    duplicates: int = 0
    energy_method: str | None = None

    def model(self, name: str) -> ModelStats:
        """The figures of a model, made at the first call. Callers pass names of installed models, which bounds their
        number."""
        return self.models.setdefault(name, ModelStats())

    def refused(self, status: int, cause: Cause) -> None:
        """Count a request that was refused before it became a job."""
        self.statuses[status] += 1
        self.note_cause(cause)

    def note_cause(self, cause: Cause) -> None:
        """Count why a request was not answered with 200."""
        self.causes[cause] += 1

    def closed(self, model: str, status: int) -> None:
        """Count the status with which a job of a model ended."""
        self.statuses[status] += 1
        self.model(model).closed(status)

    def refusal_reasons(self) -> dict[str, int]:
        """Refusals by the word that telemetry counts their cause under."""
        counts: Counter[str] = Counter()
        for cause, count in self.causes.items():
            counts[telemetry_word(cause)] += count
        return dict(counts)

    def duplicated(self) -> None:
        """A request arrived that is open or answered already."""
        self.duplicates += 1

    def deadline_passed(self) -> None:
        """A request's deadline passed before it was answered."""
        self.expired += 1

    def measured_energy(self, method: str) -> None:
        """The energy of a request was measured; `method` says how."""
        self.energy_method = method

    def take(self) -> Stats:
        """Return the figures of this interval and begin the next one."""
        taken = replace(self)
        fresh = Stats()
        for item in fields(self):
            setattr(self, item.name, getattr(fresh, item.name))
        return taken
