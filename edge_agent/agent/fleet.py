"""The seats of all installed models: who is in memory, who must leave, which adapters are attached.

Acts on the decisions of `core.residency`; one load at a time, so that two loads never promise the same memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from edge_agent.agent.context import Announce
from edge_agent.agent.ports import Library, Spawner, WorkerEvent
from edge_agent.agent.seat import Phase, Seat
from edge_agent.base.clock import Clock
from edge_agent.base.errors import AdapterRefused, BackendError, EdgeError, RequestError, WorkerError
from edge_agent.base.limits import ADAPTERS_RESIDENT
from edge_agent.core import residency

RETRY_AFTER_S = 30.0
NOT_NOW_S = 5.0


class Host(Protocol):
    """What the fleet asks about its machine; `agent.watch.Watch`."""

    def memory(self) -> residency.Memory:
        """Total and available RAM."""
        ...

    def process_bytes(self, pid: int) -> int | None:
        """What a process holds (PSS), None where that cannot be read."""
        ...

    def worker_limits(self) -> Mapping[str, int]:
        """max_rows and threads as the governor grants them now."""
        ...


class Fleet:
    """Every installed model's seat, and the loading and unloading of their workers."""

    def __init__(
        self,
        library: Library,
        spawner: Spawner,
        clock: Clock,
        host: Host,
        announce: Announce,
    ) -> None:
        self._library = library
        self._spawn = spawner
        self._clock = clock
        self._host = host
        self._announce = announce
        self._loading = asyncio.Lock()
        self.seats: dict[str, Seat] = {}
        self.on_event: Callable[[Seat, WorkerEvent], None] = lambda _seat, _event: None
        self.on_death: Callable[[Seat, str], None] = lambda _seat, _reason: None

    def sync(self) -> tuple[list[Seat], list[Seat]]:
        """Bring the seats in line with the library; returns (new seats, seats whose model is gone)."""
        active = {model.name: model for model in self._library.active()}
        gone = [seat for name, seat in self.seats.items() if name not in active]
        for seat in gone:
            del self.seats[seat.name]
            seat.gone = True
            seat.wake.set()
        new = [Seat(model) for name, model in active.items() if name not in self.seats]
        for seat in new:
            self.seats[seat.name] = seat
        for name, model in active.items():
            self.seats[name].model = model
            self.seats[name].wake.set()
        return new, gone

    async def ensure_loaded(self, seat: Seat) -> None:
        """Make the seat's current variant resident. Raises RequestError (500, 503) for those who wait."""
        if seat.worker is not None and seat.loaded_digest == seat.model.variant.digest:
            return
        if seat.phase is Phase.QUARANTINED:
            raise RequestError(503, f"model {seat.name!r} is quarantined after repeated worker deaths", 60.0)
        async with self._loading:
            await self.unload(seat)
            await self._make_room(seat)
            seat.phase = Phase.LOADING
            try:
                await self._load(seat)
            except WorkerError:
                # It died while it loaded: that is a death like any other, and the dispatcher's loop tries again.
                await self.unload(seat)
                raise
            except EdgeError as error:
                await self.unload(seat)
                raise RequestError(500, f"model {seat.name!r} cannot be loaded: {error}", RETRY_AFTER_S) from error

    async def unload(self, seat: Seat) -> None:
        """End the seat's worker, if it has one; the memory is back when this returns."""
        worker, seat.worker = seat.worker, None
        seat.attached.clear()
        seat.phase = Phase.ABSENT if seat.phase is not Phase.QUARANTINED else seat.phase
        if worker is not None:
            await worker.close()

    async def ensure_attached(self, seat: Seat, name: str) -> None:
        """Make an adapter resident on the seat's worker; the least recently used one leaves when there are too many.

        Raises RequestError 404 when the model has no such adapter (any more) or the runtime refuses it.
        """
        adapter = seat.model.adapter(name)
        if adapter is None:
            raise RequestError(404, f"model {seat.name!r} has no adapter {name!r}")
        if seat.attached.get(name) == adapter.digest:
            seat.attached.move_to_end(name)
            return
        worker = seat.worker
        if worker is None:
            raise WorkerError("the worker is gone", seat.name)
        if name in seat.attached or len(seat.attached) >= ADAPTERS_RESIDENT:
            leaving = name if name in seat.attached else next(iter(seat.attached))
            await worker.call("detach", name=leaving)
            del seat.attached[leaving]
        try:
            await worker.attach(adapter)
        except AdapterRefused as error:
            raise RequestError(404, f"adapter {name!r} was refused: {error.what}") from error
        except BackendError as error:
            raise RequestError(500, f"adapter {name!r} could not be attached: {error.what}") from error
        seat.attached[name] = adapter.digest

    def residents(self) -> Sequence[residency.Resident]:
        """The loaded models, as the residency decision sees them."""
        return [
            residency.Resident(seat.name, seat.predicted_bytes, seat.lock.locked(), seat.last_used_s, seat.load_s)
            for seat in self.seats.values()
            if seat.worker is not None
        ]

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(self.unload(seat) for seat in self.seats.values()))

    async def _make_room(self, seat: Seat) -> None:
        """Send idle models away until the seat's model fits; what began to work meanwhile is asked about anew."""
        while True:
            others = [resident for resident in self.residents() if resident.name != seat.name]
            now_s = self._clock.monotonic_s()
            decision = residency.decide(seat.predicted_bytes, self._host.memory(), 0, others, now_s)
            if isinstance(decision, residency.DoesNotFit):
                retry_after_s = None if decision.never else NOT_NOW_S
                raise RequestError(503, f"no memory for model {seat.name!r}: {decision.reason}", retry_after_s)
            leaving = [self.seats[name] for name in decision.evict if name in self.seats]
            if all([await self._evict(one, seat) for one in leaving]):
                return

    async def _evict(self, leaving: Seat, coming: Seat) -> bool:
        """False when it works again by now: waiting for it here would hold up every other load."""
        if leaving.lock.locked():
            return False
        async with leaving.lock:
            await self.unload(leaving)
        text = f"model {leaving.name!r} made room for {coming.name!r}"
        self._announce("evicted", text, {"model": leaving.name}, "info")
        return True

    async def _load(self, seat: Seat) -> None:
        started_s = self._clock.monotonic_s()
        variant = seat.model.variant
        try:
            seat.worker = worker = await self._spawn(
                lambda event: self.on_event(seat, event), lambda reason: self.on_death(seat, reason)
            )
        except WorkerError as error:
            # No death but a setting or a system that does not let it start: it is answered, not tried for ever.
            raise BackendError(f"no worker can be started: {error}") from error
        answer = await worker.load(variant, seat.model.task, self._host.worker_limits())
        seat.mixed = bool(answer["mixed_adapters"])
        seat.capabilities = answer
        seat.footprint_bytes = self._host.process_bytes(worker.pid) or sum(answer["footprint"].values())
        seat.load_s = self._clock.monotonic_s() - started_s
        seat.last_used_s = seat.heard_s = self._clock.monotonic_s()
        seat.loaded_digest = variant.digest
        seat.phase = Phase.READY
