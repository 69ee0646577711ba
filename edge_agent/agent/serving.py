"""Schedule, run, collect: one loop per model, from its queue to its worker and back to the answers.

A dead worker's jobs go back to the queue once, then are answered with 500. An idle worker never waits for a batch. A
generator's jobs end one by one, and whoever waits takes the place of the one that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.deadline_monitor import DeadlineMonitor, Endings
from edge_agent.agent.handover import learn, reply_topic, work_fields
from edge_agent.agent.model_manager import InUse, ModelManager, NoRoom
from edge_agent.agent.ports import Worker, WorkerEvent
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.agent.step_gate import StepGate
from edge_agent.base.errors import RequestError, WorkerError
from edge_agent.core import backoff
from edge_agent.core.forecast import batch_s, least_s
from edge_agent.core.grammar_bans import brings_program, by_itself
from edge_agent.core.job import MAX_ATTEMPTS, Job, JobState
from edge_agent.core.scheduler import BatchLimits

log = logging.getLogger("edge_agent")
RESPAWN_BASE_S = 0.05
RESPAWN_CAP_S = 30.0
DEMAND_S = 60.0
"""A model that requests did not wait for is loaded for their sake this often at most."""
TOLD_AGAIN_S = 600.0
"""A load that fails again and again is told so often."""


class Answers(Endings, Protocol):
    """What the dispatcher says about a job; `agent.respond.Responder`."""

    def part(self, job: Job, text: str) -> bool:
        """A part of a streamed answer; False when it cannot be sent now."""
        ...

    def done(self, job: Job, seat: ServedModel, event: WorkerEvent) -> None:
        """The worker's answer."""
        ...


class ModelServer:
    """Runs every seat's loop."""

    def __init__(
        self, context: Context, fleet: ModelManager, answers: Answers, quarantine_deaths: int, flush_ms: float = 100.0
    ) -> None:
        self._context = context
        self._fleet = fleet
        self._answers = answers
        self._quarantine_deaths = quarantine_deaths
        self._flush_ms = flush_ms
        self.fault: str | None = None
        self._cancelling: set[asyncio.Task[None]] = set()
        self._turns = StepGate(context)
        self.overdue = DeadlineMonitor(context, fleet, answers, self.stop)
        fleet.on_event = self._take_event
        fleet.on_death = self._take_death

    def start(self, seat: ServedModel) -> None:
        """Begin to serve a seat."""
        seat.task = asyncio.create_task(self._serve(seat), name=f"serve-{seat.name}")
        seat.task.add_done_callback(self._serving_ended)

    def _serving_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by an error nobody foresaw serves its model no more: said to whoever watches the process."""
        if not task.cancelled() and task.exception() is not None:
            self.fault = f"{task.get_name()} ended: {task.exception()!r}"
            log.error("%s", self.fault, exc_info=task.exception())

    def add(self, seat: ServedModel, job: Job) -> None:
        """A job waits for this seat's worker."""
        seat.queue.add(job)
        seat.wake.set()

    def demand(self, seat: ServedModel, now_s: float) -> None:
        """A request could not wait for the load of its model: who tries again is to find it loaded, or under way.

        Else a load that was slow once, and is expected to be so again, would keep every such request out for ever.
        """
        if seat.phase is Phase.ABSENT and now_s - seat.demanded_s >= DEMAND_S:
            seat.demanded_s, seat.wanted = now_s, True
            seat.wake.set()

    def cancel(self, seat: ServedModel, job: Job) -> None:
        """Answer a job with 499 and take it out of the queue or the worker."""
        self._end(seat, job, 499, "cancelled by the client")

    def stop_streams(self, reason: str, request_id: str | None = None, topic: str | None = None) -> None:
        """Nobody hears the answers that come in parts (of one request, or of all): they end, and their memory is free.

        A stream that has not begun is not concerned: perhaps it is heard again by then.
        """
        for seat in self._fleet.every_seat():
            for job in [job for job in seat.running.values() if job.parts and job.state is JobState.RUNNING]:
                if request_id in {None, job.key[1]} and topic in {None, reply_topic(job)}:
                    self.stop(seat, job, 499, reason)

    def stop(self, seat: ServedModel, job: Job, status: int, reason: str) -> None:
        """End a running answer, say so in an event, and take it out of the worker."""
        self._announce_stop(seat, job, reason)
        self._end(seat, job, status, reason)

    def _announce_stop(self, seat: ServedModel, job: Job, reason: str) -> None:
        data = {"model": seat.name, "id": job.key[1], "parts": job.parts}
        self._context.announce("stream-stopped", f"an answer of model {seat.name!r} was stopped: {reason}", data)

    def _end(self, seat: ServedModel, job: Job, status: int, reason: str) -> None:
        was_running = job.state is JobState.RUNNING
        seat.queue.remove(job)
        self._answers.refuse(job, status, reason)
        if was_running and seat.worker is not None:
            task = asyncio.create_task(self._take_back(seat, seat.worker, job))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _take_back(self, seat: ServedModel, worker: Worker, job: Job) -> None:
        """Ask the worker to drop a job that was answered already; it hears between two steps, a generator in one."""
        with contextlib.suppress(WorkerError):
            answer = await worker.call("cancel", id=job.job_id)
            if answer["cancelled"]:
                self._leave(seat, job)

    async def _serve(self, seat: ServedModel) -> None:
        while not self._fleet.left(seat):
            await seat.wake.wait()
            seat.wake.clear()
            while not seat.gone and (len(seat.queue) or seat.wanted):
                await self._turns.wait(seat)
                await self._fleet.room(seat)
                await self._fleet.give_way(seat)
                async with seat.lock:
                    await self._serve_once(seat)
            if seat.gone:
                self._drain(seat, 404, f"model {seat.name!r} was removed")
                await self._fleet.unload(seat)

    async def _serve_once(self, seat: ServedModel) -> None:
        try:
            await self._pause_after_deaths(seat)
            # Nobody waits for a model that is only to be resident: it is loaded where there is room, and evicts nobody.
            asked = len(seat.queue) > 0 or self._context.clock.monotonic_s() - seat.demanded_s < DEMAND_S
            await self._fleet.ensure_loaded(seat, evict=asked)
            seat.short_of_room = seat.wanted = False
            seat.settled.set()
            if not self._turns.may_begin(seat):
                return  # another model began while this one was loaded
            batch = await self._attach(seat, self._schedule(seat))
            if self._turns.may_begin(seat):
                await self._run(seat, batch)
            else:
                self._put_back(seat, batch)
        except NoRoom as error:
            self._wait_for_room(seat, error)
        except RequestError as error:
            seat.short_of_room = seat.wanted = False
            seat.settled.set()
            self._tell_failed(seat, error.reason)
            self._drain(seat, error.status, error.reason, error.retry_after_s)
        except WorkerError:
            # The worker died between two steps; `_take_death` has put its jobs back and said so. Go round again.
            pass

    def _tell_failed(self, seat: ServedModel, reason: str) -> None:
        """Not for every request that meets it again; a quarantine was told when it began."""
        now_s = self._context.clock.monotonic_s()
        if seat.phase is not Phase.QUARANTINED and now_s - seat.told_failed_s >= TOLD_AGAIN_S:
            seat.told_failed_s = now_s
            self._context.announce("load-failed", reason, {"model": seat.name})

    def _wait_for_room(self, seat: ServedModel, error: NoRoom) -> None:
        """Whom a later load would still serve in time waits; the others are told the arithmetic now."""
        if not seat.short_of_room:
            self._context.announce("load-failed", error.reason, {"model": seat.name}, "info")
        until_s = self._context.clock.monotonic_s() + seat.load_s
        for job in seat.queue.take(lambda waiting: waiting.deadline_s <= until_s):
            self._answers.refuse(job, error.status, error.reason, error.retry_after_s)
        seat.wanted = False
        seat.short_of_room = len(seat.queue) > 0
        seat.settled.set()

    async def _pause_after_deaths(self, seat: ServedModel) -> None:
        """The first successor comes at once; one that dies before it has answered anything makes the next wait."""
        if seat.worker is None and seat.deaths_in_a_row > 1 and seat.phase is not Phase.QUARANTINED:
            await asyncio.sleep(backoff.delay_s(seat.deaths_in_a_row - 2, RESPAWN_BASE_S, RESPAWN_CAP_S, 1.0))

    def _schedule(self, seat: ServedModel) -> list[Job]:
        self.overdue.expire_late()
        now_s = self._context.clock.monotonic_s()
        self.overdue.refuse_hopeless(seat, now_s, now_s)
        if seat.sequences:
            # Whose adapters are whose turn is the session's affair: it switches between two tokens.
            free = min(seat.sequences, self._context.grant.max_rows) - len(seat.running)
            near = frozenset(job.adapter for job in seat.running.values())
            return seat.queue.next_batch(BatchLimits(free, mixed=True, near=near), now_s) if free > 0 else []
        costs, at = self._context.costs, seat.station(self._context.grant)
        limits = BatchLimits(at.max_rows, seat.mixed, takes_s=functools.partial(batch_s, costs, at))
        batch = seat.queue.next_batch(limits, now_s)
        self.overdue.refuse_hopeless(seat, now_s, now_s + least_s(batch, costs, at))
        return batch

    async def _attach(self, seat: ServedModel, batch: list[Job]) -> list[Job]:
        """Make the batch's adapters resident; jobs whose adapter is refused are answered and leave the batch."""
        ready = []
        for job in batch:
            try:
                if job.adapter is not None:
                    await self._fleet.ensure_attached(seat, job.adapter)
            except InUse:
                self._put_back(seat, [job])
            except RequestError as error:
                if job.state is JobState.QUEUED:  # else it was cancelled meanwhile, and is answered
                    self._answers.refuse(job, error.status, error.reason, error.retry_after_s)
            except WorkerError:
                self._put_back(seat, batch)
                raise
            else:
                ready.append(job)
        return [job for job in ready if job.state is JobState.QUEUED]

    def _put_back(self, seat: ServedModel, batch: list[Job]) -> None:
        for job in batch:
            if job.state is JobState.QUEUED:
                seat.queue.add(job)

    async def _run(self, seat: ServedModel, batch: list[Job]) -> None:
        if not batch:
            return
        worker = seat.worker
        self._hand_over(seat, batch)
        try:
            if seat.sequences:
                await self._keep_fed(seat)
            else:
                await seat.idle.wait()
        except WorkerError:
            await seat.idle.wait()  # it is being ended, and still holds answers: its death takes them back
            raise
        finally:
            seat.last_used_s = self._context.clock.monotonic_s()
            self._context.pace.end(seat.name, seat.last_used_s)
            if seat.worker is not worker:
                # It died, perhaps after half a minute of silence: its successor need not rest from that.
                self._context.pace.forget(seat.name)
            self._turns.over()

    async def _keep_fed(self, seat: ServedModel) -> None:
        """While a generator works: give it what waits, as far as it has sequences free."""
        while seat.running:
            await seat.wake.wait()
            seat.wake.clear()
            if not self._may_join(seat):
                continue
            batch = await self._attach(seat, self._schedule(seat))
            if batch:
                self._hand_over(seat, batch)

    def _may_join(self, seat: ServedModel) -> bool:
        """Not when its worker is to end soon: for another version, for a model whose turn it is, for the heat."""
        current = seat.loaded_digest == seat.model.variant.digest and seat.worker is not None and not seat.gone
        open_ = not seat.orders and self._context.grant.busy_share > 0.0 and not self._fleet.turn_is_over(seat)
        return len(seat.running) > 0 and len(seat.queue) > 0 and current and open_

    def _hand_over(self, seat: ServedModel, batch: list[Job]) -> None:
        if seat.worker is None:
            self._put_back(seat, batch)
            raise WorkerError("the worker died before the batch reached it", seat.name)
        now_s = self._context.clock.monotonic_s()
        if not seat.running:
            self._context.pace.begin(seat.name, sum(job.rows for job in batch), now_s, seat.sequences > 0)
            self._fleet.tell_limits()
        for job in batch:
            job.start(now_s)
            while job.job_id in seat.running:  # an earlier one of this key was answered, and is still inside
                job.again += 1
            seat.running[job.job_id] = job
            self._context.energy.begin(job.job_id, job.rows, now_s)
        seat.heard_s = seat.last_used_s = now_s
        seat.learned = None
        seat.uses.note(now_s)
        seat.idle.clear()
        self._submit(seat, seat.worker, batch, now_s)

    def _submit(self, seat: ServedModel, worker: Worker, batch: list[Job], now_s: float) -> None:
        """Send a batch; where it does not fit into one frame each job goes alone, and only one too large is refused."""
        try:
            worker.submit([work_fields(seat, job, now_s, self._flush_ms) for job in batch])
        except WorkerError as error:
            if len(batch) > 1:
                for job in batch:
                    self._submit(seat, worker, [job], now_s)
                return
            self._leave(seat, batch[0])
            self._answers.refuse(batch[0], 413, str(error))

    def _take_event(self, seat: ServedModel, event: WorkerEvent) -> None:
        seat.heard_s = self._context.clock.monotonic_s()
        job = seat.running.get(event.get("id", ""))
        if job is None:
            return
        if event["ev"] == "chunk":
            if job.state is JobState.RUNNING and not self._answers.part(job, event["text"]):
                self.stop(seat, job, 503, "a part of it could not be sent")
            return
        if event["ev"] == "done":
            learn(self._context, seat, job, event)
        self._leave(seat, job)
        seat.deaths_in_a_row = 0
        if event.get("costly"):
            seat.suspects.note(job.key[0], seat.heard_s)
        if job.state is not JobState.RUNNING:
            return
        if event["ev"] == "failed":
            self._answers.refuse(job, event["status"], event["reason"])
        elif job.deadline_s <= seat.heard_s:
            self._answers.expire(job)
        else:
            if seat.sequences and event["results"][0]["finish_reason"] == "deadline":
                self._announce_stop(seat, job, "its deadline came; what there is of it was sent")
            self._answers.done(job, seat, event)

    def _take_death(self, seat: ServedModel, reason: str) -> None:
        """The worker is gone: its jobs wait again, or are answered when they were inside a dead worker twice."""
        now_s = self._context.clock.monotonic_s()
        self._fleet.forget_worker(seat)
        spared, seat.spared = seat.spared, False
        jobs = list(seat.running.values())
        suspect, seat.hung = seat.hung or by_itself(reason), False
        programs = [job for job in jobs if suspect and brings_program(job.params)]
        # Of several it cannot be told which it was: nobody is barred then.
        blamed = programs if len(programs) == 1 and not spared else []
        quarantined = not (spared or programs) and seat.died(now_s, self._quarantine_deaths)
        seat.deaths_in_a_row += 0 if spared else 1
        seat.phase = Phase.QUARANTINED if quarantined else Phase.ABSENT
        seat.wanted = seat.resident and not (spared or quarantined)
        if programs and not spared:
            seat.suspects.count(now_s)
        for job in blamed:
            seat.suspects.note(job.key[0], now_s)
        self._context.announce("worker-died", f"model {seat.name!r}: {reason}", {"model": seat.name, "jobs": len(jobs)})
        for job in jobs:
            if job.state is not JobState.RUNNING:
                continue
            if job.parts:
                self.stop(seat, job, 500, f"its worker died: {reason}")
            elif job in programs and not spared:
                self._answers.refuse(job, 500, f"the worker died with this request's grammar or schema: {reason}")
            elif job.attempts >= MAX_ATTEMPTS and not spared:
                self._answers.refuse(job, 500, f"the worker died twice with this request: {reason}")
            else:
                job.to(JobState.QUEUED)
                seat.queue.add(job)
        seat.running.clear()
        seat.idle.set()
        seat.wake.set()
        if quarantined:
            deaths = len(seat.deaths_s)
            text = f"model {seat.name!r} is left alone after {deaths} worker deaths; `edge-agent load` lifts this"
            self._context.announce("quarantined", text, {"model": seat.name})

    def abandon(self, reason: str) -> None:
        """Answer everything that is open with 503: the agent stops."""
        for job in self._context.ledger.open_jobs():
            self._answers.refuse(job, 503, reason)
        for seat in self._fleet.every_seat():
            seat.queue.take(lambda _job: True)

    def _leave(self, seat: ServedModel, job: Job) -> None:
        if seat.running.get(job.job_id) is job:
            del seat.running[job.job_id]
        if seat.sequences:
            seat.wake.set()
        if not seat.running:
            seat.idle.set()

    def _drain(self, seat: ServedModel, status: int, reason: str, retry_after_s: float | None = None) -> None:
        for job in seat.queue.take(lambda _job: True):
            self._answers.refuse(job, status, reason, retry_after_s)
