"""A board, and the worker processes on it, as the agent sees them through its ports. One seed decides what they do.

A `SimWorker` keeps the rules of `worker.supervisor` and `worker.child`: calls fail when the child dies, the death is
told once and after that, a call without an answer ends the child, steps take time by rows, memory is held from the load
to the end of the process.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from edge_agent.base.causes import Cause, DeathCause, WorkerDeath
from edge_agent.base.clock import Clock
from edge_agent.base.errors import AdapterRefused, BackendError, EngineMissing, WorkerError
from edge_agent.base.limits import GIB, LOAD_BASE_S, LOAD_S_PER_GIB, MIB
from edge_agent.base.reading import Reading, unavailable
from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import Adapter, TaskSpec, Variant
from edge_agent.protocol.worker_messages import (
    AdapterAttached,
    AnyEvent,
    FootprintBytes,
    GeneratedText,
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
from tests.support.fakes import death

CALL_TIMEOUT_S = 30.0
EXIT_S = 0.004
SEQUENCES = 3
ROOM_C = 25.0
HEATING_C = 75.0
TIME_CONSTANT_S = 25.0
DISK_BYTES_PER_S = 400.0 * MIB


@dataclass(slots=True)
class Moods:
    """How workers behave at this moment; the faults change it."""

    row_s: float = 0.004
    spread: float = 0.5
    load_fails: float = 0.0
    load_dies: float = 0.0
    attach_refused: float = 0.0
    attach_dies: float = 0.0
    job_fails: float = 0.0
    spawn_fails: float = 0.0
    mixed: bool = True


class SimBoard:
    """Sensors and memory. Implements `ports.Sensors`; temperature follows what the workers do."""

    def __init__(self, clock: Clock, dice: Random) -> None:
        self._clock = clock
        self._dice = dice
        self.total_bytes = 4 * GIB
        self.others_bytes = GIB // 2
        self.workers: list[SimWorker] = []
        self.lost: dict[str, str] = {}
        # Engines that were built here, and those whose probes held; they outlive every process.
        self.engines: set[str] = set()
        self.proven: set[str] = set()
        self.frozen: Reading | None = None
        self.freezes = False
        self.fever_c = 0.0
        self._temperature_c = ROOM_C
        self._looked_s = clock.monotonic_s()
        self.busy_s = 0.0

    @property
    def held_bytes(self) -> int:
        """What all worker processes hold."""
        return sum(worker.held_bytes for worker in self.workers)

    @property
    def available_bytes(self) -> int:
        """MemAvailable."""
        return self.total_bytes - self.others_bytes - self.held_bytes

    def sample(self) -> Mapping[str, Reading]:
        """See `ports.Sensors`."""
        now_s = self._clock.monotonic_s()
        self._heat(now_s)
        found = {
            "temperature": Reading(round(self._temperature_c + self.fever_c, 1), "celsius", "cpu-thermal", now_s),
            "power": Reading(3.0 + self._dice.random(), "watts", "sim", now_s),
            "throttle": Reading(0.0, "flags", "sim", now_s),
        }
        if self.freezes:
            self.frozen = self.frozen or found["temperature"]
            found["temperature"] = self.frozen
        else:
            self.frozen = None
        for key, reason in self.lost.items():
            found[key] = unavailable("", key, now_s, reason)
        return found | self.sample_memory()

    def sample_memory(self) -> Mapping[str, Reading]:
        """See `ports.Sensors`."""
        now_s = self._clock.monotonic_s()
        found = {
            "ram_total": Reading(float(self.total_bytes), "bytes", "sim", now_s),
            "ram_available": Reading(float(max(0, self.available_bytes)), "bytes", "sim", now_s),
        }
        lost = {key: unavailable("", key, now_s, reason) for key, reason in self.lost.items() if key in found}
        return found | lost

    def process_bytes(self, pid: int) -> Mapping[str, Reading]:
        """See `ports.Sensors`."""
        now_s = self._clock.monotonic_s()
        held = [worker.held_bytes for worker in self.workers if worker.pid == pid and worker.held_bytes]
        if not held or self.lost.get("pss"):
            return {key: unavailable("bytes", "smaps", now_s, "no such process") for key in ("pss", "mapped")}
        shares = {"pss": float(held[0]), "mapped": 0.2 * held[0]}
        return {key: Reading(value, "bytes", "smaps", now_s) for key, value in shares.items()}

    def kill_for_memory(self) -> bool:
        """What the kernel does when nothing is left: it ends the largest worker."""
        alive = [worker for worker in self.workers if worker.alive]
        if self.available_bytes >= 0 or not alive:
            return False
        max(alive, key=lambda worker: worker.held_bytes).kill()
        return True

    def _heat(self, now_s: float) -> None:
        passed_s = max(1e-3, now_s - self._looked_s)
        share = min(1.0, self.busy_s / passed_s)
        self._looked_s, self.busy_s = now_s, 0.0
        towards = ROOM_C + HEATING_C * share
        self._temperature_c += (towards - self._temperature_c) * min(1.0, passed_s / TIME_CONSTANT_S)


class SimWorker:
    """See `ports.Worker`. One step at a time; each job's answer repeats its texts, adapter and variant."""

    def __init__(self, pid: int, board: SimBoard, moods: Moods, dice: Random, listener: WorkerListener) -> None:
        self.pid = pid
        self.alive = True
        self.held_bytes = 0
        self.hangs = False
        self.variant = ""
        self.steps = 0
        self.largest_rows = 0
        self._board = board
        self._moods = moods
        self._dice = dice
        self._listener: WorkerListener | None = listener
        self._loop = asyncio.get_running_loop()
        self._attached: set[str] = set()
        self._waiting: deque[JobWork] = deque(maxlen=10_000)
        self._inside: list[JobWork] = []
        self.sequences = 0
        self.most_at_once = 0
        # A generator's jobs that are under way, and how many words of the answer are out; those of clients that wait
        # for their turn beyond the sequences, with the words of their answers.
        self._talking: dict[str, int] = {}
        self._standing: deque[tuple[JobWork, list[str], int]] = deque(maxlen=10_000)
        self._clients: dict[str, str] = {}
        self.second_beyond = ""
        self._limits = StepLimits(1, 1)
        self._killed_for: DeathCause | None = None
        self._calls: set[asyncio.Future[None]] = set()
        self.handed_s = -math.inf
        self._closing = False
        self._ended = self._loop.create_future()
        self._reason = ""

    async def load(
        self,
        variant: Variant,
        task: TaskSpec,
        limits: StepLimits,
        memory: LoadMemory | None = None,
        *,
        build: bool = True,
    ) -> ModelLoaded:
        """See `ports.Worker`."""
        self._limits = limits
        self.variant = variant.digest
        self.sequences = SEQUENCES if task.kind == "generate" else 0
        moods, dice = self._moods, self._dice
        self.held_bytes = variant.size_bytes // 2
        if dice.random() < moods.load_dies:
            self._loop.call_later(dice.random() * 0.5, self.die, "killed by SIGSEGV")
        compiles = traits(variant.runtime).compiles
        if compiles and variant.digest not in self._board.engines:
            await self._build(variant, build)
        timeout_s = LOAD_BASE_S + LOAD_S_PER_GIB * variant.size_bytes / GIB
        await self._answer_after(0.05 + variant.size_bytes / DISK_BYTES_PER_S * (0.5 + dice.random()), timeout_s)
        if dice.random() < moods.load_fails:
            raise BackendError("the graph is broken", variant.name)
        if self.alive:  # else it died right after it said that it is loaded
            self.held_bytes = int(variant.peak_bytes * (0.8 + 0.2 * dice.random()))
        return ModelLoaded(
            runtime=RuntimeAvailable("sim", "0", (), (), True, moods.mixed, False),
            footprint=FootprintBytes(variant.size_bytes, 0, 0, MIB),
            pid=self.pid,
            load_ms=1.0,
            sequences=self.sequences,
            unproven=compiles and variant.digest not in self._board.proven,
        )

    async def _build(self, variant: Variant, build: bool) -> None:
        """An engine, in up to half a minute; the process may be ended at any time."""
        await self._answer_after(0.2)
        if not build:
            raise EngineMissing("there is no engine for this device yet", variant.name)
        for _ in range(10):
            self._say(LoadProgress("build", None))
            await self._answer_after(3.0 * self._dice.random())
        self._board.engines.add(variant.digest)

    async def attach(self, adapter: Adapter) -> AdapterAttached:
        """See `ports.Worker`."""
        if self._dice.random() < self._moods.attach_dies:
            self._loop.call_later(0.001, self.die, "killed by SIGABRT")
        await self._answer_after(0.003)
        if self._dice.random() < self._moods.attach_refused:
            raise AdapterRefused("its rank does not fit", adapter.name)
        self._attached.add(adapter.name)
        return AdapterAttached(size_bytes=adapter.size_bytes, attach_ms=1.0)

    async def detach(self, name: str) -> None:
        """See `ports.Worker`."""
        await self._answer_after(0.001)
        self._attached.discard(name)

    async def cancel(self, job_id: str) -> bool:
        """See `ports.Worker`."""
        await self._answer_after(0.001)
        found = [job for job in self._waiting if job.id == job_id]
        for job in found:
            self._waiting.remove(job)
        talked = self._talking.pop(job_id, None) is not None
        stood = [one for one in self._standing if one[0].id == job_id]
        for one in stood:
            self._standing.remove(one)
        self._next_turn()
        return bool(found) or talked or bool(stood)

    async def measure(self, adapter: str | None, texts: Sequence[str]) -> TextsMeasured:
        """See `ports.Worker`."""
        await self._answer_after(0.001)
        return TextsMeasured(features=[[0.0] for _ in texts], compute_ms=1.0)

    async def judge_engine(self, passed: bool) -> None:
        """See `ports.Worker`."""
        await self._answer_after(0.001)
        self._board.engines -= set() if passed else {self.variant}
        self._board.proven |= {self.variant} if passed else set()

    async def shrink(self) -> None:
        """See `ports.Worker`."""
        await self._answer_after(0.001)

    def submit(self, jobs: Sequence[JobWork]) -> None:
        """See `ports.Worker`."""
        self.handed_s = self._loop.time()
        self.largest_rows = max(self.largest_rows, sum(len(job.texts) for job in jobs))
        if self.alive and self.sequences:
            for job in jobs:
                inside = [*self._talking, *(one[0].id for one in self._standing)]
                if len(inside) >= self.sequences and job.client in [self._clients[name] for name in inside]:
                    self.second_beyond = job.id
                self._clients[job.id] = job.client
                self._standing.append((job, said(job.texts[0]), 0))
            self._next_turn()
        elif self.alive:
            self._waiting.extend(jobs)
            self._step()

    def set_limits(self, limits: StepLimits) -> None:
        """See `ports.Worker`."""
        self._limits = limits

    def kill(self, cause: DeathCause | None = None) -> None:
        """See `ports.Worker`: the process is gone a moment later."""
        self._killed_for = cause
        self._loop.call_later(EXIT_S, self.die, "killed by SIGKILL")

    def orphan(self) -> None:
        """The daemon was killed: the kernel ends its children (`worker.child` asks it to), whatever they are doing."""
        self._listener = None
        self._closing = True
        self.kill()

    async def close(self) -> None:
        """See `ports.Worker`. A child that hangs is killed after two seconds."""
        self._closing = True
        self._loop.call_later(2.0 if self.hangs else 0.02, self.die, "exit code 0")
        try:
            await asyncio.wait({self._ended})
        except asyncio.CancelledError:
            self.kill()
            raise

    def die(self, reason: str) -> None:
        """The process is gone: calls fail, then the death is told, once and only when nobody asked for it."""
        if not self.alive:
            return
        self.alive = False
        self.held_bytes = 0
        self._reason = reason
        for call in self._calls:
            if not call.done():
                call.set_exception(WorkerError(f"the worker ended: {reason}", "worker"))
        if not self._closing:
            self._tell_death(death(reason, self._killed_for))
        self._ended.set_result(None)

    async def _answer_after(self, seconds: float, timeout_s: float = CALL_TIMEOUT_S) -> None:
        if not self.alive:
            raise WorkerError("the worker has ended", "worker")
        call = self._loop.create_future()
        self._calls.add(call)
        self._loop.call_later(seconds, self._answer, call)
        try:
            await asyncio.wait_for(call, timeout_s)
        except asyncio.TimeoutError as error:
            self.kill()
            raise WorkerError(f"no answer within {timeout_s:.0f} s, worker ended", "worker") from error
        finally:
            self._calls.discard(call)

    def _answer(self, call: asyncio.Future[None]) -> None:
        if not call.done() and not self.hangs:
            call.set_result(None)

    def _say(self, event: AnyEvent) -> None:
        if self._listener is not None:
            self._listener.on_event(event)

    def _tell_death(self, death: WorkerDeath) -> None:
        if self._listener is not None:
            self._listener.on_death(death)

    def _next_turn(self) -> None:
        """As many answers go on as there are sequences, those that stood longest first."""
        while self._standing and len(self._talking) < self.sequences:
            job, words, number = self._standing.popleft()
            self._talking[job.id] = number
            self._loop.call_later(5 * self._moods.row_s, self._talk, job, words)
        self.most_at_once = max(self.most_at_once, len(self._talking))

    def _talk(self, job: JobWork, words: list[str]) -> None:
        """The next word of a generator's answer; a part of it goes out at once where it streams."""
        name = job.id
        if not self.alive or self.hangs or name not in self._talking:
            return
        self._board.busy_s += 5 * self._moods.row_s / self.sequences
        number = self._talking[name]
        self._talking[name] += 1
        if number < len(words) - 1:
            if job.stream:
                self._say(TextChunk(name, words[number]))
            del self._talking[name]
            self._standing.append((job, words, number + 1))
            self._next_turn()
            return
        del self._talking[name]
        self._next_turn()
        usage = {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": len(words)}
        result = {"text": "".join(words), "finish_reason": "stop", "usage": usage, "seed": 1}
        compute_ms = 5000.0 * self._moods.row_s * len(words)
        generated = GeneratedText(words[-1], wait_ms=0.0, prompt_ms=1.0, tokens_per_s=9.0)
        self._say(JobDone(name, [result], 0.1, compute_ms, batch=1, generated=generated))

    def _step(self) -> None:
        """Begin the next step, unless one runs: as many rows as the limits allow, one job at least."""
        if self._inside or not self._waiting or self.hangs:
            return
        rows = 0
        while self._waiting and (not rows or rows + len(self._waiting[0].texts) <= self._limits.max_rows):
            self._inside.append(self._waiting.popleft())
            rows += len(self._inside[-1].texts)
        moods = self._moods
        seconds = moods.row_s * (2 + rows) * (1.0 + moods.spread * (self._dice.random() - 0.5))
        self._loop.call_later(seconds, self._finish, rows, seconds)

    def _finish(self, rows: int, seconds: float) -> None:
        if not self.alive or self.hangs:
            return
        self.steps += 1
        self._board.busy_s += seconds
        done, self._inside = self._inside, []
        for job in done:
            if not self.alive:
                return
            self._say(self._event(job, rows, seconds))
        self._step()

    def _event(self, job: JobWork, rows: int, seconds: float) -> AnyEvent:
        if job.adapter is not None and job.adapter not in self._attached:
            return JobFailed(job.id, 404, Cause.UNKNOWN_ADAPTER, "the adapter is not attached")
        if self._dice.random() < self._moods.job_fails:
            return JobFailed(job.id, 500, Cause.WORKER_FAILED, "the step failed")
        results = [{"label": text, "score": 0.9, "of": [job.adapter, self.variant]} for text in job.texts]
        return JobDone(job.id, results, tokenize_ms=0.1, compute_ms=seconds * 1000.0, batch=rows)


def said(prompt: str) -> list[str]:
    """What a simulated generator answers: a few words that follow from the prompt."""
    return [f"{prompt}.{number} " for number in range(1 + zlib.crc32(prompt.encode()) % 12)]


@dataclass(slots=True)
class SimSpawner:
    """Implements `ports.Spawner`. Keeps every worker it ever started."""

    board: SimBoard
    dice: Random
    moods: Moods = field(default_factory=Moods)

    async def __call__(self, listener: WorkerListener) -> SimWorker:
        """See `ports.Spawner`."""
        await asyncio.sleep(0.03)
        if self.dice.random() < self.moods.spawn_fails:
            raise WorkerError("cannot start python: Resource temporarily unavailable", "worker.python")
        worker = SimWorker(4000 + len(self.board.workers), self.board, self.moods, self.dice, listener)
        self.board.workers.append(worker)
        return worker

    def alive(self) -> list[SimWorker]:
        """Those whose process exists."""
        return [worker for worker in self.board.workers if worker.alive]
