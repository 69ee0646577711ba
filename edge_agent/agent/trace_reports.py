"""Says on the topic `trace` where the time of a request went, for requests that named a sampled trace.

A file of its own because the daemon imports it only where `telemetry.traces` is set. Spans are made of these messages
by another process (`edge-agent metrics --otlp`): a tracing library would be a third of the daemon's memory.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import UNSET

from edge_agent.agent.ports import Transport
from edge_agent.base.causes import Cause
from edge_agent.base.clock import Clock
from edge_agent.core.job import Job
from edge_agent.protocol import encode
from edge_agent.protocol.decode import Request
from edge_agent.protocol.messages import Reply, RequestTrace
from edge_agent.protocol.topics import Topics

PER_S = 20.0
BURST = 200.0
"""Reports: whoever has more traffic than that samples it."""
CLIENT_SHARE = 0.5
"""Of both that one client may use up: the traces of the others are not lost for its sake."""
CLIENTS_KEPT = 64


class TraceReports:
    """Reports beyond `PER_S` are counted and not sent, so that a client that marks every request cannot crowd out
    answers; those of one client beyond its share of that, so that it cannot crowd out others' reports."""

    def __init__(self, topics: Topics, transport: Transport, clock: Clock) -> None:
        self._topics = topics
        self._transport = transport
        self._clock = clock
        self._left, self._at_s = BURST, clock.monotonic_s()
        # By client: what it has left of its share, and when; those that were told last, the latest at the end.
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._withheld = 0

    def note(
        self,
        request: Request,
        status: int,
        cause: Cause | None,
        job: Job | None = None,
        body: Reply | None = None,
        task: str | None = None,
    ) -> None:
        """A request was closed: with this answer (`body`) of a model with this task, or refused or expired; `job`
        where it came to be one."""
        trace = request.reply.trace
        if trace is None or not trace.sampled:
            return
        now_s = self._clock.monotonic_s()
        if not self._may_send(request.client, now_s):
            self._withheld += 1
            return
        begun_s = None if job is None else job.started_s
        timing = None if body is None else body.timing
        result = body.result if body is not None and isinstance(body.result, dict) else {}
        usage = result.get("usage", {})
        report = RequestTrace(
            traceparent=trace.traceparent,
            tracestate=trace.state or UNSET,
            id=request.id,
            ts=self._clock.wall_s(),
            status=status,
            cause=UNSET if cause is None else cause.value,
            model=request.model,
            adapter=request.adapter,
            merged=UNSET if body is None else body.merged,
            variant=None if body is None else body.variant,
            operation="generate" if request.form in ("prompt", "messages") else task,
            chat=request.form == "messages",
            total_ms=_ms(now_s - request.received_s),
            queue_ms=_queue_ms(request, job, begun_s, now_s) if timing is None else timing.queue_ms,
            tokenize_ms=None if timing is None else timing.tokenize_ms,
            compute_ms=None if timing is None else timing.compute_ms,
            first_token_ms=UNSET if timing is None else timing.first_token_ms,
            batch=None if body is None else body.batch,
            joules=None if body is None or body.energy is None else body.energy.joules,
            prompt_tokens=usage.get("prompt_tokens", UNSET),
            completion_tokens=usage.get("completion_tokens", UNSET),
            finish_reason=result.get("finish_reason", UNSET),
        )
        self._transport.publish(encode.trace(report, self._topics, request.client))

    def _may_send(self, client: str, now_s: float) -> bool:
        """Whether a report is within the rates of this client and of all, and counts it then."""
        self._left = min(BURST, self._left + max(0.0, now_s - self._at_s) * PER_S)
        self._at_s = now_s
        left, at_s = self._clients.get(client, (CLIENT_SHARE * BURST, now_s))
        left = min(CLIENT_SHARE * BURST, left + max(0.0, now_s - at_s) * CLIENT_SHARE * PER_S)
        if self._left < 1.0 or left < 1.0:
            return False
        self._left -= 1.0
        self._clients[client] = (left - 1.0, now_s)
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)
        return True

    def take_withheld(self) -> int:
        """Reports that were not sent since the last call."""
        withheld, self._withheld = self._withheld, 0
        return withheld


def _queue_ms(request: Request, job: Job | None, begun_s: float | None, now_s: float) -> float | None:
    """How long a request waited that was not answered; None where it never waited."""
    return None if job is None else _ms((now_s if begun_s is None else begun_s) - request.received_s)


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000.0, 3)
