"""Answer a job: every job is closed in the request table here, exactly once, and its message acknowledged.

A stream ends with exactly one final message: the chunk with `done`, or a reply with the reason why there is none. A
repeated request for an answered stream gets the whole text in one reply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET

from edge_agent.agent.context import Context
from edge_agent.agent.served_model import ServedModel
from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.base.reading import Reading
from edge_agent.base.units import bytes_text
from edge_agent.core.job import Job, JobState
from edge_agent.protocol import encode
from edge_agent.protocol.decode import Request
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import Energy, Reply, StreamChunk, Timing, TokenLogprob, Usage
from edge_agent.protocol.topics import ReplyAddress
from edge_agent.protocol.worker_messages import GeneratedText, JobDone

STATES = {
    Cause.EXPIRED: JobState.EXPIRED,
    Cause.CANCELLED: JobState.CANCELLED,
    Cause.WORKER_DIED: JobState.FAILED,
    Cause.WORKER_FAILED: JobState.FAILED,
}
"""The final state of a job by the cause of its refusal; for the other causes see `Responder.refuse`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job came from: the decoded request, and the message that waits for its acknowledgement."""

    request: Request
    message: Inbound


class Responder:
    """Turns the outcome of a job into its reply. `reading` gives the last sample of a sensor."""

    def __init__(self, context: Context, reading: Callable[[str], Reading]) -> None:
        self._context = context
        self._reading = reading

    def part(self, job: Job, text: str) -> bool:
        """Send a part of a streamed answer; False when it cannot be sent now."""
        return send_part(self._context, job, _origin(job).request.reply, text)

    def done(self, job: Job, served: ServedModel, event: JobDone) -> None:
        """Send a worker's answer with its timing, its energy and the board's temperature."""
        now_s = self._context.clock.monotonic_s()
        request = _origin(job).request
        results = event.results
        compute_ms, tokenize_ms = event.compute_ms, event.tokenize_ms
        total_ms = (now_s - job.received_s) * 1000.0
        started_s = job.started_s if job.started_s is not None else now_s
        joules, method = self._context.energy.end(job.job_id, self._reading("power"), now_s)
        if joules is not None:
            self._context.stats.measured_energy(method)
        temperature = self._reading("temperature")
        body = Reply(
            id=request.id,
            status=200,
            model=request.model,
            adapter=request.adapter,
            merged=UNSET if job.model == request.model else job.model,
            variant=served.model.variant.dtype,
            result=results[0] if request.single else results,
            timing=timed(
                Timing(
                    queue_ms=round((started_s - job.received_s) * 1000.0, 3),
                    tokenize_ms=round(tokenize_ms, 3),
                    compute_ms=round(compute_ms, 3),
                    total_ms=round(total_ms, 3),
                ),
                event.generated,
            ),
            batch=event.batch,
            energy=Energy(joules=joules, method=method),
            temperature_c=temperature.value if temperature.fresh(now_s, 5.0) else None,
        )
        remaining_s, limit = job.deadline_s - now_s, self._context.transport.payload_limit
        message = whole = encode.reply(body, request.reply, remaining_s, limit)
        if job.stream:
            text = "" if event.generated is None else event.generated.text
            message = last_part(job, request.reply, body, text, remaining_s)
            size, most = len(message.payload), limit(message)
            if size > most:
                text = (
                    f"the end of the answer has {bytes_text(size)}, more than the {bytes_text(most)} that fit a message"
                )
                self.refuse(job, 413, Cause.TOO_LARGE, f"{text}; ask for fewer tokens, or without logprobs")
                return
        elif encode.status_of(whole) != 200:  # too large: `reply` has put a refusal in its place
            self._context.stats.note_cause(Cause.TOO_LARGE)
            self._finish(job, JobState.FAILED, 413, whole)
            self._trace(job, 413, Cause.TOO_LARGE, body, served.model.task.kind)
            return
        stats = self._context.stats.model(job.model)
        stats.note_answer(len(job.texts), event.batch, total_ms, compute_ms, results, joules)
        stats.note_adapter(job.adapter, total_ms, results, event.wording)
        if served.observer is not None:
            served.observer(job, event, joules)
        self._finish(job, JobState.DONE, 200, message, whole.payload)
        self._trace(job, 200, None, body, served.model.task.kind)

    def refuse(self, job: Job, status: int, cause: Cause, reason: str, retry_after_s: float | None = None) -> None:
        """Answer with a status other than 200; telemetry counts `cause`. After the deadline nothing is sent, except
        to a client that has received parts of the answer. After `retry_after_s` the same request is decided anew."""
        request = _origin(job).request
        now_s = self._context.clock.monotonic_s()
        remaining_s = job.deadline_s - now_s
        if remaining_s <= 0 and not job.parts:
            self.expire(job)
            return
        if job.parts:
            remaining_s = waits_s(remaining_s)
        otherwise = JobState.REFUSED if job.state is JobState.QUEUED else JobState.FAILED
        limit = self._context.transport.payload_limit
        error = RequestError(status, cause, reason, retry_after_s)
        message = encode.refusal(error, request.reply, remaining_s, limit=limit)
        self._context.stats.note_cause(cause)
        until_s = math.inf if retry_after_s is None else now_s + retry_after_s
        self._finish(job, STATES.get(cause, otherwise), status, message, until_s=until_s)
        self._trace(job, status, cause)

    def displace(self, job: Job, reason: str, retry_after_s: float) -> None:
        """Answer a job that was taken from the queue for another client's: as a refusal at the door, so that the same
        request may be sent again."""
        request = _origin(job).request
        remaining_s = job.deadline_s - self._context.clock.monotonic_s()
        if remaining_s <= 0:
            self.expire(job)
            return
        limit = self._context.transport.payload_limit
        error = RequestError(429, Cause.CLIENT_SHARE, reason, retry_after_s)
        message = encode.refusal(error, request.reply, remaining_s, limit=limit)
        job.to(JobState.REFUSED)
        self._context.energy.drop(job.job_id)
        self._context.requests.close(job, None)
        self._context.requests.forget(job.key)
        self._context.stats.note_cause(Cause.CLIENT_SHARE)
        self._context.stats.closed(job.model, 429)
        self._context.send_expendable(message, request.reply)
        self._trace(job, 429, Cause.CLIENT_SHARE)
        self._context.acks.release(_origin(job).message)

    def expire(self, job: Job) -> None:
        """Close a job whose deadline has passed, without an answer; a stream that has begun gets its last message."""
        if job.parts:
            self.refuse(job, 408, Cause.EXPIRED, f"the deadline passed in mid-stream, after {job.parts} parts")
            return
        self._context.stats.deadline_passed()
        self._finish(job, JobState.EXPIRED, 408, None)
        self._trace(job, 408, Cause.EXPIRED)

    def _trace(
        self, job: Job, status: int, cause: Cause | None, body: Reply | None = None, task: str | None = None
    ) -> None:
        if self._context.traces is not None:
            self._context.traces.note(_origin(job).request, status, cause, job, body, task)

    def _finish(
        self,
        job: Job,
        state: JobState,
        status: int,
        message: Outbound | None,
        kept: bytes | None = None,
        until_s: float = math.inf,
    ) -> None:
        """Close the job, count it, send `message`. `kept`: the answer to a repeated request (None: the message), until
        `until_s` at most."""
        job.to(state)
        self._context.energy.drop(job.job_id)
        if not self._context.requests.close(job, kept or (message.payload if message else None), until_s):
            return
        self._context.stats.closed(job.model, status)
        if message is not None and not self._context.transport.publish(replace(message, holds_place=True)):
            text = f"an answer of model {job.model!r} was dropped: what waits for the broker fills the outbox"
            self._context.announce("answer-dropped", text, {"model": job.model}, client=job.key[0])
        self._context.acks.release(_origin(job).message)


def _origin(job: Job) -> Origin:
    origin = job.origin
    if not isinstance(origin, Origin):
        raise TypeError(f"job {job.job_id} has no origin")
    return origin


END_S = 5.0
"""The reply that ends a stream which cannot be finished is worth sending until this long after now, even past the
deadline: its client waits for the next part."""

SHARED_FIELDS = tuple(sorted(set(StreamChunk.__struct_fields__) & set(Reply.__struct_fields__) - {"id"}))
"""Fields of a reply that the last part repeats: those that both types have. The id is the request's for every part."""


def waits_s(remaining_s: float) -> float:
    """Seconds for which the reply that ends an unfinished stream may wait to be sent and fetched."""
    return max(remaining_s, END_S)


def send_part(context: Context, job: Job, to: ReplyAddress, text: str) -> bool:
    """Send a part of a job's answer; False when it cannot be sent now."""
    body = StreamChunk(id=to.request_id, seq=job.parts, text=text, done=False)
    remaining_s = job.deadline_s - context.clock.monotonic_s()
    if not context.transport.connected or not context.transport.publish(encode.chunk(body, to, remaining_s)):
        return False
    job.sent_part()
    return True


def last_part(job: Job, to: ReplyAddress, whole: Reply, text: str, remaining_s: float) -> Outbound:
    """The chunk that ends a stream: the rest of the text and every field that the reply (of status 200) shares."""
    result: Mapping[str, Any] = whole.result
    shared = {name: getattr(whole, name) for name in SHARED_FIELDS}
    body = StreamChunk(
        id=to.request_id,
        seq=job.parts,
        text=text,
        done=True,
        finish_reason=result["finish_reason"],
        usage=Usage(**result["usage"]),
        seed=result["seed"],
        logprobs=[TokenLogprob(**one) for one in result["logprobs"]] if "logprobs" in result else UNSET,
        **shared,
    )
    return encode.chunk(body, to, remaining_s)


def timed(timing: Timing, generated: GeneratedText | None) -> Timing:
    """The timing, completed for a generator's answer: `queue_ms` grows by the wait inside the worker, and prompt time,
    time to the first token (which contains `queue_ms`) and tokens per second are set. Unchanged for other answers."""
    if generated is None:
        return timing
    queue_ms = timing.queue_ms + generated.wait_ms
    return msgspec.structs.replace(
        timing,
        queue_ms=round(queue_ms, 3),
        prompt_ms=round(generated.prompt_ms, 3),
        first_token_ms=round(queue_ms + timing.tokenize_ms + generated.prompt_ms, 3),
        tokens_per_s=UNSET if generated.tokens_per_s is None else round(generated.tokens_per_s, 2),
    )
