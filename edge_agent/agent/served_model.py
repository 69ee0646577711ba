"""One installed model as served on this device: its queue, what runs, its worker and its state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edge_agent.agent.context_sizing import LoadPlan
from edge_agent.agent.ports import Worker
from edge_agent.agent.worker_handle import WorkerHandle
from edge_agent.base.causes import Cause
from edge_agent.base.errors import AdapterRefused, BackendError, MemoryRefused, RequestError, WorkerError
from edge_agent.base.limits import ADAPTERS_RESIDENT
from edge_agent.bundle.catalog import Adapter, InstalledModel
from edge_agent.core.forecast import PriorityLoad, WorkerLoad
from edge_agent.core.governor import ComputeGrant
from edge_agent.core.grammar_bans import GrammarBans, has_grammar
from edge_agent.core.job import Job
from edge_agent.core.model_lifecycle import MAY_HAVE_WORKER, DrainReason, ModelLifecycle
from edge_agent.core.residency import Popularity
from edge_agent.core.scheduler import Queue
from edge_agent.core.variant_fallback import VariantFallback
from edge_agent.protocol.worker_messages import JobDone, JobFailed, JobWork, ModelLoaded, StepLimits, WorkerListener

Observe = Callable[[Job, JobDone, float | None], None]
Divert = Callable[[Job], bool]
IN_USE_S = 5.0
"""`retry_after_s` of a refusal where an adapter is in use."""


class InUse(RequestError):
    """An adapter cannot be exchanged now: requests that use it run."""


@dataclass(frozen=True, slots=True)
class Probed:
    """How the golden probes last went. `subject` is what was probed, by digest: another version is another subject.
    `ok` is None where they could not be run or there are none; `at_s` is monotonic."""

    subject: str
    ok: bool | None
    reason: str
    at_s: float


@dataclass(slots=True, eq=False)
class ServedModel:
    """One installed model.

    `running`: the jobs inside the worker, by their id there; `compiling`: those of them whose grammar is being
    compiled, which hold no sequence yet. `worker` is set exactly while there is one;
    `lifecycle` says in which state the model is. `fallback` says which variant answers while the chosen one is compiled
    or cannot be loaded; `successor` is the worker that compiles it beside `worker`.
    `popularity`: how often it was used lately; `priority_load`: what was
    admitted to it lately, by priority; `grammar_bans`: clients whose grammars cost too much. `footprint_bytes`:
    what its worker holds, or the last one held. `sequences`: see `WorkerHandle`; known from the last worker where there
    is none. `probed`: golden probes of the model (None) and its adapters.

    `wake` is set when there is something to do, `idle` when the worker has answered everything, `settled` when the
    first load was tried. `lock` is held while the worker is in use: a batch, a load, an order, a probe. `listener`
    hears the worker instead of the agent, of a version on trial; `observer` is told what the model answers meanwhile,
    and `diverter` takes requests for the version on trial. `lent`: that one has the memory for a turn. `aside`: a copy
    of a request inside the worker, which answers nobody, and its outcome.
    """

    model: InstalledModel
    lifecycle: ModelLifecycle = field(default_factory=ModelLifecycle)
    worker: WorkerHandle | None = None
    successor: WorkerHandle | None = None
    fallback: VariantFallback = field(default_factory=VariantFallback)
    queue: Queue = field(default_factory=Queue)
    running: dict[str, Job] = field(default_factory=dict)
    compiling: set[str] = field(default_factory=set)
    popularity: Popularity = field(default_factory=Popularity)
    priority_load: PriorityLoad = field(default_factory=PriorityLoad)
    grammar_bans: GrammarBans = field(default_factory=GrammarBans)
    sequences: int = 0
    footprint_bytes: int = 0
    probed: dict[str | None, Probed] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None
    listener: WorkerListener | None = None
    observer: Observe | None = None
    diverter: Divert | None = None
    lent: bool = False
    aside: tuple[str, asyncio.Future[JobDone | JobFailed | None]] | None = None

    # ---- what is known of it ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def build_account(self) -> str:
        """The name of the memory account of `successor`; '/' is in no model's name."""
        return f"{self.name}/engine"

    @property
    def generates(self) -> bool:
        """Whether the model continues prompts."""
        return self.model.task.kind == "generate"

    @property
    def is_current(self) -> bool:
        """Whether the worker holds the variant that is installed now."""
        return self.worker is not None and self.worker.digest == self.model.variant.digest

    @property
    def attached(self) -> Mapping[str, str]:
        """Digests of the adapters in the worker, least recently used first; empty without a worker."""
        return self.worker.attached if self.worker is not None else {}

    @property
    def cost_key(self) -> tuple[str, str]:
        """What compute times depend on: the model and its variant."""
        return self.model.name, self.model.variant.digest

    @property
    def whole_cost_key(self) -> tuple[str, str]:
        """The same for whole answers of a generator, whose `cost_key` is for the time to the first token."""
        return self.model.name, f"{self.model.variant.digest} whole"

    @property
    def token_cost_key(self) -> tuple[str, str]:
        """The same for one token of a generator's answer, as it comes beside the other sequences' tokens."""
        return self.model.name, f"{self.model.variant.digest} token"

    def load_at(self, grant: ComputeGrant, duty_share: float = 1.0) -> WorkerLoad:
        """The worker as a request finds it under this grant, in its share of the time; a generator reads one prompt."""
        return WorkerLoad(self.cost_key, 1 if self.generates else grant.max_rows, grant.threads, duty_share)

    # ---- what is installed -----------------------------------------------------------------------------------------

    def install(self, model: InstalledModel) -> None:
        """Serve this version, variant and set of adapters from now on."""
        self.model = model
        self._note_version()
        self.wake_up()

    def remove(self) -> None:
        """The model is no longer installed: its serving loop refuses what waits and ends the worker."""
        self.lifecycle.remove()
        self.fallback.replaced()
        self.wake_up()

    def serve_by(self, task: asyncio.Task[None]) -> None:
        """The task that serves this model."""
        self.task = task

    def observe_by(self, observer: Observe | None) -> None:
        """Tell every answer with status 200, and its joules, to this function; to none with None."""
        self.observer = observer

    def divert_by(self, diverter: Divert | None) -> None:
        """Ask this function of every request whether it takes it; of none with None."""
        self.diverter = diverter

    def lend_memory(self, lent: bool) -> None:
        """A version on trial has the memory of this model for a turn, or had it."""
        self.lent = lent

    def wake_up(self) -> None:
        """Have the serving loop look at this model."""
        self.wake.set()

    async def woken(self) -> None:
        """Wait until there is something to do; for the serving loop."""
        await self.wake.wait()
        self.wake.clear()

    # ---- the worker ------------------------------------------------------------------------------------------------

    def spawned(self, process: Worker, plan: LoadPlan, limits: StepLimits) -> WorkerHandle:
        """A worker process was started for this model, which it is to load next."""
        self.worker = WorkerHandle(process, plan, limits)
        return self.worker

    def spawned_beside(self, process: Worker, plan: LoadPlan, limits: StepLimits) -> WorkerHandle:
        """A worker process was started that is to take over from the worker of this model."""
        self.successor = WorkerHandle(process, plan, limits)
        return self.successor

    def drop_successor(self) -> WorkerHandle | None:
        """The worker beside is ended, or takes over; the caller closes what is returned, where it does not."""
        successor, self.successor = self.successor, None
        return successor

    def adopt(self, worker: WorkerHandle, now_s: float) -> None:
        """A worker that was loaded beside answers from now on, in the variant that it holds. Raises ValueError where
        there is another one."""
        self.lifecycle.begin_load(now_s)
        self.worker = worker
        self.model = replace(self.model, variant=worker.plan.packaged)

    def loaded(self, worker: WorkerHandle, answer: ModelLoaded, begun_s: float, now_s: float) -> None:
        """The worker holds the model. Raises ValueError where the model is not loading."""
        self.lifecycle.loaded(now_s - begun_s)
        worker.note_loaded(answer, now_s)
        self.sequences = worker.sequences
        self._note_version()

    def settle_load(self) -> None:
        """The load is over or was refused: no request waits for it any more."""
        self.lifecycle.settle_load()
        self.settled.set()

    def wait_for_memory(self) -> None:
        """The load was tried and found no memory; requests wait until there is some."""
        self.lifecycle.wait_for_memory()
        self.settled.set()

    def drop_worker(self) -> WorkerHandle | None:
        """The agent ends the worker in order, or gives up a load; the caller closes what is returned."""
        worker, self.worker = self.worker, None
        if self.lifecycle.state in MAY_HAVE_WORKER:
            self.lifecycle.unloaded()
        return worker

    def worker_died(self, now_s: float, quarantine_deaths: int) -> bool:
        """The worker is gone. True when the model is quarantined; see `ModelLifecycle.died`."""
        self.worker = None
        return self.lifecycle.died(now_s, quarantine_deaths)

    def note_footprint(self, held_bytes: int) -> None:
        """Set the bytes that the worker holds."""
        self.footprint_bytes = held_bytes

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job) -> None:
        """A new job waits for the worker."""
        self.queue.add(job)
        self.wake_up()

    def is_diverted(self, job: Job) -> bool:
        """Whether a version on trial answers a new job."""
        return self.diverter is not None and self.diverter(job)

    def submit_aside(self, work: JobWork, now_s: float) -> asyncio.Future[JobDone | JobFailed | None]:
        """Have the worker compute a copy that answers nobody, with `lock` held; None where the worker died. Raises
        WorkerError."""
        if self.worker is None:
            raise WorkerError("the worker is gone", self.name)
        found: asyncio.Future[JobDone | JobFailed | None] = asyncio.get_running_loop().create_future()
        self.aside = (work.id, found)
        self.worker.begin_batch(now_s)
        self.worker.process.submit([work])
        return found

    def settle_aside(self, event: JobDone | JobFailed) -> None:
        """The worker has computed something that is no job; perhaps the copy."""
        if self.aside is not None and self.aside[0] == event.id and not self.aside[1].done():
            self.aside[1].set_result(event)

    def end_aside(self) -> None:
        """The copy is over, or nobody waits for it any more."""
        if self.aside is not None and not self.aside[1].done():
            self.aside[1].set_result(None)
        self.aside = None

    def put_back(self, job: Job) -> None:
        """A job that was scheduled waits again. The loop is not woken: a job whose adapter cannot be attached yet would
        be scheduled again at once, without end."""
        self.queue.add(job)

    def withdraw(self, job: Job) -> None:
        """A job waits no more, where it did."""
        self.queue.remove(job)

    def enter(self, job: Job) -> None:
        """A job goes into the worker."""
        self.idle.clear()
        while job.job_id in self.running:  # an earlier job of this key was answered, and is still inside
            job.rename()
        self.running[job.job_id] = job
        if self.sequences and has_grammar(job.params):
            self.compiling.add(job.job_id)

    def compiled(self, job: Job) -> None:
        """The grammar of a job inside was compiled: it holds a sequence from now on."""
        self.compiling.discard(job.job_id)
        self.wake_up()  # the next grammar of its client may be compiled

    def may_compile(self, job: Job) -> bool:
        """Whether a waiting job may go inside: it has no grammar, or its client and the others have few to compile."""
        clients = [self.running[name].key[0] for name in self.compiling]
        return not has_grammar(job.params) or (job.key[0] not in clients and len(clients) < self.sequences)

    def leave(self, job: Job) -> None:
        """A job is no longer in the worker."""
        if self.running.get(job.job_id) is job:
            del self.running[job.job_id]
            self.compiling.discard(job.job_id)
        self.wake_up()  # a sequence is free, or a step
        if not self.running:
            self.idle.set()

    def clear_running(self) -> None:
        """The worker is gone, and with it the jobs inside."""
        self.running.clear()
        self.compiling.clear()
        if self.aside is not None and not self.aside[1].done():
            self.aside[1].set_result(None)
        self.idle.set()
        self.wake_up()

    # ---- adapters ----------------------------------------------------------------------------------------------------

    async def ensure_attached(self, name: str) -> None:
        """Attach an adapter to the worker; the least recently used one is detached when there are too many.

        Raises InUse when it must wait for running requests, RequestError 404 when the model has no such adapter (any
        more) or the runtime refuses it, RequestError 500 when it cannot be attached, WorkerError without a worker.
        """
        adapter = self.model.adapter(name)
        if adapter is None:
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, f"model {self.name!r} has no adapter {name!r}")
        worker = self.worker
        if worker is None:
            raise WorkerError("the worker is gone", self.name)
        if worker.attached.get(name) == adapter.digest:
            worker.use_adapter(name)
            return
        try:
            await self._exchange(worker, adapter)
        except AdapterRefused as error:
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, f"adapter {name!r} was refused: {error.what}") from error
        except BackendError as error:
            why = f"adapter {name!r} could not be attached: {error.what}"
            status, cause = (503, Cause.MEMORY) if isinstance(error, MemoryRefused) else (500, Cause.WORKER_FAILED)
            raise RequestError(status, cause, why) from error

    async def _exchange(self, worker: WorkerHandle, adapter: Adapter) -> None:
        """Attach an adapter, after its older version or, where there are too many, the least recently used one left."""
        name = adapter.name
        if name in worker.attached or len(worker.attached) >= ADAPTERS_RESIDENT:
            used = {job.adapter for job in self.running.values()}
            unused = (one for one in worker.attached if one not in used)
            leaving = name if name in worker.attached else next(unused, None)
            if leaving is None or leaving in used:
                why = f"adapter {name!r} cannot be exchanged while its requests run"
                if leaving is None:
                    why = f"adapter {name!r} cannot be attached while requests of all others run"
                raise InUse(503, Cause.UNAVAILABLE, why, IN_USE_S)
            await worker.detach(leaving)
        await worker.attach(adapter)

    # ---- golden probes ---------------------------------------------------------------------------------------------

    def probe_subject(self, adapter: str | None) -> str | None:
        """What the golden probes of the model or of one adapter are about; None for an adapter that it has not."""
        if adapter is None:
            return self.model.variant.digest
        found = self.model.adapter(adapter)
        return None if found is None else f"{self.model.variant.digest} {found.digest}"

    def last_probed(self, adapter: str | None) -> Probed | None:
        """How the probes of what is installed now went; None where they have not been run since it was."""
        found = self.probed.get(adapter)
        return found if found is not None and found.subject == self.probe_subject(adapter) else None

    def note_probe(self, adapter: str | None, probed: Probed) -> None:
        """The golden probes of the model or of one adapter were run."""
        self.probed[adapter] = probed

    def in_worker(self) -> tuple[str | None, ...]:
        """What the worker holds in the version that is installed: the model (None) and its adapters; often nothing."""
        if not self.is_current:
            return ()
        current = {adapter.name: adapter.digest for adapter in self.model.adapters}
        return (None, *(name for name, digest in self.attached.items() if current.get(name) == digest))

    def _note_version(self) -> None:
        if self.lifecycle.is_loaded and not self.is_current:
            self.lifecycle.drain(DrainReason.NEWER_VERSION)
        else:
            self.lifecycle.resume(DrainReason.NEWER_VERSION)
