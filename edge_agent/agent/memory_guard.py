"""Looks four times a second how short of memory the host is, and frees memory before the kernel kills a process.

`core.memory_pressure` defines the stages. One model is evicted or killed at a time, with time in between for the memory
to be free.
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
"""Two small files are read each time: a kernel without PSI (pressure stall information) notifies of nothing."""
EVICT_EVERY_S = 1.0
KILL_EVERY_S = 5.0
"""A killed worker's memory is free within this time; only then is another one killed."""


class MemoryGuard:
    """Reads the host's memory, and has the model manager evict models and refuse requests."""

    def __init__(self, context: Context, manager: ModelManager, host: HostMonitor) -> None:
        self._context = context
        self._manager = manager
        self._host = host
        self._state = memory_pressure.PressureState()
        self._evicted_s = self._killed_s = -math.inf

    @property
    def stage(self) -> PressureStage:
        """How short memory is."""
        return self._state.stage

    def summary(self) -> dict[str, Any]:
        """The memory ledger for telemetry, in bytes."""
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
            # The sensor is lost: admission that was closed for lack of memory must not stay closed for ever.
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
        """Have an idle worker free what it only keeps for later use. If it dies of that, its serving loop notices."""
        async with served.lock:
            if served.worker is not None:
                try:
                    await served.worker.process.shrink()
                except WorkerError:
                    return

    async def _make_room(self, signs: MemorySigns, now_s: float) -> None:
        if now_s - self._evicted_s >= EVICT_EVERY_S or self.stage >= PressureStage.SHORT:
            self._evicted_s = now_s
            if await self._manager.evict_idle(memory_pressure.reason(signs, self._state.stalls)):
                self._killed_s = now_s
                return
        if self.stage is PressureStage.CRITICAL and now_s - self._killed_s >= KILL_EVERY_S:
            self._killed_s = now_s
            self._manager.kill_largest(memory_pressure.reason(signs, self._state.stalls))
