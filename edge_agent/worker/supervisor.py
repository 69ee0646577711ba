"""The daemon's side of a worker process: spawn it, exchange messages, notice its death, end it.

It decides nothing about requests: `agent.serving` decides what to send, `agent.worker_events` what
a death means for the jobs inside.
A dead worker is not restarted; the agent spawns another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.base.causes import DeathCause, WorkerDeath
from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import (
    AdapterRefused,
    BackendError,
    BackendMissing,
    EdgeError,
    EngineMissing,
    MemoryRefused,
    WorkerError,
)
from edge_agent.base.limits import (
    GIB,
    LOAD_BASE_S,
    LOAD_LONGEST_S,
    LOAD_S_PER_GIB,
    LOAD_SLOWER,
    LOAD_STALL_S,
    MEASURE_S,
)
from edge_agent.base.runtimes import OPENMP_ENVIRONMENT, traits
from edge_agent.base.texts import Text
from edge_agent.bundle.catalog import Adapter, TaskSpec, Variant
from edge_agent.protocol.worker_messages import (
    Accepted,
    AdapterAttached,
    AnyAnswer,
    AnyEvent,
    AttachAdapter,
    CallRefused,
    CancelJob,
    CloseWorker,
    CompanyTexts,
    DetachAdapter,
    FootprintBytes,
    FootprintRead,
    JobCancelled,
    JobWork,
    JudgeEngine,
    LoadMemory,
    LoadModel,
    MeasureTexts,
    ModelLoaded,
    ReadFootprint,
    SetStepLimits,
    ShrinkMemory,
    StepLimits,
    SubmitJobs,
    TaskFields,
    TextsMeasured,
    WorkerAnswer,
    WorkerListener,
    WorkerRequest,
)
from edge_agent.worker.kernel_accounts import KillCount, oom_kills, work_done
from edge_agent.worker.memory_bound import allowance
from edge_agent.worker.wire import HEADER, check_length, pack, unpack_answer

log = logging.getLogger("edge_agent.worker")
CHILD_MODULE = "edge_agent.worker.child"
CHANNEL_CLOSED = "its channel closed"
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""The signals that a process gets from others: the kernel for lack of memory, or a person."""
CALL_TIMEOUT_S = 30.0
WORK_LOOK_S = 2.0
"""Interval of the looks at a load's work."""
LOAD_SAID_S = 30.0
"""A load that goes on is logged at this interval."""
KILLS_LOOK_S = 1.0
"""The kernel's count of kills is read at most this often while messages go to and fro: the nearer to a death the last
count, the fewer kills of other programs lie between."""
CLOSE_TIMEOUT_S = 2.0
_ERRORS: Mapping[str, type[EdgeError]] = {
    error.__name__: error
    for error in (AdapterRefused, BackendError, BackendMissing, EngineMissing, MemoryRefused, WorkerError)
}
AnswerT = TypeVar("AnswerT", bound=WorkerAnswer)


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """How a worker process is started.

    `python` is the interpreter (None: the daemon's own); `oom_score_adj` makes the kernel's OOM killer choose the child
    before the daemon;
    `environment` is added to the daemon's. `load_limit_s` is the longest load (None: by what the trial of the model
    took on this board). The kernel's counters are read under `root`.
    """

    python: str | None = None
    oom_score_adj: int = 500
    nice: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    load_limit_s: float | None = None
    root: Path = Path("/")


class WorkerProcess:
    """A running worker. `listener` receives its events and its exit."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        listener: WorkerListener,
        options: SpawnOptions,
    ) -> None:
        self._process = process
        self._options = options
        self._writer = writer
        self._listener = listener
        self._calls: dict[int, asyncio.Future[WorkerAnswer]] = {}
        self._next_call = 0
        self._closing = False
        self._killed_here = False
        self._killed_for: DeathCause | None = None
        self._kills = oom_kills(options.root)
        self._kills_read_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._read(reader), name=f"worker-{process.pid}")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True until the child has exited."""
        return self._process.returncode is None and not self._task.done()

    async def load(
        self,
        variant: Variant,
        task: TaskSpec,
        limits: StepLimits,
        memory: LoadMemory | None = None,
        trial: bool = False,
        *,
        build: bool = True,
    ) -> ModelLoaded:
        """Load a model, for as long as the child works on it and at most `load_limit_s`. Raises BackendError,
        WorkerError.

        `memory`: what the device has for it (None: not known); `trial`, `build`: see `LoadModel`.
        """
        try:
            size_bytes = sum(Path(path).stat().st_size for path in variant.files.values())
        except OSError as error:
            raise BackendError(f"cannot read {error.filename}: {error.strerror}", variant.name) from error
        # What the last load took says nothing about a load that compiles.
        compiles = build and traits(variant.runtime).compiles
        longest_s = LOAD_LONGEST_S if compiles else load_limit_s(variant, size_bytes)
        limit_s = self._options.load_limit_s or longest_s
        allowed = allowance(
            variant, limits.threads, limits.most_rows or limits.max_rows, memory.memory_bytes if memory else None
        )
        request = LoadModel(
            backend=variant.runtime,
            files={role: str(Path(path).absolute()) for role, path in variant.files.items()},
            options=variant.options,
            task=task_fields(task),
            limits=limits,
            memory=memory,
            trial=trial,
            allowed_bytes=allowed.total_bytes,
            by_board=allowed.by_board,
            build=build,
        )
        return await self.call(request, ModelLoaded, limit_s, LOAD_STALL_S)

    async def call(
        self,
        request: WorkerRequest,
        expected: type[AnswerT],
        timeout_s: float = CALL_TIMEOUT_S,
        stall_s: float | None = None,
    ) -> AnswerT:
        """Send a request and wait for its answer, which is of the type `expected`.

        Raises what the child refused with, or WorkerError when it dies, is silent for `timeout_s`, does no work for
        `stall_s` (None: its work is not looked at) or answers otherwise.
        """
        operation = request.__struct_config__.tag
        if self._task.done():
            raise WorkerError("the worker has ended", "worker")
        self._next_call += 1
        number = self._next_call
        future: asyncio.Future[WorkerAnswer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._send(msgspec.structs.replace(request, call=number))
            if stall_s is not None:
                await self._while_it_works(future, str(operation), timeout_s, stall_s)
            answer = await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError as error:
            self.kill()
            raise WorkerError(f"no answer to {operation!r} within {timeout_s:.0f} s, worker ended", "worker") from error
        finally:
            self._calls.pop(number, None)
        if not isinstance(answer, expected):
            self.kill()
            raise WorkerError(f"{operation!r} was answered with {type(answer).__name__}, worker ended", "worker")
        return answer

    async def _while_it_works(
        self, future: asyncio.Future[WorkerAnswer], operation: str, limit_s: float, stall_s: float
    ) -> None:
        """Wait until a call is answered. Raises WorkerError, with the child killed, when the child has done no work for
        `stall_s`, or is not done after `limit_s`."""
        loop = asyncio.get_running_loop()
        begun_s = moved_s = said_s = loop.time()
        before = work_done(self._options.root, self.pid)
        while not (await asyncio.wait({future}, timeout=WORK_LOOK_S))[0]:
            now_s, work = loop.time(), work_done(self._options.root, self.pid)
            # Where the kernel tells nothing of the process, only the time limits.
            if work is None or work != before:
                before, moved_s = work, now_s
            if now_s - moved_s >= stall_s:
                self.kill()
                raise WorkerError(
                    f"{operation!r} made no progress for {now_s - moved_s:.0f} s (no processor time, nothing read), "
                    "worker ended",
                    "worker",
                )
            if now_s - begun_s >= limit_s:
                self.kill()
                why = f"{operation!r} was still at work after {now_s - begun_s:.0f} s, worker ended"
                raise WorkerError(why, "worker", "raise worker.load_limit_s if this board takes longer")
            if now_s - said_s >= LOAD_SAID_S:
                said_s = now_s
                log.info("%r goes on after %.0f s: worker %d is at work", operation, now_s - begun_s, self.pid)

    async def attach(self, adapter: Adapter) -> AdapterAttached:
        """Make an adapter resident. Raises AdapterRefused, BackendError, WorkerError."""
        request = AttachAdapter(
            name=adapter.name,
            path=str(Path(adapter.path).absolute()),
            base_id=adapter.base_id,
            task=task_fields(adapter.task),
        )
        return await self.call(request, AdapterAttached)

    async def detach(self, name: str) -> None:
        """Forget an adapter. Raises WorkerError."""
        await self.call(DetachAdapter(name=name), Accepted)

    def submit(self, jobs: Sequence[JobWork]) -> None:
        """Hand over a micro-batch; the listener receives its events."""
        self._send(SubmitJobs(jobs=jobs))

    async def cancel(self, job_id: str) -> bool:
        """Drop a job; False when it has ended and its event is under way. Raises WorkerError."""
        return (await self.call(CancelJob(id=job_id), JobCancelled)).cancelled

    async def measure(
        self, adapter: str | None, texts: Sequence[Text], company: Sequence[CompanyTexts] = ()
    ) -> TextsMeasured:
        """Raw outputs of texts, each alone or beside `company`, while no job is inside. Raises BackendError,
        WorkerError."""
        request = MeasureTexts(adapter=adapter, texts=texts, company=company)
        return await self.call(request, TextsMeasured, MEASURE_S)

    async def footprint(self) -> FootprintBytes:
        """Bytes that the session holds. Raises WorkerError."""
        return (await self.call(ReadFootprint(), FootprintRead)).footprint

    async def judge_engine(self, passed: bool) -> None:
        """Have the model's engine kept, or deleted. Raises WorkerError."""
        await self.call(JudgeEngine(passed=passed), Accepted)

    async def shrink(self) -> None:
        """Have it return freed memory to the system. Raises WorkerError."""
        await self.call(ShrinkMemory(), FootprintRead)

    def set_limits(self, limits: StepLimits) -> None:
        """Pass on the governor's limits; they hold from the next step."""
        self._send(SetStepLimits(limits=limits))

    def kill(self, cause: DeathCause | None = None) -> None:
        """Kill the child at once. Of all ends only this one is sure to return its memory.

        `cause` is what its death is reported with; None: what the exit status tells.
        """
        self._killed_for = self._killed_for or cause
        self._killed_here = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End the child: ask it, wait CLOSE_TIMEOUT_S, kill it. The listener is not told of this end.

        When this call is cancelled it kills at once: its caller may hold the only reference to the child.
        """
        self._closing = True
        self._send(CloseWorker())
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            raise
        await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, request: WorkerRequest) -> None:
        self._look_at_kills()
        if not self._writer.is_closing():
            self._writer.write(pack(request))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        complaint: str | None = "what it said could not be handled"
        try:
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._take(unpack_answer(await reader.readexactly(check_length(length))))
        except (asyncio.IncompleteReadError, ConnectionError):
            complaint = None
        except WorkerError as error:
            complaint = str(error)
        finally:
            # Whatever ended the reading, a bug of ours included: a child that is no longer read is killed and reported.
            self._writer.close()
            if complaint is not None:
                self.kill()
            self._bury(death_of(await self._process.wait(), complaint))

    def _look_at_kills(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._kills_read_s >= KILLS_LOOK_S and self._process.returncode is None:
            self._kills_read_s, self._kills = now_s, oom_kills(self._options.root)

    def _take(self, message: AnyAnswer | AnyEvent) -> None:
        self._look_at_kills()
        if not isinstance(message, WorkerAnswer):
            self._listener.on_event(message)
            return
        future = self._calls.get(message.call or 0)
        if future is None or future.done():
            return
        if isinstance(message, CallRefused):
            refused = _ERRORS.get(message.error, WorkerError)
            future.set_exception(refused(message.reason, message.where, message.remedy))
        else:
            future.set_result(message)

    def _bury(self, death: WorkerDeath) -> None:
        if self._killed_for is not None:
            death = WorkerDeath(self._killed_for, death.reason)
        elif not self._killed_here and self._process.returncode == -signal.SIGKILL:
            death = killed_from_outside(self._kills, oom_kills(self._options.root))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(WorkerError(f"the worker ended: {death.reason}", "worker"))
        if not self._closing:
            self._listener.on_death(death)


async def spawn(options: SpawnOptions, listener: WorkerListener) -> WorkerProcess:
    """Start a child and connect to it. Raises WorkerError when the interpreter cannot be started."""
    ours, theirs = socket.socketpair()
    arguments = [str(theirs.fileno()), str(options.oom_score_adj), str(options.nice)]
    python = options.python
    if python is not None and "/" in python:
        python = str(Path(python).absolute())
    command = module_command(CHILD_MODULE, *arguments, python=python)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            env=_environment(options),
            cwd="/",  # runtimes look for libraries and settings in the current folder
        )
    except OSError as error:
        ours.close()
        raise WorkerError(
            f"cannot start {command[0]}: {error.strerror}", "worker.python", "name an interpreter that exists"
        ) from error
    finally:
        theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return WorkerProcess(process, writer, reader, listener, options)


def load_limit_s(variant: Variant, size_bytes: int) -> float:
    """The longest load of a model on this board. What its trial took here decides, with room for a board that is hot,
    busy or short of memory; a model that was not tried here may take LOAD_LONGEST_S."""
    if variant.measured is None or not variant.measured.load_s:
        return LOAD_LONGEST_S
    least_s = LOAD_BASE_S + LOAD_S_PER_GIB * size_bytes / GIB
    return min(LOAD_LONGEST_S, max(least_s, LOAD_SLOWER * variant.measured.load_s))


def killed_from_outside(before: KillCount, after: KillCount) -> WorkerDeath:
    """The death of a child that got SIGKILL and not from here, by what the kernel counted of kills for lack of memory
    before and after."""
    ended = "killed by SIGKILL"
    if after.kills is None or before.kills is None:
        unknown = f"{ended}, perhaps for lack of memory: this kernel does not count that"
        return WorkerDeath(DeathCause.SIGNALLED_FROM_OUTSIDE, unknown)
    if before.where != after.where or after.kills <= before.kills:
        return WorkerDeath(DeathCause.SIGNALLED_FROM_OUTSIDE, ended)
    counted = f"{after.where} went from {before.kills} to {after.kills}"
    return WorkerDeath(DeathCause.OUT_OF_MEMORY, f"killed by the kernel for lack of memory (SIGKILL; {counted})")


def task_fields(task: TaskSpec) -> TaskFields:
    """A task spec as it crosses to the child."""
    return TaskFields(
        task.kind, task.labels, task.max_tokens, task.threshold, task.out_of_scope, task.prompt, task.pairs,
        task.window_overlap, task.answer_tokens, task.no_answer,
    )  # fmt: skip


def death_of(returncode: int, complaint: str | None) -> WorkerDeath:
    """Why a child ended: 'killed by SIGKILL' or 'exit code 3 (its channel closed)'.

    `complaint` is what was wrong with its messages, where the daemon ended it for that; None: its channel closed.
    """
    if returncode >= 0:
        cause = DeathCause.CRASHED if returncode else DeathCause.CHANNEL_BROKEN
        return WorkerDeath(cause, f"exit code {returncode} ({complaint or CHANNEL_CLOSED})")
    names = {int(known): known.name for known in signal.Signals}
    ended = f"killed by {names.get(-returncode, f'signal {-returncode}')}"
    if complaint is not None:
        return WorkerDeath(DeathCause.CHANNEL_BROKEN, f"{ended} ({complaint})")
    outside = -returncode in FROM_OUTSIDE
    return WorkerDeath(DeathCause.SIGNALLED_FROM_OUTSIDE if outside else DeathCause.CRASHED, ended)


def _environment(options: SpawnOptions) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    clean = child_environment(os.environ)
    path = os.pathsep.join(filter(None, (package_root, clean.get("PYTHONPATH"))))
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "GGML_NO_BACKTRACE": "1"}
    return {**clean, **quiet, **OPENMP_ENVIRONMENT, "PYTHONPATH": path, **options.environment}
