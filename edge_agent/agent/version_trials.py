"""Runs a new version beside the one that answers, on copies of its requests, and has the store keep or return it.

While a model is on trial (its record in the store says so) `ModelManager` serves the version before. The new one is a
`ServedModel` of its own that answers nobody: the last requests are copied to it when nothing else waits or runs, so no
request is delayed by more than the one step that is under way, and the memory of its worker is the first to be
evicted. A copy that a request interrupts is dropped. Texts are kept in memory only, at most `COPIES`, until the trial
ends. `core.version_trial` judges; the verdict is saved, then carried out in the store until the store shows it.

Imported by `trial_watch` only while an installed model is on trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager, NoRoom
from edge_agent.agent.served_model import ServedModel
from edge_agent.base.causes import DeathCause, WorkerDeath
from edge_agent.base.errors import EdgeError, RequestError, WorkerError
from edge_agent.base.texts import Text
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.desired_state import InstalledPackages
from edge_agent.core.governor import GovernorLevel
from edge_agent.core.job import Job
from edge_agent.core.trial_records import TrialRecord
from edge_agent.core.version_trial import Pair, TrialState, TrialTerms, TrialVerdict, VersionTrial
from edge_agent.protocol.trial_terms import read_trial
from edge_agent.protocol.worker_messages import AnyEvent, JobDone, JobFailed, JobWork

if TYPE_CHECKING:
    from edge_agent.agent.trial_watch import TrialOperator, TrialStorage

log = logging.getLogger("edge_agent")
COPIES = 16
"""Requests that wait for the new version; the oldest is dropped first."""
LOOK_S = 0.05
"""How often a running copy looks whether a request arrived."""
SHOW_S = 25.0
"""Time spent and figures are saved and published this often: a restart costs 30 s of the trial's time."""
AGAIN_S = 5.0
LOAD_AGAIN_S = 30.0
"""Pause after a load that found no memory, or failed."""
SILENT_LEAST_S, SILENT_TIMES = 10.0, 20.0
"""A copy counts as failed, and its worker is ended, after this time and so many times what the version before took."""
SAME_COSINE = 0.99
"""Embeddings that agree: retrieval ranks hardly differ above it (cosine of the two versions' vectors)."""


def terms_of(text: str) -> TrialTerms:
    """The terms as the store's record has them. Raises ValueError for those of a later release, which the daemon may
    find after a downgrade."""
    order = read_trial(text)
    return TrialTerms(
        least=order.least,
        most=order.most,
        within_s=order.within_s,
        agreement=order.agreement,
        failures=order.failures,
        slower=order.slower,
        confidence_drop=order.confidence_drop,
        joules=order.joules,
        promote=order.otherwise == "promote",
    )


@dataclass(frozen=True, slots=True)
class Copy:
    """A request that the version before has answered, with its answer; `alone`: no other request shared its batch."""

    adapter: str | None
    texts: Sequence[Text] = field(repr=False)
    messages: Sequence[Mapping[str, str]] = field(repr=False)
    params: Mapping[str, object] = field(repr=False)
    rows: int
    results: Sequence[Mapping[str, Any]] = field(repr=False)
    compute_ms: float
    alone: bool
    joules: float | None


def compare(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two answers to one request say the same: of every text the label, the spans, the text, or nearly the
    vector."""
    return len(old) == len(new) and all(_same(one, other) for one, other in zip(old, new, strict=True))


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if "embedding" in old:
        one, other = old["embedding"], new.get("embedding", ())
        return len(one) == len(other) and sum(map(float.__mul__, map(float, one), map(float, other))) >= SAME_COSINE
    if "spans" in old:
        return _places(old) == _places(new)
    return all(old.get(key) == new.get(key) for key in ("label", "text", "answer", "start") if key in old)


def _places(answer: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
    """The labelled places of a text, without their scores; None for an answer that has none."""
    spans = answer.get("spans")
    return None if spans is None else [(span["label"], span["start"], span["end"]) for span in spans]


def score(results: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean top score of an answer; None for a task without scores."""
    found = [float(one["score"]) for one in results if isinstance(one.get("score"), (int, float))]
    return sum(found) / len(found) if found else None


class CandidateModel:
    """The version on trial and its worker. Implements `WorkerListener`."""

    def __init__(
        self, context: Context, manager: ModelManager, model: InstalledModel, died: Callable[[WorkerDeath], None]
    ) -> None:
        """`died` hears of deaths while no copy was in the worker."""
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

    async def submit(self, copy: Copy) -> asyncio.Future[JobDone | JobFailed | WorkerDeath]:
        """Hand a copy to the worker. Raises RequestError, WorkerError."""
        if copy.adapter is not None:
            await self.served.ensure_attached(copy.adapter)
        worker = self.served.worker
        if worker is None:
            raise WorkerError("its worker was evicted", self.served.name)
        self._number += 1
        self._job_id = f"trial/{self._number}"
        self._event = asyncio.get_running_loop().create_future()
        worker.begin_batch(self._context.clock.monotonic_s())
        texts = () if copy.messages else copy.texts
        worker.process.submit([JobWork(self._job_id, copy.adapter, copy.params, texts, copy.messages, "trial")])
        return self._event

    async def drop(self) -> None:
        """Take a copy back; a step that is under way ends first."""
        if self.served.worker is not None:
            with contextlib.suppress(WorkerError):
                await self.served.worker.process.cancel(self._job_id)


class ShadowRun:
    """The trial of one model: copies of requests to the candidate, one at a time, while the device is idle."""

    def __init__(
        self, context: Context, manager: ModelManager, host: HostMonitor, model: InstalledModel, trial: VersionTrial
    ) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self.model = model
        self.trial = trial
        self.waits_for = ""
        self._copies: deque[Copy] = deque(maxlen=COPIES)
        self._arrived = asyncio.Event()
        self._candidate = CandidateModel(context, manager, model, self._died_idle)
        self._warm = self._loading = False
        self._load_at_s = -math.inf

    def observe(self, job: Job, event: JobDone, joules: float | None) -> None:
        """The version before has answered a request."""
        if job.params.get("temperature") or job.stream:
            return  # sampled text differs by chance; of a stream only the rest of the text is here
        alone = event.batch == job.rows
        self._copies.append(
            Copy(
                job.adapter,
                job.texts,
                job.messages,
                job.params,
                job.rows,
                event.results,
                event.compute_ms,
                alone,
                joules,
            )
        )
        self._arrived.set()

    async def run(self) -> None:
        """Until there is a verdict, or cancelled."""
        try:
            while self.trial.verdict is None:
                if not self._copies or not self._idle():
                    self._arrived.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._arrived.wait(), LOOK_S if self._copies else 1.0)
                    continue
                if await self._loaded():
                    await self._compare(self._copies.popleft())
        finally:
            self._copies.clear()
            await self._manager.unload_beside(self._candidate.served)

    def _idle(self) -> bool:
        """Whether nothing waits or runs, and neither heat nor memory is short."""
        context = self._context
        if context.grant.level is not GovernorLevel.NORMAL or self._manager.closed or context.transport.nearly_full:
            return False
        others = self._manager.every_served_model()
        return not any(len(one.queue) or one.running or one.lifecycle.wants_memory for one in others)

    def _is_in_the_way(self) -> bool:
        """Whether a model that requests wait for has to be loaded: one is loaded at a time."""
        models = self._manager.served_models.values()
        return any(one.worker is None and (len(one.queue) > 0 or one.lifecycle.wants_memory) for one in models)

    # ---- the worker ------------------------------------------------------------------------------------------------

    def _died_idle(self, death: WorkerDeath) -> None:
        """The candidate ended between two copies, or while an adapter was attached. A load that fails is counted where
        it is awaited, and what somebody else has ended is no sign against the version."""
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
        if task.cancelled():
            return False
        error = task.exception()
        if isinstance(error, NoRoom):
            self.waits_for = error.reason
            return False
        if isinstance(error, EdgeError):
            self.trial.died(str(error))
            return False
        if error is not None:
            raise error
        self.waits_for, self._load_at_s = "", -math.inf
        return True

    # ---- one copy --------------------------------------------------------------------------------------------------

    async def _compare(self, copy: Copy) -> None:
        now_s, energy = self._context.clock.monotonic_s(), self._context.energy
        account = self._candidate.served.name
        energy.begin(account, copy.rows, now_s)
        try:
            outcome = await self._computed(copy)
        except RequestError as error:
            outcome = error.reason
        except WorkerError:
            return  # evicted for a request's sake: no fault of the version
        finally:
            now_s = self._context.clock.monotonic_s()
            joules, _ = energy.end(account, self._host.reading("power"), now_s)
        if isinstance(outcome, WorkerDeath):
            self.trial.died(outcome.reason)
        if outcome is None:
            return
        if not isinstance(outcome, JobDone):
            self.trial.add(Pair(outcome if isinstance(outcome, str) else outcome.reason))
        elif self._warm:
            self._add(copy, outcome, joules)
        self._warm = True  # the first step after a load allocates and reads what later ones find

    def _add(self, copy: Copy, event: JobDone, joules: float | None) -> None:
        self.trial.add(
            Pair(
                None,
                compare(copy.results, event.results),
                copy.compute_ms if copy.alone else None,
                event.compute_ms,
                score(copy.results),
                score(event.results),
                copy.joules if copy.alone else None,
                joules,
            )
        )

    async def _computed(self, copy: Copy) -> JobDone | JobFailed | WorkerDeath | str | None:
        """The candidate's answer, how it failed, or None where a request came in between."""
        begun_s, limit_s = self._context.clock.monotonic_s(), _limit_s(copy)
        answer, dropping = await self._candidate.submit(copy), None
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_S)
                worker = self._candidate.served.worker
                if answer.done():
                    break
                if worker is None or (dropping is not None and dropping.done()):
                    return None  # evicted, or taken back between two steps; one that was in its last step has answered
                if self._context.clock.monotonic_s() - begun_s > limit_s:
                    worker.process.kill(DeathCause.HUNG)
                    return f"no answer within {limit_s:.0f} s"
                if dropping is None and not self._idle():
                    dropping = asyncio.create_task(self._candidate.drop(), name="trial-drop")
            return answer.result()
        finally:
            if dropping is not None:
                dropping.cancel()


def _limit_s(copy: Copy) -> float:
    return max(SILENT_LEAST_S, SILENT_TIMES * copy.compute_ms / 1000.0)


class _UnderWay:
    """A trial with its tasks: that of the copies, and that which carries out the verdict."""

    def __init__(self, run: ShadowRun, copies: asyncio.Task[None] | None) -> None:
        self.run = run
        self.copies = copies
        self._change: asyncio.Task[Any] | None = None
        self._next_try_s = -math.inf
        self._told = False

    def tell_once(self) -> bool:
        """True the first time."""
        first, self._told = not self._told, True
        return first

    def change(self, act: Callable[[str], Awaitable[Any]], now_s: float) -> None:
        """Have the store carry the verdict out, once the new version's worker has ended; after a failure again."""
        name = self.run.model.name
        if self._change is not None and self._change.done():
            if not self._change.cancelled() and (error := self._change.exception()) is not None:
                log.warning("the verdict on model %r is not carried out yet: %s", name, error)
            self._change, self._next_try_s = None, now_s + AGAIN_S
        if self._change is None and now_s >= self._next_try_s and (self.copies is None or self.copies.done()):
            self._change = asyncio.create_task(_ran(act(name)), name=f"trial-verdict-{name}")

    def check(self) -> None:
        """A trial that ended by an error of the agent returns its version."""
        if self.copies is None or not self.copies.done() or self.run.trial.verdict is not None:
            return
        error = None if self.copies.cancelled() else self.copies.exception()
        log.error("%s ended: %r", self.copies.get_name(), error, exc_info=error)
        self.run.trial.decide(TrialVerdict(TrialState.RETURNED, False, f"an error of the agent: {error!r}"))

    async def stop(self) -> None:
        """End both tasks."""
        for task in (self.copies, self._change):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


class VersionTrials:
    """The trials of this device, at most one of each model."""

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        host: HostMonitor,
        operator: TrialOperator,
        storage: TrialStorage,
    ) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self._operator = operator
        self._storage = storage
        self._under_way: dict[str, _UnderWay] = {}
        self._looked_s = context.clock.monotonic_s()
        self._saved_s = -math.inf

    async def look(self, on_trial: Mapping[str, InstalledModel], packages: InstalledPackages) -> None:
        """Begin what the store says is on trial, count the time, carry out verdicts, end what is not on trial any
        more."""
        now_s = self._context.clock.monotonic_s()
        for name, one in list(self._under_way.items()):
            if name not in on_trial or on_trial[name].version != one.run.model.version:
                await self._end(name, one)
        for name, model in on_trial.items():
            if name not in self._under_way:
                self._begin(model, packages.current.get((name, None), ""))
            one = self._under_way[name]
            one.run.trial.spend(now_s - self._looked_s)
            one.check()
            if one.run.trial.verdict is not None:
                self._carry_out(name, one, one.run.trial.verdict, now_s)
        self._looked_s = now_s
        if self._under_way and now_s - self._saved_s >= SHOW_S:
            self._show()

    async def close(self) -> None:
        """The daemon stops: end the workers, leave the trials as they are."""
        for one in self._under_way.values():
            await one.stop()
            one.run.trial.stopped()
        if self._under_way:
            self._show()

    # ---- begin and end ---------------------------------------------------------------------------------------------

    def _begin(self, model: InstalledModel, package: str) -> None:
        record = self._context.trials.get(model.name)
        same = record is not None and (record.version, record.package) == (model.version, package)
        known = same and record is not None and not record.settled
        terms, strange = TrialTerms(), ""
        try:
            terms = terms_of(model.trial)
        except ValueError as error:
            strange = f"this release does not know its terms: {error}"
        if record is None or not known:
            record = TrialRecord(model.name, model.version, package, "running", self._context.clock.wall_s())
            trial = VersionTrial(terms)
            text = f"model {model.name!r} version {model.version} is on trial beside the version before"
            self._context.announce("trial-started", text, {"model": model.name, "version": model.version}, "info")
        else:
            trial = VersionTrial(terms, spent_s=record.spent_s, restarts=record.restarts)
            if record.state == "running":
                trial.restarted()
            else:  # the daemon ended before the store had carried it out
                trial.decide(TrialVerdict(TrialState(record.state), record.sure is True, record.reason))
        if strange:
            trial.decide(TrialVerdict(TrialState.RETURNED, False, strange))
        served = self._manager.served_models.get(model.name)
        if served is not None and served.model.version == model.version:
            trial.decide(TrialVerdict(TrialState.PROMOTED, False, "the version before cannot run any more"))
        run = ShadowRun(self._context, self._manager, self._host, model, trial)
        copies = None
        if served is not None and trial.verdict is None:
            served.observe_by(run.observe)
            copies = asyncio.create_task(run.run(), name=f"trial-{model.name}")
        self._context.note_trial(record)
        self._under_way[model.name] = _UnderWay(run, copies)
        self._show()

    def _carry_out(self, name: str, one: _UnderWay, verdict: TrialVerdict, now_s: float) -> None:
        """Save and report the verdict, then have the store carry it out, again until it shows it."""
        self._forget_texts(name)
        promoted = verdict.state is TrialState.PROMOTED
        if one.tell_once():
            self._show()
            version = one.run.model.version
            data = {"model": name, "version": version, "state": verdict.state.value, "sure": verdict.sure}
            text = f"the trial of model {name!r} version {version}: {verdict.state.value} {verdict.reason}"
            figures = one.run.trial.figures()
            self._context.announce("trial-ended", text, {**data, **figures}, "info" if promoted else "warning")
        one.change(self._operator.promote if promoted else self._operator.rollback, now_s)

    async def _end(self, name: str, one: _UnderWay) -> None:
        """The store shows no trial of this version any more: its verdict was carried out, or a person changed it."""
        self._forget_texts(name)
        await one.stop()
        del self._under_way[name]

    def _forget_texts(self, name: str) -> None:
        for served in self._manager.every_served_model():
            if served.name == name:
                served.observe_by(None)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def _show(self) -> None:
        for name, one in self._under_way.items():
            trial, record = one.run.trial, self._context.trials[name]
            shown = replace(
                record,
                state=trial.state.value,
                spent_s=round(trial.spent_s, 1),
                restarts=trial.restarts,
                sure=None if trial.verdict is None else trial.verdict.sure,
                reason=one.run.waits_for if trial.verdict is None else trial.verdict.reason,
                figures=trial.figures() if trial.seen or trial.deaths or trial.verdict is None else record.figures,
            )
            self._context.note_trial(shown)
        self._saved_s = self._context.clock.monotonic_s()
        try:
            self._storage.write(self._context.trials)
        except EdgeError as error:
            log.warning("the trials are not saved: %s", error)


async def _ran(change: Any) -> Any:
    return await change
