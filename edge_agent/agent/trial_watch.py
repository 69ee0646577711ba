"""Looks once a second whether a model is on trial, and has `version_trials` carry the trials out.

A file of its own because it is always in memory: `version_trials` and what it imports are only while there is a trial.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.worker_events import Answers
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.desired_state import InstalledPackages
from edge_agent.core.trial_records import TrialRecord, TrialSamples

if TYPE_CHECKING:
    from edge_agent.agent.version_trials import VersionTrials

log = logging.getLogger("edge_agent")
LOOK_S = 1.0
BY_HAND = "it was ended on the device, by a command or an install"


class TrialStorage(Protocol):
    """Keeps the trials over restarts. Implemented by `store.trial_file.TrialFile`."""

    def read(self) -> dict[str, TrialRecord]:
        """By model; empty where there are none, or the file is damaged."""
        ...

    def write(self, records: Mapping[str, TrialRecord]) -> None:
        """Replace them atomically. Raises StoreError."""
        ...

    def read_samples(self) -> dict[str, TrialSamples]:
        """What trials under way had measured, by model; empty where the file is missing or damaged."""
        ...

    def write_samples(self, samples: Mapping[str, TrialSamples]) -> None:
        """Replace them atomically. Raises StoreError."""
        ...


class TrialLibrary(Protocol):
    """The store, as far as trials read it; `store.model_store.ModelStore`."""

    def active(self) -> tuple[InstalledModel, ...]:
        """See `ports.Library`."""
        ...

    def packages(self) -> InstalledPackages:
        """From which packages models and adapters came. Raises StoreError."""
        ...


class TrialOperator(Protocol):
    """Ends a trial in the store, in a process of its own; `app.daemon.StoreProcess`. Raises StoreError."""

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """Return the model to the version before."""
        ...

    async def promote(self, model: str, limit_s: float | None = None) -> Mapping[str, Any]:
        """Keep the version on trial."""
        ...


class TrialWatch:
    """Begins, carries on and ends trials. Implements `agent.loop.Background`. What is shown is in `Context.trials`."""

    def __init__(
        self,
        context: Context,
        library: TrialLibrary,
        manager: ModelManager,
        host: HostMonitor,
        operator: TrialOperator,
        storage: TrialStorage,
        answers: Answers,
    ) -> None:
        self._context = context
        self._library = library
        self._manager = manager
        self._host = host
        self._operator = operator
        self._storage = storage
        self._answers = answers
        self._trials: VersionTrials | None = None
        context.trials.update(storage.read())

    async def run(self) -> None:
        """Look once a second, until cancelled; workers of versions on trial are ended then."""
        try:
            while True:
                await self.tick()
                await asyncio.sleep(LOOK_S)
        finally:
            if self._trials is not None:
                await self._trials.close()

    async def tick(self) -> None:
        """One look."""
        try:
            active = self._library.active()
            on_trial = {model.name: model for model in active if model.trial}
            self._settle({model.name: model for model in active})
            if on_trial and self._trials is None:
                # Imported here, because a trial is rare and every imported module costs the daemon memory.
                from edge_agent.agent.version_trials import VersionTrials

                self._trials = VersionTrials(
                    self._context, self._manager, self._host, self._operator, self._storage, self._answers
                )
            if self._trials is not None:
                await self._trials.look(on_trial, self._library.packages() if on_trial else InstalledPackages())
        except EdgeError as error:
            log.debug("trials are not looked at: %s", error)

    def _settle(self, active: Mapping[str, InstalledModel]) -> None:
        """Note the trials that the store shows no more: their verdict was carried out, or a person or another install
        ended them, perhaps while no daemon ran."""
        over = [one for one in self._context.trials.values() if not one.settled and not _is_on(active, one)]
        for record in over:
            settled = replace(record, settled=True)
            if record.state == "running":
                found = active.get(record.model)
                stays = found is not None and found.version == record.version
                settled = replace(settled, state="promoted" if stays else "returned", sure=False, reason=BY_HAND)
                text = f"the trial of model {record.model!r} version {record.version}: {settled.state}, {BY_HAND}"
                data = {"model": record.model, "version": record.version, "state": settled.state, "sure": False}
                self._context.announce("trial-ended", text, data, "info")
            self._context.note_trial(settled)
        if over:
            self._storage.write(self._context.trials)


def _is_on(active: Mapping[str, InstalledModel], record: TrialRecord) -> bool:
    found = active.get(record.model)
    return found is not None and bool(found.trial) and found.version == record.version
