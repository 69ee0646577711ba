"""What becomes of the jobs inside a worker: its answers, its death, a cancel, a stop.

A dead worker's jobs go back to the queue once; a job that was inside two workers when they died is answered with 500.
`ModelManager` passes on what each worker sends, so the handler is made before the manager and knows no loads.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.ports import Worker
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.worker_handle import WorkerHandle
from edge_agent.base.causes import Cause, WorkerDeath
from edge_agent.base.errors import WorkerError
from edge_agent.base.units import duration_text
from edge_agent.core.forecast import rows_computed, tokens_written
from edge_agent.core.grammar_bans import barred_reason, has_grammar
from edge_agent.core.job import MAX_ATTEMPTS, Job, JobState
from edge_agent.core.model_lifecycle import ModelState
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.protocol.worker_messages import (
    AnyEvent,
    GrammarCompiled,
    Heartbeat,
    JobDone,
    JobFailed,
    LoadProgress,
    TextChunk,
)


class Answers(Protocol):
    """How jobs are answered; `agent.respond.Responder`."""

    def refuse(self, job: Job, status: int, cause: Cause, reason: str, retry_after_s: float | None = None) -> None:
        """A status other than 200; the job's state follows from it, and `cause` is what telemetry counts."""
        ...

    def displace(self, job: Job, reason: str, retry_after_s: float) -> None:
        """429 to a job whose place in the queue another client's gets."""
        ...

    def expire(self, job: Job) -> None:
        """The deadline passed: no answer."""
        ...

    def part(self, job: Job, text: str) -> bool:
        """A part of a streamed answer; False when it cannot be sent now."""
        ...

    def done(self, job: Job, served: ServedModel, event: JobDone) -> None:
        """The worker's answer."""
        ...


class WorkerEventHandler:
    """Answers jobs with what their worker sends, or ends them without it.

    `quarantine_deaths`: deaths within the quarantine window after which a model is left alone; 0: never.
    """

    def __init__(self, context: Context, answers: Answers, quarantine_deaths: int) -> None:
        self._context = context
        self._answers = answers
        self._quarantine_deaths = quarantine_deaths
        self._cancelling: set[asyncio.Task[None]] = set()

    # ---- what a worker sends ---------------------------------------------------------------------------------------

    def take_event(self, served: ServedModel, event: AnyEvent) -> None:
        """A worker sent an event about a job, a heartbeat, or how far its load is."""
        now_s = self._context.clock.monotonic_s()
        if served.worker is not None:
            served.worker.hear(now_s)
        if isinstance(event, LoadProgress):
            if served.worker is not None:
                self.take_progress(served, served.worker, event)
            return
        if isinstance(event, Heartbeat):
            return
        job = served.running.get(event.id)
        if job is None:
            if isinstance(event, (JobDone, JobFailed)):
                served.settle_aside(event)
            return
        if isinstance(event, TextChunk):
            if job.state is JobState.RUNNING and not self._answers.part(job, event.text):
                self.stop(served, job, 503, Cause.UNAVAILABLE, "a part of it could not be sent")
            return
        if isinstance(event, GrammarCompiled):
            served.compiled(job)
            return
        if isinstance(event, JobDone):
            self._learn(served, job, event)
            if job.windows:
                served.queue.charge(job.key[0], rows_computed(event.results) - job.rows)
        served.leave(job)
        served.lifecycle.answered()
        if job.state is JobState.RUNNING:  # else it was answered meanwhile: cancelled, or too late
            self._answer(served, job, event, now_s)
        if isinstance(event, JobFailed) and event.costly:
            self._ban(served, job.key[0], now_s)

    def take_progress(self, served: ServedModel, worker: WorkerHandle, event: LoadProgress) -> None:
        """A worker of this model told how far its load is; perhaps it loads beside the one that answers."""
        if worker.note_progress(event, self._context.clock.monotonic_s()):
            fallback = served.fallback
            meanwhile = f"; {fallback.variant.name} answers meanwhile" if fallback.answers and fallback.variant else ""
            why = f"; nothing answers meanwhile: {fallback.reason}" if fallback.reason and not meanwhile else ""
            last = "" if event.expected_s is None else f"; the last build here took {duration_text(event.expected_s)}"
            what = f"model {served.name!r}: an engine is built for this device, which takes minutes"
            text = f"{what}{meanwhile or why}{last}"
            if event.expected_s is not None and fallback.state is FallbackState.BUILDING_FIRST:
                served.lifecycle.expect_load(event.expected_s)
            data = {"model": served.name, "state": "begun", "expected_s": event.expected_s}
            self._context.announce("engine-build", text, data, "info")

    def _answer(self, served: ServedModel, job: Job, event: JobDone | JobFailed, now_s: float) -> None:
        if isinstance(event, JobFailed):
            self._answers.refuse(job, event.status, event.cause, event.reason)
        elif job.deadline_s <= now_s:
            self._answers.expire(job)
        else:
            if event.generated is not None and event.results[0]["finish_reason"] == "deadline":
                self._announce_stop(served, job, "its deadline came; what there is of it was sent")
            self._answers.done(job, served, event)

    def _ban(self, served: ServedModel, client: str, now_s: float) -> None:
        """A client's grammar cost too much: it brings no other for a while, and those that it brought already end."""

        def brought(job: Job) -> bool:
            return job.key[0] == client and has_grammar(job.params)

        served.grammar_bans.ban(client, now_s)
        left_s, reason = round(served.grammar_bans.banned_s(client, now_s), 1), barred_reason(served.name)
        for job in served.queue.take(brought):
            self._answers.refuse(job, 503, Cause.UNAVAILABLE, reason, left_s)
        for job in [job for job in served.running.values() if brought(job) and job.state is JobState.RUNNING]:
            self._end(served, job, 503, Cause.UNAVAILABLE, reason, left_s)

    def _learn(self, served: ServedModel, job: Job, event: JobDone) -> None:
        """Add the cost of an answer to the cost model, also when the answer comes too late to be sent: without the late
        ones every prediction would be too short.

        Of a generator three costs are learned: the time of its prompt (`cost_key`), of its whole answer
        (`whole_cost_key`) and of one token of it (`token_cost_key`; less than it took where adapters took turns while
        its prompt was read). A batch of an encoder is learned once; of a job
        that took several steps, their mean. All its rows count with the mean length of the texts of the job whose texts
        are longest, because the runtime pads rows to one length.
        """
        costs, threads = self._context.costs, self._context.grant.threads
        compute_s = event.compute_ms / 1000.0
        if event.generated is not None:
            # An answer may be cut short, its first token not: that is what a deadline must leave time for.
            costs.learn(served.cost_key, 1, job.size_bytes, event.generated.prompt_ms / 1000.0, threads)
            costs.learn(served.whole_cost_key, 1, job.size_bytes, compute_s, threads)
            tokens, wrote_s = tokens_written(event.results), compute_s - event.generated.prompt_ms / 1000.0
            if tokens > 1 and wrote_s > 0.0:
                costs.learn(served.token_cost_key, 1, 1, wrote_s / (tokens - 1), threads)
        elif served.worker is not None and served.worker.is_new_cost(event.batch, compute_s):
            # Else one client's long lists would make every batch look as long as they took in all.
            compute_s /= max(1, event.steps)
            # What takes several steps is computed in turn with the others, and shares a step with them at its end only.
            most = self._context.grant.max_rows
            beside = () if event.steps > 1 else [one for one in served.running.values() if one.rows <= most]
            row_bytes = max(inside.size_bytes // inside.rows for inside in (job, *beside))
            costs.learn(served.cost_key, event.batch, row_bytes * event.batch, compute_s, threads)

    def take_death(self, served: ServedModel, death: WorkerDeath) -> None:
        """The worker is gone: its jobs wait again, or are answered when they were inside a dead worker twice."""
        now_s = self._context.clock.monotonic_s()
        evicted = served.lifecycle.state is ModelState.EVICTING
        jobs = list(served.running.values())
        quarantined = served.worker_died(now_s, self._quarantine_deaths)
        data = {"model": served.name, "jobs": len(jobs), "cause": death.cause.value}
        self._context.announce("worker-died", f"model {served.name!r}: {death.reason}", data)
        for job in jobs:
            if job.state is JobState.RUNNING:
                self._requeue(served, job, death.reason, evicted)
        served.clear_running()
        if quarantined:
            deaths = len(served.lifecycle.deaths_s)
            text = f"model {served.name!r} is left alone after {deaths} worker deaths; `edge-agent load` lifts this"
            self._context.announce("quarantined", text, {"model": served.name})

    def _requeue(self, served: ServedModel, job: Job, reason: str, evicted: bool) -> None:
        """A job was inside when its worker died: it waits again, unless it began to be answered or was inside twice."""
        if job.parts:
            self.stop(served, job, 500, Cause.WORKER_DIED, f"its worker died: {reason}")
        elif job.attempts >= MAX_ATTEMPTS and not evicted:
            self._answers.refuse(job, 500, Cause.WORKER_DIED, f"the worker died twice with this request: {reason}")
        else:
            job.to(JobState.QUEUED)
            served.put_back(job)

    # ---- ends that the worker does not bring about -----------------------------------------------------------------

    def cancel(self, served: ServedModel, job: Job) -> None:
        """Answer a job with 499 and take it out of the queue or the worker."""
        self._end(served, job, 499, Cause.CANCELLED, "cancelled by the client")

    def displace(self, served: ServedModel, job: Job, reason: str, retry_after_s: float) -> None:
        """Answer a job that waits with 429 and take it out of the queue: another client's gets its place."""
        served.withdraw(job)
        self._answers.displace(job, reason, retry_after_s)

    def stop(self, served: ServedModel, job: Job, status: int, cause: Cause, reason: str) -> None:
        """End a running answer, report it in an event, and take it out of the worker."""
        self._announce_stop(served, job, reason)
        self._end(served, job, status, cause, reason)

    def _announce_stop(self, served: ServedModel, job: Job, reason: str) -> None:
        data = {"model": served.name, "id": job.key[1], "parts": job.parts}
        text = f"an answer of model {served.name!r} was stopped: {reason}"
        self._context.announce("stream-stopped", text, data, client=job.key[0])

    def _end(
        self, served: ServedModel, job: Job, status: int, cause: Cause, reason: str, retry_after_s: float | None = None
    ) -> None:
        was_running = job.state is JobState.RUNNING
        served.withdraw(job)
        self._answers.refuse(job, status, cause, reason, retry_after_s)
        if was_running and served.worker is not None:
            task = asyncio.create_task(self._take_back(served, served.worker.process, job))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _take_back(self, served: ServedModel, worker: Worker, job: Job) -> None:
        """Ask the worker to drop a job that was answered already. It does so between two steps, a generator within."""
        with contextlib.suppress(WorkerError):
            if await worker.cancel(job.job_id):
                served.leave(job)
