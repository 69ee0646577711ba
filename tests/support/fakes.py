"""Doubles of the agent's ports: they are edited like the real thing and can dump themselves.

A FakeTransport is delivered to and remembers what was published; a FakeLibrary is installed into; FakeSensors are set
and lost; a FakeSpawner starts FakeWorkers that answer after `compute_s` (on `tests.support.virtual_time`) or when told.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from edge_agent.base.causes import Cause, DeathCause, WorkerDeath
from edge_agent.base.clock import Clock
from edge_agent.base.errors import EdgeError, EngineMissing, WorkerError
from edge_agent.base.limits import GIB, MESSAGE_BYTES, MIB
from edge_agent.base.reading import Reading, unavailable
from edge_agent.bundle.catalog import Adapter, InstalledModel, InstalledState, TaskSpec, Variant
from edge_agent.bundle.probes import ProbeFile
from edge_agent.core.desired_state import DesiredState, InstalledPackages
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.protocol.envelope import NO_LISTENER, Backlog, Inbound, LinkListener, Outbound
from edge_agent.protocol.worker_messages import (
    AdapterAttached,
    AnyEvent,
    CompanyTexts,
    FootprintBytes,
    GeneratedText,
    GrammarCompiled,
    JobDone,
    JobFailed,
    JobWork,
    LoadMemory,
    LoadProgress,
    ModelLoaded,
    RuntimeAvailable,
    StepLimits,
    TextChunk,
    TextsMeasured,
    WorkerListener,
)

TASK = TaskSpec("classify", labels=("on", "off", "other"), max_tokens=64)


class FakeTransport:
    """A broker that holds what comes in, and remembers acknowledgements and publications in order."""

    def __init__(self) -> None:
        self.connected = True
        self.broken = False
        self.full = False
        self.published: list[Outbound] = []
        self.acked: list[int | None] = []
        self.last_words: list[Outbound] | None = None
        self.started = False
        self.events_waiting = self.events_lost = 0
        self.nearly_full = False
        self.backlog = Backlog()
        self.troubles: list[str] = []
        self._waiting: deque[Inbound] = deque(maxlen=10_000)
        self._wake = asyncio.Event()

    def alive(self) -> bool:
        """See `ports.Transport`."""
        return not self.broken

    async def start(self, listener: LinkListener = NO_LISTENER) -> None:
        """See `ports.Transport`."""
        self.started = True

    def deliver(self, *messages: Inbound) -> None:
        """The broker hands these to the agent."""
        self._waiting.extend(messages)
        self._wake.set()

    async def messages(self) -> AsyncIterator[Inbound]:
        """See `ports.Transport`."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            yield self._waiting.popleft()

    def ack(self, message: Inbound) -> None:
        """See `ports.Transport`."""
        self.acked.append(message.ack)

    def payload_limit(self, message: Outbound) -> int:
        """See `ports.Transport`."""
        return MESSAGE_BYTES

    def waiting_of(self, client: str) -> Backlog:
        """See `ports.Transport`."""
        return self.backlog

    def take_dropped(self) -> dict[str, int]:
        """See `ports.Transport`."""
        return {}

    def publish(self, message: Outbound) -> bool:
        """See `ports.Transport`; nothing is remembered while offline or full."""
        if not self.connected or self.full:
            return False
        self.published.append(message)
        return True

    async def stop(self, last_words: Sequence[Outbound]) -> None:
        """See `ports.Transport`."""
        self.last_words = list(last_words)
        self.connected = False

    def bodies(self, suffix: str = "") -> list[dict[str, Any]]:
        """The JSON of everything published on topics that end so."""
        return [json.loads(message.payload) for message in self.published if message.topic.endswith(suffix)]

    def replies(self) -> list[dict[str, Any]]:
        """The answers to requests, in order."""
        return [json.loads(message.payload) for message in self.published if "/reply" in message.topic]

    def reply(self, request_id: str) -> dict[str, Any]:
        """The one answer to a request; fails when there is none or more than one."""
        found = [body for body in self.replies() if body["id"] == request_id]
        assert len(found) == 1, f"{len(found)} answers to {request_id}\n{self.dump()}"
        return found[0]

    def statuses(self) -> dict[str, list[int]]:
        """Status words of final messages by request id; the last part of a stream counts as 200."""
        found: dict[str, list[int]] = {}
        for body in self.replies():
            if body.get("done", True):
                found.setdefault(body["id"], []).append(body.get("status", 200))
        return found

    def dump(self) -> str:
        """What happened, one line a message."""
        lines = [f"{message.topic} {message.payload.decode()[:160]}" for message in self.published]
        return "\n".join([*lines, f"acked {self.acked}, waiting {len(self._waiting)}"])


def a_variant(name: str = "v1", size_mib: int = 10, peak_mib: int = 20, runtime: str = "echo") -> Variant:
    """A variant of which only digest and sizes matter."""
    return Variant(f"sha256:{name}", runtime, "fp32", {}, size_mib * MIB, peak_mib * MIB)


def an_adapter(name: str, digest: str | None = None) -> Adapter:
    """An adapter that fits every model of `a_model`."""
    task = TaskSpec("classify", labels=("low", "high"), max_tokens=64)
    return Adapter(name, digest or f"sha256:{name}", f"/adapters/{name}", "sha256:base", task, rank=8, size_bytes=MIB)


def a_model(name: str = "m", variant: Variant | None = None, adapters: Sequence[str] = ()) -> InstalledModel:
    """An installed model."""
    chosen = variant or a_variant(f"{name}-v1")
    return InstalledModel(
        name, "sha256:base", 1, chosen, (chosen,), TASK, adapters=tuple(an_adapter(one) for one in adapters)
    )


class NothingAnnounced:
    """Implements `agent.store_changes.Announced`: keeps in memory what was announced, nothing at the start."""

    def __init__(self) -> None:
        self.state: Mapping[str, InstalledState] | None = None

    def read(self) -> Mapping[str, InstalledState] | None:
        """See `Announced`."""
        return self.state

    def write(self, state: Mapping[str, InstalledState]) -> None:
        """See `Announced`."""
        self.state = dict(state)


class NothingSaved:
    """Implements `agent.desired_keeper.DesiredStorage`: nothing at the start, and nothing is kept."""

    def read(self) -> DesiredState | None:
        """See `DesiredStorage`."""
        return None

    def write(self, state: DesiredState) -> None:
        """See `DesiredStorage`."""


class KeptTrials:
    """Implements `agent.trial_watch.TrialStorage` in memory, which stays when a daemon ends."""

    def __init__(self) -> None:
        self.records: dict[str, TrialRecord] = {}
        self.samples: dict[str, TrialSamples] = {}

    def read(self) -> dict[str, TrialRecord]:
        """See `TrialStorage`."""
        return dict(self.records)

    def write(self, records: Mapping[str, TrialRecord]) -> None:
        """See `TrialStorage`."""
        self.records = dict(records)

    def read_samples(self) -> dict[str, TrialSamples]:
        """See `TrialStorage`."""
        return dict(self.samples)

    def write_samples(self, samples: Mapping[str, TrialSamples]) -> None:
        """See `TrialStorage`."""
        self.samples = dict(samples)


class NoSource:
    """Implements `agent.desired_keeper.PackageSource`: no package is anywhere."""

    async def find(self, _wanted: Collection[str]) -> Mapping[str, str]:
        """See `PackageSource`."""
        return {}


class FakeLibrary:
    """A store in memory; every change makes a new generation."""

    def __init__(self, *models: InstalledModel) -> None:
        self._models = {model.name: model for model in models}
        self._generation = 1
        self.broken: EdgeError | None = None
        self.earlier: dict[str, InstalledModel] = {}
        self.probe_files: dict[str, ProbeFile] = {}

    def active(self) -> tuple[InstalledModel, ...]:
        """See `ports.Library`."""
        return tuple(self._models.values())

    def generation(self) -> int:
        """See `ports.Library`; raises `broken` when that is set."""
        if self.broken is not None:
            raise self.broken
        return self._generation

    def installed(self) -> Mapping[str, InstalledState]:
        """See `ports.Library`."""
        return {
            name: InstalledState(one.version, one.variant.digest, tuple(adapter.name for adapter in one.adapters))
            for name, one in self._models.items()
        }

    def proven(self, model: str) -> InstalledModel | None:
        """See `ports.Library`: what was put into `earlier`."""
        return self.earlier.get(model)

    def packages(self) -> InstalledPackages:
        """Every model, and every adapter, from a package of its own that is called as its variant or itself."""
        current: dict[tuple[str, str | None], str] = {}
        for name, one in self._models.items():
            current[name, None] = one.variant.digest
            current |= {(name, adapter.name): adapter.digest for adapter in one.adapters}
        return InstalledPackages(current)

    def probes(self, model: InstalledModel, adapter: str | None = None) -> ProbeFile | None:
        """See `ports.Library`: what was put into `probe_files`, by variant name or adapter."""
        return self.probe_files.get(model.variant.name if adapter is None else adapter)

    def install(self, model: InstalledModel) -> None:
        """A model becomes active, or replaces the one of its name."""
        if not model.trial:
            self.earlier.pop(model.name, None)
        self._models[model.name] = model
        self._generation += 1

    def put_on_trial(self, name: str, terms: str = "{}", **fields: Any) -> None:
        """A new version of a model is on trial; the one that is there answers."""
        before = self._models[name]
        self.earlier[name] = before
        self.install(replace(before, version=before.version + 1, trial=terms, **fields))

    def end_trial(self, name: str, promote: bool) -> None:
        """The version on trial answers from now on, or the one before is current again."""
        before, tried = self.earlier[name], self._models[name]
        self.install(replace(tried, trial="") if promote else before)

    def remove(self, name: str) -> None:
        """A model is no longer installed."""
        self.earlier.pop(name, None)
        del self._models[name]
        self._generation += 1

    def change(self, name: str, **fields: Any) -> None:
        """Another variant, other adapters."""
        self.install(replace(self._models[name], **fields))

    def dump(self) -> str:
        """What is installed."""
        lines = [
            f"{model.name} {model.variant.digest} adapters {[one.name for one in model.adapters]}"
            for model in self.active()
        ]
        return "\n".join([f"generation {self._generation}", *lines])


class FakeSensors:
    """A board with 4 GiB of RAM and whatever is set. `ram_available` is set as it is without workers; what
    `held_bytes` says goes off it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._values: dict[str, float | str] = {"ram_total": 4.0 * GIB, "ram_available": 3.0 * GIB}
        self.held_bytes: Callable[[], int] = lambda: 0
        self.samples = 0
        self.pss: dict[int, int] = {}
        self.mapped: dict[int, int] = {}

    def set(self, **values: float) -> None:
        """Sensors read so from now on."""
        self._values.update(values)

    def lose(self, key: str, reason: str = "the file is gone") -> None:
        """A sensor gives no value any more."""
        self._values[key] = reason

    def sample(self) -> Mapping[str, Reading]:
        """See `ports.Sensors`."""
        self.samples += 1
        return {key: self._reading(key, value) for key, value in self._values.items()}

    def sample_memory(self) -> Mapping[str, Reading]:
        """See `ports.Sensors`."""
        wanted = ("ram_", "swap", "memory_", "cgroup_", "nvmap_", "major_faults", "refaults")
        return {key: self._reading(key, value) for key, value in self._values.items() if key.startswith(wanted)}

    def process_bytes(self, pid: int) -> Mapping[str, Reading]:
        """See `ports.Sensors`; by pid in `pss` and `mapped`, else unavailable."""
        now_s = self._clock.monotonic_s()
        return {
            key: Reading(float(held[pid]), "bytes", "fake", now_s)
            if pid in held
            else unavailable("bytes", "fake", now_s, "not set")
            for key, held in (("pss", self.pss), ("mapped", self.mapped))
        }

    def dump(self) -> str:
        """All sensors."""
        return "\n".join(f"{key} = {value}" for key, value in self._values.items())

    def _reading(self, key: str, value: float | str) -> Reading:
        now_s = self._clock.monotonic_s()
        if isinstance(value, str):
            return unavailable("", key, now_s, value)
        if key == "ram_available":
            value = max(0.0, value - self.held_bytes())
        return Reading(value, "bytes" if key.startswith("ram") else "", key, now_s)


def death(reason: str, cause: DeathCause | None = None) -> WorkerDeath:
    """A worker's death with this sentence; the cause, where it is not given, as the supervisor tells it."""
    outside = reason in {"killed by SIGKILL", "killed by SIGTERM"}
    return WorkerDeath(cause or (DeathCause.SIGNALLED_FROM_OUTSIDE if outside else DeathCause.CRASHED), reason)


class FakeWorker:
    """A child that holds jobs until `finish`, `fail` or `die`, or answers by itself after `compute_s`.

    `refuses_adapters` maps an adapter's name to the error that attaching it raises. `heard` is every message in order.
    """

    def __init__(
        self,
        pid: int,
        listener: WorkerListener,
        plan: Plan,
    ) -> None:
        self.pid = pid
        self.heard: list[tuple[str, Any]] = []
        self.inside: dict[str, JobWork] = {}
        self.attached: list[str] = []
        self.limits: StepLimits | None = None
        self.variant: Variant | None = None
        self.memory: LoadMemory | None = None
        self.alive = True
        self.closed = False
        self.largest_batch = 0
        self.held_bytes = 0
        self.plan = plan
        self._listener = listener
        self._reasons: list[str] = []

    async def load(
        self,
        variant: Variant,
        task: TaskSpec,
        limits: StepLimits,
        memory: LoadMemory | None = None,
        *,
        build: bool = True,
    ) -> ModelLoaded:
        """See `ports.Worker`; takes `plan.load_s`, raises or dies as planned."""
        self.heard.append(("load", (variant.digest, memory) if memory and memory.shrink else variant.digest))
        self.held_bytes = variant.size_bytes
        self.variant = variant
        self.memory = memory
        self.limits = limits
        if self.plan.load_s:
            await self._alive_for(self.plan.load_s)
        missing = variant.digest in self.plan.no_engine
        if missing and not build:
            raise EngineMissing("there is no engine for this device yet", "/models/m.onnx")
        if missing:
            self._say(LoadProgress("build", 0.5))
            for _ in range(10):
                await self._alive_for(self.plan.build_s / 10)
            self._say(LoadProgress("write", None))
        fault = self.plan.load_faults.popleft() if self.plan.load_faults else None
        if fault == "die":
            await asyncio.sleep(0)
            self.die("killed by SIGKILL")
            raise WorkerError("the worker ended: killed by SIGKILL", "worker")
        if fault == "die when loaded":
            self.die("killed by SIGSEGV")
        if isinstance(fault, EdgeError):
            raise fault
        options: Mapping[str, Any] = variant.options
        return ModelLoaded(
            runtime=RuntimeAvailable("fake", "0", (), (), True, self.plan.mixed, False),
            footprint=FootprintBytes(variant.size_bytes, 0, 0, 0),
            pid=self.pid,
            load_ms=1.0,
            sequences=options.get("sequences", self.plan.sequences),
            context=options.get("context", self.plan.context),
            unproven=missing or variant.digest in self.plan.unproven,
        )

    def tell(self, event: AnyEvent) -> None:
        """Send an event to the listener."""
        self._listener.on_event(event)

    async def attach(self, adapter: Adapter) -> AdapterAttached:
        """See `ports.Worker`; raises what `plan.refuses` names for this adapter or operation."""
        self.heard.append(("attach", adapter.name))
        await self._alive_for(self.plan.attach_s)
        if adapter.name in self.plan.refuses:
            raise self.plan.refuses[adapter.name]
        self.attached.append(adapter.name)
        if adapter.name in self.plan.die_after_attach:
            self.die("killed by SIGKILL")
        return AdapterAttached(size_bytes=adapter.size_bytes, attach_ms=1.0)

    async def detach(self, name: str) -> None:
        """See `ports.Worker`."""
        await self._take_call("detach", name)
        self.attached.remove(name)

    async def cancel(self, job_id: str) -> bool:
        """See `ports.Worker`."""
        await self._take_call("cancel", job_id)
        return self.plan.cancels and self.inside.pop(job_id, None) is not None

    async def measure(
        self, adapter: str | None, texts: Sequence[str], company: Sequence[CompanyTexts] = ()
    ) -> TextsMeasured:
        """See `ports.Worker`."""
        await self._take_call("measure", (adapter, tuple(texts)))
        return TextsMeasured(features=[[0.0] for _ in texts], compute_ms=1.0)

    async def judge_engine(self, passed: bool) -> None:
        """See `ports.Worker`."""
        await self._take_call("judge", passed)
        if passed and self.variant is not None:
            self.plan.no_engine.discard(self.variant.digest)
            self.plan.unproven.discard(self.variant.digest)

    async def shrink(self) -> None:
        """See `ports.Worker`."""
        await self._take_call("shrink", None)

    async def _take_call(self, operation: str, what: object) -> None:
        self.heard.append((operation, what))
        await self._alive_for(self.plan.call_s)
        if operation in self.plan.refuses:
            raise self.plan.refuses[operation]

    def submit(self, jobs: Sequence[JobWork]) -> None:
        """See `ports.Worker`. A job of an adapter that is not attached fails with 404, as in the real child."""
        self.heard.append(("submit", [job.id for job in jobs]))
        if self.plan.frame_bytes < len(msgspec.json.encode(jobs)):
            raise WorkerError("a frame is over the limit", "worker channel")
        if not self.alive:
            return
        self.largest_batch = max(self.largest_batch, len(jobs))
        for job in jobs:
            if job.adapter is not None and job.adapter not in self.attached:
                self._say(JobFailed(job.id, 404, Cause.UNKNOWN_ADAPTER, "not attached"))
                continue
            self.inside[job.id] = job
        if self.plan.compute_s is not None:
            asyncio.get_running_loop().call_later(self.plan.compute_s, self._end_as_planned, [job.id for job in jobs])

    def set_limits(self, limits: StepLimits) -> None:
        """See `ports.Worker`."""
        self.heard.append(("limits", limits))
        self.limits = limits

    def kill(self, cause: DeathCause | None = None) -> None:
        """See `ports.Worker`."""
        self.heard.append(("kill", None))
        self.die("killed by SIGKILL", cause)

    async def close(self) -> None:
        """See `ports.Worker`."""
        self.heard.append(("close", None))
        self.closed = True
        self.alive = False
        await asyncio.sleep(self.plan.close_s)
        self.held_bytes = 0

    def _end_as_planned(self, names: Sequence[str]) -> None:
        digest = "" if self.variant is None else self.variant.digest
        compute_ms, label = self.plan.answers.get(digest, (5.0, "on"))
        if label == "die":
            self.die("killed by SIGSEGV")
        elif label == "fail":
            for name in [name for name in names if name in self.inside]:
                self.fail(name)
        elif label != "silence":
            self.finish(names, compute_ms, label)

    def finish(self, names: Sequence[str] | None = None, compute_ms: float = 5.0, label: str = "on") -> None:
        """Answer these jobs (all that are inside, by default)."""
        wanted = list(self.inside) if names is None else [name for name in names if name in self.inside]
        batch = sum(len(self.inside[name].texts) for name in wanted)
        for name in wanted:
            job = self.inside.pop(name)
            results = [{"label": label, "score": 0.9, "text": text} for text in job.texts]
            self._say(JobDone(name, results, tokenize_ms=0.1, compute_ms=compute_ms, batch=batch))

    def say(self, name: str, text: str) -> None:
        """A generator says a part of its answer."""
        self._say(TextChunk(name, text))

    def end(self, name: str, text: str, rest: str = "", reason: str = "stop") -> None:
        """A generator's answer is complete; `rest` was not sent yet."""
        del self.inside[name]
        usage = {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": len(text)}
        result = {"text": text, "finish_reason": reason, "usage": usage, "seed": 1}
        generated = GeneratedText(rest, wait_ms=0.0, prompt_ms=10.0, tokens_per_s=25.0)
        self._say(JobDone(name, [result], tokenize_ms=0.1, compute_ms=50.0, batch=1, generated=generated))

    def fail(self, name: str, status: int = 500, cause: Cause = Cause.WORKER_FAILED, reason: str = "it broke") -> None:
        """A job fails."""
        del self.inside[name]
        self._say(JobFailed(name, status, cause, reason))

    def compiled(self, name: str) -> None:
        """A job's grammar was compiled."""
        self._say(GrammarCompiled(name))

    def refuse_grammar(self, name: str) -> None:
        """A job's own grammar takes too much."""
        del self.inside[name]
        self._say(JobFailed(name, 422, Cause.INVALID, "the grammar takes more than 2 s to compile", costly=True))

    def die(self, reason: str = "killed by SIGKILL", cause: DeathCause | None = None) -> None:
        """The child is gone; the agent hears of it once, and nothing else any more."""
        if not self.alive:
            return
        self.alive = False
        self.held_bytes = 0
        self.inside.clear()
        self._reasons.append(reason)
        if not self.closed:
            self._listener.on_death(death(reason, cause))

    def dump(self) -> str:
        """What it was told, and what it holds."""
        lines = [f"{operation} {fields}" for operation, fields in self.heard]
        return "\n".join([f"worker {self.pid}", *lines, f"inside {list(self.inside)}, attached {self.attached}"])

    def _say(self, event: AnyEvent) -> None:
        if self.alive:
            self._listener.on_event(event)

    async def _alive_for(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self.alive:
            raise WorkerError(f"the worker ended: {(self._reasons or ['closed'])[0]}", "worker")


@dataclass
class Plan:
    """How the workers of one spawner behave; may be changed at any time."""

    compute_s: float | None = 0.01
    load_s: float = 0.0
    attach_s: float = 0.0
    call_s: float = 0.0
    close_s: float = 0.0
    mixed: bool = True
    sequences: int = 0
    context: int = 0
    cancels: bool = True
    frame_bytes: int = 1 << 40
    refuses: dict[str, EdgeError] = field(default_factory=dict)
    die_after_attach: set[str] = field(default_factory=set)
    # Digests of variants that have no engine yet, or one that nobody has judged, and how long a build takes.
    no_engine: set[str] = field(default_factory=set)
    unproven: set[str] = field(default_factory=set)
    build_s: float = 60.0
    # What the next loads meet: 'die', 'die when loaded', or an error to raise, or None for a good one.
    load_faults: deque[EdgeError | str | None] = field(default_factory=lambda: deque(maxlen=1000))
    # By the digest of a variant: milliseconds and label of its answers; 'die', 'fail' and 'silence' are none.
    answers: dict[str, tuple[float, str]] = field(default_factory=dict)
    spawn_s: float = 0.0
    spawn_faults: deque[EdgeError | None] = field(default_factory=lambda: deque(maxlen=1000))


class FakeSpawner:
    """Starts FakeWorkers and keeps them all, the dead ones too."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self.workers: list[FakeWorker] = []
        self.tries = 0

    async def __call__(self, listener: WorkerListener) -> FakeWorker:
        """See `ports.Spawner`."""
        self.tries += 1
        fault = self.plan.spawn_faults.popleft() if self.plan.spawn_faults else None
        if fault is not None:
            raise fault
        await asyncio.sleep(self.plan.spawn_s)
        worker = FakeWorker(4000 + len(self.workers), listener, self.plan)
        self.workers.append(worker)
        return worker

    def held_bytes(self) -> int:
        """What all workers hold, as the kernel would count it."""
        return sum(worker.held_bytes for worker in self.workers)

    @property
    def last(self) -> FakeWorker:
        """The newest worker."""
        return self.workers[-1]

    def running(self) -> list[FakeWorker]:
        """Those that live."""
        return [worker for worker in self.workers if worker.alive]

    def dump(self) -> str:
        """All workers."""
        return "\n".join(worker.dump() for worker in self.workers)


class RecordingNotifier:
    """What the service manager was told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def ready(self) -> None:
        """See `ports.Notifier`."""
        self.calls.append(("ready", None))

    def status(self, text: str) -> None:
        """See `ports.Notifier`."""
        self.calls.append(("status", text))

    def watchdog(self) -> None:
        """See `ports.Notifier`."""
        self.calls.append(("watchdog", None))

    def extend_timeout(self, seconds: float) -> None:
        """See `ports.Notifier`."""
        self.calls.append(("extend_timeout", seconds))

    def stopping(self) -> None:
        """See `ports.Notifier`."""
        self.calls.append(("stopping", None))

    def names(self) -> list[str]:
        """The calls without their arguments."""
        return [name for name, _ in self.calls]

    def dump(self) -> str:
        """The calls, one a line."""
        return "\n".join(f"{name} {argument or ''}" for name, argument in self.calls)
