"""The newest messages of devices as families of metrics. `DeviceMetrics` holds no clock and no socket.

A device's telemetry counts what happened in an interval; here the intervals are added up, from the start of the
exporter. Telemetry comes at most once, so a lost report is missing in every counter, and in `reported_seconds_total` as
well: a rate over that is right whatever was lost. Latencies come as quantiles of an interval and not as counts by size,
so there are gauges per quantile and no histogram: none could be made of them that would be true.

A device's series end with its last will (or when its status is older than two of its heartbeats) except for
`device_up` and the ages. Names are checked and counted before they become labels: who may publish on the broker need
not be a device.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_agent.base.causes import Cause
from edge_agent.base.limits import DEVICES_WATCHED
from edge_agent.client.device_feed import read_said
from edge_agent.core.governor import GovernorLevel
from edge_agent.core.memory_pressure import PressureStage
from edge_agent.protocol.messages import EVENT_KINDS, Event, Info, Status, Telemetry
from edge_agent.protocol.telemetry_parts import Quantiles
from edge_agent.protocol.topics import NAME

KINDS: Mapping[str, type[Status] | type[Info] | type[Telemetry] | type[Event]] = {
    "status": Status,
    "info": Info,
    "telemetry": Telemetry,
    "event": Event,
}
MODELS = 64
"""Of a device; of a model its telemetry names at most sixteen adapters."""
ADAPTERS = 64
LOST_HEARTBEATS = 2
STATES = ("starting", "online", "degraded", "offline")
SENSORS: Mapping[str, tuple[str, str]] = {
    "temperature": ("temperature_celsius", "Temperature of the die."),
    "power": ("power_watts", "Power that the board takes, where it is measured."),
    "ram_available": ("memory_available_bytes", "RAM that could be had without swapping."),
    "ram_total": ("memory_total_bytes", "RAM of the board."),
}
"""Readings that become a metric; one without a value has no series."""
CAUSES = frozenset(cause.value for cause in Cause)
DROPPED = frozenset(
    {"client-rate", "turned-away", "gave-way", "outbox-full", "expired-unsent", "unread", "unsendable", "trace-rate"}
)
OTHER = "other"
PREFIX = "edge_agent_"
Labels = tuple[str, ...]
Kind = Literal["gauge", "counter"]
DEVICE_COUNTERS = ("expired_requests", "duplicate_requests", "energy_joules")


def _nothing_yet() -> Counter[tuple[str, Labels]]:
    """Counters whose labels are known beforehand begin at 0: of a series that begins with its first refusal, `rate`
    and `increase` would not see that refusal."""
    counts: Counter[tuple[str, Labels]] = Counter({(metric, ()): 0 for metric in DEVICE_COUNTERS})
    counts.update({("refused_requests", (cause,)): 0 for cause in (*CAUSES, OTHER)})
    counts.update({("dropped_messages", (cause,)): 0 for cause in (*DROPPED, OTHER)})
    return counts


@dataclass(slots=True)
class _Device:
    """The newest messages of a device, when they came (monotonic), and what its intervals add up to."""

    status: Status | None = None
    status_s: float = 0.0
    info: Info | None = None
    telemetry: Telemetry | None = None
    telemetry_s: float = 0.0
    counts: Counter[tuple[str, Labels]] = field(default_factory=_nothing_yet)
    last_event: tuple[str, int] = ("", -1)

    def take(self, body: Any, now_s: float) -> None:
        """A message of the device."""
        if isinstance(body, Status):
            # A broker that comes back gives the retained status once more, although the device may have gone with it.
            if self.status is None or (self.status.boot_id, self.status.seq) != (body.boot_id, body.seq):
                self.status_s = now_s
            self.status = body
            if body.state == "offline":
                self.telemetry = None
        elif isinstance(body, Info):
            self.info = body
        elif isinstance(body, Telemetry):
            self.telemetry, self.telemetry_s = body, now_s
            _count(self.counts, body)
        elif (body.boot_id, body.seq) != self.last_event:
            # An event may come twice; then nothing came between.
            self.last_event = (body.boot_id, body.seq)
            self.counts["events", (_known(body.kind, EVENT_KINDS), body.severity)] += 1

    def up(self, now_s: float) -> bool:
        """Whether it can be taken to be there."""
        status = self.status
        if status is None or status.state == "offline":
            return False
        return now_s - self.status_s <= LOST_HEARTBEATS * status.heartbeat_s


class DeviceMetrics:
    """Takes messages in one thread and gives metrics in another."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._connected = False
        self._unreadable = 0
        self._lock = threading.Lock()

    def connection(self, connected: bool) -> None:
        """Whether the broker is there."""
        self._connected = connected

    def count_unreadable(self) -> None:
        """A message on a topic of devices that somebody else has read and that is none."""
        with self._lock:
            self._unreadable += 1

    def take(self, device: str, kind: str, payload: bytes, now_s: float) -> None:
        """A message of a device, at a monotonic time. What is none is counted and left aside. A retained status that
        is taken back takes the device with it."""
        with self._lock:
            if not payload:
                if kind == "status":
                    self._devices.pop(device, None)
                return
            body = read_said(KINDS, device, kind, payload)
            if body is None or (device not in self._devices and len(self._devices) >= DEVICES_WATCHED):
                self._unreadable += 1
                return
            self._devices.setdefault(device, _Device()).take(body, now_s)

    def collect(self, now_s: float) -> list[Metric]:
        """Everything that is known now."""
        with self._lock:
            families = _Families()
            families.add("broker_up", (), float(self._connected), "Whether the broker is connected.")
            families.add(
                "unreadable_messages",
                (),
                float(self._unreadable),
                "Messages on topics of devices that are none of this version.",
                "counter",
            )
            for name, device in sorted(self._devices.items()):
                _device(families, name, device, now_s)
            return families.all()


class MetricsCollector(Collector):
    """What a registry asks at every scrape."""

    def __init__(self, known: DeviceMetrics) -> None:
        self._known = known

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        yield from self._known.collect(time.monotonic())


def _count(counts: Counter[tuple[str, Labels]], body: Telemetry) -> None:
    """Add an interval. `Counter` takes fractions, too."""
    found: dict[tuple[str, Labels], float] = {
        ("reports", ()): 1,
        ("reported_seconds", ()): body.interval_s,
        ("expired_requests", ()): body.expired,
        ("duplicate_requests", ()): body.duplicates,
        ("energy_joules", ()): body.energy.joules or 0.0,
    }
    key: tuple[str, Labels]
    for reason, count in body.refusal_reasons.items():
        key = ("refused_requests", (_known(reason, CAUSES),))
        found[key] = found.get(key, 0) + count
    for cause, count in body.dropped.items():
        key = ("dropped_messages", (_known(cause, DROPPED),))
        found[key] = found.get(key, 0) + count
    for name, model in _names(body.models, MODELS):
        found["requests", (name,)] = model.requests
        found["failed_requests", (name,)] = model.failed
        found["truncated_texts", (name,)] = model.truncated
        found["out_of_scope_texts", (name,)] = model.out_of_scope
        found["model_energy_joules", (name,)] = model.joules or 0.0
        for adapter, one in _names(model.adapters, ADAPTERS):
            found["adapter_requests", (name, adapter)] = one.requests
    for key, said in found.items():
        value = _number(said)
        if value is not None and value >= 0 and (key in counts or len(counts) < MODELS * ADAPTERS):
            counts[key] += value  # type: ignore[assignment]


COUNTERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "reports": ((), "Reports that came."),
    "reported_seconds": ((), "Seconds that these reports cover; divide rates by its rate where reports were lost."),
    "requests": (("model",), "Requests that a model answered."),
    "failed_requests": (("model",), "Requests of a model that ended otherwise."),
    "adapter_requests": (("model", "adapter"), "Requests answered with an adapter, of the sixteen busiest."),
    "truncated_texts": (("model",), "Texts that were cut to the length of the model."),
    "out_of_scope_texts": (("model",), "Texts classified as out of scope."),
    "refused_requests": (("reason",), "Requests that were refused, by cause."),
    "expired_requests": ((), "Requests whose deadline passed without an answer."),
    "duplicate_requests": ((), "Requests that came again."),
    "dropped_messages": (("cause",), "Messages that were not sent or not read."),
    "energy_joules": ((), "Energy of requests, where it is known."),
    "model_energy_joules": (("model",), "Energy of a model's requests, where it is known."),
    "events": (("kind", "severity"), "Events, by kind."),
}
QUANTILES = ("p50", "p95", "p99")


def _device(families: _Families, name: str, device: _Device, now_s: float) -> None:
    up = device.up(now_s)
    families.add("device_up", (("device", name),), float(up), "Whether the device is there: 0 after its last will.")
    if device.status is not None:
        age_s = now_s - device.status_s
        families.add("status_age_seconds", (("device", name),), age_s, "Seconds since its last new status.")
    if device.telemetry is not None:
        age_s = now_s - device.telemetry_s
        families.add("telemetry_age_seconds", (("device", name),), age_s, "Seconds since its last report.")
    if not up or device.status is None:
        return
    families.state("device_state", name, STATES, device.status.state, "What the device says of itself.")
    if device.info is not None:
        families.info(name, device.info)
    for (metric, labels), value in sorted(device.counts.items()):
        names, said = COUNTERS[metric]
        families.add(metric, (("device", name), *zip(names, labels, strict=True)), float(value), said, "counter")
    if device.telemetry is not None:
        _report(families, name, device.telemetry)


def _report(families: _Families, name: str, body: Telemetry) -> None:
    here = (("device", name),)
    families.add("uptime_seconds", here, body.uptime_s, "Seconds since the daemon started.")
    families.add("open_requests", here, body.queue_jobs, "Requests that wait or run.")
    families.add("waiting_events", here, body.events_waiting, "Events that the broker does not have yet.")
    families.add("lost_events", here, body.events_lost, "Events that were given up.", "counter")
    families.add("resident_memory_bytes", here, body.rss_bytes, "Resident memory of the daemon.")
    for key, (metric, said) in SENSORS.items():
        sensor = body.sensors.get(key)
        families.add(metric, here, None if sensor is None else sensor.value, said)
    governor, memory = body.governor, body.memory
    for key, metric, said in GOVERNOR:
        families.add(metric, here, governor.get(key), said)
    for key, metric, said in MEMORY:
        families.add(metric, here, memory.get(key), said)
    families.state("governor_level", name, LEVELS, str(governor.get("level")), "How far heat limits what runs.")
    families.state("memory_stage", name, STAGES, str(memory.get("stage")), "How short of memory the board is.")
    for model, one in _names(body.models, MODELS):
        at = (*here, ("model", model))
        families.quantiles("request_seconds", at, one.total_ms, "From arrival to answer, over the last interval.")
        families.quantiles("compute_seconds", at, one.compute_ms, "Computation, over the last interval.")
        families.add("batch_rows", at, one.batch_mean, "Mean rows of a batch over the last interval.")
        families.add("confidence_ratio", at, one.confidence_mean, "Mean score of the best class, last interval.")
        for adapter, drift in _names({key or "~base": value for key, value in one.drift.items()}, ADAPTERS, "~base"):
            to = (*at, ("adapter", "" if adapter == "~base" else adapter))
            families.add(
                "confidence_drift_psi", to, drift.confidence_psi, "Drift of scores, population stability index."
            )
            families.add("fragmentation_drift_psi", to, drift.fragmentation_psi, "Drift of tokens per byte, PSI.")
            families.add("out_of_vocabulary_ratio", to, drift.out_of_vocabulary, "Unknown tokens as a share of all.")
    _memory_of_models(families, here, memory.get("models"))
    for model, canary in _names(body.canaries, MODELS):
        of_all = {"~base": canary, **canary.adapters}
        for adapter, probe in _names(of_all, ADAPTERS, "~base"):
            to = (*here, ("model", model), ("adapter", "" if adapter == "~base" else adapter))
            said = "Whether the golden probes hold; none before the first time."
            families.add("canary_ok", to, None if probe.ok is None else float(probe.ok), said)
            families.add("canary_age_seconds", to, probe.age_s, "Seconds since the golden probes were run.")


LEVELS = tuple(level.name.lower() for level in GovernorLevel)
STAGES = tuple(stage.name.lower() for stage in PressureStage)
GOVERNOR = (
    ("forecast_c", "forecast_celsius", "Temperature expected in ten seconds."),
    ("headroom_c", "headroom_celsius", "What the forecast leaves to the soft limit."),
    ("busy_share", "busy_share_ratio", "Share of the time in which models may compute."),
    ("max_rows", "batch_rows_limit", "Rows of a batch that heat allows."),
    ("threads", "threads_limit", "Threads that heat allows."),
)
MEMORY = (
    ("reserve_bytes", "memory_reserve_bytes", "RAM that is to stay free."),
    ("outstanding_bytes", "memory_promised_bytes", "RAM that was promised to models and is not taken yet."),
)


def _memory_of_models(families: _Families, here: tuple[tuple[str, str], ...], models: Any) -> None:
    for model, account in _names(models if isinstance(models, dict) else {}, MODELS):
        if not isinstance(account, dict):
            continue
        for key in ("promised_bytes", "held_bytes", "mapped_bytes"):
            said = f"RAM of a model that is in memory: {key.removesuffix('_bytes')}."
            families.add(f"model_memory_{key}", (*here, ("model", model)), account.get(key), said)


class _Families:
    """Samples by metric: a family has all its devices together, as the text form wants it."""

    def __init__(self) -> None:
        self._found: dict[str, Metric] = {}

    def add(self, metric: str, labels: Iterable[tuple[str, str]], value: Any, said: str, kind: Kind = "gauge") -> None:
        """One sample; a value that is none has no series."""
        number = _number(value)
        if number is None:
            return
        pairs = tuple(labels)
        family = self._found.get(metric)
        if family is None:
            make = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            family = self._found[metric] = make(PREFIX + metric, said, labels=[name for name, _ in pairs])
        family.add_metric([text for _, text in pairs], number)  # type: ignore[attr-defined]

    def quantiles(
        self, metric: str, labels: tuple[tuple[str, str], ...], found_ms: Quantiles | None, said: str
    ) -> None:
        """Quantiles of an interval, which came in milliseconds."""
        for at in QUANTILES if found_ms is not None else ():
            self.add(metric, (*labels, ("percentile", at[1:])), getattr(found_ms, at) / 1000.0, said)

    def state(self, metric: str, device: str, states: Iterable[str], now: str, said: str) -> None:
        """One of several states: 1 for that which holds."""
        for state in states:
            self.add(metric, (("device", device), ("state", state)), float(state == now), said)

    def info(self, device: str, body: Info) -> None:
        """Versions as labels."""
        labels = (("device", device), ("version", body.agent[:64]), ("board", body.board[:64]))
        self.add("build_info", labels, 1.0, "The agent's version and the board.")

    def all(self) -> list[Metric]:
        """Every family that has a sample."""
        return list(self._found.values())


def _names(found: Mapping[str, Any], most: int, beside: str = "") -> Iterator[tuple[str, Any]]:
    """The entries whose key can be a name (or is `beside`), so many at most."""
    known = [(key, value) for key, value in found.items() if key == beside or NAME.fullmatch(key)]
    return iter(sorted(known[:most]))


def _number(value: Any) -> float | None:
    """A number of a message as Prometheus takes it. None for what is no number, and for one of 309 digits or more: JSON
    has such numbers, and one sample that cannot be written would end every scrape."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _known(word: str, words: Iterable[str]) -> str:
    return word if word in words else OTHER
