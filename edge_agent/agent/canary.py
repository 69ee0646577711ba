"""Runs the package's golden probes again on a schedule, to notice a model that computes something else than it did.

A board that overheated, a card that decays or a runtime that was upgraded may change what a model computes after its
install was verified. Once a second one model, or one of its adapters, may be probed. Models that have requests or are
not in memory are left alone, and so are adapters that are not attached.

A file of its own because the agent runs it as background work, apart from the requests.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

from edge_agent.agent import golden_probes
from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Worker
from edge_agent.agent.served_model import Probed, ServedModel
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.probes import ProbeFile

log = logging.getLogger("edge_agent")
IDLE_S = 5.0
"""A model is probed after this time without a request: probes take tens of milliseconds, and a request that arrives
meanwhile waits for them."""
LOOK_S = 1.0
ReadProbes = Callable[[InstalledModel, str | None], ProbeFile | None]


class CanaryProber:
    """Runs the probes of each model and adapter every `every_s` seconds (0: never).

    `read` returns the probe file of a model or of its adapter, None where there is none; it may raise EdgeError.
    """

    def __init__(self, context: Context, manager: ModelManager, read: ReadProbes, every_s: float) -> None:
        self._context = context
        self._manager = manager
        self._read = read
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Look once a second, until cancelled; a probe under way is given up then."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.tick()
        finally:
            await self.close()

    def tick(self) -> None:
        """Probe what was not probed for longest, if it is due and idle; one probe runs at a time."""
        if self._every_s <= 0.0 or (self._task is not None and not self._task.done()):
            return
        if self._context.grant.closed or self._manager.closed:
            return  # too hot or short of memory: no request is admitted either
        now_s = self._context.clock.monotonic_s()
        due: list[tuple[float, ServedModel, str | None]] = []
        for served in self._manager.served_models.values():
            if self._idle(served, now_s):
                ages = [(_since_s(served, name), served, name) for name in served.in_worker()]
                due.extend(one for one in ages if now_s - one[0] >= self._every_s)
        if due:
            _, served, name = min(due, key=lambda one: one[0])
            self._task = asyncio.create_task(self._probe(served, name), name=f"canary-{served.name}")

    async def close(self) -> None:
        """Cancel a probe under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _idle(self, served: ServedModel, now_s: float) -> bool:
        worker = served.worker
        if worker is None or not served.lifecycle.is_loaded or served.lock.locked() or len(served.queue):
            return False
        return now_s - worker.last_used_s >= IDLE_S

    async def _probe(self, served: ServedModel, adapter: str | None) -> None:
        async with served.lock:
            subject = served.probe_subject(adapter)
            if subject is None or adapter not in served.in_worker() or served.worker is None:
                return  # it was unloaded, detached or replaced since `tick` looked
            before = served.last_probed(adapter)
            try:
                ok, reason = await self._verdict(served, served.worker.process, adapter)
            except _RequestsWait:
                return  # due again at the next idle moment
            except EdgeError as error:
                # The worker died or the store cannot be read. Others report that; the next try is when it is next due.
                ok, reason = None, f"the probes could not be run: {error}"
            served.note_probe(adapter, Probed(subject, ok, reason, self._context.clock.monotonic_s()))
        if ok is False and (before is None or before.ok is not False):
            what = f"model {served.name!r}" if adapter is None else f"adapter {adapter!r} of model {served.name!r}"
            data = {"model": served.name} | ({} if adapter is None else {"adapter": adapter})
            text = f"{what} computes something else than it did: {reason}"
            self._context.announce("verify-failed", text, data, "error")

    def _yield_to_requests(self, served: ServedModel) -> None:
        """Raise _RequestsWait between the parts of a probe, so that a request waits for one part at most."""
        if len(served.queue):
            raise _RequestsWait

    async def _verdict(self, served: ServedModel, worker: Worker, adapter: str | None) -> tuple[bool | None, str]:
        return await golden_probes.verdict(
            worker,
            self._read(served.model, adapter),
            served.model.variant.name,
            adapter,
            served.in_worker(),
            between=functools.partial(self._yield_to_requests, served),
        )


class _RequestsWait(Exception):
    """Requests arrived while a model was being probed."""


def _since_s(served: ServedModel, adapter: str | None) -> float:
    last = served.last_probed(adapter)
    if last is not None:
        return last.at_s
    return served.worker.loaded_s if served.worker is not None else 0.0
