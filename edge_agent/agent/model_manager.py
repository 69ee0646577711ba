"""All served models: which are in memory, and which must leave.

Carries out the decisions of `core.residency` with the figures of `core.memory_ledger`. One model is loaded at a time,
so that two loads never promise the same memory. A model that does not fit now waits (`NoRoom`, `memory_may_be_free`); a
model that is always in use lets a waiting one in after its turn (`give_way`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from edge_agent.agent.context import Context
from edge_agent.agent.context_sizing import LoadPlan, Sizer
from edge_agent.agent.engine_builds import EngineBuilds, build_claim
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.ports import Library, Spawner
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.worker_events import WorkerEventHandler
from edge_agent.agent.worker_handle import WorkerHandle
from edge_agent.base.causes import Cause, Closure, WorkerDeath
from edge_agent.base.errors import (
    BackendError,
    EdgeError,
    EngineMissing,
    MemoryRefused,
    RequestError,
    WorkerError,
)
from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.core import adapter_routing, residency, variants
from edge_agent.core.memory_ledger import MemoryLedger
from edge_agent.core.model_lifecycle import DrainReason, ModelState
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.protocol.worker_messages import AnyEvent

RETRY_AFTER_S = 30.0
"""`retry_after_s` of a refusal after a load that failed."""
NOT_NOW_S = 5.0
"""`retry_after_s` of a refusal where memory is in use."""
NO_ROOM_S = 60.0
"""After a merged model found no memory, requests for its adapter run on the base for this time, if that is loaded."""
MEMORY_LOOK_S = 0.5
"""A model that waits for memory asks again after this time: other programs free memory without notice."""
GIVE_WAY_S = 2.0
"""A model that lets another one in waits no longer than this to be evicted."""


class NoRoom(RequestError):
    """The model fits on this board, but not now: models that cannot be evicted hold the memory."""


@dataclass(frozen=True, slots=True)
class _Listener:
    """Hears one worker of a model. Implements `WorkerListener`."""

    served: ServedModel
    take_event: Callable[[ServedModel, AnyEvent], None]
    take_death: Callable[[ServedModel, WorkerDeath], None]

    def on_event(self, event: AnyEvent) -> None:
        self.take_event(self.served, event)

    def on_death(self, death: WorkerDeath) -> None:
        self.take_death(self.served, death)


class ModelManager:
    """Every installed model as it is served, and the loading and unloading of their workers."""

    def __init__(
        self,
        context: Context,
        library: Library,
        spawner: Spawner,
        events: WorkerEventHandler,
        memory: MemoryAccounting,
        sizer: Sizer,
        routing: adapter_routing.RoutingPolicy,
    ) -> None:
        """`events` receives what the workers send; `routing` decides which variant runs an adapter."""
        self._context = context
        self._library = library
        self._spawn = spawner
        self._events = events
        self._memory = memory
        self._host = memory.host
        self._sizer = sizer
        self._routing = routing
        self._routes: Mapping[adapter_routing.Key, adapter_routing.AdapterRoute] = {}
        self._tier = 0
        self._loading = asyncio.Lock()
        self._change = asyncio.Event()
        self._closed: Closure | None = None
        self._leaving: dict[str, ServedModel] = {}
        self._beside: dict[str, ServedModel] = {}
        self._builds = EngineBuilds(context, library, spawner, events, memory, sizer, self.take_death)
        self.served_models: dict[str, ServedModel] = {}

    @property
    def ledger(self) -> MemoryLedger:
        """What models hold and were promised, in bytes."""
        return self._memory.ledger

    @property
    def closed(self) -> Closure | None:
        """Why no request is admitted and no model loaded for lack of memory; None while they are."""
        return self._closed

    def close_admission(self, why: Closure) -> None:
        """The host is short of memory: load nothing and admit no request."""
        self._closed = why

    def open_admission(self) -> None:
        """The host has memory again."""
        self._closed = None

    def sync(self) -> list[ServedModel]:
        """Bring the served models in line with the library; returns those that are new. Raises StoreError.

        A model that returns while its worker still finishes is served by that worker again: two served models of one
        name would promise its memory twice.
        """
        installed = {model.name: model for model in self._to_serve()}
        for served in [served for name, served in self.served_models.items() if name not in installed]:
            del self.served_models[served.name]
            self._leaving[served.name] = served
            served.remove()
            self._builds.give_up(served)
        for name in self._leaving.keys() & installed.keys():
            self.served_models[name] = self._leaving.pop(name)
            self.served_models[name].lifecycle.come_back()
        # Only now: one that returns may be waiting for an engine.
        active = {name: self._answering(model) for name, model in installed.items()}
        new = [ServedModel(model) for name, model in active.items() if name not in self.served_models]
        for served in new:
            load_s = self.ledger.load_s(served.model.variant.digest)
            if load_s:
                served.lifecycle.expect_load(load_s)
            self.served_models[served.name] = served
        for name, model in active.items():
            self.served_models[name].install(model)
            if self.served_models[name].fallback.state is FallbackState.CHOSEN:
                self._builds.give_up(self.served_models[name])
        self._routes = adapter_routing.route_adapters(tuple(active.values()), self._routing, self._ceiling_bytes)
        return new

    def _ceiling_bytes(self) -> int | None:
        memory = self._host.memory()
        return memory.ceiling_bytes if memory.total_bytes else None

    def route(self, served: ServedModel, adapter: str | None) -> ServedModel:
        """The model that requests for an adapter of this one run on: this one, or the merged model of the adapter.

        `core.adapter_routing` prefers one of them. A merged model is passed by while it is quarantined, and for
        `NO_ROOM_S` after it found no memory while this one is loaded.
        """
        found = self._routes.get((served.name, adapter)) if adapter is not None else None
        merged = self.served_models.get(found.merged) if found is not None and found.merged is not None else None
        if merged is None or merged.lifecycle.state is ModelState.QUARANTINED:
            return served
        waited_s = self._context.clock.monotonic_s() - merged.lifecycle.no_memory_s
        no_memory = merged.worker is None and waited_s < NO_ROOM_S
        return served if no_memory and served.worker is not None else merged

    def every_served_model(self) -> tuple[ServedModel, ...]:
        """All served models, those included that were removed and whose worker still finishes what it has."""
        return (*self.served_models.values(), *self._leaving.values(), *self._beside.values())

    def forget_if_done(self, served: ServedModel) -> bool:
        """Forget a removed model whose worker is gone and for which nothing waits; True when it was forgotten."""
        done = served.lifecycle.is_removed and served.worker is None and not len(served.queue)
        if done:
            self._leaving.pop(served.name, None)
        return done

    def tell_limits(self) -> None:
        """Pass the limits of the moment to every worker that has other ones."""
        limits = self._host.worker_limits()
        for served in self.every_served_model():
            if served.worker is not None:
                served.worker.tell_limits(limits)

    def take_tier(self, tier: int, why: str) -> None:
        """Serve the chosen variants in tier 0, cheaper ones where there are in tier 1. `why` is part of the events."""
        if tier == self._tier:
            return
        self._tier = tier
        for model in self._to_serve():
            served = self.served_models.get(model.name)
            before = served.model.variant if served is not None else model.variant
            variant = self._answering(model).variant
            if served is None or variant.digest == before.digest:
                continue
            served.install(replace(model, variant=variant))
            text = f"model {served.name!r} runs {variant.name} instead of {before.name}: {why}"
            self._context.announce("variant-changed", text, {"model": served.name, "variant": variant.name}, "info")

    def _to_serve(self) -> tuple[InstalledModel, ...]:
        """The installed models; of one that is on trial the version before, where that can run."""
        return tuple((model.trial and self._library.proven(model.name)) or model for model in self._library.active())

    def _answering(self, model: InstalledModel) -> InstalledModel:
        """The installed model in the variant that answers now: in tier 1 the cheaper one; the fallback in a build."""
        found = variants.cheaper(model, self._routing.accuracy_loss_limit) if self._tier else None
        tiered = model if found is None else replace(model, variant=found)
        served = self.served_models.get(model.name)
        return tiered if served is None else served.fallback.applied(tiered)

    async def ensure_loaded(self, served: ServedModel, evict: bool = True) -> WorkerHandle:
        """Load the model's current variant; without `evict` only into memory that is free now.

        Returns the worker that holds it. Raises NoRoom when it must wait, RequestError (404, 500, 503) when waiting
        does not help, WorkerError when the worker died while it loaded.
        """
        if served.worker is not None and served.is_current:
            return served.worker
        self._check_may_load(served)
        if served.lifecycle.state is ModelState.QUARANTINED:
            why = f"model {served.name!r} is quarantined after repeated worker deaths, until `edge-agent load` lifts it"
            raise RequestError(503, Cause.QUARANTINED, why)
        self._check_is_not_put_off(served)
        try:
            return await self._load_or_fall_back(served, evict)
        except (RequestError, WorkerError):
            raise
        except EdgeError as error:
            raise self._refusal(served, error) from error

    async def _load_or_fall_back(self, served: ServedModel, evict: bool) -> WorkerHandle:
        try:
            return await self._load_into_room(served, evict)
        except EngineMissing:
            return await self._load_after_build(served, evict)
        except RequestError:
            raise
        except EdgeError as error:
            # Without a fallback it is tried again like any other load: no build of minutes has failed.
            if variants.fallback(served.model) is None or not self._fall_back(served, str(error)):
                raise
            return await self._load_into_room(served, evict)

    async def _load_into_room(self, served: ServedModel, evict: bool, build: bool = False) -> WorkerHandle:
        """Load the current variant, one model at a time. Raises RequestError, EngineMissing, BackendError, WorkerError.

        A build takes minutes, in which other models are loaded; its memory is promised before.
        """
        async with contextlib.AsyncExitStack() as one_at_a_time:
            await one_at_a_time.enter_async_context(self._loading)
            await self.unload(served)
            await self._sizer.look(served.model)
            plan = await self._make_room(served, evict)
            self._check_may_load(served)  # it may have been removed while others were evicted
            self.ledger.promise(served.name, plan.claim)
            served.lifecycle.begin_load(self._context.clock.monotonic_s())
            if build:
                await one_at_a_time.aclose()
            try:
                return await self._load(served, plan, build)
            except EdgeError:
                # A worker that died while it loaded died like any other, and the serving loop tries again.
                await self.unload(served)
                raise

    async def _load_after_build(self, served: ServedModel, evict: bool) -> WorkerHandle:
        """There is no engine: load the fallback and build beside where memory allows both, else build first."""
        wanted, fallback = served.model.variant, variants.fallback(served.model)
        why = "the package has no variant on this device that could answer meanwhile"
        if fallback is not None:
            why = await self._no_room_for_both(served, fallback, evict)
        self._check_may_load(served)  # it may have been removed meanwhile
        now_s = self._context.clock.monotonic_s()
        served.fallback.engine_missing(wanted, None if why else fallback, why, now_s)
        if fallback is None or why:
            return await self._build_first(served, evict)
        served.install(replace(served.model, variant=fallback))
        try:
            return await self._load_into_room(served, evict)
        finally:
            self._builds.begin(served)

    async def _build_first(self, served: ServedModel, evict: bool) -> WorkerHandle:
        """Build with nothing beside. The fallback, where there is one, answers after a build that failed."""
        load_s = served.lifecycle.load_s
        served.lifecycle.expect_load(self._builds.usual_s)
        try:
            return await self._load_into_room(served, evict, build=True)
        except RequestError:
            served.fallback.replaced()  # nothing was tried: the next load looks again
            raise
        except EdgeError as error:
            served.lifecycle.expect_load(load_s)
            if self._fall_back(served, str(error)):
                return await self._load_into_room(served, evict)
            raise

    async def _no_room_for_both(self, served: ServedModel, fallback: Variant, evict: bool) -> str:
        """'' where the fallback can answer during the build, else why not. Idle models are evicted if `evict`."""
        while True:
            memory = self._host.memory(self.ledger.mapped_bytes)
            plan, _ = self._sizer.plan(served.model, self.ledger, memory)
            _, fallback_bytes = self._sizer.plan(replace(served.model, variant=fallback), self.ledger, memory)
            needed_bytes = self.ledger.predict(build_claim(plan, self.ledger)) + fallback_bytes
            others = [one for one in self.residents() if one.name != served.name]
            if not evict:
                others = [replace(one, busy=True) for one in others]
            now_s = self._context.clock.monotonic_s()
            decision = residency.decide(needed_bytes, memory, self.ledger.outstanding_bytes, others, now_s)
            if isinstance(decision, residency.DoesNotFit):
                return f"no memory for a build beside {fallback.name}: {decision.reason}"
            leaving = [self._loadable()[name] for name in decision.evict if name in self._loadable()]
            if not leaving:
                return ""
            for one in leaving:
                await self._evict(one, f"model {one.name!r} made room for a build of {served.name!r}")

    def _fall_back(self, served: ServedModel, reason: str) -> bool:
        """A compiled variant cannot be loaded: put it off and serve the fallback; False without one, or for another."""
        wanted, lifecycle = served.model.variant, served.lifecycle
        if not traits(wanted.runtime).compiles or lifecycle.is_removed or lifecycle.state is ModelState.QUARANTINED:
            return False
        fallback = variants.fallback(served.model)
        self._builds.put_off(served, fallback, wanted, reason)
        if fallback is None:
            return False
        served.install(replace(served.model, variant=fallback))
        return True

    def _check_is_not_put_off(self, served: ServedModel) -> None:
        fallback = served.fallback
        left_s = fallback.left_s(self._context.clock.monotonic_s())
        if fallback.state is not FallbackState.PUT_OFF or fallback.variant is not None:
            return
        if left_s > 0.0:
            why = f"model {served.name!r} cannot be loaded: {fallback.reason}"
            raise RequestError(503, Cause.WORKER_FAILED, why, round(left_s, 1))
        self.lift(served)

    def _refusal(self, served: ServedModel, error: EdgeError) -> RequestError:
        """A failed load as the refusal of the requests that wait for it."""
        why = f"model {served.name!r} cannot be loaded: {error}"
        status, cause = (503, Cause.MEMORY) if isinstance(error, MemoryRefused) else (500, Cause.WORKER_FAILED)
        return RequestError(status, cause, why, RETRY_AFTER_S)

    def retry_engines(self) -> None:
        """Try again what was put off and whose time has come; called once a second."""
        now_s = self._context.clock.monotonic_s()
        for served in self.served_models.values():
            if served.fallback.state is not FallbackState.PUT_OFF or served.fallback.left_s(now_s) > 0.0:
                continue
            if served.worker is not None and served.fallback.variant is not None:
                served.fallback.try_again(now_s)
                self._builds.begin(served)
            else:
                self.lift(served)

    def lift(self, served: ServedModel) -> None:
        """The next load of a model is for its chosen variant, although that was put off."""
        wanted = served.fallback.wanted
        if wanted is not None and served.fallback.state is FallbackState.PUT_OFF:
            served.fallback.lift(self._context.clock.monotonic_s())
            served.install(replace(served.model, variant=wanted))

    def _check_may_load(self, served: ServedModel) -> None:
        if served.lifecycle.is_removed:
            raise RequestError(404, Cause.MODEL_REMOVED, f"model {served.name!r} was removed")

    async def load_beside(self, served: ServedModel) -> None:
        """Load a version on trial, which answers nobody, into memory that is free now; it is evicted like an idle
        model. Raises NoRoom, RequestError, BackendError, WorkerError. After a cancel `unload_beside` must follow."""
        self._beside[served.name] = served
        if self._closed is not None:
            raise NoRoom(503, self._closed.cause, self._closed.reason, NOT_NOW_S)
        await self._load_into_room(served, evict=False)

    async def lend(self, served: ServedModel, text: str) -> bool:
        """End the worker of a model at rest, so that a version on trial has its memory; False where it is in use."""
        return await self._evict(served, text)

    async def unload_beside(self, served: ServedModel) -> None:
        """End the worker of a version on trial."""
        self._beside.pop(served.name, None)
        await self.unload(served)

    def beside_died(self, served: ServedModel) -> None:
        """The worker of a version on trial has died: what it held is free. Its death is no event of the model."""
        self.ledger.release(served.name)
        served.worker_died(self._context.clock.monotonic_s(), 0)
        self._pulse()

    async def unload(self, served: ServedModel) -> None:
        """End the served model's worker, if it has one; the memory is free when this returns."""
        worker = served.drop_worker()
        held = worker is not None or self.ledger.account(served.name) is not None
        try:
            if worker is not None:
                await worker.process.close()
        finally:
            self.ledger.release(served.name)
            if held:
                self._pulse()

    def take_death(self, served: ServedModel, death: WorkerDeath) -> None:
        """The served model's worker has died: what it held is free."""
        self.ledger.release(served.name)
        self._pulse()
        self._events.take_death(served, death)

    async def memory_may_be_free(self, served: ServedModel) -> None:
        """Returns when it may be worth asking for memory again; at once for a model that does not wait for any."""
        if served.lifecycle.wants_memory:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._change.wait(), MEMORY_LOOK_S)

    def turn_is_over(self, served: ServedModel) -> bool:
        """Whether a model in use has had its turn and another one waits for memory."""
        others = (other for other in self.served_models.values() if other is not served)
        waiting_s = [other.lifecycle.load_s for other in others if other.lifecycle.wants_memory]
        if not waiting_s or served.worker is None:
            return False
        return residency.turn_is_over(served.worker.loaded_s, max(waiting_s), self._context.clock.monotonic_s())

    async def give_way(self, served: ServedModel) -> None:
        """Between two batches: a model that has had its turn lets itself be evicted by one that waits for memory."""
        if not self.turn_is_over(served):
            return
        served.lifecycle.drain(DrainReason.GIVING_WAY)
        self._pulse()
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._let_in(served), GIVE_WAY_S)
        finally:
            served.lifecycle.resume(DrainReason.GIVING_WAY)

    async def _let_in(self, served: ServedModel) -> None:
        while served.worker is not None and any(one.lifecycle.wants_memory for one in self.served_models.values()):
            await self._change.wait()

    def _pulse(self) -> None:
        """Wake the models that wait for memory: some was freed, or a busy model gives way.

        Not to be called without such a cause: the models that wait would wake each other without end.
        """
        event, self._change = self._change, asyncio.Event()
        event.set()

    async def evict_idle(self, why: str) -> bool:
        """End a build, or evict the idle model that is worth least, for the host's sake; False without either."""
        if self._builds.give_up_for(self.served_models.values(), why):
            return True
        now_s = self._context.clock.monotonic_s()
        idle = [one for one in self.residents() if not one.busy]
        if not idle:
            return False
        leaving = self._loadable()[min(idle, key=lambda one: residency.worth(one, now_s)).name]
        return await self._evict(leaving, f"model {leaving.name!r} left: {why}")

    def kill_largest(self, why: str) -> None:
        """Kill the worker that holds most, for the host's sake. Its jobs wait again, and the death is not counted."""
        working = [served for served in self._loadable().values() if served.worker is not None]
        if not working:
            return
        served = max(working, key=lambda one: one.footprint_bytes)
        self._context.announce("evicted", f"model {served.name!r} was ended at work: {why}", {"model": served.name})
        served.lifecycle.evict()
        if served.worker is not None:
            served.worker.process.kill()

    def measure(self) -> None:
        """Measure what the workers hold; see `MemoryAccounting.measure`."""
        self._memory.measure(self._loadable().values(), self._context.clock.monotonic_s())

    def _loadable(self) -> Mapping[str, ServedModel]:
        """Every model whose worker may be evicted, those on trial included."""
        return {**self._beside, **self.served_models}

    def residents(self) -> Sequence[residency.ResidentModel]:
        """The loaded models, as the residency decision sees them."""
        now_s = self._context.clock.monotonic_s()
        return [
            residency.ResidentModel(
                served.name,
                account.reserved_bytes,
                served.lock.locked() or (len(served.queue) > 0 and not _gives_way(served)),
                served.worker.last_used_s,
                # One on trial answers nobody: it is worth nothing.
                0.0 if served.name in self._beside else served.lifecycle.load_s,
                served.popularity.now(now_s),
            )
            for served in self._loadable().values()
            if served.worker is not None and (account := self.ledger.account(served.name)) is not None
        ]

    async def close(self) -> None:
        """End every worker."""
        await self._builds.close()
        await asyncio.gather(*(self.unload(served) for served in self.every_served_model()))

    async def _make_room(self, served: ServedModel, evict: bool) -> LoadPlan:
        """Evict idle models until the model fits into the memory that is free then; returns with what to load it.

        While one worker ends, another model may begin to work and another program may grow. So after every eviction
        memory is read anew, and only memory that is free is promised.
        """
        while True:
            others = [resident for resident in self.residents() if resident.name != served.name]
            if not evict:
                others = [replace(one, busy=True) for one in others]
            now_s = self._context.clock.monotonic_s()
            memory = self._host.memory(self.ledger.mapped_bytes)
            plan, needed_bytes = self._sizer.plan(served.model, self.ledger, memory)
            decision = residency.decide(needed_bytes, memory, self.ledger.outstanding_bytes, others, now_s)
            if isinstance(decision, residency.DoesNotFit):
                reason = f"no memory for model {served.name!r}: {decision.reason}"
                if decision.never:
                    why = reason + plan.explained(needed_bytes, memory)
                    raise RequestError(503, Cause.MEMORY, why)
                served.lifecycle.found_no_memory(now_s)
                raise NoRoom(503, Cause.MEMORY, reason, NOT_NOW_S)
            if self._closed is not None:
                served.lifecycle.found_no_memory(now_s)
                raise NoRoom(503, self._closed.cause, self._closed.reason, NOT_NOW_S)
            leaving = [self._loadable()[name] for name in decision.evict if name in self._loadable()]
            if not leaving:
                held_bytes = sum(one.footprint_bytes for one in others)
                room_bytes = residency.room_bytes(memory, self.ledger.outstanding_bytes, held_bytes)
                return replace(plan, room_bytes=room_bytes)
            for one in leaving:
                await self._evict(one, f"model {one.name!r} made room for {served.name!r}")

    async def _evict(self, leaving: ServedModel, text: str) -> bool:
        """Evict an idle model; False where it is in use by now: waiting for it would delay every other load."""
        if leaving.lock.locked():
            return False
        async with leaving.lock:
            if leaving.worker is not None:
                leaving.lifecycle.evict()
            await self.unload(leaving)
        self._context.announce("evicted", text, {"model": leaving.name}, "info")
        return True

    async def _load(self, served: ServedModel, plan: LoadPlan, build: bool) -> WorkerHandle:
        begun_s, gpu_bytes = self._context.clock.monotonic_s(), self._host.gpu_bytes()
        try:
            listener = served.listener or _Listener(served, self._events.take_event, self.take_death)
            process = await self._spawn(listener)
        except WorkerError as error:
            # Not a death: a setting or the system does not let the process start, and would not at the next try.
            raise BackendError(f"no worker can be started: {error}") from error
        if served.lifecycle.state is not ModelState.LOADING:
            # The model was removed, and its serving loop gave the load up, while the process started.
            await process.close()
            raise WorkerError("the load was given up", served.name)
        limits = self._host.worker_limits()
        worker = served.spawned(process, plan, limits)
        # The session allocates memory for this many rows at the load and keeps it, so it gets the most rows, not the
        # few that heat may allow at the moment.
        most_rows = msgspec.structs.replace(limits, most_rows=self._host.most_rows())
        answer = await worker.load(served.model.task, most_rows, build)
        loaded_s = self._context.clock.monotonic_s()
        # A build is no part of the next load's time.
        load_s = loaded_s - (begun_s if worker.progress is None else worker.told_s)
        if answer.unproven:
            await self._builds.prove(served, worker)
        if served.worker is not worker:
            raise WorkerError("the worker ended when its load was over", served.name)
        now_s = self._context.clock.monotonic_s()
        if served.fallback.state in {FallbackState.CHOSEN, FallbackState.BUILDING_FIRST}:
            served.fallback.passed(now_s)
        served.loaded(worker, answer, now_s - load_s, now_s)
        self._builds.say_built(served, worker, now_s)
        self._memory.loaded(served, gpu_bytes, answer.footprint)
        if plan.is_shrunk:
            self._say_shrunk(served, worker)
        return worker

    def _say_shrunk(self, served: ServedModel, worker: WorkerHandle) -> None:
        """Report that a generator runs with a smaller context than was asked for, with both figures."""
        context, sequences, sizing = worker.context, worker.sequences, worker.plan.variant.sizing
        data: dict[str, object] = {"model": served.name, "context": context, "sequences": sequences}
        text = f"model {served.name!r} has a context of {context} tokens for {sequences} sequences"
        if sizing is not None:
            full = sizing.full
            data.update(wanted_context=full.context, wanted_sequences=full.sequences)
            text += f" instead of {full.context} for {full.sequences}"
        self._context.announce("context-shrunk", f"{text}: memory is too small for more (models.shrink_context)", data)


def _gives_way(served: ServedModel) -> bool:
    return DrainReason.GIVING_WAY in served.lifecycle.drain_reasons
