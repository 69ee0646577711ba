"""What devices say, to an OpenTelemetry collector by OTLP over HTTP: metrics at an interval, spans of traced requests.

The metrics are those of Prometheus, by the same names; their labels are attributes. Spans are made of the messages on
the topic `trace`, which have durations and one time: the parts of a request are laid one after another from its
arrival, in the order in which they happen, and what no part accounts for (the ways between them) is in the last.

A file of its own because it alone needs opentelemetry-sdk and its exporter (the extra `otlp`).
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import UNSET
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from edge_agent import __version__
from edge_agent.base.limits import DEVICES_WATCHED
from edge_agent.client.request_client import UNREADABLE
from edge_agent.exporter.device_metrics import DeviceMetrics
from edge_agent.protocol.messages import RequestTrace
from edge_agent.protocol.topics import NAME, RESERVED
from edge_agent.protocol.trace_context import TRACEPARENT, TRACESTATE, TraceContext, trace_context

SERVICE = "edge-agent"
SCOPE = "edge_agent"
TIMEOUT_S = 5.0
"""Of one attempt; the exporters try again for as long."""
CLOCK_OFF_S = 60.0
"""A report is at most half of this on its way: a device whose clock differs by more has none that is set, and the time
at which the report came counts instead."""
LONGEST_MS = 1e9
TEXT_CHARS = 256
OPERATIONS: Mapping[str, str] = {"embed": "embeddings", "generate": "text_completion"}
"""Our tasks in the words of gen_ai.operation.name; others stand as they are, which the convention allows."""
UNITS: Mapping[str, str] = {"seconds": "s", "bytes": "By", "celsius": "Cel", "joules": "J", "watts": "W", "ratio": "1"}


class RequestSpans:
    """Spans of the devices' requests, each device a service instance."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._processor = BatchSpanProcessor(exporter)
        self._tracers: dict[str, Tracer] = {}

    def take(self, device: str, payload: bytes, now_s: float) -> bool:
        """A message on the topic `trace`, at a wall-clock time. False, and nothing is sent, where it is no report of a
        device."""
        body, trace = _read(payload)
        tracer = self._tracer(device)
        if body is None or trace is None or tracer is None:
            return False
        end_s = body.ts if abs(body.ts - now_s) <= CLOCK_OFF_S else now_s
        _write(tracer, body, trace, _ns(end_s))
        return True

    def close(self) -> None:
        """Send what waits; then nothing more is taken."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _tracer(self, device: str) -> Tracer | None:
        found = self._tracers.get(device)
        if found is None and NAME.fullmatch(device) and device not in RESERVED and len(self._tracers) < DEVICES_WATCHED:
            resource = Resource.create({"service.name": SERVICE, "service.instance.id": device, "host.name": device})
            limits = SpanLimits(max_span_attribute_length=TEXT_CHARS)
            provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=limits)
            provider.add_span_processor(self._processor)
            found = self._tracers[device] = provider.get_tracer(SCOPE, __version__)
        return found


def _read(payload: bytes) -> tuple[RequestTrace | None, TraceContext | None]:
    """The report and the trace that it names; None for what is none, or has times that no span can have."""
    try:
        body = msgspec.json.decode(payload, type=RequestTrace)
    except UNREADABLE:
        return None, None
    times = (body.total_ms, body.queue_ms or 0.0, body.tokenize_ms or 0.0, body.compute_ms or 0.0)
    if not all(0.0 <= one <= LONGEST_MS for one in times) or not math.isfinite(body.ts):
        return None, None
    state = body.tracestate if isinstance(body.tracestate, str) else ""
    return body, trace_context({TRACEPARENT: body.traceparent, TRACESTATE: state})


def _write(tracer: Tracer, body: RequestTrace, trace: TraceContext, end_ns: int) -> None:
    begin_ns = end_ns - _ns(body.total_ms / 1000.0)
    above = SpanContext(
        int(trace.trace_id, 16),
        int(trace.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([trace.state]) if trace.state else None,
    )
    operation = _operation(body)
    span = tracer.start_span(
        f"{operation} {body.model[:TEXT_CHARS]}",
        set_span_in_context(NonRecordingSpan(above)),
        SpanKind.SERVER,
        _attributes(body, operation),
        start_time=begin_ns,
    )
    if body.status != 200:
        span.set_status(Status(StatusCode.ERROR))
    within = set_span_in_context(span)
    at_ns = begin_ns
    for name, part_ms in _parts(body):
        until_ns = min(end_ns, at_ns + _ns(part_ms / 1000.0))
        part = tracer.start_span(name, within, start_time=at_ns)
        first_ms = body.first_token_ms
        if name == "compute" and isinstance(first_ms, float) and 0.0 <= first_ms <= body.total_ms:
            part.add_event("first token", timestamp=begin_ns + _ns(first_ms / 1000.0))
        part.end(until_ns)
        at_ns = until_ns
    span.end(end_ns)


def _parts(body: RequestTrace) -> Iterator[tuple[str, float]]:
    """What the request went through, in its order, with milliseconds."""
    known = [("queue", body.queue_ms), ("tokenize", body.tokenize_ms), ("compute", body.compute_ms)]
    took_ms = 0.0
    for name, part_ms in known:
        if part_ms is not None:
            took_ms += part_ms
            yield name, part_ms
    if body.compute_ms is not None:
        yield "answer", max(0.0, body.total_ms - took_ms)


def _operation(body: RequestTrace) -> str:
    if body.chat:
        return "chat"
    return "infer" if body.operation is None else OPERATIONS.get(body.operation, body.operation[:TEXT_CHARS])


def _attributes(body: RequestTrace, operation: str) -> dict[str, Any]:
    """By OpenTelemetry's conventions for generative AI (1.37) where they have a word, else below `edge_agent`."""
    finish = body.finish_reason
    found: dict[str, Any] = {
        "messaging.system": "mqtt",
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": SERVICE,
        "gen_ai.request.model": body.model,
        "gen_ai.response.model": body.merged,
        "gen_ai.response.id": body.id,
        "gen_ai.usage.input_tokens": body.prompt_tokens,
        "gen_ai.usage.output_tokens": body.completion_tokens,
        "gen_ai.response.finish_reasons": [finish] if isinstance(finish, str) else None,
        "error.type": body.cause,
        "edge_agent.status": body.status,
        "edge_agent.adapter": body.adapter,
        "edge_agent.variant": body.variant,
        "edge_agent.batch_rows": body.batch,
        "edge_agent.joules": body.joules,
    }
    return {key: value for key, value in found.items() if value is not None and value is not UNSET and _fits(value)}


def _fits(value: Any) -> bool:
    """Whether OTLP has such a number: its whole ones have 64 bits, JSON's any."""
    return not isinstance(value, int) or abs(value) < 2**63


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def metrics_data(known: DeviceMetrics, since_ns: int, now_s: float, now_ns: int) -> MetricsData:
    """Everything that is known at a monotonic time, as OTLP has it; counters count from `since_ns` (wall clock)."""
    found = []
    for family in known.collect(now_s):
        points = [
            NumberDataPoint(dict(sample.labels), since_ns if family.type == "counter" else 0, now_ns, sample.value)
            for sample in family.samples
        ]
        data = Sum(points, AggregationTemporality.CUMULATIVE, True) if family.type == "counter" else Gauge(points)
        unit = UNITS.get(family.name.rsplit("_", 1)[-1], "")
        found.append(Metric(family.name, family.documentation, unit, data))
    scope = ScopeMetrics(InstrumentationScope(SCOPE, __version__), found, "")
    return MetricsData([ResourceMetrics(Resource.create({"service.name": SERVICE}), [scope], "")])


class _CollectorStatus:
    """Says on stderr that the collector takes nothing, once, and why as far as the exporter has logged it; and that it
    does again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._away: dict[str, bool] = {}
        self._last_warning = _LastWarning()
        logging.getLogger("opentelemetry").addHandler(self._last_warning)

    def note(self, kind: str, taken: bool) -> None:
        """An export of this kind (`metrics`, `spans`) came to an end."""
        if taken != self._away.get(kind, False):
            return
        self._away[kind] = not taken
        why = f": {self._last_warning.text}" if self._last_warning.text else ""
        said = f"takes {kind} again" if taken else f"takes no {kind}, which are lost until it does{why}"
        print(f"edge-agent: the collector at {self._url} {said}", file=sys.stderr, flush=True)


class _LastWarning(logging.Handler):
    """Keeps the last warning of the library, which would write one at every attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = " ".join(record.getMessage().split())[:300]


class _NotedSpans(SpanExporter):
    """An exporter of spans whose results are noted."""

    def __init__(self, inner: SpanExporter, collector: _CollectorStatus) -> None:
        self._inner = inner
        self._collector = collector

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._collector.note("spans", result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


@contextmanager
def exporting(url: str, known: DeviceMetrics, interval_s: float) -> Iterator[RequestSpans]:
    """Send metrics at the interval, and what the spans take, for the length of the block; both once more at its end.

    `url` is the collector's root, such as http://localhost:4318. Headers, certificates and compression are set as for
    every program that speaks OTLP, by the variables OTEL_EXPORTER_OTLP_*.
    """
    root = url.rstrip("/")
    collector = _CollectorStatus(root)
    spans = RequestSpans(_NotedSpans(OTLPSpanExporter(f"{root}/v1/traces", timeout=TIMEOUT_S), collector))
    exporter = OTLPMetricExporter(f"{root}/v1/metrics", timeout=TIMEOUT_S)
    since_ns, ended = time.time_ns(), threading.Event()

    def send() -> None:
        data = metrics_data(known, since_ns, time.monotonic(), time.time_ns())
        collector.note("metrics", exporter.export(data) is MetricExportResult.SUCCESS)

    def repeat() -> None:
        while not ended.wait(interval_s):
            send()

    thread = threading.Thread(target=repeat, name="otlp-metrics", daemon=True)
    thread.start()
    try:
        yield spans
    finally:
        ended.set()
        thread.join(2 * TIMEOUT_S)
        spans.close()
        send()
        exporter.shutdown()
