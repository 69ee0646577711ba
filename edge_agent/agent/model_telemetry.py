"""The models' part of telemetry: latencies by model and adapter, drift against the package, golden probes."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.stats import ADAPTERS_TOLD, ModelStats, TextStatistics
from edge_agent.bundle import drift_reference
from edge_agent.core import drift
from edge_agent.core.latency import QuantileWindow
from edge_agent.protocol import messages

NOT_TOLD: Mapping[drift_reference.Kind, str] = {
    "confidence": "the answers carry no score",
    "fragmentation": "the worker does not tell how texts fall apart",
}


def model_telemetry(share: ModelStats, served: ServedModel | None) -> messages.ModelTelemetry:
    """One model's interval as a message part; `served` is None for one that was removed meanwhile."""
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
            adapter or "": _drift(seen, adapter, served)
            for adapter, seen in share.seen.items()
            if adapter is None or adapter in told
        },
    )


def canaries(served_models: Mapping[str, ServedModel], now_s: float) -> dict[str, messages.Canary]:
    """The last golden probes of every model in memory and of its attached adapters, and of models and adapters that
    left memory after their probes failed. `now_s`: monotonic seconds."""
    found = {}
    for served in served_models.values():
        own = _canary(served, None, now_s)
        held = {name for name in served.in_worker() if name is not None}
        told = [one.name for one in served.model.adapters if one.name in held or _failed(served, one.name)]
        adapters = {name: _canary(served, name, now_s) for name in told}
        if served.worker is not None or own.ok is False or adapters:
            found[served.name] = messages.Canary(own.ok, own.reason, own.age_s, adapters)
    return found


def _failed(served: ServedModel, adapter: str) -> bool:
    last = served.last_probed(adapter)
    return last is not None and last.ok is False


def _canary(served: ServedModel, adapter: str | None, now_s: float) -> messages.AdapterCanary:
    last = served.last_probed(adapter)
    if last is None:
        return messages.AdapterCanary(None, f"not probed since it was {'loaded' if adapter is None else 'attached'}")
    return messages.AdapterCanary(last.ok, last.reason, round(now_s - last.at_s, 1))


def quantiles(window: QuantileWindow) -> messages.Quantiles | None:
    """p50, p95 and p99 as a message part; None without samples."""
    summary = window.summary()
    p50, p95, p99 = (summary[name] for name in ("p50", "p95", "p99"))
    if p50 is None or p95 is None or p99 is None:
        return None
    return messages.Quantiles(round(p50, 3), round(p95, 3), round(p99, 3))


def _drift(seen: TextStatistics, adapter: str | None, served: ServedModel | None) -> messages.Drift:
    metrics: Mapping[str, float] = {}
    if served is not None:
        owner = served.model.variant if adapter is None else served.model.adapter(adapter)
        metrics = owner.metrics if owner is not None else {}
    reasons: dict[str, None] = {}
    unknown = _unknown(seen, metrics, reasons)
    return messages.Drift(
        confidence_psi=_psi(seen.confidence, metrics, "confidence", reasons),
        texts=max(sum(seen.confidence), sum(seen.fragmentation)),
        fragmentation_psi=_psi(seen.fragmentation, metrics, "fragmentation", reasons),
        out_of_vocabulary=unknown,
        out_of_vocabulary_expected=None if unknown is None else drift_reference.unknown_share(metrics),
        reason="; ".join(reasons) or None,
    )


def _psi(
    counts: list[int], metrics: Mapping[str, float], kind: drift_reference.Kind, reasons: dict[str, None]
) -> float | None:
    """The index, rounded; None with its reason added to `reasons`, which is used as a set that keeps its order."""
    texts, expected = sum(counts), drift_reference.reference(metrics, kind)
    if not texts:
        reasons[NOT_TOLD[kind]] = None
    elif expected is None:
        reasons[f"the package carries no {kind} of its test set"] = None
    else:
        index = drift.psi(counts, expected)
        if index is not None:
            return round(index, 4)
        reasons[_too_few(texts)] = None
    return None


def _unknown(seen: TextStatistics, metrics: Mapping[str, float], reasons: dict[str, None]) -> float | None:
    texts = sum(seen.fragmentation)
    if not texts:
        reasons[NOT_TOLD["fragmentation"]] = None
    elif seen.unknown is None:
        reasons["this tokenizer has no unknown token"] = None
    elif drift_reference.unknown_share(metrics) is None:
        reasons["the package carries no share of unknown tokens of its test set"] = None
    else:
        share = drift.unknown_share(seen.unknown, seen.tokens, texts)
        if share is not None:
            return round(share, 5)
        reasons[_too_few(texts)] = None
    return None


def _too_few(texts: int) -> str:
    return f"{texts} texts in this interval, {drift.LEAST_TEXTS} are needed"
