"""The serving loop of every model: wait, schedule, attach, run, collect.

A model's batches run one after the other; a generator's jobs end one by one, and the next job takes the place of the
one that ended. `_serve_batch` is the loop's body and states, in order, what a batch waits for.

A load, a pause or a long step holds such a loop up. `DeadlineMonitor` therefore runs beside them, once a second for all
models: jobs that are too late, answers past their deadline, workers that fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Collection, Mapping

from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager, NoRoom
from edge_agent.agent.respond import Origin
from edge_agent.agent.served_model import InUse, ServedModel
from edge_agent.agent.worker_events import Answers, WorkerEventHandler
from edge_agent.agent.worker_handle import WorkerHandle
from edge_agent.base.causes import Cause, DeathCause
from edge_agent.base.errors import RequestError, WorkerError
from edge_agent.base.limits import ANSWERS_BEYOND, WORKER_SILENCE_S
from edge_agent.base.units import duration_text
from edge_agent.core.duty_cycle import LEAST_PAUSE_S
from edge_agent.core.forecast import batch_s, least_s, take_hopeless
from edge_agent.core.job import Job, JobState
from edge_agent.core.model_lifecycle import ModelState
from edge_agent.core.scheduler import BatchLimits
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.protocol.worker_messages import JobWork

log = logging.getLogger("edge_agent")
OUTBOX_LOOK_S = 0.05
"""How often a model looks whether its answers could leave, while the way to the broker is nearly full."""
PAUSE_LOOK_S = 0.5
"""A model that pauses asks again after this time: the governor's grant changes."""


class StepGate:
    """Lets a model wait until its next step may begin.

    An encoder waits for the pause that the duty cycle demands and, where models run one at a time, for another
    encoder's step and for models whose last step is longer ago. A generator waits only while no step at all may begin.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._step_over = asyncio.Event()

    def may_begin(self, served: ServedModel) -> bool:
        """Whether the model's next step may begin now."""
        return self._pause_s(served) <= LEAST_PAUSE_S

    async def wait(self, served: ServedModel) -> None:
        """Return when the served model's next step may begin, or when the model is removed."""
        self._context.duty_cycle.wait(served.name)
        try:
            while not served.lifecycle.is_removed and (pause_s := self._pause_s(served)) > LEAST_PAUSE_S:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._step_over.wait(), min(pause_s, PAUSE_LOOK_S))
        finally:
            self._context.duty_cycle.leave(served.name)
            self.step_is_over()

    def step_is_over(self) -> None:
        """A step has ended, or was not taken: the models that wait look again."""
        self._step_over.set()
        self._step_over = asyncio.Event()

    def _pause_s(self, served: ServedModel) -> float:
        now_s = self._context.clock.monotonic_s()
        return self._context.duty_cycle.pause_s(served.name, self._context.grant, now_s, served.generates)


class ModelServer:
    """Runs the loop of every served model.

    `flush_ms`: milliseconds between two parts of a stream. `resident`: names of the models to hold in memory
    from the start ('all': every one).
    """

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        events: WorkerEventHandler,
        answers: Answers,
        flush_ms: float = 100.0,
        resident: Collection[str] = (),
    ) -> None:
        self._context = context
        self._manager = manager
        self._events = events
        self._answers = answers
        self._flush_ms = flush_ms
        self._resident = frozenset(resident)
        self._step_gate = StepGate(context)
        self.deadlines = DeadlineMonitor(context, manager, events, answers)
        self.fault: str | None = None

    # ---- what others ask -------------------------------------------------------------------------------------------

    def start(self, served: ServedModel) -> None:
        """Begin to serve a model."""
        task = asyncio.create_task(self._serve(served), name=f"serve-{served.name}")
        task.add_done_callback(self._serving_ended)
        served.serve_by(task)

    def _serving_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by an unforeseen error serves its model no more: the watchdog asks for `fault`."""
        if not task.cancelled() and task.exception() is not None:
            self.fault = f"{task.get_name()} ended: {task.exception()!r}"
            log.error("%s", self.fault, exc_info=task.exception())

    def add(self, served: ServedModel, job: Job) -> None:
        """A job waits for this served model's worker, unless a version on trial takes it."""
        if not served.is_diverted(job):
            served.enqueue(job)

    def want_resident(self) -> None:
        """Have the models loaded that the operator wants in memory although no request waits for them."""
        for served in self._manager.served_models.values():
            resident = ("all" in self._resident or served.name in self._resident) and not served.lent
            served.lifecycle.keep_resident(resident, served.is_current)
            if resident:
                served.wake_up()

    def demand(self, served: ServedModel, now_s: float) -> None:
        """Load a model for which a request could not wait, so that the client finds it loaded when it tries again.

        Without this, a model whose load was slow once, and is expected to be slow, would refuse every request with a
        short deadline and never be loaded.
        """
        if served.lifecycle.demand(now_s):
            served.wake_up()

    def stop_streams(self, reason: str, request_id: str | None = None, topic: str | None = None) -> None:
        """End the streamed answers (of one request, or all) that no client receives any more, and free their memory.

        A stream that has not begun is left: a client may receive it by then.
        """
        for served in self._manager.every_served_model():
            for job in [job for job in served.running.values() if job.parts and job.state is JobState.RUNNING]:
                if request_id in {None, job.key[1]} and topic in {None, _reply_topic(job)}:
                    self._events.stop(served, job, 499, Cause.CANCELLED, reason)

    def abandon(self, reason: str) -> None:
        """Answer every open request with 503, because the agent stops, and empty the queues."""
        for job in self._context.requests.open_jobs():
            self._answers.refuse(job, 503, Cause.UNAVAILABLE, reason)
        for served in self._manager.every_served_model():
            served.queue.take(lambda _job: True)

    # ---- the loop --------------------------------------------------------------------------------------------------

    async def _serve(self, served: ServedModel) -> None:
        while not self._manager.forget_if_done(served):
            await served.woken()
            while not served.lifecycle.is_removed and (len(served.queue) or served.lifecycle.wanted):
                await self._serve_batch(served)
            if served.lifecycle.is_removed:
                self._refuse_all(served, RequestError(404, Cause.MODEL_REMOVED, f"model {served.name!r} was removed"))
                await self._manager.unload(served)

    async def _serve_batch(self, served: ServedModel) -> None:
        """One batch: wait, schedule, attach, run and collect. The numbered gates are all that it waits for."""
        # 1. The duty cycle: where heat limits, models step in turns. First, and without the lock: a pause may take
        #    seconds, in which orders, probes and evictions of this model are to go on.
        await self._step_gate.wait(served)
        # 2. Memory, where the last load found none: until some was freed, or a moment has passed. Asking at once again
        #    would find none again. Without the lock, as above.
        await self._manager.memory_may_be_free(served)
        # 3. The way out: no work is begun whose answers could not leave. Without the lock, as above.
        await self._answers_can_leave(served)
        # 4. A model that has had its turn lets a model in that waits for memory. Without the lock, since that one
        #    takes it in order to evict this one; and between two batches, since nothing is inside then.
        await self._manager.give_way(served)
        # 5. The lock: the worker is used by one at a time (a batch, a load, an order, a probe, an eviction).
        async with served.lock:
            try:
                # 6. The pause after deaths in a row, so that a model that dies at every load leaves the cores to
                #    others. With the lock: an order to load waits for the pause, too.
                await self._pause_after_deaths(served)
                # 7. The load comes last: a model takes memory only when it waits for nothing else.
                worker = await self._ensure_loaded(served)
                # 8. The duty cycle again: another model may have begun a step during the load, or while an adapter
                #    was attached. The loop then begins anew with gate 1.
                if not self._step_gate.may_begin(served):
                    return
                batch = await self._attach(served, self._schedule(served, worker))
                if self._step_gate.may_begin(served):
                    await self._run(served, batch)
                else:
                    self._put_back(served, batch)
            except NoRoom as error:
                self._wait_for_memory(served, error)
            except RequestError as error:
                self._load_was_refused(served, error)
            except WorkerError:
                pass  # The worker died. Its jobs wait again and the death was reported; the loop begins anew.

    async def _answers_can_leave(self, served: ServedModel) -> None:
        while self._context.transport.nearly_full and len(served.queue) and not served.lifecycle.is_removed:
            await asyncio.sleep(OUTBOX_LOOK_S)

    async def _pause_after_deaths(self, served: ServedModel) -> None:
        pause_s = served.lifecycle.respawn_pause_s
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _ensure_loaded(self, served: ServedModel) -> WorkerHandle:
        # A model that no request waits for (it is only to be resident) is loaded where there is memory: it evicts none.
        asked = len(served.queue) > 0 or served.lifecycle.was_demanded(self._context.clock.monotonic_s())
        worker = await self._manager.ensure_loaded(served, evict=asked)
        served.settle_load()
        return worker

    def _wait_for_memory(self, served: ServedModel, error: NoRoom) -> None:
        """Keep the jobs that a later load can still serve in time; refuse the others now, with the reason."""
        if not served.lifecycle.wants_memory:
            self._context.announce("load-failed", error.reason, {"model": served.name}, "info")
        until_s = self._context.clock.monotonic_s() + served.lifecycle.load_s
        for job in served.queue.take(lambda waiting: waiting.deadline_s <= until_s):
            self._answers.refuse(job, error.status, error.cause, error.reason, error.retry_after_s)
        if len(served.queue) and not served.lifecycle.is_removed:
            served.wait_for_memory()
        else:
            served.settle_load()

    def _load_was_refused(self, served: ServedModel, error: RequestError) -> None:
        """Refuse all waiting jobs: the load was refused, and waiting does not help."""
        served.settle_load()
        if served.lifecycle.may_tell_failure(self._context.clock.monotonic_s()):
            self._context.announce("load-failed", error.reason, {"model": served.name})
        self._refuse_all(served, error)

    def _refuse_all(self, served: ServedModel, error: RequestError) -> None:
        for job in served.queue.take(lambda _job: True):
            self._answers.refuse(job, error.status, error.cause, error.reason, error.retry_after_s)

    # ---- schedule and attach ---------------------------------------------------------------------------------------

    def _schedule(self, served: ServedModel, worker: WorkerHandle, beside: Collection[str] | None = None) -> list[Job]:
        """Take the jobs that run next from the queue; answer those that are or would be too late. `beside`: the clients
        whose jobs take several steps of an encoder now; then only jobs of others that fit into one."""
        self.deadlines.expire_late()
        now_s = self._context.clock.monotonic_s()
        self.deadlines.refuse_hopeless(served, now_s, now_s)
        if worker.sequences:
            return served.queue.next_batch(self._generator_limits(served, worker), now_s)
        costs, at = self._context.costs, served.load_at(self._context.grant)
        may_join = None if beside is None else functools.partial(_fits_beside, beside, at.max_rows)
        predict_s = functools.partial(batch_s, costs, at)
        limits = BatchLimits(at.max_rows, worker.mixed, predict_s=predict_s, may_join=may_join)
        batch = served.queue.next_batch(limits, now_s)
        self.deadlines.refuse_hopeless(served, now_s, now_s + least_s(batch, costs, at))
        return batch

    def _generator_limits(self, served: ServedModel, worker: WorkerHandle) -> BatchLimits:
        """What may join a generator's jobs. The session switches between adapters from token to token, so it may be of
        any adapter. Where no sequence is free, a client that has nothing inside may send one job in: the session lets
        clients take turns (`answer_turns`)."""
        inside = len(served.running) - len(served.compiling)
        free = min(worker.sequences, self._context.grant.max_rows) - inside
        active = frozenset(job.adapter for job in served.running.values())
        held = Counter(job.key[0] for job in served.running.values())
        if free > 0:
            return BatchLimits(free, mixed=True, active_adapters=active, held=held, may_join=served.may_compile)
        room = len(served.running) < worker.sequences + ANSWERS_BEYOND
        may_join = functools.partial(_begins_a_turn, served, held, room)
        return BatchLimits(1, mixed=True, active_adapters=active, held=held, may_join=may_join)

    async def _attach(self, served: ServedModel, batch: list[Job]) -> list[Job]:
        """Make the batch's adapters resident; jobs whose adapter is refused are answered and leave the batch."""
        ready = []
        for job in batch:
            try:
                if job.adapter is not None:
                    await served.ensure_attached(job.adapter)
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
                served.put_back(job)

    # ---- run and collect -------------------------------------------------------------------------------------------

    async def _run(self, served: ServedModel, batch: list[Job]) -> None:
        """Hand a batch over and wait until its answers were collected (`WorkerEventHandler`), or the worker died."""
        if not batch:
            return
        worker = self._hand_over(served, batch)
        try:
            if worker.sequences:
                await self._keep_fed(served, worker)
            elif any(job.rows > self._context.grant.max_rows for job in batch):
                await self._feed_beside(served, worker)
            else:
                await served.idle.wait()
        except WorkerError:
            await served.idle.wait()  # the worker is being ended; its death puts the jobs inside back
            raise
        finally:
            now_s = self._context.clock.monotonic_s()
            worker.end_batch(now_s)
            self._context.duty_cycle.end(served.name, now_s)
            if served.worker is not worker:
                # The worker died, perhaps after half a minute of silence: its successor does not pause for that step.
                self._context.duty_cycle.forget(served.name)
            self._step_gate.step_is_over()

    async def _keep_fed(self, served: ServedModel, worker: WorkerHandle) -> None:
        """While a generator works: hand over what waits, as far as it has free sequences."""
        while served.running:
            await served.woken()
            if not self._may_join(served):
                continue
            batch = await self._attach(served, self._schedule(served, worker))
            if batch:
                self._hand_over(served, batch)

    async def _feed_beside(self, served: ServedModel, worker: WorkerHandle) -> None:
        """While an encoder works on a job of several steps: hand over what others' clients ask, a step's worth at a
        time. The session computes both in turn, so that nobody waits for the whole of a long list."""
        # What waits already has woken the loop before: another wake would come with the next request only.
        served.wake_up()
        while served.running:
            await served.woken()
            most = self._context.grant.max_rows
            long = [job for job in served.running.values() if job.rows > most]
            # Steps that heat holds apart are begun one by one (`StepGate`).
            paced = self._context.duty_cycle.share_of(served.name, self._context.grant) < 1.0
            if not long or len(served.running) > len(long) or paced or not self._may_join(served):
                continue
            clients = frozenset(job.key[0] for job in long)
            batch = await self._attach(served, self._schedule(served, worker, beside=clients))
            if batch and served.running:
                self._hand_over(served, batch)
            else:
                self._put_back(served, batch)

    def _may_join(self, served: ServedModel) -> bool:
        """Whether jobs may join those inside: not in a model that drains or has had its turn, and not in the heat."""
        ready = served.lifecycle.state is ModelState.READY and not self._manager.turn_is_over(served)
        begun = len(served.running) > 0 and len(served.queue) > 0 and not self._context.transport.nearly_full
        return begun and ready and self._context.grant.duty_share > 0.0

    def _hand_over(self, served: ServedModel, batch: list[Job]) -> WorkerHandle:
        """Give the worker a batch. Raises WorkerError, with the batch back in the queue, where there is none."""
        worker = served.worker
        if worker is None:
            self._put_back(served, batch)
            raise WorkerError("the worker died before the batch reached it", served.name)
        now_s = self._context.clock.monotonic_s()
        if not served.running:
            rows = sum(job.rows for job in batch)
            self._context.duty_cycle.begin(served.name, rows, now_s, worker.sequences > 0)
            self._manager.tell_limits()
        for job in batch:
            job.start(now_s)
            served.enter(job)
            self._context.energy.begin(job.job_id, job.rows, now_s)
        if worker.sequences and len(served.queue):
            # What was handed over may have taken no sequence, and of those that take turns one goes in at a time.
            served.wake_up()
        worker.begin_batch(now_s)
        served.popularity.note(now_s)
        self._submit(served, worker, batch, now_s)
        return worker

    def _submit(self, served: ServedModel, worker: WorkerHandle, batch: list[Job], now_s: float) -> None:
        """Send a batch. Where it does not fit into one frame each job goes alone, and only one too large is refused."""
        try:
            worker.process.submit([self._job_work(worker, job, now_s) for job in batch])
        except WorkerError as error:
            if len(batch) > 1:
                for job in batch:
                    self._submit(served, worker, [job], now_s)
                return
            served.leave(batch[0])
            self._answers.refuse(batch[0], 413, Cause.TOO_LARGE, str(error))

    def _job_work(self, worker: WorkerHandle, job: Job, now_s: float) -> JobWork:
        """A job as it crosses to the child."""
        texts = () if job.messages else job.texts
        if not worker.sequences:
            return JobWork(job.job_id, job.adapter, job.params, texts, job.messages)
        client, left_s = job.key[0], job.deadline_s - now_s
        return JobWork(
            job.job_id, job.adapter, job.params, texts, job.messages, client, job.stream, self._flush_ms, left_s
        )


def _fits_beside(clients: Collection[str], max_rows: int, job: Job) -> bool:
    """Whether a job may be computed in turn with a longer one of these clients."""
    return job.key[0] not in clients and job.rows <= max_rows


def _begins_a_turn(served: ServedModel, held: Mapping[str, int], room: bool, job: Job) -> bool:
    """Whether a job may go into a generator without a free sequence; `room`: whether its worker takes any more."""
    return room and not held.get(job.key[0]) and served.may_compile(job)


def _reply_topic(job: Job) -> str | None:
    """The topic that a job's answer goes to."""
    return job.origin.request.reply_topic if isinstance(job.origin, Origin) else None


BUILD_RETRY_S = 60.0
"""The longest `retry_after_s` of a refusal during a build."""
BUILD_LATE_SHARE = 0.25
"""A build that takes longer than expected is expected to take this share of its time so far in addition."""
OVERDUE_S = 0.25
"""The daemon ends an answer this time after its deadline; before that the worker itself ends it."""


class DeadlineMonitor:
    """Ends jobs whose deadline has passed and workers that are silent."""

    def __init__(self, context: Context, manager: ModelManager, events: WorkerEventHandler, answers: Answers) -> None:
        self._context = context
        self._manager = manager
        self._events = events
        self._answers = answers

    def look(self) -> None:
        """One look at all models; called once a second."""
        self.end_silent()
        self.expire_late()
        self.refuse_before_engines()
        self.end_overdue()

    def expire_late(self) -> None:
        """Jobs whose deadline passed while they waited leave their queue without an answer."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in served.queue.take(lambda waiting: waiting.deadline_s <= now_s):
                self._answers.expire(job)

    def refuse_hopeless(self, served: ServedModel, now_s: float, begins_s: float) -> None:
        """Refuse the waiting jobs that no batch beginning at `begins_s` can answer in time: more urgent ones came
        later and went first. Their clients still listen now."""
        at = served.load_at(self._context.grant)
        for job, needed_s in take_hopeless(served.queue, self._context.costs, at, begins_s):
            reason = (
                f"cannot meet the deadline any more: {duration_text(needed_s + begins_s - now_s)} of queue and compute "
                f"are ahead, {duration_text(job.deadline_s - now_s)} are left"
            )
            self._answers.refuse(job, 503, Cause.OVERTAKEN, reason, round(needed_s, 3))

    def refuse_before_engines(self) -> None:
        """Refuse the waiting jobs whose deadline comes before the end of a build with nothing beside, as expected: in
        the queue they would expire in silence. A build may end early, so they are told to come back soon."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            if served.fallback.state is FallbackState.BUILDING_FIRST:
                self._refuse_before_engine(served, now_s)

    def _refuse_before_engine(self, served: ServedModel, now_s: float) -> None:
        elapsed_s = now_s - served.fallback.since_s
        left_s = max(served.lifecycle.load_left_s(now_s), BUILD_LATE_SHARE * elapsed_s)
        for job in served.queue.take(lambda waiting: waiting.deadline_s < now_s + left_s):
            reason = (
                f"model {served.name!r} is compiled for this device first, which is expected to take another "
                f"{duration_text(left_s)}; {duration_text(job.deadline_s - now_s)} are left"
            )
            self._answers.refuse(job, 503, Cause.DEADLINE, reason, round(min(left_s, BUILD_RETRY_S), 1))

    def end_overdue(self) -> None:
        """End generated answers whose deadline has passed and whose worker has not ended them itself (a long step)."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in [job for job in served.running.values() if served.sequences and job.state is JobState.RUNNING]:
                if job.deadline_s + OVERDUE_S <= now_s:
                    why = f"the deadline passed after {job.parts} parts"
                    self._events.stop(served, job, 408, Cause.EXPIRED, why)

    def end_silent(self) -> None:
        """Kill workers that have jobs and have reported nothing for `WORKER_SILENCE_S`."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            worker = served.worker
            if served.running and worker is not None and now_s - worker.heard_s > WORKER_SILENCE_S:
                self._context.announce(
                    "worker-hung", f"model {served.name!r} is silent; ending it", {"model": served.name}
                )
                served.lifecycle.kill_for_silence()
                worker.process.kill(DeathCause.HUNG)
