"""Several times a second: how short of memory is the host, and what is done about it, before the kernel does it.

The stages and their figures are `core.memory_pressure`'s. One thing at a time, and time in between for it to have its
effect.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.served_model import ServedModel
from edge_agent.base.causes import Cause, Closure
from edge_agent.base.errors import WorkerError
from edge_agent.core import memory_pressure
from edge_agent.core.memory_pressure import MemorySigns, PressureStage
from edge_agent.protocol.messages import Severity

LOOK_S = 0.25
"""Two small files each time; a board without PSI has no other way to notice in time (facts/boards.md E)."""
SHED_EVERY_S = 1.0
END_EVERY_S = 5.0
"""A worker's memory is back within this; only then is another one ended."""


class MemoryGuard:
    """Looks at the host's memory and acts on the manager."""

    def __init__(self, context: Context, manager: ModelManager, host: HostMonitor) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self._state = memory_pressure.PressureState()
        self._shed_s = self._ended_s = -math.inf

    @property
    def stage(self) -> PressureStage:
        """How short memory is."""
        return self._state.stage

    def summary(self) -> dict[str, Any]:
        """The books on memory, for telemetry; bytes."""
        ledger = self._manager.ledger
        memory = self._host.last_memory
        return {
            "stage": self.stage.name.lower(),
            "available_bytes": None if memory is None else memory.available_bytes,
            "reserve_bytes": None if memory is None else memory.reserve_bytes,
            "budget_bytes": None if memory is None else memory.budget_bytes,
            "outstanding_bytes": ledger.outstanding_bytes,
            "models": {
                name: {
                    "promised_bytes": account.promised_bytes,
                    "held_bytes": account.held_bytes,
                    "mapped_bytes": account.mapped_bytes,
                }
                for name, account in ledger.accounts().items()
            },
        }

    async def run(self) -> None:
        """Look several times a second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """One look."""
        signs = self._host.signs(self._manager.ledger.mapped_bytes)
        if signs.available_bytes <= 0 and self._host.reading("ram_available").value is None:
            # Nothing is known: what was closed for want of memory must not stay so for ever.
            self._state = memory_pressure.PressureState()
            self._manager.open_admission()
            return
        now_s = self._context.clock.monotonic_s()
        before, self._state = self._state.stage, memory_pressure.decide(signs, self._state, now_s)
        if self.stage is not before:
            await self._change(before, signs)
        if self.stage >= PressureStage.SHORT:
            reason = f"no memory: {memory_pressure.reason(signs, self._state.stalls)}"
            self._manager.close_admission(Closure(Cause.MEMORY, reason))
        else:
            self._manager.open_admission()
        if self.stage is not PressureStage.CALM:
            await self._make_room(signs, now_s)

    async def _change(self, before: PressureStage, signs: MemorySigns) -> None:
        why = memory_pressure.reason(signs, self._state.stalls)
        text = f"memory {before.name.lower()} -> {self.stage.name.lower()}: {why}"
        severity: Severity = "info" if self.stage < before else "warning"
        self._context.announce("memory-pressure", text, {"stage": self.stage.name.lower()}, severity)
        if before is PressureStage.CALM:
            idle = [
                served
                for served in self._manager.served_models.values()
                if served.worker is not None and not served.lock.locked()
            ]
            await asyncio.gather(*(self._shrink(served) for served in idle))

    async def _shrink(self, served: ServedModel) -> None:
        """Let an idle worker give back what it only keeps for later; one that dies of it is noticed by its own
        served.
        """
        async with served.lock:
            if served.worker is not None:
                try:
                    await served.worker.process.shrink()
                except WorkerError:
                    return

    async def _make_room(self, signs: MemorySigns, now_s: float) -> None:
        if now_s - self._shed_s >= SHED_EVERY_S or self.stage >= PressureStage.SHORT:
            self._shed_s = now_s
            if await self._manager.shed(memory_pressure.reason(signs, self._state.stalls)):
                self._ended_s = now_s
                return
        if self.stage is PressureStage.CRITICAL and now_s - self._ended_s >= END_EVERY_S:
            self._ended_s = now_s
            self._manager.end_largest(memory_pressure.reason(signs, self._state.stalls))
