"""One version on trial: the requests that both versions compute, and the worker of the new one.

The new version is a `ServedModel` of its own (`CandidateModel`) beside the one that answers. Requests come to it in two
ways:

- Copies of requests that the version before has answered. They are computed when nothing else waits or runs, and taken
  back when a request arrives, so no request waits for more than the one step that is under way.
- With the mode `share`, a share of the requests themselves, one at a time. The version before computes a copy of each
  afterwards. A request that the new version does not answer, for whatever reason, goes back to the version before, and
  counts as failed by the new one only if that one answers it.

Where memory does not hold both, they take turns (`_begin_turn`): the version before leaves while the device is idle,
the new one computes what was copied and answers all requests that come meanwhile, and the version before returns. A
turn is begun only where the requests of late had time for twice both loads.

Texts are kept in memory only, at most `COPIES` of each kind. `core.version_trial` judges.

Imported by `version_trials` only while an installed model is on trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec

from edge_agent.agent.answer_pairs import COPIES, Copy, WaitingCopies, draw, is_comparable, pair, work_of
from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager, NoRoom
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.worker_events import Answers
from edge_agent.base.causes import Cause, DeathCause, WorkerDeath
from edge_agent.base.errors import EdgeError, RequestError, WorkerError
from edge_agent.base.limits import WORKER_SILENCE_S
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.forecast import rows_computed
from edge_agent.core.governor import GovernorLevel
from edge_agent.core.job import Job, JobState
from edge_agent.core.version_trial import Pair, VersionTrial
from edge_agent.protocol.worker_messages import AnyEvent, JobDone, JobFailed, JobWork

log = logging.getLogger("edge_agent")
LOOK_S = 0.05
"""How often a running copy looks whether a request arrived."""
LOAD_AGAIN_S = 30.0
"""Pause after a load that found no memory, or failed."""
SILENT_LEAST_S, SILENT_TIMES = 10.0, 20.0
"""A request counts as failed after this time and so many times what the version before took for it."""
HEARD_S = 5.0
"""The worker of a request that took too long is ended where it was silent for so long; else the request is taken back.
"""
PATIENCE_REQUESTS, PATIENCE_TIMES = 64, 2.0
"""A turn needs that the last requests each had so many times as long as both loads take."""
TURN_PAUSE_TIMES = 10.0
"""Pause after a turn, in loads of both versions: at most a tenth of the time goes into loads."""
TOLD_FAULTS = 64
"""Requests that went back to the version before and are not answered yet; of more the oldest are forgotten."""
MOST_IN_TURN = 4
"""Requests that wait for the new version in its turn; one more ends the turn."""
LEAST_ANSWER_S = 0.5
"""A request that leaves the new version less time than this, or three times the usual, is not given to it."""
FRESH_S = 5.0
"""Age up to which a temperature counts."""


class _TooLong(NamedTuple):
    """No answer within so many seconds."""

    limit_s: float

    @property
    def reason(self) -> str:
        return f"no answer within {self.limit_s:.0f} s"


Outcome = JobDone | JobFailed | WorkerDeath | _TooLong | str | None


class CandidateModel:
    """The version on trial and its worker. Implements `WorkerListener`."""

    def __init__(
        self, context: Context, manager: ModelManager, model: InstalledModel, died: Callable[[WorkerDeath], None]
    ) -> None:
        """`died` hears of deaths while nothing was in the worker."""
        # '/' is in no model's name, so that its memory account is its own.
        self.served = ServedModel(replace(model, name=f"{model.name}/trial"), listener=self)
        self._context = context
        self._manager = manager
        self._died = died
        self._event: asyncio.Future[JobDone | JobFailed | WorkerDeath] | None = None
        self._job_id = ""
        self._number = 0

    def on_event(self, event: AnyEvent) -> None:
        """See `WorkerListener`."""
        if self.served.worker is not None:
            self.served.worker.hear(self._context.clock.monotonic_s())
        if isinstance(event, (JobDone, JobFailed)) and event.id == self._job_id:
            self._settle(event)

    def on_death(self, death: WorkerDeath) -> None:
        """See `WorkerListener`."""
        self._manager.beside_died(self.served)
        if self._event is None or self._event.done():
            self._died(death)
        self._settle(death)

    def _settle(self, outcome: JobDone | JobFailed | WorkerDeath) -> None:
        if self._event is not None and not self._event.done():
            self._event.set_result(outcome)

    async def submit(self, work: JobWork) -> asyncio.Future[JobDone | JobFailed | WorkerDeath]:
        """Hand a request to the worker, under a name of its own. Raises RequestError, WorkerError."""
        if work.adapter is not None:
            await self.served.ensure_attached(work.adapter)
        worker = self.served.worker
        if worker is None:
            raise WorkerError("its worker was evicted", self.served.name)
        self._number += 1
        self._job_id = f"trial/{self._number}"
        self._event = asyncio.get_running_loop().create_future()
        worker.begin_batch(self._context.clock.monotonic_s())
        worker.process.submit([msgspec.structs.replace(work, id=self._job_id)])
        return self._event

    async def drop(self) -> None:
        """Take a copy back; a step that is under way ends first."""
        if self.served.worker is not None:
            with contextlib.suppress(WorkerError):
                await self.served.worker.process.cancel(self._job_id)


class TrialRun:
    """The trial of one model: what both versions are to compute, one at a time on the new one."""

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        host: HostMonitor,
        answers: Answers,
        model: InstalledModel,
        trial: VersionTrial,
    ) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self._answers = answers
        self.model = model
        self.trial = trial
        self.waits_for = ""
        self.answered = self.turns = 0
        self._copies = WaitingCopies()
        self._back = WaitingCopies()
        self._arrived = asyncio.Event()
        self._candidate = CandidateModel(context, manager, model, self._died_idle)
        self._candidate.served.observe_by(self._has_answered)
        self._warm = self._loading = False
        self._load_at_s = self._turn_at_s = -math.inf
        self._taken: dict[asyncio.Task[None], Job] = {}
        self._using = asyncio.Lock()
        self._alone = False
        self._usual_ms = 0.0
        # By request: why the new version failed it, and after how many seconds where that was the reason.
        self._faults: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._patience_s: deque[float] = deque(maxlen=PATIENCE_REQUESTS)
        self._in_turn = False

    def observe(self, job: Job, event: JobDone, joules: float | None) -> None:
        """The version before has answered a request."""
        self._patience_s.append(job.deadline_s - job.received_s)
        fault = self._faults.pop(job.key, None)
        if not is_comparable(job):
            return
        self._usual_ms = event.compute_ms
        if fault is not None:
            # How long it may take is known from this answer alone: what other requests took may be anything.
            if fault[1] >= _limit_s(event.compute_ms):
                self.trial.add(Pair(fault[0]))
        else:
            self._copies.add(
                self._copy(job, event, joules, alone=event.batch == rows_computed(event.results) and not self._taken)
            )
        self._arrived.set()

    def take(self, job: Job) -> bool:
        """Whether the new version answers this request; if it does not, the request waits for the version before after
        all."""
        if self.trial.verdict is not None or not self._may_answer(job):
            return False
        task = asyncio.create_task(self._answer(job), name=f"trial-answer-{job.job_id}")
        self._taken[task] = job
        task.add_done_callback(self._answer_ended)
        return True

    def figures(self) -> dict[str, float | int | None]:
        """What was seen; `answered`: requests that the new version has answered, `turns`: see `_begin_turn`."""
        return {**self.trial.figures(), "answered": self.answered, "turns": self.turns}

    async def run(self) -> None:
        """Until there is a verdict, or cancelled."""
        try:
            while self.trial.verdict is None:
                if await self._compare_back():
                    continue
                idle = self._idle()
                over = self._in_turn and not (self._copies and idle) and not self._taken
                wanted = self._copies and (idle or self._shares()) and not self._taken
                if over or (wanted and not await self._loaded()):
                    await self._end_turn()
                elif self._copies and self._idle():
                    await self._compare(self._copies.take())
                else:
                    self._arrived.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._arrived.wait(), LOOK_S if self._copies or self._back else 1.0)
            await self._end_turn()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._copies.clear()
        self._back.clear()
        for task in list(self._taken):
            task.cancel()  # its request goes back
        await asyncio.gather(*self._taken, return_exceptions=True)
        if (before := self._before()) is not None:
            before.lend_memory(False)
        await self._manager.unload_beside(self._candidate.served)

    # ---- when ------------------------------------------------------------------------------------------------------

    def _shares(self) -> bool:
        return self.trial.terms.mode == "share"

    def _before(self) -> ServedModel | None:
        """The version that answers."""
        return self._manager.served_models.get(self.model.name)

    def _is_cool(self) -> bool:
        """Whether neither heat nor memory is short, and answers can leave."""
        context = self._context
        normal = context.grant.level is GovernorLevel.NORMAL
        return normal and not self._manager.closed and not context.transport.nearly_full

    def _idle(self) -> bool:
        """Whether nothing waits or runs besides."""
        others = self._manager.every_served_model()
        busy = any(len(one.queue) or one.running or one.lifecycle.wants_memory for one in others)
        return self._is_cool() and not busy and not self._taken

    def _is_in_the_way(self) -> bool:
        """Whether a model that requests wait for has to be loaded: one is loaded at a time."""
        models = self._manager.served_models.values()
        return any(one.worker is None and (len(one.queue) > 0 or one.lifecycle.wants_memory) for one in models)

    def _may_answer(self, job: Job) -> bool:
        """Whether a request is one of the share, or comes in a turn, and the new version can answer it at once."""
        served, drawn = self._candidate.served, self._shares() and draw(job) < self.trial.terms.share
        if not (drawn or self._in_turn) or not is_comparable(job) or not self._is_cool():
            return False
        most = MOST_IN_TURN if self._in_turn else 1
        room = len(self._taken) < most and self._back.has_room(job.key[0], len(self._taken))
        ready = served.worker is not None and served.is_current
        return room and ready and self._answer_limit_s(job) >= self._least_limit_s()

    def _least_limit_s(self) -> float:
        return max(LEAST_ANSWER_S, 3.0 * self._usual_ms / 1000.0)

    def _answer_limit_s(self, job: Job) -> float:
        """How long the new version may take for a request: half of the time that is left when the version before is in
        memory, so that this one can answer it after all."""
        now_s, before = self._context.clock.monotonic_s(), self._before()
        load_s = 0.0 if before is None else before.lifecycle.load_left_s(now_s)
        return min(_limit_s(self._usual_ms), (job.deadline_s - now_s - load_s) / 2.0)

    # ---- the worker ------------------------------------------------------------------------------------------------

    def _died_idle(self, death: WorkerDeath) -> None:
        """The candidate ended between two requests, or while an adapter was attached. A load that fails is counted
        where it is awaited, and what somebody else has ended is no sign against the version."""
        if not self._loading and death.cause is not DeathCause.SIGNALLED_FROM_OUTSIDE:
            self.trial.died(death.reason)

    async def _loaded(self) -> bool:
        """Have the candidate in memory; False where it is not now. A request that needs a load of its own ends this
        one."""
        served = self._candidate.served
        if served.worker is not None and served.is_current:
            return True
        now_s = self._context.clock.monotonic_s()
        if now_s < self._load_at_s:
            await asyncio.sleep(LOOK_S)
            return False
        self._load_at_s, self._warm = now_s + LOAD_AGAIN_S, False
        task = asyncio.create_task(self._manager.load_beside(served), name=f"load-{served.name}")
        self._loading = True
        try:
            while not task.done():
                await asyncio.wait([task], timeout=LOOK_S)
                if self._is_in_the_way():
                    task.cancel()
        finally:
            self._loading = False
            if not task.done() or task.cancelled():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await self._manager.unload_beside(served)
        return not task.cancelled() and await self._load_ended(task.exception())

    async def _load_ended(self, error: BaseException | None) -> bool:
        if isinstance(error, NoRoom):
            self.waits_for = error.reason
            # Alone there is no room either: other models hold it.
            return not self._in_turn and await self._begin_turn() and await self._loaded()
        if isinstance(error, EdgeError):
            self.trial.died(str(error))
            return False
        if error is not None:
            raise error
        self.waits_for, self._load_at_s = "", -math.inf
        return True

    # ---- turns -----------------------------------------------------------------------------------------------------

    async def _begin_turn(self) -> bool:
        """Have the version before leave, so that the new one can be loaded; False where that might cost a request."""
        before, why = self._before(), ""
        if before is None or before.worker is None:
            return False
        if why := self._no_turn(before):
            self.waits_for += f"; no turns: {why}"
            self._load_at_s = self._context.clock.monotonic_s() + 1.0
            return False
        before.lend_memory(True)
        text = f"model {before.name!r} leaves for a turn of the version on trial"
        if not self._idle() or not await self._manager.lend(before, text):
            before.lend_memory(False)
            return False
        self._in_turn, self._load_at_s = True, -math.inf
        self.turns += 1
        return True

    def _no_turn(self, before: ServedModel) -> str:
        loads_s = self._loads_s(before)
        left_s = self._turn_at_s - self._context.clock.monotonic_s()
        if not self.trial.terms.turns:
            return "the terms exclude them"
        if len(self._copies) < min(COPIES, self.trial.next_look - self.trial.seen):
            return f"{len(self._copies)} requests wait to be compared, {COPIES} are worth a turn"
        if left_s > 0.0:
            return f"the next one begins in {left_s:.0f} s"
        least_s, needed_s = min(self._patience_s, default=0.0), PATIENCE_TIMES * loads_s
        if least_s < needed_s:
            return f"a request had {least_s:.1f} s, and {needed_s:.1f} s are needed for loads"
        return ""

    def _loads_s(self, before: ServedModel) -> float:
        """Seconds for loads of both versions, one after the other."""
        return before.lifecycle.load_s + max(before.lifecycle.load_s, self._candidate.served.lifecycle.load_s)

    async def _end_turn(self) -> None:
        """Have the version before in memory again, where this is a turn."""
        before = self._before()
        if not self._in_turn:
            return
        self._in_turn = False
        if self._taken:
            await asyncio.wait(list(self._taken))
        await self._manager.unload_beside(self._candidate.served)
        if before is None:
            return
        before.lend_memory(False)
        self._turn_at_s = self._context.clock.monotonic_s() + TURN_PAUSE_TIMES * self._loads_s(before)
        with contextlib.suppress(EdgeError):  # the next request tries again, and says why
            async with before.lock:
                await self._manager.ensure_loaded(before, evict=False)

    # ---- a request that the new version answers --------------------------------------------------------------------

    async def _answer(self, job: Job) -> None:
        fault = None
        try:
            # With the lock: a model that answers is not evicted.
            async with self._using, self._candidate.served.lock:
                fault = await self._tried(job)
        finally:
            if job.state in {JobState.QUEUED, JobState.RUNNING}:
                self._give_back(job, fault)

    def _answer_ended(self, task: asyncio.Task[None]) -> None:
        del self._taken[task]
        self._arrived.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s ended: %r", task.get_name(), error, exc_info=error)

    async def _tried(self, job: Job) -> tuple[str, float] | None:
        """Answer the request; else why the new version failed it, and after how many seconds where that is why, else
        infinite; None where it is not its fault."""
        served, now_s, limit_s = self._candidate.served, self._context.clock.monotonic_s(), self._answer_limit_s(job)
        if job.state is not JobState.QUEUED or served.worker is None or limit_s < LEAST_ANSWER_S:
            return None
        job.start(now_s)
        served.enter(job)
        self._context.energy.begin(job.job_id, job.rows, now_s)
        silent_s = _limit_s(self._usual_ms)
        try:
            alone = self._runs_alone(now_s)
            outcome = await self._computed(work_of(job), limit_s, silent_s, lambda: _runs(job))
            self._alone = alone and self._runs_alone(now_s)
        except RequestError as error:
            outcome = error.reason
        except WorkerError:
            outcome = None
        finally:
            served.leave(job)
        if isinstance(outcome, WorkerDeath):
            self.trial.died(outcome.reason)
        if isinstance(outcome, _TooLong):
            return outcome.reason, outcome.limit_s
        if not isinstance(outcome, JobDone):
            return (why, math.inf) if (why := _fault(outcome)) is not None else None
        if _runs(job):
            if job.deadline_s <= self._context.clock.monotonic_s():
                self._answers.expire(job)
            else:
                self._answers.done(job, served, outcome)
        self._warm = True
        return None

    def _has_answered(self, job: Job, event: JobDone, joules: float | None) -> None:
        """The new version has answered a request: the version before is to compute a copy of it."""
        self.answered += 1
        self._patience_s.append(job.deadline_s - job.received_s)
        if self._warm:
            self._back.add(self._copy(job, event, joules, self._alone))

    def _runs_alone(self, since_s: float) -> bool:
        """Whether no other model runs, or has begun to since then."""
        others = (one for one in self._manager.every_served_model() if one is not self._candidate.served)
        return not any(one.running or (one.worker is not None and one.worker.last_used_s > since_s) for one in others)

    def _give_back(self, job: Job, fault: tuple[str, float] | None) -> None:
        """The version before is to answer the request."""
        if job.state is JobState.RUNNING:
            job.give_back()
        self._context.energy.drop(job.job_id)
        if fault is not None:
            self._faults[job.key] = fault
            if len(self._faults) > TOLD_FAULTS:
                self._faults.popitem(last=False)
        before = self._before()
        if before is None:
            self._answers.refuse(job, 404, Cause.MODEL_REMOVED, f"model {job.model!r} was removed")
        else:
            before.enqueue(job)

    # ---- a copy ----------------------------------------------------------------------------------------------------

    def _copy(self, job: Job, event: JobDone, joules: float | None, alone: bool) -> Copy:
        work = work_of(job)
        return Copy(job.key[0], work, job.rows, event.results, event.compute_ms, alone, joules, self._temperature_c())

    def _temperature_c(self) -> float | None:
        found = self._host.reading("temperature")
        return found.value if found.fresh(self._context.clock.monotonic_s(), FRESH_S) else None

    async def _compare(self, copy: Copy) -> None:
        """Have the new version compute what the version before has answered."""
        now_s, energy = self._context.clock.monotonic_s(), self._context.energy
        account = self._candidate.served.name
        energy.begin(account, copy.rows, now_s)
        limit_s = _limit_s(copy.compute_ms)
        try:
            async with self._using:
                outcome = await self._computed(copy.work, limit_s, limit_s, self._idle)
        except RequestError as error:
            outcome = error.reason
        except WorkerError:
            return  # evicted for a request's sake: no fault of the version
        finally:
            now_s = self._context.clock.monotonic_s()
            joules, _ = energy.end(account, self._host.reading("power"), now_s)
        if isinstance(outcome, WorkerDeath):
            self.trial.died(outcome.reason)
        if not isinstance(outcome, JobDone):
            why = outcome.reason if isinstance(outcome, _TooLong) else _fault(outcome)
            if why is not None:
                self.trial.add(Pair(why))
            return
        if self._warm:
            other = replace(copy, results=outcome.results, compute_ms=outcome.compute_ms, alone=True, joules=joules,
                            heat_c=self._temperature_c())  # fmt: skip
            self.trial.add(pair(copy, other))
        self._warm = True  # the first step after a load allocates and reads what later ones find

    async def _computed(self, work: JobWork, limit_s: float, silent_s: float, is_wanted: Callable[[], bool]) -> Outcome:
        """The candidate's answer, how it failed, or None where it is wanted no more or takes longer than a request can
        wait. After `silent_s` it has failed; a worker that is heard drops it, one that is not is ended."""
        begun_s = self._context.clock.monotonic_s()
        answer, dropping = await self._candidate.submit(work), None
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_S)
                worker, spent_s = self._candidate.served.worker, self._context.clock.monotonic_s() - begun_s
                if answer.done():
                    break
                if worker is None or (dropping is not None and dropping.done()):
                    return None  # evicted, or taken back between two steps; one that was in its last step has answered
                silent = self._context.clock.monotonic_s() - worker.heard_s > HEARD_S
                if spent_s > silent_s and silent:
                    worker.process.kill(DeathCause.HUNG)
                    return _TooLong(silent_s)
                if dropping is None and (spent_s > limit_s or not is_wanted()):
                    dropping = asyncio.create_task(self._candidate.drop(), name="trial-drop")
                if spent_s > limit_s:
                    await asyncio.sleep(0)  # the worker is told
                    return _TooLong(silent_s) if spent_s > silent_s else None
            return answer.result()
        finally:
            if dropping is not None:
                dropping.cancel()

    async def _compare_back(self) -> bool:
        """Have the version before compute what the new one has answered; False where there is nothing to do now."""
        before = self._before()
        if not self._back or before is None or self._in_turn or not self._is_cool():
            return False
        if before.worker is None or not before.is_current or (before.generates and not self._idle()):
            return False
        copy = self._back.take()
        # With the lock, between two batches: one step more on a board that is never idle.
        async with before.lock:
            other = await self._computed_before(before, copy)
        if other is not None:
            self.trial.add(pair(other, copy))
        return True

    async def _computed_before(self, before: ServedModel, copy: Copy) -> Copy | None:
        """The answer of the version before to a request that the new one has answered; None where there is none. What
        the version before fails is no fault of the new one."""
        worker, clock = before.worker, self._context.clock
        if worker is None:
            return None
        begun_s, warm = clock.monotonic_s(), worker.last_used_s > worker.loaded_s
        energy, account = self._context.energy, f"{before.name}/copy"
        limit_s = max(WORKER_SILENCE_S, _limit_s(copy.compute_ms))
        energy.begin(account, copy.rows, begun_s)
        try:
            if copy.work.adapter is not None:
                await before.ensure_attached(copy.work.adapter)
            # Not as its client's: the request itself may still be asked here, and has the client's share to itself.
            work = msgspec.structs.replace(copy.work, id=account, client=f"{copy.client}/copy")
            answer = before.submit_aside(work, begun_s)
            while not answer.done() and before.worker is worker:
                await asyncio.wait([answer], timeout=LOOK_S)
                if not answer.done() and clock.monotonic_s() - begun_s > limit_s:
                    worker.process.kill(DeathCause.HUNG)
                    return None
                if not answer.done() and before.generates and len(before.queue):
                    await worker.process.cancel(account)  # a request does not wait for a whole answer
                    return None
        except (RequestError, WorkerError):
            return None
        finally:
            before.end_aside()
            worker.end_batch(clock.monotonic_s())
            joules, _ = energy.end(account, self._host.reading("power"), clock.monotonic_s())
        event = answer.result() if answer.done() else None
        if not isinstance(event, JobDone) or not warm:
            return None
        heat_c = self._temperature_c()
        return replace(copy, results=event.results, compute_ms=event.compute_ms, alone=not self._taken, joules=joules,
                       heat_c=heat_c)  # fmt: skip


def _fault(outcome: JobFailed | WorkerDeath | str | None) -> str | None:
    """Why the new version failed a request; None where it is not its fault. What a grammar costs is its client's
    doing, whichever version computes it."""
    if outcome is None or isinstance(outcome, str):
        return outcome
    return None if isinstance(outcome, JobFailed) and outcome.costly else outcome.reason


def _runs(job: Job) -> bool:
    """False for a job that was answered meanwhile: cancelled, or too late."""
    return job.state is JobState.RUNNING


def _limit_s(compute_ms: float) -> float:
    return max(SILENT_LEAST_S, SILENT_TIMES * compute_ms / 1000.0)
