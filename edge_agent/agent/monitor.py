"""What telemetry says of the models: latencies by model and adapter, drift against the package, the canaries."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.agent.seat import Seat
from edge_agent.agent.stats import ADAPTERS_TOLD, ModelStats
from edge_agent.bundle.reference import reference
from edge_agent.core import drift
from edge_agent.core.latency import Quantiles as Window
from edge_agent.protocol import messages

NO_VOCABULARY = "unknown tokens are not counted by this tokenizer"


def model_telemetry(share: ModelStats, seat: Seat | None) -> messages.ModelTelemetry:
    """One model's interval as a message part; `seat` is None for one that was removed meanwhile."""
    told = sorted(share.adapters, key=lambda name: -share.adapters[name].count)[:ADAPTERS_TOLD]
    return messages.ModelTelemetry(
        requests=share.answered,
        failed=sum(count for status, count in share.statuses.items() if status != 200),
        total_ms=quantiles(share.total_ms),
        compute_ms=quantiles(share.compute_ms),
        batch_mean=round(share.batch_rows / share.answered, 2) if share.answered else None,
        joules=share.joules,
        truncated=share.truncated,
        out_of_scope=share.out_of_scope,
        confidence_mean=round(share.confidence_sum / share.classified, 4) if share.classified else None,
        adapters={
            name: messages.AdapterTelemetry(
                requests=share.adapters[name].count, total_ms=quantiles(share.adapters[name])
            )
            for name in told
        },
        drift={
            adapter or "": _drift(counts, adapter, seat)
            for adapter, counts in share.confidence.items()
            if adapter is None or adapter in told
        },
    )


def canaries(seats: Mapping[str, Seat], now_s: float) -> dict[str, messages.Canary]:
    """The golden probes of every model that is in memory, as they last were."""
    return {
        seat.name: messages.Canary(
            ok=seat.canary_ok,
            reason=seat.canary_reason,
            age_s=None if seat.canary_s is None else round(now_s - seat.canary_s, 1),
        )
        for seat in seats.values()
        if seat.worker is not None or seat.canary_ok is False
    }


def quantiles(window: Window) -> messages.Quantiles | None:
    """p50, p95 and p99 as a message part; None without samples."""
    summary = window.summary()
    p50, p95, p99 = (summary[name] for name in ("p50", "p95", "p99"))
    if p50 is None or p95 is None or p99 is None:
        return None
    return messages.Quantiles(round(p50, 3), round(p95, 3), round(p99, 3))


def _drift(counts: list[int], adapter: str | None, seat: Seat | None) -> messages.Drift:
    texts = sum(counts)
    metrics: Mapping[str, float] = {}
    if seat is not None:
        owner = seat.model.variant if adapter is None else seat.model.adapter(adapter)
        metrics = owner.metrics if owner is not None else {}
    expected = reference(metrics)
    if expected is None:
        reason = f"the package carries no histogram of its test set; {NO_VOCABULARY}"
        return messages.Drift(confidence_psi=None, texts=texts, reason=reason)
    index = drift.psi(counts, expected)
    if index is None:
        reason = f"{texts} texts in this interval, {drift.LEAST_TEXTS} are needed; {NO_VOCABULARY}"
        return messages.Drift(confidence_psi=None, texts=texts, reason=reason)
    return messages.Drift(confidence_psi=round(index, 4), texts=texts, reason=NO_VOCABULARY)
