"""The trials of new versions on this device: begins and ends them, keeps what they measured, has the store carry their
verdicts out.

While a model is on trial (its record in the store says so) `ModelManager` serves the version before; `trial_run` has
both versions compute the same requests, and `core.version_trial` judges. The verdict is saved, then carried out in the
store until the store shows it.

Imported by `trial_watch` only while an installed model is on trial.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.trial_run import TrialRun
from edge_agent.agent.worker_events import Answers
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.desired_state import InstalledPackages
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.core.version_trial import TrialState, TrialVerdict, VersionTrial
from edge_agent.protocol.messages import TrialOrder
from edge_agent.protocol.trial_terms import read_trial

if TYPE_CHECKING:
    from edge_agent.agent.trial_watch import TrialOperator, TrialStorage

log = logging.getLogger("edge_agent")
SHOW_S = 25.0
"""Time spent and figures are saved and published this often: a restart costs 30 s of the trial's time."""
AGAIN_S = 5.0
KEEP_S = 300.0
"""What was measured is kept this often, if there is more: up to 250 KiB of writing."""


class _UnderWay:
    """A trial with its tasks: that of the copies, and that which carries out the verdict."""

    def __init__(self, run: TrialRun, copies: asyncio.Task[None] | None) -> None:
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
        answers: Answers,
    ) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self._operator = operator
        self._storage = storage
        self._answers = answers
        self._under_way: dict[str, _UnderWay] = {}
        self._looked_s = context.clock.monotonic_s()
        self._saved_s = self._kept_s = -math.inf
        self._kept: dict[str, TrialSamples] = storage.read_samples()

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
        if self._under_way and now_s - self._kept_s >= KEEP_S:
            self._keep()

    async def close(self) -> None:
        """The daemon stops: end the workers, leave the trials as they are."""
        for one in self._under_way.values():
            await one.stop()
            one.run.trial.stopped()
        if self._under_way:
            self._show()
            self._keep()

    # ---- begin and end ---------------------------------------------------------------------------------------------

    def _begin(self, model: InstalledModel, package: str) -> None:
        record = self._context.trials.get(model.name)
        same = record is not None and (record.version, record.package) == (model.version, package)
        known = same and record is not None and not record.settled
        terms, strange = TrialOrder(), ""
        try:
            terms = read_trial(model.trial)
        except ValueError as error:  # those of a later release, after a downgrade
            strange = f"this release does not know its terms: {error}"
        if record is None or not known:
            record = TrialRecord(model.name, model.version, package, "running", self._context.clock.wall_s())
            trial = VersionTrial(terms)
            text = f"model {model.name!r} version {model.version} is on trial beside the version before"
            self._context.announce("trial-started", text, {"model": model.name, "version": model.version}, "info")
        else:
            before = self._kept.get(model.name)
            own = (
                before if before is not None and (before.version, before.package) == (model.version, package) else None
            )
            trial = VersionTrial(terms, spent_s=record.spent_s, restarts=record.restarts, known=own)
            if record.state == "running":
                trial.restarted()
            else:  # the daemon ended before the store had carried it out
                trial.decide(TrialVerdict(TrialState(record.state), record.sure is True, record.reason))
        if strange:
            trial.decide(TrialVerdict(TrialState.RETURNED, False, strange))
        served = self._manager.served_models.get(model.name)
        if served is not None and served.model.version == model.version:
            trial.decide(TrialVerdict(TrialState.PROMOTED, False, "the version before cannot run any more"))
        run = TrialRun(self._context, self._manager, self._host, self._answers, model, trial)
        copies = None
        if served is not None and trial.verdict is None:
            served.observe_by(run.observe)
            served.divert_by(run.take)
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
            figures = one.run.figures()
            self._context.announce("trial-ended", text, {**data, **figures}, "info" if promoted else "warning")
        one.change(self._operator.promote if promoted else self._operator.rollback, now_s)

    async def _end(self, name: str, one: _UnderWay) -> None:
        """The store shows no trial of this version any more: its verdict was carried out, or a person changed it."""
        self._forget_texts(name)
        await one.stop()
        del self._under_way[name]
        self._keep()

    def _forget_texts(self, name: str) -> None:
        for served in self._manager.every_served_model():
            if served.name == name:
                served.observe_by(None)
                served.divert_by(None)

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
                figures=one.run.figures() if trial.seen or trial.deaths or trial.verdict is None else record.figures,
            )
            self._context.note_trial(shown)
        self._saved_s = self._context.clock.monotonic_s()
        try:
            self._storage.write(self._context.trials)
        except EdgeError as error:
            log.warning("the trials are not saved: %s", error)

    def _keep(self) -> None:
        """Write what the trials under way have measured, where it is more than is kept."""
        self._kept_s = self._context.clock.monotonic_s()
        measured: dict[str, TrialSamples] = {}
        for name, one in self._under_way.items():
            if one.run.trial.verdict is None:
                record = self._context.trials[name]
                measured[name] = one.run.trial.samples(record.version, record.package)
        if measured == self._kept:
            return
        self._kept = measured
        try:
            self._storage.write_samples(measured)
        except EdgeError as error:
            log.warning("what the trials have measured is not saved: %s", error)


async def _ran(change: Any) -> Any:
    return await change
