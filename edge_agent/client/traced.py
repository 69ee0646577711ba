"""`with traced(traceparent): edge.ask(...)`: requests that belong to a trace (docs/metrics.md).

A file of its own because the gateway sets it for whoever calls it by HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from edge_agent.protocol.trace_context import TRACEPARENT, TRACESTATE, trace_context

_current: ContextVar[Mapping[str, str]] = ContextVar("traced", default={})  # noqa: B039 - never written to


@contextmanager
def traced(traceparent: str | None, tracestate: str | None = None) -> Iterator[None]:
    """Requests that are sent within carry this trace context (W3C), over MQTT 5; they come from this thread or task. A
    malformed one is left out, as the standard says; None ends an outer one."""
    given = {TRACEPARENT: traceparent or "", TRACESTATE: tracestate or ""}
    found = trace_context(given)
    user = (
        {} if found is None else {TRACEPARENT: given[TRACEPARENT], **({TRACESTATE: found.state} if found.state else {})}
    )
    token = _current.set(user)
    try:
        yield
    finally:
        _current.reset(token)


def trace_properties() -> Mapping[str, str]:
    """The user properties of a request that is sent now."""
    return _current.get()
