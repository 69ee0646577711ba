"""Measures what the workers hold and keeps it in the ledger of `core.memory_ledger`.

A worker is measured after its load and, while it is used, every ten seconds. Memory that the GPU of a Jetson took
during a load is in no process's own figure. It is counted to the model that was loading: one model is loaded at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edge_agent.agent.ports import FootprintCache, Host
from edge_agent.agent.served_model import ServedModel
from edge_agent.core.memory_ledger import MemoryLedger
from edge_agent.protocol.worker_messages import FootprintBytes

MEASURE_EVERY_S = 10.0
SETTLED_S = 60.0
"""After this time in memory a model is taken to hold all that it will."""


class MemoryAccounting:
    """The memory ledger, and when each worker is measured again. `figures` keeps what was measured over restarts."""

    def __init__(self, host: Host, figures: FootprintCache | None = None) -> None:
        self.host = host
        self._figures = figures
        self.ledger = MemoryLedger(figures.read() if figures is not None else {})
        self._measured_s: dict[str, float] = {}
        self._gpu_bytes: dict[str, int] = {}

    def loaded(self, served: ServedModel, gpu_before_bytes: int, stated: FootprintBytes) -> None:
        """Enter what a model holds that was just loaded: the memory of its worker's processes, plus what the GPU took
        of the board's. That is what its memory has grown since `gpu_before_bytes`, or the runtime's own figure where
        it is more or the kernel does not tell. `stated` also replaces the processes' part where the system has none."""
        self._measured_s.pop(served.name, None)
        grown_bytes = self.host.gpu_bytes() - gpu_before_bytes
        self._gpu_bytes[served.name] = max(0, grown_bytes, stated.device_bytes)
        if not self._measure(served, served.lifecycle.load_s) and stated.total_bytes:
            others_bytes = stated.total_bytes - stated.device_bytes
            served.note_footprint(max(0, others_bytes) + self._gpu_bytes[served.name])
            self.ledger.hold_estimate(served.name, served.footprint_bytes, served.lifecycle.load_s)
        self._keep()

    def measure(self, served_models: Iterable[ServedModel], now_s: float) -> None:
        """Measure the workers that were used since they were measured, each at most every ten seconds."""
        for served in served_models:
            self._measure_build(served, now_s)
            worker = served.worker
            if worker is None or not served.lifecycle.is_loaded:
                continue  # a worker that still loads holds only a part of what it will hold
            asked_s = self._measured_s.get(served.name, worker.loaded_s)
            if worker.last_used_s < asked_s or now_s - asked_s < MEASURE_EVERY_S:
                continue
            self._measured_s[served.name] = now_s
            self._measure(served)
            if now_s - worker.loaded_s >= SETTLED_S:
                self.ledger.settle(served.name)
        self._keep()

    def _measure_build(self, served: ServedModel, now_s: float) -> None:
        """Enter what a build beside holds by now: what it has taken is not available any more, and must not be
        subtracted a second time as promised."""
        name = served.build_account
        if served.successor is None or now_s - self._measured_s.get(name, -math.inf) < MEASURE_EVERY_S:
            return
        self._measured_s[name] = now_s
        if (held := self.host.process_bytes(served.successor.process.pid)) is not None:
            self.ledger.hold(name, *held)

    def _measure(self, served: ServedModel, load_s: float | None = None) -> bool:
        """Enter what the worker holds by the kernel's figures; False when there are none. `load_s`: of its load."""
        held = self.host.process_bytes(served.worker.process.pid) if served.worker is not None else None
        if held is None or not held[0]:
            return False
        held_bytes, mapped_bytes = held
        served.note_footprint(held_bytes + self._gpu_bytes.get(served.name, 0))
        self.ledger.hold(served.name, served.footprint_bytes, mapped_bytes, load_s)
        return True

    def _keep(self) -> None:
        if self._figures is not None and self.ledger.worth_keeping():
            self._figures.write(self.ledger.figures())
