"""The served models of all installed models: who is in memory, who must leave, which adapters are attached.

Acts on the decisions of `core.residency` with the figures of `core.memory_ledger`; one load at a time, so that two
loads never promise the same memory. A model that does not fit now waits (`NoRoom`, `room`), and one that is always in
use lets it in after its turn (`give_way`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from edge_agent.agent.context import Context
from edge_agent.agent.context_sizing import Sizer
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.ports import FootprintCache, Host, Library, Spawner
from edge_agent.agent.served_model import Phase, ServedModel
from edge_agent.base.causes import Cause, Closure, WorkerDeath
from edge_agent.base.errors import AdapterRefused, BackendError, EdgeError, RequestError, WorkerError
from edge_agent.base.limits import ADAPTERS_RESIDENT
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.core import adapter_routing, residency, variants
from edge_agent.protocol.worker_messages import AnyEvent, LoadMemory

DEFAULT_ROUTING = adapter_routing.RoutingPolicy()
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
    """Every installed model's served, and the loading and unloading of their workers."""

    def __init__(
        self,
        context: Context,
        library: Library,
        spawner: Spawner,
        host: Host,
        figures: FootprintCache | None = None,
        sizer: Sizer | None = None,
        rules: adapter_routing.RoutingPolicy = DEFAULT_ROUTING,
    ) -> None:
        self._library = library
        self._spawn = spawner
        self._clock = context.clock
        self._host = host
        self._announce = context.announce
        self.sizer = sizer or Sizer()
        self.books = MemoryAccounting(host, figures)
        self.ledger = self.books.ledger
        self.closed: Closure | None = None
        self.rules = rules
        self._forms: Mapping[adapter_routing.Key, adapter_routing.AdapterRoute] = {}
        self._tier = 0
        self._loading = asyncio.Lock()
        self._change = asyncio.Event()
        self.served_models: dict[str, ServedModel] = {}
        self._leaving: dict[str, ServedModel] = {}
        self.on_event: Callable[[ServedModel, AnyEvent], None] = lambda _served, _event: None
        self.on_death: Callable[[ServedModel, WorkerDeath], None] = lambda _served, _death: None

    def sync(self) -> tuple[list[ServedModel], list[ServedModel]]:
        """Bring the served models in line with the library; returns (new served models, served models whose model is
        gone).

        A model that returns while its worker still finishes gets its old served back: a name has one worker at most.
        """
        active = {model.name: self._tiered(model) for model in self._library.active()}
        gone = [served for name, served in self.served_models.items() if name not in active]
        for served in gone:
            del self.served_models[served.name]
            self._leaving[served.name] = served
            served.gone = True
            served.wake.set()
        for name in self._leaving.keys() & active.keys():
            self.served_models[name] = self._leaving.pop(name)
            self.served_models[name].gone = False
        new = [ServedModel(model) for name, model in active.items() if name not in self.served_models]
        for served in new:
            served.load_s = self.ledger.load_s(served.model.variant.digest) or served.load_s
        for served in new:
            self.served_models[served.name] = served
        for name, model in active.items():
            self.served_models[name].model = model
            self.served_models[name].wake.set()
        self._forms = adapter_routing.route_adapters(tuple(active.values()), self.rules, self._ceiling_bytes)
        return new, gone

    def _ceiling_bytes(self) -> int | None:
        memory = self._host.memory()
        return memory.ceiling_bytes if memory.total_bytes else None

    def runs(self, served: ServedModel, adapter: str | None) -> ServedModel:
        """Where requests for an adapter of that served model's model run: there, or on the merged model
        (`core.adapter_routing`), unless that is quarantined, or found no memory of late while the base is there."""
        form = self._forms.get((served.name, adapter)) if adapter is not None else None
        merged = self.served_models.get(form.merged) if form is not None and form.merged is not None else None
        if merged is None or merged.phase is Phase.QUARANTINED:
            return served
        no_room = merged.worker is None and self._clock.monotonic_s() < merged.no_room_s + NO_ROOM_S
        return served if no_room and served.worker is not None else merged

    def every_served_model(self) -> tuple[ServedModel, ...]:
        """Also those whose model was removed and whose worker still finishes what it has."""
        return (*self.served_models.values(), *self._leaving.values())

    def left(self, served: ServedModel) -> bool:
        """True once nothing is left to do for a served model whose model was removed: it is forgotten."""
        done = served.gone and served.worker is None and not len(served.queue)
        if done:
            self._leaving.pop(served.name, None)
        return done

    def tell_limits(self) -> None:
        """Hand the limits of the moment to every worker that was told others."""
        limits = self._host.worker_limits()
        for served in self.every_served_model():
            if served.worker is not None and served.limits != limits:
                served.limits = limits
                served.worker.set_limits(limits)

    def take_tier(self, tier: int, why: str) -> None:
        """What the governor asks for: 1 is the cheaper variant of every model that has one, 0 the chosen one."""
        if tier == self._tier:
            return
        self._tier = tier
        for model in self._library.active():
            served = self.served_models.get(model.name)
            before = served.model.variant if served is not None else model.variant
            variant = self._tiered(model).variant
            if served is None or variant.digest == before.digest:
                continue
            served.model = replace(model, variant=variant)
            served.wake.set()
            text = f"model {served.name!r} runs {variant.name} instead of {before.name}: {why}"
            self._announce("variant-changed", text, {"model": served.name, "variant": variant.name}, "info")

    def _tiered(self, model: InstalledModel) -> InstalledModel:
        found = variants.cheaper(model, self.rules.accuracy_loss_limit) if self._tier else None
        return model if found is None else replace(model, variant=found)

    async def ensure_loaded(self, served: ServedModel, evict: bool = True) -> None:
        """Make the served model's current variant resident; without `evict` only where there is room as things are.

        Raises NoRoom when it must wait, RequestError (500, 503) when waiting does not help.
        """
        if served.worker is not None and served.loaded_digest == served.model.variant.digest:
            return
        if served.gone:
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, f"model {served.name!r} was removed")
        if served.phase is Phase.QUARANTINED:
            why = f"model {served.name!r} is quarantined after repeated worker deaths, until `edge-agent load` lifts it"
            raise RequestError(503, Cause.QUARANTINED, why)
        async with self._loading:
            await self.unload(served)
            await self.sizer.look(served)
            await self._make_room(served, evict)
            self.ledger.promise(served.name, served.claim)
            served.phase, served.loading_s = Phase.LOADING, self._clock.monotonic_s()
            try:
                await self._load(served)
            except WorkerError:
                # It died while it loaded: that is a death like any other, and the server's loop tries again.
                await self.unload(served)
                raise
            except EdgeError as error:
                await self.unload(served)
                why = f"model {served.name!r} cannot be loaded: {error}"
                raise RequestError(500, Cause.WORKER_FAILED, why, RETRY_AFTER_S) from error

    async def unload(self, served: ServedModel) -> None:
        """End the served model's worker, if it has one; the memory is back when this returns."""
        worker, served.worker = served.worker, None
        served.attached.clear()
        served.phase = Phase.ABSENT if served.phase is not Phase.QUARANTINED else served.phase
        held = worker is not None or self.ledger.account(served.name) is not None
        try:
            if worker is not None:
                await worker.close()
        finally:
            self.ledger.release(served.name)
            if held:
                self._pulse()

    def forget_worker(self, served: ServedModel) -> None:
        """The served's worker has died: what it held is free."""
        served.worker = None
        served.attached.clear()
        self.ledger.release(served.name)
        self._pulse()

    async def room(self, served: ServedModel) -> None:
        """Returns when it may be worth asking for memory again; at once for a model that does not wait for any."""
        if served.short_of_room:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._change.wait(), ROOM_LOOK_S)

    def turn_is_over(self, served: ServedModel) -> bool:
        """Whether a model in use has had its turn and another one waits for memory."""
        waiting_s = [
            other.load_s for other in self.served_models.values() if other.short_of_room and other is not served
        ]
        if not waiting_s or served.worker is None:
            return False
        return residency.turn_is_over(served.loaded_s, max(waiting_s), self._clock.monotonic_s())

    async def give_way(self, served: ServedModel) -> None:
        """Between two batches: a model that has had its turn lets itself be evicted by one that waits for memory."""
        if not self.turn_is_over(served):
            return
        served.yielding = True
        self._pulse()
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._let_in(served), GIVE_WAY_S)
        finally:
            served.yielding = False

    async def _let_in(self, served: ServedModel) -> None:
        while served.worker is not None and any(other.short_of_room for other in self.served_models.values()):
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
        leaving = self.served_models[min(idle, key=lambda one: residency.worth(one, now_s)).name]
        return await self._evict(leaving, f"model {leaving.name!r} left: {why}")

    def end_largest(self, why: str) -> None:
        """End the worker that holds most, for the host's sake. Its jobs wait again, and it counts as no death."""
        working = [served for served in self.served_models.values() if served.worker is not None]
        if not working:
            return
        served = max(working, key=lambda one: one.footprint_bytes)
        self._announce("evicted", f"model {served.name!r} was ended at work: {why}", {"model": served.name})
        served.spared = True
        if served.worker is not None:
            served.worker.kill()

    def measure(self) -> None:
        """Look at what the workers hold; see `books`."""
        self.books.measure(self.served_models.values(), self._clock.monotonic_s())

    async def ensure_attached(self, served: ServedModel, name: str) -> None:
        """Make an adapter resident on the served model's worker; the least recently used one leaves when there are
        too many.

        Raises InUse when it must wait for running requests, RequestError 404 when the model has no such adapter (any
        more) or the runtime refuses it.
        """
        adapter = served.model.adapter(name)
        if adapter is None:
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, f"model {served.name!r} has no adapter {name!r}")
        if served.attached.get(name) == adapter.digest:
            served.attached.move_to_end(name)
            return
        worker = served.worker
        if worker is None:
            raise WorkerError("the worker is gone", served.name)
        leaving = None
        if name in served.attached or len(served.attached) >= ADAPTERS_RESIDENT:
            used = {job.adapter for job in served.running.values()}
            leaving = (
                name if name in served.attached else next((one for one in served.attached if one not in used), name)
            )
            if leaving in used:
                why = f"adapter {name!r} cannot be exchanged while its requests run"
                raise InUse(503, Cause.UNAVAILABLE, why, NOT_NOW_S)
        try:
            if leaving is not None:
                await worker.detach(leaving)
                del served.attached[leaving]
            await worker.attach(adapter)
        except AdapterRefused as error:
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, f"adapter {name!r} was refused: {error.what}") from error
        except BackendError as error:
            raise RequestError(
                500, Cause.WORKER_FAILED, f"adapter {name!r} could not be attached: {error.what}"
            ) from error
        served.attached[name] = adapter.digest

    def residents(self) -> Sequence[residency.ResidentModel]:
        """The loaded models, as the residency decision sees them."""
        now_s = self._clock.monotonic_s()
        return [
            residency.ResidentModel(
                served.name,
                account.reserved_bytes,
                served.lock.locked() or (len(served.queue) > 0 and not served.yielding),
                served.last_used_s,
                served.load_s,
                served.uses.now(now_s),
            )
            for served in self.served_models.values()
            if served.worker is not None and (account := self.ledger.account(served.name)) is not None
        ]

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(self.unload(served) for served in self.every_served_model()))

    async def _make_room(self, served: ServedModel, evict: bool) -> None:
        """Send idle models away until the served model's model fits into what is there then.

        Others go on meanwhile: a model sent for begins to work, another program grows while one ends. So after every
        departure memory is read anew, and only room that is there is promised.
        """
        while True:
            others = [resident for resident in self.residents() if resident.name != served.name]
            if not evict:
                others = [replace(one, busy=True) for one in others]
            now_s = self._clock.monotonic_s()
            memory = self._host.memory(self.ledger.mapped_bytes)
            needed_bytes = self.sizer.decide(served, self.ledger, memory)
            decision = residency.decide(needed_bytes, memory, self.ledger.outstanding_bytes, others, now_s)
            if isinstance(decision, residency.DoesNotFit):
                reason = f"no memory for model {served.name!r}: {decision.reason}"
                if decision.never:
                    why = reason + self.sizer.explained(served, needed_bytes, memory)
                    raise RequestError(503, Cause.MEMORY, why)
                served.no_room_s = now_s
                raise NoRoom(503, Cause.MEMORY, reason, NOT_NOW_S)
            if self.closed is not None:
                served.no_room_s = now_s
                raise NoRoom(503, self.closed.cause, self.closed.reason, NOT_NOW_S)
            leaving = [self.served_models[name] for name in decision.evict if name in self.served_models]
            if not leaving:
                return
            for one in leaving:
                await self._evict(one, f"model {one.name!r} made room for {served.name!r}")

    async def _evict(self, leaving: ServedModel, text: str) -> bool:
        """False when it works again by now: waiting for it here would hold up every other load."""
        if leaving.lock.locked():
            return False
        async with leaving.lock:
            await self.unload(leaving)
        self._announce("evicted", text, {"model": leaving.name}, "info")
        return True

    async def _load(self, served: ServedModel) -> None:
        started_s, gpu_bytes = self._clock.monotonic_s(), self._host.gpu_bytes()
        variant = served.to_load
        try:
            served.worker = worker = await self._spawn(
                lambda event: self.on_event(served, event), lambda death: self.on_death(served, death)
            )
        except WorkerError as error:
            # No death but a setting or a system that does not let it start: it is answered, not tried for ever.
            raise BackendError(f"no worker can be started: {error}") from error
        served.limits = granted = self._host.worker_limits()
        # What it takes memory for at the load holds for its life: not the few rows that heat allows at the moment.
        limits = msgspec.structs.replace(granted, most_rows=self._host.most_rows())
        memory = LoadMemory(served.budget_bytes, shrink=True) if served.budget_bytes else None
        loaded = await worker.load(variant, served.model.task, limits, memory)
        served.mixed, served.sequences = loaded.runtime.mixed_adapters, loaded.sequences
        served.context = loaded.context
        served.load_s = self._clock.monotonic_s() - started_s
        served.loaded_s = served.last_used_s = served.heard_s = self._clock.monotonic_s()
        self.books.loaded(served, gpu_bytes, loaded.footprint.total_bytes)
        served.loaded_digest = variant.digest
        served.phase = Phase.READY
        if served.budget_bytes or (variant.sizing is not None and variant.sizing.shrunk):
            self._say_shrunk(served, variant)

    def _say_shrunk(self, served: ServedModel, variant: Variant) -> None:
        """A generator runs with less than was asked for: with how much, and with how much it would have been."""
        data: dict[str, object] = {"model": served.name, "context": served.context, "sequences": served.sequences}
        text = f"model {served.name!r} has a context of {served.context} tokens for {served.sequences} sequences"
        if variant.sizing is not None:
            full = variant.sizing.full
            data.update(wanted_context=full.context, wanted_sequences=full.sequences)
            text += f" instead of {full.context} for {full.sequences}"
        self._announce("context-shrunk", f"{text}: memory is too small for more (models.shrink_context)", data)
