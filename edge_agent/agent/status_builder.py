"""The bodies of what the agent reports: status, info, models, telemetry, events, diagnosis.

Nothing is sent here: `Publisher` sends them, `DeviceReporter` decides when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.stats import ADAPTERS_TOLD, ModelStats, Stats, TextStatistics
from edge_agent.base import limits
from edge_agent.base.clock import Clock
from edge_agent.base.reading import Reading
from edge_agent.bundle import drift_reference
from edge_agent.bundle.catalog import Adapter, Variant
from edge_agent.core import drift
from edge_agent.core.desired_state import DesiredState, InstalledPackages, Item, ItemState
from edge_agent.core.governor import ComputeGrant
from edge_agent.core.latency import QuantileWindow
from edge_agent.core.trial_records import TrialRecord
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.protocol import encode, home_assistant, messages, telemetry_parts
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Severity, State
from edge_agent.protocol.topics import Topics


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while the agent runs. `heartbeat_s` and `interval_s`: seconds between two status messages
    and between two telemetry messages."""

    device: str
    boot_id: str
    version: str
    board: str
    python: str
    limits: Mapping[str, float]
    heartbeat_s: float
    interval_s: float
    home_assistant: bool = False


@dataclass(frozen=True, slots=True)
class IntervalFigures:
    """What is known at the end of a telemetry interval.

    `rss_bytes`: of the daemon, None where the kernel does not tell; `memory`: `MemoryGuard.summary`; `events_waiting`
    and `events_lost`: events on disk that the broker does not have yet, and those given up since the start; `dropped`:
    messages that were not sent or not read, by cause.
    """

    stats: Stats
    readings: Mapping[str, Reading]
    grant: ComputeGrant
    queue_jobs: int
    rss_bytes: int | None
    memory: Mapping[str, Any]
    served_models: Mapping[str, ServedModel]
    events_waiting: int = 0
    events_lost: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


class StatusBuilder:
    """Builds the agent's own messages from values. Keeps the sequence number that they share, and the start time."""

    def __init__(self, identity: Identity, topics: Topics, clock: Clock) -> None:
        self.identity = identity
        self._topics = topics
        self._clock = clock
        self._seq = 0
        self._started_s = clock.monotonic_s()

    @property
    def retained_topics(self) -> tuple[str, ...]:
        """The topics on which the broker retains what `status`, `info`, `models` and `reported` build."""
        return self._topics.status, self._topics.info, self._topics.models, self._topics.reported

    def status(self, state: State, reason: str) -> Outbound:
        """The retained status, which is also the last will ("connection lost") and the last words."""
        body = messages.Status(
            state=state,
            boot_id=self.identity.boot_id,
            seq=self._next(),
            ts=self._clock.wall_s(),
            heartbeat_s=self.identity.heartbeat_s,
            reason=reason,
        )
        return encode.status(body, self._topics)

    def info(self, runtimes: Sequence[messages.Runtime]) -> Outbound:
        """What this device is, retained."""
        body = messages.Info(
            schema="edge/v1",
            agent=self.identity.version,
            device=self.identity.device,
            boot_id=self.identity.boot_id,
            ts=self._clock.wall_s(),
            board=self.identity.board,
            python=self.identity.python,
            runtimes=list(runtimes),
            limits=dict(self.identity.limits),
        )
        return encode.retained(self._topics.info, body)

    def models(self, served_models: Mapping[str, ServedModel]) -> Outbound:
        """What can be asked, retained. Labels are left out where the message would be larger than any may be."""
        body = messages.Models(
            ts=self._clock.wall_s(),
            boot_id=self.identity.boot_id,
            seq=self._next(),
            models=[model_entry(served, self._clock.monotonic_s()) for served in served_models.values()],
        )
        message = encode.retained(self._topics.models, body)
        if len(message.payload) <= limits.MESSAGE_BYTES:
            return message
        # 32 adapters of 150 classes fill a message: names and states matter more than lists that packages hold too.
        plain = [_without_labels(entry) for entry in body.models]
        return encode.retained(self._topics.models, msgspec.structs.replace(body, models=plain))

    def reported(
        self,
        state: DesiredState | None,
        installed: InstalledPackages | None,
        not_taken: messages.NotTaken | None,
        limit: encode.PayloadLimit,
        trials: Sequence[TrialRecord] = (),
    ) -> Outbound:
        """How far the device is with its desired state, retained. What is installed, and then the reasons, are left out
        where the message would be larger than the broker takes."""
        wall_s = self._clock.wall_s()
        body = messages.Reported(
            ts=wall_s,
            boot_id=self.identity.boot_id,
            seq=self._next(),
            version=None if state is None else state.version,
            state=None if state is None else _reported_state(state.summary),
            items=[] if state is None else [_reported_item(item, wall_s + state.left_s) for item in state.items],
            installed=None if installed is None else _installed_entries(installed),
            not_taken=not_taken,
            withdrawn=state is not None and state.withdrawn,
            trials=[_reported_trial(one) for one in trials],
        )
        message = encode.retained(self._topics.reported, body)
        if len(message.payload) > limit(message):
            body = msgspec.structs.replace(body, installed=None)
            message = encode.retained(self._topics.reported, body)
        if len(message.payload) > limit(message):
            short = [msgspec.structs.replace(item, reason=None, next=None) for item in body.items]
            trials_short = [msgspec.structs.replace(one, reason=None) for one in body.trials]
            body = msgspec.structs.replace(body, items=short, trials=trials_short)
            message = encode.retained(self._topics.reported, body)
        return message

    def telemetry(self, figures: IntervalFigures) -> Outbound:
        """An interval's figures."""
        now_s, stats = self._clock.monotonic_s(), figures.stats
        joules = [share.joules for share in stats.models.values() if share.joules is not None]
        served_models = figures.served_models
        method = stats.energy_method or _energy_method(figures.readings.get("power"))
        body = messages.Telemetry(
            boot_id=self.identity.boot_id,
            seq=self._next(),
            ts=self._clock.wall_s(),
            interval_s=self.identity.interval_s,
            uptime_s=round(now_s - self._started_s, 3),
            models={name: model_telemetry(share, served_models.get(name)) for name, share in stats.models.items()},
            refusals={str(status): count for status, count in stats.statuses.items() if status != 200},
            queue_jobs=figures.queue_jobs,
            sensors={key: measured(reading) for key, reading in figures.readings.items()},
            energy=messages.Energy(sum(joules) if joules else None, method),
            rss_bytes=figures.rss_bytes,
            governor=governor_entry(figures.grant),
            memory=dict(figures.memory),
            events_waiting=figures.events_waiting,
            events_lost=figures.events_lost,
            refusal_reasons=stats.refusal_reasons(),
            expired=stats.expired,
            duplicates=stats.duplicates,
            canaries=canaries(served_models, now_s),
            dropped=dict(figures.dropped),
        )
        return encode.telemetry(body, self._topics)

    def event(
        self, kind: str, message: str, data: Mapping[str, Any], severity: Severity, limit: encode.PayloadLimit
    ) -> Outbound:
        """Something that happened."""
        body = messages.Event(
            kind=kind,
            ts=self._clock.wall_s(),
            boot_id=self.identity.boot_id,
            seq=self._next(),
            severity=severity,
            message=message,
            data=dict(data),
        )
        return encode.event(body, self._topics, limit)

    def home_assistant(self, models: Iterable[str] = (), gone: Iterable[str] = ()) -> Outbound:
        """The device as Home Assistant discovers it; retained, so that it is also found after a restart there."""
        own = self.identity
        return home_assistant.discovery(self._topics, own.board, own.version, own.interval_s, models, gone)

    def diagnosis(self, served_models: Mapping[str, ServedModel], readings: Mapping[str, Reading]) -> dict[str, Any]:
        """The answer to `cmd/diag`: models and sensors as they are now."""
        return {
            "agent": self.identity.version,
            "board": self.identity.board,
            "uptime_s": round(self._clock.monotonic_s() - self._started_s, 1),
            "models": [
                msgspec.to_builtins(model_entry(served, self._clock.monotonic_s())) for served in served_models.values()
            ],
            "sensors": {key: msgspec.to_builtins(measured(reading)) for key, reading in readings.items()},
        }

    def _next(self) -> int:
        self._seq += 1
        return self._seq


def _energy_method(power: Reading | None) -> str:
    if power is None:
        return "no power sensor was read"
    return power.source if power.value is not None else (power.reason or "unknown")


def governor_entry(grant: ComputeGrant) -> dict[str, Any]:
    """What heat allows, for telemetry: limits, the forecast in ten seconds, and what it leaves to the soft limit."""
    return {
        "level": grant.level.name.lower(),
        "max_rows": grant.max_rows,
        "threads": grant.threads,
        "busy_share": round(grant.duty_share, 3),
        "clock": round(grant.clock, 3),
        "tier": grant.tier,
        "forecast_c": None if grant.forecast_c is None else round(grant.forecast_c, 1),
        "headroom_c": None if grant.headroom_c is None else round(grant.headroom_c, 1),
        "derated": grant.derated,
        "disagree": grant.disagree,
        "why": grant.why,
    }


def measured(reading: Reading) -> messages.Measured:
    """A reading as a message part."""
    value = None if reading.value is None else round(reading.value, 3)
    return messages.Measured(value=value, unit=reading.unit, source=reading.source, reason=reading.reason)


def model_entry(served: ServedModel, now_s: float) -> messages.ModelEntry:
    """A served model as a message part; `now_s` is monotonic."""
    model, worker = served.model, served.worker
    return messages.ModelEntry(
        name=model.name,
        version=model.version,
        base_id=model.base_id,
        task=model.task.kind,
        labels=list(model.task.labels),
        resident=worker is not None,
        variant=model.variant.digest,
        variants=[_variant_entry(variant) for variant in model.variants],
        adapters=[_adapter_entry(adapter, served) for adapter in model.adapters],
        footprint_bytes=served.footprint_bytes or None,
        reason=served.lifecycle.published,
        context=(worker.context or None) if worker is not None else None,
        sequences=(worker.sequences or None) if worker is not None else None,
        building=_building(served, now_s),
        computed_by=(worker.computed_by or None) if worker is not None else None,
        pairs=model.task.pairs,
    )


def _building(served: ServedModel, now_s: float) -> messages.EngineBuild | None:
    """What the chosen variant waits for: as its worker told, else as the state says."""
    worker, fallback = served.successor or served.worker, served.fallback
    told = None if worker is None else worker.progress
    if worker is None or told is None or fallback.state in {FallbackState.PROBING, FallbackState.PUT_OFF}:
        if fallback.state is FallbackState.CHOSEN:
            return None
        stage, share, expected_s, since_s = fallback.state.value, None, None, fallback.since_s
    else:
        stage, share, expected_s, since_s = told.stage, told.share, told.expected_s, worker.building_s
    put_off = fallback.state is FallbackState.PUT_OFF
    return messages.EngineBuild(
        stage=stage,
        share=share,
        elapsed_s=round(now_s - since_s, 1),
        expected_s=expected_s,
        answered_by=fallback.variant.name if fallback.answers and fallback.variant is not None else None,
        reason=fallback.reason or None,
        again_s=round(fallback.left_s(now_s), 1) if put_off else None,
    )


def _without_labels(entry: messages.ModelEntry) -> messages.ModelEntry:
    adapters = [msgspec.structs.replace(adapter, labels=[]) for adapter in entry.adapters]
    return msgspec.structs.replace(entry, labels=[], adapters=adapters)


def _variant_entry(variant: Variant) -> messages.VariantEntry:
    return messages.VariantEntry(
        digest=variant.digest,
        runtime=variant.runtime,
        dtype=variant.dtype,
        size_bytes=variant.size_bytes,
        accuracy=variant.accuracy,
    )


def _adapter_entry(adapter: Adapter, served: ServedModel) -> messages.AdapterEntry:
    return messages.AdapterEntry(
        name=adapter.name,
        digest=adapter.digest,
        version=adapter.version,
        rank=adapter.rank,
        resident=adapter.name in served.attached,
        labels=list(adapter.task.labels),
        pairs=adapter.task.pairs,
        task=adapter.task.kind,
    )


NOT_TOLD: Mapping[drift_reference.Kind, str] = {
    "confidence": "the answers carry no score",
    "fragmentation": "the worker does not tell how texts fall apart",
}


def model_telemetry(share: ModelStats, served: ServedModel | None) -> telemetry_parts.ModelTelemetry:
    """One model's interval as a message part; `served` is None for one that was removed meanwhile."""
    told = sorted(share.adapters, key=lambda name: -share.adapters[name].count)[:ADAPTERS_TOLD]
    return telemetry_parts.ModelTelemetry(
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
            name: telemetry_parts.AdapterTelemetry(
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


def canaries(served_models: Mapping[str, ServedModel], now_s: float) -> dict[str, telemetry_parts.Canary]:
    """The last golden probes of every model in memory and of its attached adapters, and of models and adapters that
    left memory after their probes failed. `now_s`: monotonic seconds."""
    found = {}
    for served in served_models.values():
        own = _canary(served, None, now_s)
        held = {name for name in served.in_worker() if name is not None}
        told = [one.name for one in served.model.adapters if one.name in held or _failed(served, one.name)]
        adapters = {name: _canary(served, name, now_s) for name in told}
        if served.worker is not None or own.ok is False or adapters:
            found[served.name] = telemetry_parts.Canary(own.ok, own.reason, own.age_s, adapters)
    return found


def _failed(served: ServedModel, adapter: str) -> bool:
    last = served.last_probed(adapter)
    return last is not None and last.ok is False


def _canary(served: ServedModel, adapter: str | None, now_s: float) -> telemetry_parts.AdapterCanary:
    last = served.last_probed(adapter)
    if last is None:
        return telemetry_parts.AdapterCanary(
            None, f"not probed since it was {'loaded' if adapter is None else 'attached'}"
        )
    return telemetry_parts.AdapterCanary(last.ok, last.reason, round(now_s - last.at_s, 1))


def quantiles(window: QuantileWindow) -> telemetry_parts.Quantiles | None:
    """p50, p95 and p99 as a message part; None without samples."""
    summary = window.summary()
    p50, p95, p99 = (summary[name] for name in ("p50", "p95", "p99"))
    if p50 is None or p95 is None or p99 is None:
        return None
    return telemetry_parts.Quantiles(round(p50, 3), round(p95, 3), round(p99, 3))


def _drift(seen: TextStatistics, adapter: str | None, served: ServedModel | None) -> telemetry_parts.Drift:
    metrics: Mapping[str, float] = {}
    if served is not None:
        owner = served.model.variant if adapter is None else served.model.adapter(adapter)
        metrics = owner.metrics if owner is not None else {}
    reasons: dict[str, None] = {}
    unknown = _unknown(seen, metrics, reasons)
    return telemetry_parts.Drift(
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


TRIAL_CHARACTERS = 600
REASON_CHARACTERS = 240
"""Of a reason in `reported`: 128 items with one each fit a message."""


def _reported_state(state: ItemState) -> Literal["pending", "applied", "refused", "rolled-back"]:
    match state:
        case ItemState.APPLIED:
            return "applied"
        case ItemState.REFUSED:
            return "refused"
        case ItemState.ROLLED_BACK:
            return "rolled-back"
        case _:
            return "pending"


def _reported_item(item: Item, until_s: float) -> messages.ReportedItem:
    """`until_s`: wall clock when the whole version has ended at the latest."""
    reason = item.reason if len(item.reason) <= REASON_CHARACTERS else f"{item.reason[: REASON_CHARACTERS - 3]}..."
    return messages.ReportedItem(
        model=item.wanted.model,
        adapter=item.wanted.adapter,
        package=item.wanted.package,
        state=_reported_state(item.state),
        since=item.since_s,
        attempts=item.attempts,
        reason=reason or None,
        cause=None if item.cause is None else item.cause.value,
        next=item.next or None,
        until=None if item.ended else until_s,
        progress=None
        if item.fetched is None
        else messages.FetchProgress(fetched_bytes=item.fetched[0], total_bytes=item.fetched[1]),
    )


def _reported_trial(record: TrialRecord) -> messages.ReportedTrial:
    reason = record.reason if len(record.reason) <= TRIAL_CHARACTERS else f"{record.reason[: TRIAL_CHARACTERS - 3]}..."
    return messages.ReportedTrial(
        model=record.model,
        version=record.version,
        package=record.package,
        state=record.state,
        since=record.since_s,
        spent_s=record.spent_s,
        sure=record.sure,
        reason=reason or None,
        figures=dict(record.figures),
    )


def _installed_entries(installed: InstalledPackages) -> list[messages.InstalledEntry]:
    found = sorted(installed.current.items(), key=lambda one: (one[0][0], one[0][1] or ""))
    return [messages.InstalledEntry(model=key[0], adapter=key[1], package=package) for key, package in found]
