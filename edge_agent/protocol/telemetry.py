"""The body of `telemetry`, as types: what a device did in the last interval, and how it is at its end.

The other messages are in `messages`; what is said there of what goes out holds here, too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from edge_agent.protocol.messages import Energy


class Measured(Struct, frozen=True, kw_only=True):
    """A sensor's value with unit and source, or null with the reason for having none."""

    value: float | None
    unit: str
    source: str
    reason: str | None = None


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


class Telemetry(Struct, frozen=True, kw_only=True):
    """The last interval in figures. `refusals` counts by status word, `refusal_reasons` by what they were
    about; `expired` had no answer; `sensors` is by reading key; `canaries` is by model.

    `memory`: stage of shortage, bytes available and to stay free, bytes promised and not taken yet, and by model what
    was promised, is held, and of that is mapped from files.
    """

    boot_id: str
    seq: int
    ts: float
    interval_s: float
    uptime_s: float
    models: dict[str, ModelTelemetry]
    refusals: dict[str, int]
    queue_jobs: int
    sensors: dict[str, Measured]
    energy: Energy
    rss_bytes: int | None
    governor: dict[str, Any]
    memory: dict[str, Any]
    events_waiting: int
    events_lost: int
    refusal_reasons: dict[str, int] = msgspec.field(default_factory=dict)
    expired: int = 0
    duplicates: int = 0
    canaries: dict[str, Canary] = msgspec.field(default_factory=dict)
