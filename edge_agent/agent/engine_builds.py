"""Compiles the chosen variant of a model beside the fallback that answers meanwhile, and lets it take over.

A build takes minutes and runs in a worker of its own, one at a time. When it is over that worker holds the model; its
golden probes run, the adapters that are in use are attached, and between two batches it replaces the fallback's worker:
no request waits for a load. Whatever goes wrong on the way puts the chosen variant off, and the fallback stays.

`core.variant_fallback` says when; `agent.model_manager` begins a build when a load finds no engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from edge_agent.agent import golden_probes
from edge_agent.agent.context import Context
from edge_agent.agent.context_sizing import LoadPlan, Sizer
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.ports import Library, Spawner
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.worker_events import WorkerEventHandler
from edge_agent.agent.worker_handle import WorkerHandle
from edge_agent.base.causes import WorkerDeath
from edge_agent.base.errors import BackendError, EdgeError, MemoryRefused, WorkerError
from edge_agent.base.limits import MIB
from edge_agent.base.units import bytes_text, duration_text
from edge_agent.bundle.catalog import Variant
from edge_agent.core import residency
from edge_agent.core.memory_ledger import MemoryClaim, MemoryLedger
from edge_agent.core.model_lifecycle import ModelState
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.protocol.worker_messages import AnyEvent, LoadProgress, ModelLoaded

BUILDER_BYTES, SCRATCH_BYTES = 576 * MIB, 256 * MIB
"""What a build takes beside the graph: a process with a builder (574 MiB on an Orin, by the log of TensorRT 8.5 as a
user published it; the one of 10 on a Thor says 1,459), and the scratch that the builder may use for a layer. The build
is ended where it takes more than the room there is."""
USUAL_BUILD_S = 300.0
"""What a build is expected to take before one was seen here."""
log = logging.getLogger("edge_agent")
TakeDeath = Callable[[ServedModel, WorkerDeath], None]


class _BesideListener:
    """Hears a worker that loads beside another one, and from the change on answers. Implements `WorkerListener`."""

    def __init__(self, served: ServedModel, events: WorkerEventHandler, take_death: TakeDeath) -> None:
        self._served = served
        self._events = events
        self._take_death = take_death
        self._worker: WorkerHandle | None = None
        self.death: WorkerDeath | None = None

    def hear(self, worker: WorkerHandle) -> None:
        """The worker that this is about."""
        self._worker = worker

    def on_event(self, event: AnyEvent) -> None:
        if self._worker is not None and self._served.worker is self._worker:
            self._events.take_event(self._served, event)
        elif self._worker is not None and isinstance(event, LoadProgress):
            self._events.take_progress(self._served, self._worker, event)

    def on_death(self, death: WorkerDeath) -> None:
        self.death = death
        if self._worker is not None and self._served.worker is self._worker:
            self._take_death(self._served, death)


class EngineBuilds:
    """The builds beside, at most one at work. `take_death` hears of a worker that died after it took over. `usual_s`:
    what the last build took."""

    def __init__(
        self,
        context: Context,
        library: Library,
        spawner: Spawner,
        events: WorkerEventHandler,
        memory: MemoryAccounting,
        sizer: Sizer,
        take_death: TakeDeath,
    ) -> None:
        self._context = context
        self._library = library
        self._spawn = spawner
        self._events = events
        self._memory = memory
        self._host = memory.host
        self._sizer = sizer
        self._take_death = take_death
        self._one_at_a_time = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.usual_s = USUAL_BUILD_S

    def begin(self, served: ServedModel) -> None:
        """Build what the served model's fallback waits for. No change where that is under way."""
        wanted = served.fallback.wanted
        if served.name in self._tasks or wanted is None:
            return
        task = asyncio.create_task(self._build(served, wanted), name=f"build-{served.name}")
        self._tasks[served.name] = task
        self._ending.add(task)
        task.add_done_callback(functools.partial(self._ended, served, wanted))

    def _ended(self, served: ServedModel, wanted: Variant, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if self._tasks.get(served.name) is task:
            del self._tasks[served.name]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("%s ended: %r", task.get_name(), error, exc_info=error)
            # A build that was put off already, and whose worker then could not be ended, failed once.
            if served.fallback.wanted is wanted and served.fallback.state is not FallbackState.PUT_OFF:
                why = f"its build ended by an error of the agent: {type(error).__name__}"
                self.put_off(served, served.fallback.variant, wanted, why)
        if served.fallback.state is FallbackState.BUILDING_BESIDE:
            self.begin(served)  # asked for while the worker of this one ended

    def give_up(self, served: ServedModel) -> None:
        """End a build that is not wanted any more; its memory is free a moment later. No change without one."""
        task = self._tasks.pop(served.name, None)
        if task is not None:
            task.cancel()

    def give_up_for(self, served_models: Iterable[ServedModel], why: str) -> bool:
        """End a build for the host's sake, and put it off; False where none is at work."""
        for served in served_models:
            wanted = served.fallback.wanted
            if served.successor is not None and wanted is not None:
                self.put_off(served, served.fallback.variant, wanted, f"its build was ended: {why}")
                self.give_up(served)
                return True
        return False

    async def close(self) -> None:
        """End every build."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def put_off(self, served: ServedModel, variant: Variant | None, wanted: Variant, reason: str) -> None:
        """The chosen variant cannot be loaded: `variant` answers (None: nothing does). Reports it, with the time of the
        next try."""
        now_s = self._context.clock.monotonic_s()
        served.fallback.failed(wanted, variant, reason, now_s)
        instead = "nothing answers" if variant is None else f"{variant.name} answers"
        again = duration_text(served.fallback.left_s(now_s))
        text = (
            f"model {served.name!r} cannot run {wanted.name}: {reason}; {instead}, and it is tried again in {again} or "
            f"with `edge-agent load {served.name}`"
        )
        data = {"model": served.name, "state": "failed", "again_s": round(served.fallback.left_s(now_s), 1)}
        self._context.announce("engine-build", text, data, "warning")

    async def prove(self, served: ServedModel, worker: WorkerHandle) -> None:
        """Run the golden probes of a variant that was compiled here, and have the engine kept or deleted. Raises
        BackendError with the probe that failed, WorkerError."""
        model = replace(served.model, variant=worker.plan.packaged)
        held: tuple[str | None, ...] = (None, *worker.attached)
        for adapter in held:
            file = self._library.probes(model, adapter)
            ok, reason = await golden_probes.verdict(worker.process, file, worker.plan.variant.name, adapter, held)
            if ok is False:
                await worker.process.judge_engine(False)
                what = "its engine" if adapter is None else f"its engine with adapter {adapter!r}"
                raise BackendError(
                    f"{what} computes something else than the package says: {reason}",
                    remedy="the engine was deleted; report it with the versions of JetPack and TensorRT if the next "
                    "build fails too",
                )
        await worker.process.judge_engine(True)

    async def _build(self, served: ServedModel, wanted: Variant) -> None:
        async with self._one_at_a_time:
            try:
                await self._load_beside(served, wanted)
            except EdgeError as error:
                # Another version may have come meanwhile; then nothing is waited for.
                if served.fallback.wanted is wanted:
                    self.put_off(served, served.fallback.variant, wanted, str(error))
            finally:
                await self._drop(served)

    async def _drop(self, served: ServedModel) -> None:
        worker = served.drop_successor()
        try:
            if worker is not None:
                await worker.process.close()
        finally:
            self._memory.ledger.release(served.build_account)

    async def _load_beside(self, served: ServedModel, wanted: Variant) -> None:
        plan = self._plan(served, wanted)
        self._memory.ledger.promise(served.build_account, build_claim(plan, self._memory.ledger))
        listener = _BesideListener(served, self._events, self._take_death)
        begun_s, gpu_bytes = self._context.clock.monotonic_s(), self._host.gpu_bytes()
        process = await self._spawn(listener)
        worker = served.spawned_beside(process, plan, self._host.worker_limits())
        listener.hear(worker)
        most_rows = msgspec.structs.replace(worker.limits, most_rows=self._host.most_rows())
        answer = await worker.load(served.model.task, most_rows, build=True)
        now_s = self._context.clock.monotonic_s()
        load_s = now_s - (begun_s if worker.progress is None else worker.told_s)
        self._check_is_wanted(served, wanted)
        served.fallback.loaded(now_s)
        await self._attach_as(served, worker)
        await self.prove(served, worker)
        async with served.lock:  # between two batches: nothing is inside of the fallback's worker
            if listener.death is not None:
                raise WorkerError(f"the worker ended: {listener.death.reason}", "worker")
            await self._attach_as(served, worker)
            self._check_is_wanted(served, wanted)
            old = self._take_over(served, worker, answer, load_s, gpu_bytes)
        served.wake_up()
        if old is not None:  # without the lock: the next batch does not wait for its end
            await old.process.close()

    def _plan(self, served: ServedModel, wanted: Variant) -> LoadPlan:
        """With what the chosen variant is loaded beside. Raises MemoryRefused where there is no room for both now."""
        ledger = self._memory.ledger
        memory = self._host.memory(ledger.mapped_bytes)
        plan, _ = self._sizer.plan(replace(served.model, variant=wanted), ledger, memory)
        needed_bytes = ledger.predict(build_claim(plan, ledger))
        room_bytes = (
            residency.room_bytes(memory, ledger.outstanding_bytes, ledger.reserved_bytes) - memory.reserve_bytes
        )
        if needed_bytes > room_bytes:
            raise MemoryRefused(
                f"a build needs {bytes_text(needed_bytes)} beside what runs, {bytes_text(max(0, room_bytes))} are free",
                remedy="end other programs, or unload other models",
            )
        return replace(plan, room_bytes=room_bytes)

    async def _attach_as(self, served: ServedModel, worker: WorkerHandle) -> None:
        """Attach to the worker beside what the one that answers holds now."""
        for name, digest in list(served.attached.items()):
            adapter = served.model.adapter(name)
            if adapter is not None and adapter.digest == digest and worker.attached.get(name) != digest:
                await worker.attach(adapter)

    def _take_over(
        self, served: ServedModel, worker: WorkerHandle, answer: ModelLoaded, load_s: float, gpu_bytes: int
    ) -> WorkerHandle | None:
        """Replace the worker of a model whose lock is held; returns the old one, which the caller closes at once."""
        now_s, before, old = self._context.clock.monotonic_s(), served.model.variant, served.drop_worker()
        served.drop_successor()
        self._memory.ledger.take_over(served.build_account, served.name, worker.plan.claim)
        served.fallback.passed(now_s)
        served.adopt(worker, now_s)
        served.loaded(worker, answer, now_s - load_s, now_s)
        self._memory.loaded(served, gpu_bytes, answer.footprint)
        self.say_built(served, worker, now_s)
        text = f"model {served.name!r} runs {worker.plan.packaged.name} instead of {before.name}: its engine is ready"
        data = {"model": served.name, "variant": worker.plan.packaged.name}
        self._context.announce("variant-changed", text, data, "info")
        return old

    def _check_is_wanted(self, served: ServedModel, wanted: Variant) -> None:
        if served.fallback.wanted is not wanted or served.lifecycle.is_removed:
            raise WorkerError("another version was installed meanwhile, or the model was removed", served.name)
        if served.lifecycle.state is ModelState.QUARANTINED:
            raise WorkerError("the model is quarantined", served.name)

    def say_built(self, served: ServedModel, worker: WorkerHandle, now_s: float) -> None:
        """Report the end of a build; nothing where the engine was there."""
        if (built_s := worker.built(now_s)) is not None:
            self.usual_s = built_s
            data = {"model": served.name, "state": "done", "took_s": round(built_s, 1)}
            text = f"model {served.name!r}: its engine was built and loaded in {duration_text(built_s)}"
            self._context.announce("engine-build", text, data, "info")


def build_claim(plan: LoadPlan, ledger: MemoryLedger) -> MemoryClaim:
    """What a build and the load after it are promised: the larger of the two, since the building process has ended and
    given its memory back before the engine is loaded. A bound, from which nothing is learned about loaded engines.

    What an earlier build of the variant held counts where it was more. Less is no evidence: builds are measured every
    ten seconds, and some are ended early.
    """
    build_bytes = BUILDER_BYTES + SCRATCH_BYTES + 2 * plan.variant.size_bytes
    least_bytes = max(ledger.predict(plan.claim), build_bytes)
    return replace(plan.claim, stated_bytes=0, settings="build", bounded=True, least_bytes=least_bytes)
