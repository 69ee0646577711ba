"""The golden probes of the package, asked again of an idle worker on a schedule: what computes wrongly is noticed.

A board that overheated, a card that decays or a runtime that was upgraded may change what a model computes after its
install was judged sound. One look a second; a model that has work, or that is not in memory, is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from edge_agent.agent.context import Context
from edge_agent.agent.fleet import Fleet
from edge_agent.agent.seat import Phase, Seat
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.probes import Measured, ProbeFile, judge

log = logging.getLogger("edge_agent")
IDLE_S = 5.0
"""No request for so long: the probes take some tens of milliseconds, and whoever comes then waits for them."""
ReadProbes = Callable[[InstalledModel], ProbeFile | None]


class Canary:
    """Runs the probes. `read` gives a model's probe file, None where it has none; it may raise EdgeError."""

    def __init__(self, context: Context, fleet: Fleet, read: ReadProbes, every_s: float) -> None:
        self._context = context
        self._fleet = fleet
        self._read = read
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def tick(self) -> None:
        """Begin with the model that was not probed for longest, if one is due and idle; one at a time. 0: never."""
        if self._every_s <= 0.0 or (self._task is not None and not self._task.done()):
            return
        now_s = self._context.clock.monotonic_s()
        due = [seat for seat in self._fleet.seats.values() if self._due(seat, now_s)]
        if due:
            seat = min(due, key=lambda one: one.canary_s if one.canary_s is not None else one.loaded_s)
            self._task = asyncio.create_task(self._probe(seat), name=f"canary-{seat.name}")

    async def close(self) -> None:
        """Give up a probe under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _due(self, seat: Seat, now_s: float) -> bool:
        if seat.worker is None or seat.phase is not Phase.READY or seat.lock.locked() or len(seat.queue):
            return False
        before_s = seat.canary_s if seat.canary_s is not None else seat.loaded_s
        return now_s - before_s >= self._every_s and now_s - seat.last_used_s >= IDLE_S

    async def _probe(self, seat: Seat) -> None:
        async with seat.lock:
            worker = seat.worker
            if worker is None:
                return
            was_ok = seat.canary_ok
            try:
                file = self._read(seat.model)
                if file is None:
                    seat.canary_ok, seat.canary_reason = None, "the package has no golden probes for this variant"
                else:
                    answer = await worker.call("measure", adapter=None, texts=list(file.texts))
                    verdict = judge(file, seat.model.variant.name, _measured(answer))
                    seat.canary_ok, seat.canary_reason = verdict.code is None, verdict.reason
            except EdgeError as error:
                # The worker died or the store cannot be read: others say that; it is tried again at the next date.
                seat.canary_ok, seat.canary_reason = None, f"the probes could not be run: {error}"
            seat.canary_s = self._context.clock.monotonic_s()
        if seat.canary_ok is False and was_ok is not False:
            text = f"model {seat.name!r} computes something else than it did: {seat.canary_reason}"
            self._context.announce("verify-failed", text, {"model": seat.name}, "error")


def _measured(answer: Any) -> Measured:
    return Measured(answer["features"], answer.get("logits"))
