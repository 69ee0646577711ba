"""What the agent says of itself: status, info, models, telemetry and events.

Events of one kind are limited to a few a minute: whoever can provoke them must not be able to wear out the flash.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.model_telemetry import canaries, model_telemetry
from edge_agent.agent.ports import Transport
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.agent.stats import Stats
from edge_agent.base.clock import Clock
from edge_agent.base.reading import Reading
from edge_agent.bundle.catalog import Adapter, Variant
from edge_agent.core.governor import ComputeGrant
from edge_agent.protocol import encode, home_assistant, messages, telemetry
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Severity, State
from edge_agent.protocol.topics import Topics

log = logging.getLogger("edge_agent")
EVENTS_PER_MINUTE = 20
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while the agent runs."""

    device: str
    boot_id: str
    version: str
    board: str
    python: str
    limits: Mapping[str, float]
    heartbeat_s: float
    interval_s: float
    home_assistant: bool = False


class Reporter:
    """Builds and publishes the agent's own messages."""

    def __init__(self, identity: Identity, topics: Topics, clock: Clock) -> None:
        self._identity = identity
        self._topics = topics
        self._clock = clock
        self._seq = 0
        self._started_s = clock.monotonic_s()
        self._recent: dict[str, tuple[float, int]] = {}
        self.on_connected: Callable[[], None] = lambda: None
        self.on_unheard: Callable[[str, str | None, str | None], None] = lambda _reason, _id, _topic: None

    def connect(self, transport: Transport, spool_counts: Callable[[], tuple[int, int]]) -> None:
        """Where messages go; `spool_counts` tells events waiting on disk and events lost. Called once, first of all."""
        self._transport = transport
        self._spool_counts = spool_counts

    def link_changed(self, connected: bool, text: str) -> None:
        """The broker came or went: an event, which waits on disk until the broker has it."""
        self.event("broker", text, {"connected": connected}, "info" if connected else "warning")
        if connected:
            self.on_connected()
            if self._identity.home_assistant:
                self._announce_home()
        else:
            self.on_unheard("the broker went away", None, None)

    def unheard(self, message: Outbound, reason: str) -> None:
        """The broker says that nobody listens where a message went: no use in going on with an answer in parts."""
        if message.request_id is not None:
            self.on_unheard(f"{message.topic}: {reason}", message.request_id, message.topic)

    def event(self, kind: str, message: str, data: Mapping[str, Any], severity: Severity = "warning") -> None:
        """See `context.Announce`. Logged and published, unless too many of its kind came within a minute."""
        now_s = self._clock.monotonic_s()
        since_s, count = self._recent.get(kind, (now_s, 0))
        if now_s - since_s >= 60.0:
            since_s, count = now_s, 0
        self._recent[kind] = (since_s, count + 1)
        if count > EVENTS_PER_MINUTE:
            return
        if count == EVENTS_PER_MINUTE:
            message = f"{message}; more of this kind within the minute are not reported"
        if kind != "broker":  # the link has said that itself, at the moment it happened
            log.log(LEVELS[severity], "%s: %s", kind, message)
        body = messages.Event(
            kind=kind,
            ts=self._clock.wall_s(),
            boot_id=self._identity.boot_id,
            seq=self._next(),
            severity=severity,
            message=message,
            data=dict(data),
        )
        self._transport.publish(encode.event(body, self._topics))

    def status(self, state: State, reason: str) -> Outbound:
        """The retained status; the caller publishes it, hands it over as last will, or as last words."""
        body = messages.Status(
            state=state,
            boot_id=self._identity.boot_id,
            seq=self._next(),
            ts=self._clock.wall_s(),
            heartbeat_s=self._identity.heartbeat_s,
            reason=reason,
        )
        return encode.status(body, self._topics)

    def publish_status(self, state: State, reason: str) -> None:
        """Say how the agent is."""
        self._transport.publish(self.status(state, reason))

    def publish_info(self, runtimes: list[messages.Runtime]) -> None:
        """Say what this device is."""
        body = messages.Info(
            schema="edge/v1",
            agent=self._identity.version,
            device=self._identity.device,
            boot_id=self._identity.boot_id,
            ts=self._clock.wall_s(),
            board=self._identity.board,
            python=self._identity.python,
            runtimes=runtimes,
            limits=dict(self._identity.limits),
        )
        self._transport.publish(encode.retained(self._topics.info, body))

    def _announce_home(self) -> None:
        """Tell Home Assistant of this device; retained, so that it also learns of it after its own restart."""
        identity = self._identity
        self._transport.publish(
            home_assistant.discovery(self._topics, identity.board, identity.version, identity.interval_s)
        )

    def publish_models(self, manager: ModelManager) -> None:
        """Say what can be asked."""
        body = messages.Models(
            ts=self._clock.wall_s(),
            boot_id=self._identity.boot_id,
            seq=self._next(),
            models=[model_entry(served) for served in manager.served_models.values()],
        )
        self._transport.publish(encode.retained(self._topics.models, body))

    def publish_telemetry(
        self,
        stats: Stats,
        readings: Mapping[str, Reading],
        grant: ComputeGrant,
        queue_jobs: int,
        rss_bytes: int | None,
        memory: Mapping[str, Any],
        served_models: Mapping[str, ServedModel],
    ) -> None:
        """The interval's figures; `memory` is the byte ledger's (`guard.MemoryGuard.summary`)."""
        now_s = self._clock.monotonic_s()
        joules = [share.joules for share in stats.models.values() if share.joules is not None]
        power = readings.get("power")
        events_waiting, events_lost = self._spool_counts()
        body = telemetry.Telemetry(
            boot_id=self._identity.boot_id,
            seq=self._next(),
            ts=self._clock.wall_s(),
            interval_s=self._identity.interval_s,
            uptime_s=round(now_s - self._started_s, 3),
            models={name: model_telemetry(share, served_models.get(name)) for name, share in stats.models.items()},
            refusals={str(status): count for status, count in stats.statuses.items() if status != 200},
            queue_jobs=queue_jobs,
            sensors={key: measured(reading) for key, reading in readings.items()},
            energy=messages.Energy(sum(joules) if joules else None, stats.energy_method or _energy_method(power)),
            rss_bytes=rss_bytes,
            governor=governor_entry(grant),
            memory=dict(memory),
            events_waiting=events_waiting,
            events_lost=events_lost,
            refusal_reasons={cause.value: count for cause, count in stats.causes.items()},
            expired=stats.expired,
            duplicates=stats.duplicates,
            canaries=canaries(served_models, now_s),
        )
        self._transport.publish(encode.telemetry(body, self._topics))

    def diagnosis(self, manager: ModelManager, readings: Mapping[str, Reading]) -> dict[str, Any]:
        """The answer to `cmd/diag`: models and sensors as they are now."""
        return {
            "agent": self._identity.version,
            "board": self._identity.board,
            "uptime_s": round(self._clock.monotonic_s() - self._started_s, 1),
            "models": [msgspec.to_builtins(model_entry(served)) for served in manager.served_models.values()],
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


def measured(reading: Reading) -> telemetry.Measured:
    """A reading as a message part."""
    value = None if reading.value is None else round(reading.value, 3)
    return telemetry.Measured(value=value, unit=reading.unit, source=reading.source, reason=reading.reason)


def model_entry(served: ServedModel) -> messages.ModelEntry:
    """A served as a message part."""
    model, ready = served.model, served.worker is not None and served.phase is Phase.READY
    return messages.ModelEntry(
        name=model.name,
        version=model.version,
        base_id=model.base_id,
        task=model.task.kind,
        labels=list(model.task.labels),
        resident=served.worker is not None,
        variant=model.variant.digest,
        variants=[_variant_entry(variant) for variant in model.variants],
        adapters=[_adapter_entry(adapter, served) for adapter in model.adapters],
        footprint_bytes=served.footprint_bytes or None,
        reason=served.phase.value,
        context=(served.context or None) if ready else None,
        sequences=(served.sequences or None) if ready else None,
    )


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
    )
