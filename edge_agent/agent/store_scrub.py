"""Reads every file of the store, once a week if not set otherwise, and has what is damaged written anew: flash loses
bits with the years.

A file that is not what its digest says is healed by an install of the package that it came from, wherever that lies:
the incoming folder, a stick, a URL that the desired state names for it. Of a package only what is damaged is written.
The model's worker, which may have loaded the damaged file, is ended after that. What no source has is reported.

The files of the version before are read, too, and only reported: an older release is not installed again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from edge_agent.agent.commands import Operator, at_rest
from edge_agent.agent.context import Context
from edge_agent.agent.desired_keeper import PackageSource
from edge_agent.agent.model_manager import ModelManager
from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError, StoreError

log = logging.getLogger("edge_agent")
FIRST_S = 3600.0
"""After the start, when the board has settled; sooner where looks follow each other faster (`store.scrub_s`)."""
PAUSE_S = 0.05
"""After each MiB that was read: 20 MiB a second at most, so that the card and a core are left to the models."""
BUSY_TRIES, BUSY_S = 20, 30.0
"""While another change of the store is at work."""
CHANGED_TRIES = 3
"""Readings in a row during which the store was changed; then the next look decides."""
CONDITION = "store"


class DamagedFile(Protocol):
    """A file of the store; `store.model_store.Damage`."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that need it."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that brought it to versions that are current."""
        ...

    @property
    def problem(self) -> str:
        """What is wrong with it."""
        ...


class ScrubbedStore(Protocol):
    """Implemented by `store.model_store.ModelStore`."""

    def scrub(self, pace: Callable[[], None]) -> Sequence[DamagedFile]:
        """Every damaged file; `pace` is called after each MiB. Raises StoreError."""
        ...

    def generation(self) -> int:
        """A number that every change of the store changes. Raises StoreError."""
        ...


class StoreScrub:
    """Implements `agent.loop.Background`."""

    def __init__(
        self,
        context: Context,
        store: ScrubbedStore,
        manager: ModelManager,
        operator: Operator,
        source: PackageSource,
        urls: Callable[[str], Collection[str]],
        every_s: float,
    ) -> None:
        """`urls`: where the desired state says that a package can be fetched. `every_s` > 0 lies between two looks."""
        self._context = context
        self._store = store
        self._manager = manager
        self._operator = operator
        self._source = source
        self._urls = urls
        self._every_s = every_s

    async def run(self) -> None:
        """Look after an hour at most, then every `every_s`, until cancelled."""
        await asyncio.sleep(min(FIRST_S, self._every_s))
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Read everything; heal what can be healed, and report the rest."""
        found = await self._damage()
        if found is None:
            return  # nothing is known: what was reported before stays so
        packages = list(dict.fromkeys(package for one in found for package in one.packages))
        healed = {package for package in packages if await self._heal(package)}
        if healed:
            await self._end_workers(_models([one for one in found if healed.intersection(one.packages)]))
        left = await self._damage() if healed else found
        if left is None:
            left = [one for one in found if not healed.intersection(one.packages)]
        self._report(found, left)

    async def _damage(self) -> Sequence[DamagedFile] | None:
        """Every damaged file; None where the store could not be read through."""
        stopping = threading.Event()

        def pace() -> None:
            if stopping.wait(PAUSE_S):
                raise StoreError("the reading was stopped", "store")

        try:
            for _ in range(CHANGED_TRIES):
                before = self._store.generation()
                found = await asyncio.to_thread(self._store.scrub, pace)
                # An install meanwhile has deleted files of the version that it found there.
                if not found or self._store.generation() == before:
                    return found
            return None
        except EdgeError as error:
            log.warning("the store cannot be read through: %s", error)
            return None
        finally:
            # The daemon's end waits for its threads.
            stopping.set()

    def _report(self, found: Sequence[DamagedFile], left: Sequence[DamagedFile]) -> None:
        sentence = None
        if left:
            names = ", ".join(_models(left))
            sentence = f"{len(left)} damaged files of {names} ({left[0].problem}): install their packages again"
        self._context.note_condition(CONDITION, sentence)
        if found:
            text = sentence or f"{len(found)} damaged files of {', '.join(_models(found))} were written anew"
            data = {"models": _models(found), "found": len(found), "left": len(left)}
            self._context.announce("store-damaged", text, data, "error" if left else "warning")

    async def _heal(self, package: str) -> bool:
        """Install the package again from the first source that has it. What is not damaged is not written."""
        found = (await self._source.find({package})).get(package)
        places = [] if found is None else [found.name]
        for place in [*places, *self._urls(package)]:
            try:
                await self._install(place, package)
            except EdgeError as error:
                log.warning("package %s does not come from %s: %s", package, place, error)
            else:
                return True
        return False

    async def _install(self, place: str, package: str) -> None:
        for left in reversed(range(BUSY_TRIES)):
            try:
                if "://" in place:
                    await self._operator.fetch(place, package)
                elif "/" in place:
                    await self._operator.install_from(place, package)
                else:
                    await self._operator.install(place, digest=package)
            except EdgeError as error:
                if error.cause is not Cause.BUSY or not left:
                    raise
                await asyncio.sleep(BUSY_S)
            else:
                return

    async def _end_workers(self, models: Collection[str]) -> None:
        """They hold what they have loaded; the next request, or the list of resident models, loads them anew."""
        for name in models:
            served = self._manager.served_models.get(name)
            if served is not None:
                async with at_rest(served):
                    await self._manager.unload(served)


def _models(damage: Sequence[DamagedFile]) -> list[str]:
    return sorted({name for one in damage for name in one.models})
