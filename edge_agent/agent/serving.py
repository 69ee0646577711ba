"""Schedule, run, collect: one loop per model, from its queue to its worker and back to the answers.

A dead worker's jobs go back to the queue once, then are answered with 500. An idle worker never waits for a batch. A
generator's jobs end one by one, and whoever waits takes the place of the one that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Collection
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.deadline_monitor import DeadlineMonitor, Endings
from edge_agent.agent.handover import job_work, learn, reply_topic
from edge_agent.agent.model_manager import InUse, ModelManager, NoRoom
from edge_agent.agent.ports import Worker
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.agent.step_gate import StepGate
from edge_agent.base.causes import Cause, WorkerDeath
from edge_agent.base.errors import RequestError, WorkerError
from edge_agent.core import backoff
from edge_agent.core.forecast import batch_s, least_s
from edge_agent.core.grammar_bans import brings_program, by_itself
from edge_agent.core.job import MAX_ATTEMPTS, Job, JobState
from edge_agent.core.scheduler import BatchLimits
from edge_agent.protocol.worker_messages import AnyEvent, Heartbeat, JobDone, JobFailed, TextChunk

log = logging.getLogger("edge_agent")
RESPAWN_BASE_S = 0.05
RESPAWN_CAP_S = 30.0
DEMAND_S = 60.0
"""A model that requests did not wait for is loaded for their sake this often at most."""
TOLD_AGAIN_S = 600.0
"""A load that fails again and again is told so often."""


class Answers(Endings, Protocol):
    """What the server says about a job; `agent.respond.Responder`."""

    def part(self, job: Job, text: str) -> bool:
        """A part of a streamed answer; False when it cannot be sent now."""
        ...

    def done(self, job: Job, served: ServedModel, event: JobDone) -> None:
        """The worker's answer."""
        ...


class ModelServer:
    """Runs every served model's loop. `resident`: the models to hold in memory from the start ('all': every one)."""

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        answers: Answers,
        quarantine_deaths: int,
        flush_ms: float = 100.0,
        resident: Collection[str] = (),
    ) -> None:
        self._context = context
        self._manager = manager
        self._answers = answers
        self._quarantine_deaths = quarantine_deaths
        self._flush_ms = flush_ms
        self._resident = frozenset(resident)
        self.fault: str | None = None
        self._cancelling: set[asyncio.Task[None]] = set()
        self._step_gate = StepGate(context)
        self.overdue = DeadlineMonitor(context, manager, answers, self.stop)
        manager.on_event = self._take_event
        manager.on_death = self._take_death

    def start(self, served: ServedModel) -> None:
        """Begin to serve a served model."""
        served.task = asyncio.create_task(self._serve(served), name=f"serve-{served.name}")
        served.task.add_done_callback(self._serving_ended)

    def _serving_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by an error nobody foresaw serves its model no more: said to whoever watches the process."""
        if not task.cancelled() and task.exception() is not None:
            self.fault = f"{task.get_name()} ended: {task.exception()!r}"
            log.error("%s", self.fault, exc_info=task.exception())

    def add(self, served: ServedModel, job: Job) -> None:
        """A job waits for this served model's worker."""
        served.queue.add(job)
        served.wake.set()

    def want_resident(self) -> None:
        """Have the models loaded that the operator wants in memory although nobody asks them."""
        for served in self._manager.served_models.values():
            served.resident = "all" in self._resident or served.name in self._resident
            if served.resident:
                served.wanted = served.worker is None or served.loaded_digest != served.model.variant.digest
                served.wake.set()

    def demand(self, served: ServedModel, now_s: float) -> None:
        """A request could not wait for the load of its model: who tries again is to find it loaded, or under way.

        Else a load that was slow once, and is expected to be so again, would keep every such request out for ever.
        """
        if served.phase is Phase.ABSENT and now_s - served.demanded_s >= DEMAND_S:
            served.demanded_s, served.wanted = now_s, True
            served.wake.set()

    def cancel(self, served: ServedModel, job: Job) -> None:
        """Answer a job with 499 and take it out of the queue or the worker."""
        self._end(served, job, 499, Cause.CANCELLED, "cancelled by the client")

    def stop_streams(self, reason: str, request_id: str | None = None, topic: str | None = None) -> None:
        """Nobody hears the answers that come in parts (of one request, or of all): they end, and their memory is free.

        A stream that has not begun is not concerned: perhaps it is heard again by then.
        """
        for served in self._manager.every_served_model():
            for job in [job for job in served.running.values() if job.parts and job.state is JobState.RUNNING]:
                if request_id in {None, job.key[1]} and topic in {None, reply_topic(job)}:
                    self.stop(served, job, 499, Cause.CANCELLED, reason)

    def stop(self, served: ServedModel, job: Job, status: int, cause: Cause, reason: str) -> None:
        """End a running answer, say so in an event, and take it out of the worker."""
        self._announce_stop(served, job, reason)
        self._end(served, job, status, cause, reason)

    def _announce_stop(self, served: ServedModel, job: Job, reason: str) -> None:
        data = {"model": served.name, "id": job.key[1], "parts": job.parts}
        self._context.announce("stream-stopped", f"an answer of model {served.name!r} was stopped: {reason}", data)

    def _end(self, served: ServedModel, job: Job, status: int, cause: Cause, reason: str) -> None:
        was_running = job.state is JobState.RUNNING
        served.queue.remove(job)
        self._answers.refuse(job, status, cause, reason)
        if was_running and served.worker is not None:
            task = asyncio.create_task(self._take_back(served, served.worker, job))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _take_back(self, served: ServedModel, worker: Worker, job: Job) -> None:
        """Ask the worker to drop a job that was answered already; it hears between two steps, a generator in one."""
        with contextlib.suppress(WorkerError):
            if await worker.cancel(job.job_id):
                self._leave(served, job)

    async def _serve(self, served: ServedModel) -> None:
        while not self._manager.left(served):
            await served.wake.wait()
            served.wake.clear()
            while not served.gone and (len(served.queue) or served.wanted):
                await self._step_gate.wait(served)
                await self._manager.room(served)
                await self._manager.give_way(served)
                async with served.lock:
                    await self._serve_once(served)
            if served.gone:
                self._drain(served, RequestError(404, Cause.UNKNOWN_ADAPTER, f"model {served.name!r} was removed"))
                await self._manager.unload(served)

    async def _serve_once(self, served: ServedModel) -> None:
        try:
            await self._pause_after_deaths(served)
            # Nobody waits for a model that is only to be resident: it is loaded where there is room, and evicts nobody.
            asked = len(served.queue) > 0 or self._context.clock.monotonic_s() - served.demanded_s < DEMAND_S
            await self._manager.ensure_loaded(served, evict=asked)
            served.short_of_room = served.wanted = False
            served.settled.set()
            if not self._step_gate.may_begin(served):
                return  # another model began while this one was loaded
            batch = await self._attach(served, self._schedule(served))
            if self._step_gate.may_begin(served):
                await self._run(served, batch)
            else:
                self._put_back(served, batch)
        except NoRoom as error:
            self._wait_for_room(served, error)
        except RequestError as error:
            served.short_of_room = served.wanted = False
            served.settled.set()
            self._tell_failed(served, error.reason)
            self._drain(served, error)
        except WorkerError:
            # The worker died between two steps; `_take_death` has put its jobs back and said so. Go round again.
            pass

    def _tell_failed(self, served: ServedModel, reason: str) -> None:
        """Not for every request that meets it again; a quarantine was told when it began."""
        now_s = self._context.clock.monotonic_s()
        if served.phase is not Phase.QUARANTINED and now_s - served.told_failed_s >= TOLD_AGAIN_S:
            served.told_failed_s = now_s
            self._context.announce("load-failed", reason, {"model": served.name})

    def _wait_for_room(self, served: ServedModel, error: NoRoom) -> None:
        """Whom a later load would still serve in time waits; the others are told the arithmetic now."""
        if not served.short_of_room:
            self._context.announce("load-failed", error.reason, {"model": served.name}, "info")
        until_s = self._context.clock.monotonic_s() + served.load_s
        for job in served.queue.take(lambda waiting: waiting.deadline_s <= until_s):
            self._answers.refuse(job, error.status, error.cause, error.reason, error.retry_after_s)
        served.wanted = False
        served.short_of_room = len(served.queue) > 0
        served.settled.set()

    async def _pause_after_deaths(self, served: ServedModel) -> None:
        """The first successor comes at once; one that dies before it has answered anything makes the next wait."""
        if served.worker is None and served.deaths_in_a_row > 1 and served.phase is not Phase.QUARANTINED:
            await asyncio.sleep(backoff.delay_s(served.deaths_in_a_row - 2, RESPAWN_BASE_S, RESPAWN_CAP_S, 1.0))

    def _schedule(self, served: ServedModel) -> list[Job]:
        self.overdue.expire_late()
        now_s = self._context.clock.monotonic_s()
        self.overdue.refuse_hopeless(served, now_s, now_s)
        if served.sequences:
            # Whose adapters are whose turn is the session's affair: it switches between two tokens.
            free = min(served.sequences, self._context.grant.max_rows) - len(served.running)
            near = frozenset(job.adapter for job in served.running.values())
            return (
                served.queue.next_batch(BatchLimits(free, mixed=True, active_adapters=near), now_s) if free > 0 else []
            )
        costs, at = self._context.costs, served.station(self._context.grant)
        limits = BatchLimits(at.max_rows, served.mixed, predict_s=functools.partial(batch_s, costs, at))
        batch = served.queue.next_batch(limits, now_s)
        self.overdue.refuse_hopeless(served, now_s, now_s + least_s(batch, costs, at))
        return batch

    async def _attach(self, served: ServedModel, batch: list[Job]) -> list[Job]:
        """Make the batch's adapters resident; jobs whose adapter is refused are answered and leave the batch."""
        ready = []
        for job in batch:
            try:
                if job.adapter is not None:
                    await self._manager.ensure_attached(served, job.adapter)
            except InUse:
                self._put_back(served, [job])
            except RequestError as error:
                if job.state is JobState.QUEUED:  # else it was cancelled meanwhile, and is answered
                    self._answers.refuse(job, error.status, error.cause, error.reason, error.retry_after_s)
            except WorkerError:
                self._put_back(served, batch)
                raise
            else:
                ready.append(job)
        return [job for job in ready if job.state is JobState.QUEUED]

    def _put_back(self, served: ServedModel, batch: list[Job]) -> None:
        for job in batch:
            if job.state is JobState.QUEUED:
                served.queue.add(job)

    async def _run(self, served: ServedModel, batch: list[Job]) -> None:
        if not batch:
            return
        worker = served.worker
        self._hand_over(served, batch)
        try:
            if served.sequences:
                await self._keep_fed(served)
            else:
                await served.idle.wait()
        except WorkerError:
            await served.idle.wait()  # it is being ended, and still holds answers: its death takes them back
            raise
        finally:
            served.last_used_s = self._context.clock.monotonic_s()
            self._context.duty_cycle.end(served.name, served.last_used_s)
            if served.worker is not worker:
                # It died, perhaps after half a minute of silence: its successor need not rest from that.
                self._context.duty_cycle.forget(served.name)
            self._step_gate.over()

    async def _keep_fed(self, served: ServedModel) -> None:
        """While a generator works: give it what waits, as far as it has sequences free."""
        while served.running:
            await served.wake.wait()
            served.wake.clear()
            if not self._may_join(served):
                continue
            batch = await self._attach(served, self._schedule(served))
            if batch:
                self._hand_over(served, batch)

    def _may_join(self, served: ServedModel) -> bool:
        """Not when its worker is to end soon: for another version, for a model whose turn it is, for the heat."""
        current = served.loaded_digest == served.model.variant.digest and served.worker is not None and not served.gone
        open_ = not served.orders and self._context.grant.duty_share > 0.0 and not self._manager.turn_is_over(served)
        return len(served.running) > 0 and len(served.queue) > 0 and current and open_

    def _hand_over(self, served: ServedModel, batch: list[Job]) -> None:
        if served.worker is None:
            self._put_back(served, batch)
            raise WorkerError("the worker died before the batch reached it", served.name)
        now_s = self._context.clock.monotonic_s()
        if not served.running:
            self._context.duty_cycle.begin(served.name, sum(job.rows for job in batch), now_s, served.sequences > 0)
            self._manager.tell_limits()
        for job in batch:
            job.start(now_s)
            while job.job_id in served.running:  # an earlier one of this key was answered, and is still inside
                job.again += 1
            served.running[job.job_id] = job
            self._context.energy.begin(job.job_id, job.rows, now_s)
        served.heard_s = served.last_used_s = now_s
        served.learned = None
        served.uses.note(now_s)
        served.idle.clear()
        self._submit(served, served.worker, batch, now_s)

    def _submit(self, served: ServedModel, worker: Worker, batch: list[Job], now_s: float) -> None:
        """Send a batch; where it does not fit into one frame each job goes alone, and only one too large is refused."""
        try:
            worker.submit([job_work(served, job, now_s, self._flush_ms) for job in batch])
        except WorkerError as error:
            if len(batch) > 1:
                for job in batch:
                    self._submit(served, worker, [job], now_s)
                return
            self._leave(served, batch[0])
            self._answers.refuse(batch[0], 413, Cause.TOO_LARGE, str(error))

    def _take_event(self, served: ServedModel, event: AnyEvent) -> None:
        served.heard_s = self._context.clock.monotonic_s()
        job = None if isinstance(event, Heartbeat) else served.running.get(event.id)
        if job is None or isinstance(event, Heartbeat):
            return
        if isinstance(event, TextChunk):
            if job.state is JobState.RUNNING and not self._answers.part(job, event.text):
                self.stop(served, job, 503, Cause.UNAVAILABLE, "a part of it could not be sent")
            return
        if isinstance(event, JobDone):
            learn(self._context, served, job, event)
        self._leave(served, job)
        served.deaths_in_a_row = 0
        if isinstance(event, JobFailed) and event.costly:
            served.suspects.note(job.key[0], served.heard_s)
        if job.state is not JobState.RUNNING:
            return
        if isinstance(event, JobFailed):
            self._answers.refuse(job, event.status, event.cause, event.reason)
        elif job.deadline_s <= served.heard_s:
            self._answers.expire(job)
        else:
            if event.generated is not None and event.results[0]["finish_reason"] == "deadline":
                self._announce_stop(served, job, "its deadline came; what there is of it was sent")
            self._answers.done(job, served, event)

    def _take_death(self, served: ServedModel, death: WorkerDeath) -> None:
        """The worker is gone: its jobs wait again, or are answered when they were inside a dead worker twice."""
        now_s, reason = self._context.clock.monotonic_s(), death.reason
        self._manager.forget_worker(served)
        spared, served.spared = served.spared, False
        jobs = list(served.running.values())
        programs = [job for job in jobs if by_itself(death.cause) and brings_program(job.params)]
        # Of several it cannot be told which it was: nobody is barred then.
        blamed = programs if len(programs) == 1 and not spared else []
        quarantined = not (spared or programs) and served.died(now_s, self._quarantine_deaths)
        served.deaths_in_a_row += 0 if spared else 1
        served.phase = Phase.QUARANTINED if quarantined else Phase.ABSENT
        served.wanted = served.resident and not (spared or quarantined)
        if programs and not spared:
            served.suspects.count(now_s)
        for job in blamed:
            served.suspects.note(job.key[0], now_s)
        self._context.announce(
            "worker-died", f"model {served.name!r}: {reason}", {"model": served.name, "jobs": len(jobs)}
        )
        for job in jobs:
            if job.state is not JobState.RUNNING:
                continue
            if job.parts:
                self.stop(served, job, 500, Cause.WORKER_DIED, f"its worker died: {reason}")
            elif job in programs and not spared:
                why = f"the worker died with this request's grammar or schema: {reason}"
                self._answers.refuse(job, 500, Cause.WORKER_DIED, why)
            elif job.attempts >= MAX_ATTEMPTS and not spared:
                self._answers.refuse(job, 500, Cause.WORKER_DIED, f"the worker died twice with this request: {reason}")
            else:
                job.to(JobState.QUEUED)
                served.queue.add(job)
        served.running.clear()
        served.idle.set()
        served.wake.set()
        if quarantined:
            deaths = len(served.deaths_s)
            text = f"model {served.name!r} is left alone after {deaths} worker deaths; `edge-agent load` lifts this"
            self._context.announce("quarantined", text, {"model": served.name})

    def abandon(self, reason: str) -> None:
        """Answer everything that is open with 503: the agent stops."""
        for job in self._context.requests.open_jobs():
            self._answers.refuse(job, 503, Cause.UNAVAILABLE, reason)
        for served in self._manager.every_served_model():
            served.queue.take(lambda _job: True)

    def _leave(self, served: ServedModel, job: Job) -> None:
        if served.running.get(job.job_id) is job:
            del served.running[job.job_id]
        if served.sequences:
            served.wake.set()
        if not served.running:
            served.idle.set()

    def _drain(self, served: ServedModel, error: RequestError) -> None:
        for job in served.queue.take(lambda _job: True):
            self._answers.refuse(job, error.status, error.cause, error.reason, error.retry_after_s)
