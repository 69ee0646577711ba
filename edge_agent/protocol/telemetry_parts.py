"""The parts of a telemetry message (`messages.Telemetry`) that are about one model.

A file of its own because with them `messages` has more than 600 lines.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Quantiles(Struct, frozen=True):
    """Quantiles of a duration over the interval, in milliseconds."""

    p50: float
    p95: float
    p99: float


class AdapterTelemetry(Struct, frozen=True, kw_only=True):
    """What one adapter answered in the interval; quantiles over arrival to answer."""

    requests: int
    total_ms: Quantiles | None


class Drift(Struct, frozen=True, kw_only=True):
    """How far the texts and answers of this interval are from the package's test set, per adapter or the model alone.

    `confidence_psi`: population stability index of the top score in ten bins (above 0.25: look at it).
    `fragmentation_psi`: the same of tokens per byte of a text. `out_of_vocabulary`: unknown tokens as a share of
    all, beside `out_of_vocabulary_expected`, that of the test set. Whatever is null has its `reason`.
    """

    confidence_psi: float | None
    texts: int
    fragmentation_psi: float | None = None
    out_of_vocabulary: float | None = None
    out_of_vocabulary_expected: float | None = None
    reason: str | None = None


class ModelTelemetry(Struct, frozen=True, kw_only=True):
    """What one model did in the interval; quantiles are null when it did nothing. `adapters`: the sixteen that
    answered most; `drift` by adapter, '' is the model alone."""

    requests: int
    failed: int
    total_ms: Quantiles | None
    compute_ms: Quantiles | None
    batch_mean: float | None
    joules: float | None
    truncated: int = 0
    out_of_scope: int = 0
    confidence_mean: float | None = None
    adapters: dict[str, AdapterTelemetry] = msgspec.field(default_factory=dict)
    drift: dict[str, Drift] = msgspec.field(default_factory=dict)


class AdapterCanary(Struct, frozen=True):
    """The golden probes of an adapter, run again in the worker while it was idle. `ok` is null before the first time,
    and where they could not be run."""

    ok: bool | None
    reason: str
    age_s: float | None = None


class Canary(Struct, frozen=True):
    """The same of a model, and of its adapters that are attached or whose probes have failed."""

    ok: bool | None
    reason: str
    age_s: float | None = None
    adapters: dict[str, AdapterCanary] = msgspec.field(default_factory=dict)
