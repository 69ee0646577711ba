"""The books on memory, kept with what is measured: `core.memory_ledger`' ledger, fed by the workers' real sizes.

A worker is measured after its load and, while it is used, every ten seconds. What the GPU of a Jetson took during a
load is counted to the model that was loading: loads come one at a time, and it is in no process's own figure.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_agent.agent.ports import FootprintCache, Host
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.core.memory_ledger import MemoryLedger

MEASURE_EVERY_S = 10.0
SETTLED_S = 60.0


class MemoryAccounting:
    """The byte ledger, and when to look again."""

    def __init__(self, host: Host, figures: FootprintCache | None) -> None:
        self._host = host
        self._figures = figures
        self.ledger = MemoryLedger(figures.read() if figures is not None else {})
        self._measured_s: dict[str, float] = {}
        self._gpu_bytes: dict[str, int] = {}

    def loaded(self, seat: ServedModel, gpu_before_bytes: int, fallback_bytes: int) -> None:
        """A model has just been loaded: `fallback_bytes` is the runtime's own figure, where the kernel has none."""
        self._measured_s.pop(seat.name, None)
        self._gpu_bytes[seat.name] = max(0, self._host.gpu_bytes() - gpu_before_bytes)
        if not self._measure(seat, seat.load_s) and fallback_bytes:
            seat.footprint_bytes = fallback_bytes + self._gpu_bytes[seat.name]
            self.ledger.state(seat.name, seat.footprint_bytes, seat.load_s)
        self._keep()

    def measure(self, seats: Iterable[ServedModel], now_s: float) -> None:
        """Look at what the workers hold, each at most every ten seconds while it is used; keep figures that changed."""
        for seat in seats:
            asked_s = self._measured_s.get(seat.name, seat.loaded_s)
            # One that still loads holds a part of what it will.
            ready = seat.worker is not None and seat.phase is Phase.READY
            if not ready or seat.last_used_s < asked_s or now_s - asked_s < MEASURE_EVERY_S:
                continue
            self._measured_s[seat.name] = now_s
            self._measure(seat)
            if now_s - seat.loaded_s >= SETTLED_S:
                self.ledger.settle(seat.name)
        self._keep()

    def _measure(self, seat: ServedModel, load_s: float | None = None) -> bool:
        """Book what the kernel says that the worker holds; False when it says nothing."""
        held = self._host.process_bytes(seat.worker.pid) if seat.worker is not None else None
        if held is None or not held[0]:
            return False
        held_bytes, mapped_bytes = held
        seat.footprint_bytes = held_bytes + self._gpu_bytes.get(seat.name, 0)
        self.ledger.hold(seat.name, seat.footprint_bytes, mapped_bytes, load_s)
        return True

    def _keep(self) -> None:
        if self._figures is not None and self.ledger.worth_keeping():
            self._figures.write(self.ledger.figures())
