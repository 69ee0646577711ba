"""The seats of all installed models: who is in memory, who must leave, which adapters are attached.

Acts on the decisions of `core.residency` with the figures of `core.memory_ledger`; one load at a time, so that two
loads never promise the same memory. A model that does not fit now waits (`NoRoom`, `room`), and one that is always in
use lets it in after its turn (`give_way`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edge_agent.agent.context import Announce
from edge_agent.agent.context_sizing import Sizer
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.ports import FootprintCache, Host, Library, Spawner, WorkerEvent
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.base.clock import Clock
from edge_agent.base.errors import AdapterRefused, BackendError, EdgeError, RequestError, WorkerError
from edge_agent.base.limits import ADAPTERS_RESIDENT
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.core import adapter_routing, residency, variants

RETRY_AFTER_S = 30.0
NOT_NOW_S = 5.0
NO_ROOM_S = 60.0
"""For so long after a merged model found no memory, new requests go to the base that is there."""
ROOM_LOOK_S = 0.5
"""A waiting model looks again so often: memory also comes free without our doing."""
GIVE_WAY_S = 2.0


class NoRoom(RequestError):
    """The model fits on this board, but not now: busy models hold the memory."""


class InUse(RequestError):
    """An adapter is to be exchanged for its newer version, and the old one is at work."""


class ModelManager:
    """Every installed model's seat, and the loading and unloading of their workers."""

    def __init__(
        self,
        library: Library,
        spawner: Spawner,
        clock: Clock,
        host: Host,
        announce: Announce,
        figures: FootprintCache | None = None,
        sizer: Sizer | None = None,
    ) -> None:
        self._library = library
        self._spawn = spawner
        self._clock = clock
        self._host = host
        self._announce = announce
        self.sizer = sizer or Sizer()
        self.books = MemoryAccounting(host, figures)
        self.ledger = self.books.ledger
        self.closed_because: str | None = None
        self.rules = adapter_routing.RoutingPolicy()
        self._forms: Mapping[adapter_routing.Key, adapter_routing.AdapterRoute] = {}
        self._tier = 0
        self._loading = asyncio.Lock()
        self._change = asyncio.Event()
        self.seats: dict[str, ServedModel] = {}
        self._leaving: dict[str, ServedModel] = {}
        self.on_event: Callable[[ServedModel, WorkerEvent], None] = lambda _seat, _event: None
        self.on_death: Callable[[ServedModel, str], None] = lambda _seat, _reason: None

    def sync(self) -> tuple[list[ServedModel], list[ServedModel]]:
        """Bring the seats in line with the library; returns (new seats, seats whose model is gone).

        A model that returns while its worker still finishes gets its old seat back: a name has one worker at most.
        """
        active = {model.name: self._tiered(model) for model in self._library.active()}
        gone = [seat for name, seat in self.seats.items() if name not in active]
        for seat in gone:
            del self.seats[seat.name]
            self._leaving[seat.name] = seat
            seat.gone = True
            seat.wake.set()
        for name in self._leaving.keys() & active.keys():
            self.seats[name] = self._leaving.pop(name)
            self.seats[name].gone = False
        new = [ServedModel(model) for name, model in active.items() if name not in self.seats]
        for seat in new:
            seat.load_s = self.ledger.load_s(seat.model.variant.digest) or seat.load_s
        for seat in new:
            self.seats[seat.name] = seat
        for name, model in active.items():
            self.seats[name].model = model
            self.seats[name].wake.set()
        self._forms = adapter_routing.forms(tuple(active.values()), self.rules, self._ceiling_bytes)
        return new, gone

    def _ceiling_bytes(self) -> int | None:
        memory = self._host.memory()
        return memory.ceiling_bytes if memory.total_bytes else None

    def runs(self, seat: ServedModel, adapter: str | None) -> ServedModel:
        """Where requests for an adapter of that seat's model run: there, or on the merged model
        (`core.adapter_routing`), unless that is quarantined, or found no memory of late while the base is there."""
        form = self._forms.get((seat.name, adapter)) if adapter is not None else None
        merged = self.seats.get(form.merged) if form is not None and form.merged is not None else None
        if merged is None or merged.phase is Phase.QUARANTINED:
            return seat
        no_room = merged.worker is None and self._clock.monotonic_s() < merged.no_room_s + NO_ROOM_S
        return seat if no_room and seat.worker is not None else merged

    def every_seat(self) -> tuple[ServedModel, ...]:
        """Also those whose model was removed and whose worker still finishes what it has."""
        return (*self.seats.values(), *self._leaving.values())

    def left(self, seat: ServedModel) -> bool:
        """True once nothing is left to do for a seat whose model was removed: it is forgotten."""
        done = seat.gone and seat.worker is None and not len(seat.queue)
        if done:
            self._leaving.pop(seat.name, None)
        return done

    def tell_limits(self) -> None:
        """Hand the limits of the moment to every worker that was told others."""
        limits = self._host.worker_limits()
        for seat in self.every_seat():
            if seat.worker is not None and seat.limits != limits:
                seat.limits = limits
                seat.worker.set_limits(limits)

    def take_tier(self, tier: int, why: str) -> None:
        """What the governor asks for: 1 is the cheaper variant of every model that has one, 0 the chosen one."""
        if tier == self._tier:
            return
        self._tier = tier
        for model in self._library.active():
            seat = self.seats.get(model.name)
            before = seat.model.variant if seat is not None else model.variant
            variant = self._tiered(model).variant
            if seat is None or variant.digest == before.digest:
                continue
            seat.model = replace(model, variant=variant)
            seat.wake.set()
            text = f"model {seat.name!r} runs {variant.name} instead of {before.name}: {why}"
            self._announce("variant-changed", text, {"model": seat.name, "variant": variant.name}, "info")

    def _tiered(self, model: InstalledModel) -> InstalledModel:
        found = variants.cheaper(model, self.rules.accuracy_loss_limit) if self._tier else None
        return model if found is None else replace(model, variant=found)

    async def ensure_loaded(self, seat: ServedModel, evict: bool = True) -> None:
        """Make the seat's current variant resident; without `evict` only where there is room as things are.

        Raises NoRoom when it must wait, RequestError (500, 503) when waiting does not help.
        """
        if seat.worker is not None and seat.loaded_digest == seat.model.variant.digest:
            return
        if seat.gone:
            raise RequestError(404, f"model {seat.name!r} was removed")
        if seat.phase is Phase.QUARANTINED:
            why = f"model {seat.name!r} is quarantined after repeated worker deaths, until `edge-agent load` lifts it"
            raise RequestError(503, why)
        async with self._loading:
            await self.unload(seat)
            await self.sizer.look(seat)
            await self._make_room(seat, evict)
            self.ledger.promise(seat.name, seat.claim)
            seat.phase, seat.loading_s = Phase.LOADING, self._clock.monotonic_s()
            try:
                await self._load(seat)
            except WorkerError:
                # It died while it loaded: that is a death like any other, and the dispatcher's loop tries again.
                await self.unload(seat)
                raise
            except EdgeError as error:
                await self.unload(seat)
                raise RequestError(500, f"model {seat.name!r} cannot be loaded: {error}", RETRY_AFTER_S) from error

    async def unload(self, seat: ServedModel) -> None:
        """End the seat's worker, if it has one; the memory is back when this returns."""
        worker, seat.worker = seat.worker, None
        seat.attached.clear()
        seat.phase = Phase.ABSENT if seat.phase is not Phase.QUARANTINED else seat.phase
        held = worker is not None or self.ledger.account(seat.name) is not None
        try:
            if worker is not None:
                await worker.close()
        finally:
            self.ledger.release(seat.name)
            if held:
                self._pulse()

    def forget_worker(self, seat: ServedModel) -> None:
        """The seat's worker has died: what it held is free."""
        seat.worker = None
        seat.attached.clear()
        self.ledger.release(seat.name)
        self._pulse()

    async def room(self, seat: ServedModel) -> None:
        """Returns when it may be worth asking for memory again; at once for a model that does not wait for any."""
        if seat.short_of_room:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._change.wait(), ROOM_LOOK_S)

    def turn_is_over(self, seat: ServedModel) -> bool:
        """Whether a model in use has had its turn and another one waits for memory."""
        waiting_s = [other.load_s for other in self.seats.values() if other.short_of_room and other is not seat]
        if not waiting_s or seat.worker is None:
            return False
        return residency.turn_is_over(seat.loaded_s, max(waiting_s), self._clock.monotonic_s())

    async def give_way(self, seat: ServedModel) -> None:
        """Between two batches: a model that has had its turn lets itself be evicted by one that waits for memory."""
        if not self.turn_is_over(seat):
            return
        seat.yielding = True
        self._pulse()
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._let_in(seat), GIVE_WAY_S)
        finally:
            seat.yielding = False

    async def _let_in(self, seat: ServedModel) -> None:
        while seat.worker is not None and any(other.short_of_room for other in self.seats.values()):
            await self._change.wait()

    def _pulse(self) -> None:
        """Memory came free or a busy model yields: whoever waits looks again. Never without such a cause: those who
        wait would wake each other for ever, in no time."""
        event, self._change = self._change, asyncio.Event()
        event.set()

    async def shed(self, why: str) -> bool:
        """Send the idle model away that is worth least, for the host's sake; False when there is none."""
        now_s = self._clock.monotonic_s()
        idle = [one for one in self.residents() if not one.busy]
        if not idle:
            return False
        leaving = self.seats[min(idle, key=lambda one: residency.worth(one, now_s)).name]
        return await self._evict(leaving, f"model {leaving.name!r} left: {why}")

    def end_largest(self, why: str) -> None:
        """End the worker that holds most, for the host's sake. Its jobs wait again, and it counts as no death."""
        working = [seat for seat in self.seats.values() if seat.worker is not None]
        if not working:
            return
        seat = max(working, key=lambda one: one.footprint_bytes)
        self._announce("evicted", f"model {seat.name!r} was ended at work: {why}", {"model": seat.name})
        seat.spared = True
        if seat.worker is not None:
            seat.worker.kill()

    def measure(self) -> None:
        """Look at what the workers hold; see `books`."""
        self.books.measure(self.seats.values(), self._clock.monotonic_s())

    async def ensure_attached(self, seat: ServedModel, name: str) -> None:
        """Make an adapter resident on the seat's worker; the least recently used one leaves when there are too many.

        Raises InUse when it must wait for running requests, RequestError 404 when the model has no such adapter (any
        more) or the runtime refuses it.
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
        leaving = None
        if name in seat.attached or len(seat.attached) >= ADAPTERS_RESIDENT:
            used = {job.adapter for job in seat.running.values()}
            leaving = name if name in seat.attached else next((one for one in seat.attached if one not in used), name)
            if leaving in used:
                raise InUse(503, f"adapter {name!r} cannot be exchanged while its requests run", NOT_NOW_S)
        try:
            if leaving is not None:
                await worker.call("detach", name=leaving)
                del seat.attached[leaving]
            await worker.attach(adapter)
        except AdapterRefused as error:
            raise RequestError(404, f"adapter {name!r} was refused: {error.what}") from error
        except BackendError as error:
            raise RequestError(500, f"adapter {name!r} could not be attached: {error.what}") from error
        seat.attached[name] = adapter.digest

    def residents(self) -> Sequence[residency.Resident]:
        """The loaded models, as the residency decision sees them."""
        now_s = self._clock.monotonic_s()
        return [
            residency.Resident(
                seat.name,
                account.reserved_bytes,
                seat.lock.locked() or (len(seat.queue) > 0 and not seat.yielding),
                seat.last_used_s,
                seat.load_s,
                seat.uses.now(now_s),
            )
            for seat in self.seats.values()
            if seat.worker is not None and (account := self.ledger.account(seat.name)) is not None
        ]

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(self.unload(seat) for seat in self.every_seat()))

    async def _make_room(self, seat: ServedModel, evict: bool) -> None:
        """Send idle models away until the seat's model fits into what is there then.

        Others go on meanwhile: a model sent for begins to work, another program grows while one ends. So after every
        departure memory is read anew, and only room that is there is promised.
        """
        while True:
            others = [resident for resident in self.residents() if resident.name != seat.name]
            if not evict:
                others = [replace(one, busy=True) for one in others]
            now_s = self._clock.monotonic_s()
            memory = self._host.memory(self.ledger.mapped_bytes)
            needed_bytes = self.sizer.decide(seat, self.ledger, memory)
            decision = residency.decide(needed_bytes, memory, self.ledger.outstanding_bytes, others, now_s)
            if isinstance(decision, residency.DoesNotFit):
                reason = f"no memory for model {seat.name!r}: {decision.reason}"
                if decision.never:
                    raise RequestError(503, reason + self.sizer.explained(seat, needed_bytes, memory))
                seat.no_room_s = now_s
                raise NoRoom(503, reason, NOT_NOW_S)
            if self.closed_because is not None:
                seat.no_room_s = now_s
                raise NoRoom(503, self.closed_because, NOT_NOW_S)
            leaving = [self.seats[name] for name in decision.evict if name in self.seats]
            if not leaving:
                return
            for one in leaving:
                await self._evict(one, f"model {one.name!r} made room for {seat.name!r}")

    async def _evict(self, leaving: ServedModel, text: str) -> bool:
        """False when it works again by now: waiting for it here would hold up every other load."""
        if leaving.lock.locked():
            return False
        async with leaving.lock:
            await self.unload(leaving)
        self._announce("evicted", text, {"model": leaving.name}, "info")
        return True

    async def _load(self, seat: ServedModel) -> None:
        started_s, gpu_bytes = self._clock.monotonic_s(), self._host.gpu_bytes()
        variant = seat.to_load
        try:
            seat.worker = worker = await self._spawn(
                lambda event: self.on_event(seat, event), lambda reason: self.on_death(seat, reason)
            )
        except WorkerError as error:
            # No death but a setting or a system that does not let it start: it is answered, not tried for ever.
            raise BackendError(f"no worker can be started: {error}") from error
        seat.limits = self._host.worker_limits()
        # What it takes memory for at the load holds for its life: not the few rows that heat allows at the moment.
        limits = {**seat.limits, "most_rows": self._host.most_rows()}
        if seat.budget_bytes:
            memory = {"memory_bytes": seat.budget_bytes, "shrink": True}
            answer = await worker.load(variant, seat.model.task, limits, memory)
        else:
            answer = await worker.load(variant, seat.model.task, limits)
        seat.mixed, seat.sequences = bool(answer["mixed_adapters"]), int(answer.get("sequences", 0))
        seat.context, seat.capabilities = int(answer.get("context", 0)), answer
        seat.load_s = self._clock.monotonic_s() - started_s
        seat.loaded_s = seat.last_used_s = seat.heard_s = self._clock.monotonic_s()
        self.books.loaded(seat, gpu_bytes, sum(answer["footprint"].values()))
        seat.loaded_digest = variant.digest
        seat.phase = Phase.READY
        if seat.budget_bytes or (variant.sizing is not None and variant.sizing.shrunk):
            self._say_shrunk(seat, variant)

    def _say_shrunk(self, seat: ServedModel, variant: Variant) -> None:
        """A generator runs with less than was asked for: with how much, and with how much it would have been."""
        data: dict[str, object] = {"model": seat.name, "context": seat.context, "sequences": seat.sequences}
        text = f"model {seat.name!r} has a context of {seat.context} tokens for {seat.sequences} sequences"
        if variant.sizing is not None:
            full = variant.sizing.full
            data.update(wanted_context=full.context, wanted_sequences=full.sequences)
            text += f" instead of {full.context} for {full.sequences}"
        self._announce("context-shrunk", f"{text}: memory is too small for more (models.shrink_context)", data)
