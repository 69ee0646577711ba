"""Schedule, run, collect: one loop per model, from its queue to its worker and back to the answers.

A dead worker's jobs go back to the queue once, then are answered with 500. An idle worker never waits for a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.fleet import Fleet, NoRoom
from edge_agent.agent.ports import Worker, WorkerEvent
from edge_agent.agent.seat import Phase, Seat
from edge_agent.base.errors import RequestError, WorkerError
from edge_agent.base.limits import WORKER_SILENCE_S
from edge_agent.base.units import duration_text
from edge_agent.core import backoff
from edge_agent.core.job import MAX_ATTEMPTS, Job, State
from edge_agent.core.scheduler import BatchLimits

log = logging.getLogger("edge_agent")
RESPAWN_BASE_S = 0.05
RESPAWN_CAP_S = 30.0
REST_LOOK_S = 0.5
REST_LEAST_S = 1e-5
"""What is left of a pause by rounding is none: a timer for it would come at once, again and again."""


class Answers(Protocol):
    """What the dispatcher says about a job; `agent.respond.Responder`."""

    def done(self, job: Job, seat: Seat, event: WorkerEvent) -> None:
        """The worker's answer."""
        ...

    def refuse(self, job: Job, status: int, reason: str, retry_after_s: float | None = None) -> None:
        """A status word other than 200; the job's state follows from it."""
        ...

    def expire(self, job: Job) -> None:
        """The deadline passed: no answer."""
        ...


class Dispatcher:
    """Runs every seat's loop."""

    def __init__(self, context: Context, fleet: Fleet, answers: Answers, quarantine_deaths: int) -> None:
        self._context = context
        self._fleet = fleet
        self._answers = answers
        self._quarantine_deaths = quarantine_deaths
        self.fault: str | None = None
        self._cancelling: set[asyncio.Task[None]] = set()
        fleet.on_event = self._take_event
        fleet.on_death = self._take_death

    def start(self, seat: Seat) -> None:
        """Begin to serve a seat."""
        seat.task = asyncio.create_task(self._serve(seat), name=f"serve-{seat.name}")
        seat.task.add_done_callback(self._serving_ended)

    def _serving_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by an error nobody foresaw serves its model no more: said to whoever watches the process."""
        if not task.cancelled() and task.exception() is not None:
            self.fault = f"{task.get_name()} ended: {task.exception()!r}"
            log.error("%s", self.fault, exc_info=task.exception())

    def add(self, seat: Seat, job: Job) -> None:
        """A job waits for this seat's worker."""
        seat.queue.add(job)
        seat.wake.set()

    def cancel(self, seat: Seat, job: Job) -> None:
        """Answer a job with 499 and take it out of the queue or the worker."""
        was_running = job.state is State.RUNNING
        seat.queue.remove(job)
        self._answers.refuse(job, 499, "cancelled by the client")
        if was_running and seat.worker is not None:
            task = asyncio.create_task(self._take_back(seat, seat.worker, job.job_id))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _take_back(self, seat: Seat, worker: Worker, job_id: str) -> None:
        """Ask the worker to drop a job that was answered already; it hears between two steps."""
        with contextlib.suppress(WorkerError):
            answer = await worker.call("cancel", id=job_id)
            if answer["cancelled"]:
                self._leave(seat, job_id)

    async def _serve(self, seat: Seat) -> None:
        while not self._fleet.left(seat):
            await seat.wake.wait()
            seat.wake.clear()
            while not seat.gone and (len(seat.queue) or seat.wanted):
                await self._rest(seat)
                await self._fleet.room(seat)
                await self._fleet.give_way(seat)
                async with seat.lock:
                    await self._serve_once(seat)
            if seat.gone:
                self._drain(seat, 404, f"model {seat.name!r} was removed")
                await self._fleet.unload(seat)

    async def _rest(self, seat: Seat) -> None:
        """The pause since the last step that the governor's pace asks for; looked at again, since the grant changes."""
        while not seat.gone:
            rest_s = self._context.pace.rest_s(seat.name, self._context.grant, self._context.clock.monotonic_s())
            if rest_s <= REST_LEAST_S:
                return
            await asyncio.sleep(min(rest_s, REST_LOOK_S))

    async def _serve_once(self, seat: Seat) -> None:
        try:
            await self._pause_after_deaths(seat)
            # Nobody waits for a model that is only to be resident: it is loaded where there is room, and evicts nobody.
            await self._fleet.ensure_loaded(seat, evict=len(seat.queue) > 0)
            seat.short_of_room = seat.wanted = False
            seat.settled.set()
            batch = self._schedule(seat)
            batch = await self._attach(seat, batch)
            await self._run(seat, batch)
        except NoRoom as error:
            self._wait_for_room(seat, error)
        except RequestError as error:
            seat.short_of_room = seat.wanted = False
            seat.settled.set()
            self._context.announce("load-failed", error.reason, {"model": seat.name})
            self._drain(seat, error.status, error.reason, error.retry_after_s)
        except WorkerError:
            # The worker died between two steps; `_take_death` has put its jobs back and said so. Go round again.
            pass

    def _wait_for_room(self, seat: Seat, error: NoRoom) -> None:
        """Whom a later load would still serve in time waits; the others are told the arithmetic now."""
        if not seat.short_of_room:
            self._context.announce("load-failed", error.reason, {"model": seat.name}, "info")
        until_s = self._context.clock.monotonic_s() + seat.load_s
        for job in seat.queue.take(lambda waiting: waiting.deadline_s <= until_s):
            self._answers.refuse(job, error.status, error.reason, error.retry_after_s)
        seat.wanted = False
        seat.short_of_room = len(seat.queue) > 0
        seat.settled.set()

    async def _pause_after_deaths(self, seat: Seat) -> None:
        """The first successor comes at once; one that dies before it has answered anything makes the next wait."""
        if seat.worker is None and seat.deaths_in_a_row > 1 and seat.phase is not Phase.QUARANTINED:
            await asyncio.sleep(backoff.delay_s(seat.deaths_in_a_row - 2, RESPAWN_BASE_S, RESPAWN_CAP_S, 1.0))

    def _schedule(self, seat: Seat) -> list[Job]:
        self.expire_late()
        now_s = self._context.clock.monotonic_s()
        self._refuse_hopeless(seat, now_s)
        return seat.queue.next_batch(BatchLimits(self._context.grant.max_rows, seat.mixed), now_s)

    def expire_late(self) -> None:
        """What waited too long leaves, also where a load or a rest holds its seat up; called by the watch, too."""
        now_s = self._context.clock.monotonic_s()
        for seat in self._fleet.every_seat():
            for job in seat.queue.take(lambda waiting: waiting.deadline_s <= now_s):
                self._answers.expire(job)

    def _refuse_hopeless(self, seat: Seat, now_s: float) -> None:
        """What others overtook and can no longer be computed in time is told so while its client still listens."""

        def needed(job: Job) -> float:
            threads = self._context.grant.threads
            return self._context.costs.least_s(seat.cost_key, job.rows, job.size_bytes, threads) or 0.0

        for job in seat.queue.take(lambda waiting: now_s + needed(waiting) > waiting.deadline_s):
            needed_s = needed(job)
            reason = (
                f"cannot meet the deadline any more: {duration_text(needed_s)} of compute are ahead, "
                f"{duration_text(job.deadline_s - now_s)} are left"
            )
            self._answers.refuse(job, 503, reason, round(needed_s, 3))

    async def _attach(self, seat: Seat, batch: list[Job]) -> list[Job]:
        """Make the batch's adapters resident; jobs whose adapter is refused are answered and leave the batch."""
        ready = []
        for job in batch:
            try:
                if job.adapter is not None:
                    await self._fleet.ensure_attached(seat, job.adapter)
            except RequestError as error:
                if job.state is State.QUEUED:  # else it was cancelled meanwhile, and is answered
                    self._answers.refuse(job, error.status, error.reason, error.retry_after_s)
            except WorkerError:
                self._put_back(seat, batch)
                raise
            else:
                ready.append(job)
        return [job for job in ready if job.state is State.QUEUED]

    def _put_back(self, seat: Seat, batch: list[Job]) -> None:
        for job in batch:
            if job.state is State.QUEUED:
                seat.queue.add(job)

    async def _run(self, seat: Seat, batch: list[Job]) -> None:
        if not batch:
            return
        if seat.worker is None:
            self._put_back(seat, batch)
            raise WorkerError("the worker died before the batch reached it", seat.name)
        now_s = self._context.clock.monotonic_s()
        for job in batch:
            job.start(now_s)
            seat.running[job.job_id] = job
            self._context.energy.begin(job.job_id, job.rows, now_s)
        seat.heard_s = seat.last_used_s = now_s
        seat.uses.note(now_s)
        seat.idle.clear()
        self._context.pace.begin(seat.name, sum(job.rows for job in batch), now_s)
        worker = seat.worker
        self._submit(seat, worker, batch)
        try:
            await seat.idle.wait()
        finally:
            seat.last_used_s = self._context.clock.monotonic_s()
            self._context.pace.end(seat.name, seat.last_used_s)
            if seat.worker is not worker:
                # It died, perhaps after half a minute of silence: its successor need not rest from that.
                self._context.pace.forget(seat.name)

    def _submit(self, seat: Seat, worker: Worker, batch: list[Job]) -> None:
        """Send a batch; where it does not fit into one frame each job goes alone, and only one too large is refused."""
        try:
            worker.submit([work_fields(job) for job in batch])
        except WorkerError as error:
            if len(batch) > 1:
                for job in batch:
                    self._submit(seat, worker, [job])
                return
            self._leave(seat, batch[0].job_id)
            self._answers.refuse(batch[0], 413, str(error))

    def _take_event(self, seat: Seat, event: WorkerEvent) -> None:
        seat.heard_s = self._context.clock.monotonic_s()
        job = seat.running.get(event["id"])
        if job is None:
            return
        self._leave(seat, job.job_id)
        seat.deaths_in_a_row = 0
        if job.state is not State.RUNNING:
            return
        if event["ev"] == "failed":
            self._answers.refuse(job, event["status"], event["reason"])
        elif job.deadline_s <= seat.heard_s:
            self._answers.expire(job)
        else:
            rows = event["batch"]
            self._context.costs.learn(
                seat.cost_key,
                rows,
                job.size_bytes // job.rows * rows,
                event["compute_ms"] / 1000.0,
                self._context.grant.threads,
            )
            self._answers.done(job, seat, event)

    def _take_death(self, seat: Seat, reason: str) -> None:
        """The worker is gone: its jobs wait again, or are answered when they were inside a dead worker twice."""
        now_s = self._context.clock.monotonic_s()
        self._fleet.forget_worker(seat)
        spared, seat.spared = seat.spared, False
        quarantined = not spared and seat.died(now_s, self._quarantine_deaths)
        seat.deaths_in_a_row += 0 if spared else 1
        seat.phase = Phase.QUARANTINED if quarantined else Phase.ABSENT
        jobs = list(seat.running.values())
        self._context.announce("worker-died", f"model {seat.name!r}: {reason}", {"model": seat.name, "jobs": len(jobs)})
        for job in jobs:
            if job.state is not State.RUNNING:
                continue
            if job.attempts >= MAX_ATTEMPTS and not spared:
                self._answers.refuse(job, 500, f"the worker died twice with this request: {reason}")
            else:
                job.to(State.QUEUED)
                seat.queue.add(job)
        seat.running.clear()
        seat.idle.set()
        seat.wake.set()
        if quarantined:
            text = f"model {seat.name!r} is left alone after {len(seat.deaths_s)} worker deaths; `cmd/load` lifts this"
            self._context.announce("quarantined", text, {"model": seat.name})

    def abandon(self, reason: str) -> None:
        """Answer everything that is open with 503: the agent stops."""
        for job in self._context.ledger.open_jobs():
            self._answers.refuse(job, 503, reason)

    def end_silent(self) -> None:
        """Kill workers that have jobs and have reported nothing for too long; called by the watch."""
        now_s = self._context.clock.monotonic_s()
        for seat in self._fleet.every_seat():
            if seat.running and seat.worker is not None and now_s - seat.heard_s > WORKER_SILENCE_S:
                self._context.announce("worker-hung", f"model {seat.name!r} is silent; ending it", {"model": seat.name})
                seat.worker.kill()

    def _leave(self, seat: Seat, job_id: str) -> None:
        seat.running.pop(job_id, None)
        if not seat.running:
            seat.idle.set()

    def _drain(self, seat: Seat, status: int, reason: str, retry_after_s: float | None = None) -> None:
        for job in seat.queue.take(lambda _job: True):
            self._answers.refuse(job, status, reason, retry_after_s)


def work_fields(job: Job) -> dict[str, object]:
    """A job as the plain map that crosses to the child."""
    return {"id": job.job_id, "adapter": job.adapter, "texts": job.texts, "params": job.params}
