"""Reports of traced requests as spans, and metrics, at a collector that decodes the real protobuf."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.protocol.messages import RequestTrace
from tests.support.extreme_messages import extremes
from tests.support.needs import need

need("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans  # noqa: E402 - after `need`
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from edge_agent.exporter.otlp import RequestSpans  # noqa: E402
from tests.support.otlp import Collector  # noqa: E402

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOW_S = 1_800_000_000.0
GENERATED = RequestTrace(
    traceparent=f"00-{TRACE}-{SPAN}-01",
    tracestate="vendor=1",
    id="r1",
    ts=NOW_S,
    status=200,
    model="tiny",
    adapter="one",
    variant="Q4_K_M",
    operation="generate",
    chat=True,
    total_ms=100.0,
    queue_ms=20.0,
    tokenize_ms=5.0,
    compute_ms=70.0,
    first_token_ms=40.0,
    batch=1,
    joules=1.5,
    prompt_tokens=7,
    completion_tokens=3,
    finish_reason="stop",
)


def exported(*bodies: bytes, device: str = "pi", now_s: float = NOW_S) -> tuple[list[Any], list[bool]]:
    """The spans of these messages as they are sent, and which of the messages were taken."""
    memory = InMemorySpanExporter()
    spans = RequestSpans(memory)
    taken = [spans.take(device, body, now_s) for body in bodies]
    spans.close()
    found = Collector()
    found.take("/v1/traces", encode_spans(memory.get_finished_spans()).SerializeToString())
    return found.spans, taken


def test_a_request_is_a_span_below_the_one_that_asked_with_its_parts_in_order() -> None:
    found, _ = exported(msgspec.json.encode(GENERATED))
    resource = found[0][0]
    assert (resource["service.name"], resource["service.instance.id"]) == ("edge-agent", "pi")
    spans = {span.name: span for _, span in found}
    assert set(spans) == {"chat tiny", "queue", "tokenize", "compute", "answer"}
    whole = spans["chat tiny"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex(), whole.trace_state) == (TRACE, SPAN, "vendor=1")
    assert (whole.end_time_unix_nano, whole.kind) == (int(NOW_S * 1e9), 2)
    at_ns = whole.start_time_unix_nano
    for name, part_ms in (("queue", 20), ("tokenize", 5), ("compute", 70), ("answer", 5)):
        span = spans[name]
        assert (span.trace_id, span.parent_span_id) == (whole.trace_id, whole.span_id)
        assert span.start_time_unix_nano == at_ns
        at_ns = span.end_time_unix_nano
        assert at_ns - span.start_time_unix_nano == part_ms * 1_000_000
    assert at_ns == whole.end_time_unix_nano
    (first,) = spans["compute"].events
    assert first.time_unix_nano - whole.start_time_unix_nano == 40_000_000
    said = Collector.attributes(whole)
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.request.model"] == "tiny"
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 3)
    assert said["gen_ai.response.finish_reasons"] == ["stop"] and said["edge_agent.joules"] == 1.5
    assert "error.type" not in said and whole.status.code == 0


def test_a_refusal_is_one_span_with_its_cause() -> None:
    refused = RequestTrace(
        traceparent=GENERATED.traceparent, id="r2", ts=NOW_S, status=429, cause="queue-full", model="m", total_ms=0.4
    )
    ((_, span),), _ = exported(msgspec.json.encode(refused))
    said = Collector.attributes(span)
    assert span.name == "infer m" and span.status.code == 2
    assert (said["error.type"], said["edge_agent.status"]) == ("queue-full", 429)


def test_values_that_no_request_has_cost_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    bodies = list(extremes(RequestTrace, msgspec.to_builtins(GENERATED)))
    found, taken = exported(*bodies)
    requests = [span for _, span in found if span.parent_span_id.hex() == SPAN]
    assert len(requests) == sum(taken) and len(requests) > len(bodies) / 2
    assert "Failed to encode" not in caplog.text


def test_a_board_without_a_clock_gets_the_time_at_which_its_report_came() -> None:
    found, _ = exported(msgspec.json.encode(msgspec.structs.replace(GENERATED, ts=1000.0)))
    assert found[0][1].end_time_unix_nano == pytest.approx(NOW_S * 1e9, abs=1e9)


@pytest.mark.parametrize(
    ("changed", "device"),
    [
        ({"traceparent": "00-x"}, "pi"),
        ({"total_ms": -1.0}, "pi"),
        ({"total_ms": 1e300}, "pi"),
        ({"compute_ms": -5.0}, "pi"),
        ({}, "no/device"),
        ({}, "client"),
    ],
)
def test_what_is_no_report_of_a_device_is_left_aside_and_said_so(changed: dict[str, Any], device: str) -> None:
    found, taken = exported(msgspec.json.encode(msgspec.structs.replace(GENERATED, **changed)), b"{", device=device)
    assert found == [] and taken == [False, False]


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.text(max_size=40),
    "ts": st.floats(allow_nan=False, allow_infinity=False),
    "status": st.integers(),
    "cause": st.text(),
    "model": st.text(),
    "operation": st.none() | st.text(),
    "tracestate": st.text() | st.from_regex(r"\A[a-z]{1,5}=[!-~]{0,9}(,[a-z]{1,5}=x)?\Z"),
    "total_ms": st.floats(-1.0, 1e12),
    "queue_ms": st.none() | st.floats(-1.0, 1e12),
    "compute_ms": st.none() | st.floats(-1.0, 1e12),
    "first_token_ms": st.floats(allow_nan=False, allow_infinity=False),
    "batch": st.none() | st.integers(),
    "joules": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "prompt_tokens": st.integers(),
    "finish_reason": st.text(),
}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.none()).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})
))  # fmt: skip
def test_no_report_of_a_hostile_publisher_costs_the_spans_of_others(changed: dict[str, Any]) -> None:
    """Spans are sent together: one that protobuf cannot carry would take them all with it."""
    hostile = msgspec.to_builtins(GENERATED) | changed
    found, _ = exported(msgspec.json.encode(hostile), msgspec.json.encode(GENERATED))
    assert len(found) >= 5
