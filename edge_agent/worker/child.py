"""The worker process: it serves one resident model and ends when its channel closes.

`Child.run` is the loop: take a request if one is there, else compute a step. A request is handled by its type
(`protocol.worker_messages`); a step's events become answers. One thread computes; for a generator a second thread reads
the channel (`wire.FrameReader`). The process holds no queue beyond the jobs that the daemon has submitted, and has no
access to MQTT or sensors. A native crash of a runtime ends this process only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.backends import registry
from edge_agent.backends.api import (
    AdapterSource,
    Backend,
    Chunk,
    Done,
    Event,
    Failed,
    GrammarReady,
    Limits,
    LoadStage,
    Session,
    SessionJob,
    Unavailable,
)
from edge_agent.base.causes import Cause
from edge_agent.base.errors import (
    AdapterRefused,
    BackendError,
    BackendMissing,
    EdgeError,
    MemoryRefused,
    RequestError,
    WorkerError,
)
from edge_agent.base.limits import COMPANY_TOKENS
from edge_agent.base.runtimes import DEVICE_OPTIONS, RUNTIME_CRASH_REMEDY, traits
from edge_agent.protocol.worker_messages import (
    Accepted,
    AdapterAttached,
    AnyAnswer,
    AnyEvent,
    AnyRequest,
    AttachAdapter,
    BackendsProbed,
    CallRefused,
    CancelJob,
    CloseWorker,
    DetachAdapter,
    FootprintBytes,
    FootprintRead,
    GeneratedText,
    GrammarCompiled,
    Heartbeat,
    JobCancelled,
    JobDone,
    JobFailed,
    JobWork,
    JudgeEngine,
    LoadModel,
    LoadProgress,
    MeasureTexts,
    ModelLoaded,
    ProbeBackends,
    ReadFootprint,
    RuntimeAvailable,
    RuntimeReport,
    RuntimeUnavailable,
    SetStepLimits,
    ShrinkMemory,
    StepLimits,
    SubmitJobs,
    TaskFields,
    TextChunk,
    TextsMeasured,
)
from edge_agent.tasks import api as tasks
from edge_agent.tasks import registry as kinds
from edge_agent.worker.memory_bound import Allowance, MemoryBound
from edge_agent.worker.parent_death import die_with_parent
from edge_agent.worker.step_pacing import BEAT_S, ChunkCoalescer, StepThrottle, StepTimes
from edge_agent.worker.wire import Channel, FrameReader, UnknownRequest

REASON_CHARS = 300
NO_MEMORY = "the worker got less memory than it asked for"
BY_A_REQUEST = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Pending(NamedTuple):
    """A job inside the session, with what is needed to make its answer. `tokenize_s`: seconds spent on its rows."""

    task: tasks.Task
    prepared: tasks.Prepared
    params: Mapping[str, Any]
    tokenize_s: float
    reader: tasks.Reader | None
    coalescer: ChunkCoalescer


class Child:
    """The worker's state: at most one session, one task for the model and one per adapter, and the jobs inside."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: Channel | FrameReader = channel
        self._session: Session | None = None
        self._tasks: dict[str | None, tasks.Task] = {}
        self._tokenizer_path: str | None = None
        self._pending: dict[str, Pending] = {}
        self._limits = Limits(max_rows=1, threads=1)
        self._memory_bound = MemoryBound()
        self._throttle = StepThrottle()
        self._steps = StepTimes()
        self._last_sent_s = 0.0

    def run(self) -> None:
        """Serve until CloseWorker. Raises EOFError when the daemon closes the channel."""
        while True:
            request = self._inbox.receive(self._wait_s())
            if isinstance(request, CloseWorker):
                break
            if request is not None:
                self._handle(request)
            elif self._throttle.left_s(time.monotonic()) > 0.0:
                self._check_clock()
            else:
                self._step()
        if self._session is not None:
            self._session.close()

    def _wait_s(self) -> float | None:
        """Seconds to wait for a request: None (no limit) without jobs, else until a step, a deadline or a heartbeat."""
        if not self._pending:
            return None
        ends_s = [pending.coalescer.ends_s - self._steps.ahead_s for pending in self._pending.values()]
        return self._throttle.wait_s(time.monotonic(), self._last_sent_s + BEAT_S, *ends_s)

    def _handle(self, request: AnyRequest | UnknownRequest) -> None:
        answer: AnyAnswer
        try:
            answer = self._answer(request)
        except MemoryError:
            answer = _refused(self._memory_bound.explained(MemoryRefused(NO_MEMORY)))
        except MemoryRefused as error:
            answer = _refused(self._memory_bound.explained(error))
        except EdgeError as error:
            answer = _refused(error)
        if request.call is not None:
            answer.call = request.call
            self._channel.send(answer)

    def _answer(self, request: AnyRequest | UnknownRequest) -> AnyAnswer:
        match request:
            case SubmitJobs():
                self._submit(request)
            case CancelJob():
                return self._cancel(request)
            case SetStepLimits():
                self._set_limits(request.limits)
            case LoadModel():
                return self._load(request)
            case AttachAdapter():
                return self._attach(request)
            case DetachAdapter():
                self._detach(request)
            case MeasureTexts():
                return self._measure(request)
            case ReadFootprint():
                return self._footprint()
            case ShrinkMemory():
                return self._shrink()
            case JudgeEngine():
                self._loaded().judge(request.passed)
            case ProbeBackends():
                return BackendsProbed(backends={name: _probed(name) for name in request.backends})
            case UnknownRequest():
                raise WorkerError(request.reason, "worker channel")
            case CloseWorker():
                pass  # `run` ends the loop before it comes here
        return Accepted()

    def _load(self, request: LoadModel) -> ModelLoaded:
        if self._session is not None:
            raise WorkerError("a model is already loaded; a worker serves one", "worker")
        backend = registry.create(request.backend)
        started_s = time.monotonic()
        self._set_limits(request.limits)
        bounds: dict[str, Any] = {
            "max_rows": request.limits.most_rows or request.limits.max_rows,
            "max_tokens": request.task.max_tokens,
            # A first step with another number of threads would make the session build itself a second time.
            "threads": self._limits.threads,
        }
        if request.memory is not None and request.memory.shrink:
            bounds.update(memory_bytes=request.memory.memory_bytes, shrink=True)
        if traits(request.backend).compiles:
            room_bytes = request.memory.memory_bytes if request.memory is not None else 0
            bounds.update(build=request.build, memory_bytes=room_bytes)
        if traits(request.backend).context_sized and request.memory is not None:
            bounds.update(room_bytes=request.memory.memory_bytes)
        # `options` are the package's and the operator's together; of these words none is the package's to say.
        options = {name: value for name, value in request.options.items() if name not in DEVICE_OPTIONS}
        self._memory_bound.set(Allowance(request.allowed_bytes, request.by_board))
        backend.watch(self._tell_stage)
        session = self._session = backend.load(request.files, {**options, **bounds})
        self._throttle.enabled = session.sequences > 0
        self._tokenizer_path = request.files.get("tokenizer")
        self._tasks[None] = self._build_task(request.task)
        if request.trial:
            self._tasks[None].try_out()
        runtime = _report(backend)
        if isinstance(runtime, RuntimeUnavailable):
            raise BackendMissing(runtime.reason, request.backend, runtime.remedy or None)
        if runtime.streams:
            self._inbox = FrameReader(self._channel, session.interrupt)
        return ModelLoaded(
            runtime=runtime,
            footprint=self._footprint().footprint,
            pid=os.getpid(),
            load_ms=_ms(started_s),
            sequences=session.sequences,
            context=session.context,
            unproven=session.unproven,
            computed_by=session.computed_by,
        )

    def _tell_stage(self, stage: LoadStage) -> None:
        self._channel.send(LoadProgress(stage.stage, stage.share, stage.expected_s))

    def _build_task(self, fields: TaskFields) -> tasks.Task:
        return kinds.build(fields, self._tokenizer_path, self._loaded().vocabulary())

    def _attach(self, request: AttachAdapter) -> AdapterAttached:
        started_s = time.monotonic()
        task = self._build_task(request.task)
        with contextlib.suppress(OSError):  # whatever is wrong with the file, `attach` says it
            self._memory_bound.allow_adapter(request.name, os.stat(request.path).st_size)  # noqa: PTH116
        size_bytes = self._loaded().attach(AdapterSource(request.name, request.path, request.base_id))
        self._tasks[request.name] = task
        return AdapterAttached(size_bytes=size_bytes, attach_ms=_ms(started_s))

    def _detach(self, request: DetachAdapter) -> None:
        self._loaded().detach(request.name)
        self._memory_bound.forget_adapter(request.name)
        self._tasks.pop(request.name, None)

    def _submit(self, request: SubmitJobs) -> None:
        """Queue a micro-batch. Each job is tokenised on its own: a text that is refused fails its job and no other."""
        for work in request.jobs:
            try:
                self._submit_one(work)
            except RequestError as error:
                self._fail(work.id, error.status, error.cause, error.reason)
            except AdapterRefused as error:
                self._fail(work.id, 404, Cause.UNKNOWN_ADAPTER, str(error))
            except BackendError as error:
                self._fail(work.id, 422, Cause.INVALID, str(error))
            except MemoryError:
                short = self._memory_bound.explained(MemoryRefused(NO_MEMORY))
                self._fail(work.id, 503, Cause.MEMORY, str(short))
            except BY_A_REQUEST as error:
                # A task or tokenizer raised on this input. Only this job fails: the others in the worker are sound.
                reason = f"the request broke the worker's preparation: {error!r}"[:200]
                self._fail(work.id, 500, Cause.WORKER_FAILED, reason)

    def _submit_one(self, work: JobWork) -> None:
        task = self._tasks.get(work.adapter)
        if task is None:
            raise AdapterRefused(f"adapter {work.adapter!r} is not attached", "worker")
        started_s = time.monotonic()
        if work.messages:
            prepared = task.prepare_chat(work.messages, work.params)
        else:
            prepared = task.prepare(work.texts, work.params)
        until_s = None if work.left_s is None else started_s + work.left_s
        coalescer = ChunkCoalescer(work.stream, work.flush_ms / 1000.0, until_s)
        tokenize_s = time.monotonic() - started_s
        pending = Pending(task, prepared, work.params, tokenize_s, task.reader(prepared, work.params), coalescer)
        self._loaded().submit(SessionJob(work.id, work.adapter, prepared.rows, prepared.settings, work.client))
        self._pending[work.id] = pending

    def _measure(self, request: MeasureTexts) -> TextsMeasured:
        """Raw outputs for golden probes. Refused while jobs are inside: they would share the probes' batches."""
        session = self._loaded()
        company = [(one.adapter, text) for one in request.company for text in one.texts]
        asked = [(request.adapter, text) for text in request.texts]
        if self._pending or any(adapter not in self._tasks for adapter, _ in (*asked, *company)):
            raise WorkerError("cannot measure: adapter not attached, or jobs are running", "worker")
        jobs = [
            SessionJob(f"measure-{place}", adapter, self._tasks[adapter].probe([text]).rows, {})
            for place, (adapter, text) in enumerate(asked)
        ]
        if not company:
            return _measured([self._run_jobs([job]) for job in jobs], jobs)
        longest = min(COMPANY_TOKENS, session.context - 1) if session.context else None
        others = [
            SessionJob(
                f"company-{place}", adapter, [row[:longest] for row in self._tasks[adapter].probe([text]).rows], {}
            )
            for place, (adapter, text) in enumerate(company)
        ]
        return _measured([self._run_jobs(in_turns(jobs, others, session.sequences > 0))], jobs)

    def _run_jobs(self, jobs: Sequence[SessionJob]) -> dict[str, Done]:
        """Compute jobs that are inside at the same time. Raises BackendError when one fails."""
        session, done = self._loaded(), dict[str, Done]()
        for job in jobs:
            session.submit(job)
        while len(done) < len(jobs):
            for event in session.step(self._limits):
                if isinstance(event, Failed):
                    for job in jobs:
                        session.cancel(job.job_id)
                    raise BackendError(event.reason, "measure")
                if isinstance(event, Done):
                    done[event.job_id] = event
        return done

    def _cancel(self, request: CancelJob) -> JobCancelled:
        cancelled = request.id in self._pending and self._loaded().cancel(request.id)
        if cancelled:
            del self._pending[request.id]
        return JobCancelled(cancelled=cancelled)

    def _set_limits(self, limits: StepLimits) -> None:
        self._limits = Limits(limits.max_rows, limits.threads, limits.decode_threads)
        self._throttle.share = limits.busy_permille / 1000.0

    def _footprint(self) -> FootprintRead:
        held = self._loaded().footprint()
        footprint = FootprintBytes(*held)
        return FootprintRead(footprint=footprint, pid=os.getpid())

    def _shrink(self) -> FootprintRead:
        """Return freed memory to the system: Python's garbage, and the free lists of glibc's allocator."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        return self._footprint()

    def _step(self) -> None:
        started_s = time.monotonic()
        try:
            events = self._loaded().step(self._limits)
        except (BackendError, MemoryError) as error:
            # The session could not run the batch and does not say for which job: all jobs inside fail with the reason,
            # and the worker goes on. A runtime that cannot be used any more raises WorkerError, which ends the process.
            short = isinstance(error, (MemoryError, MemoryRefused))
            reason = error.what if isinstance(error, BackendError) else NO_MEMORY
            events = [Failed(job_id, reason, short_of_memory=short) for job_id in self._pending]
            for job_id in self._pending:
                self._loaded().cancel(job_id)
        for event in events:
            # A job may have ended with an earlier event of this step, at a stop string; its later events are dropped.
            if event.job_id in self._pending:
                self._report(event)
        if self._loaded().sequences:
            now_s = time.monotonic()
            self._steps.add(now_s - started_s)
            self._throttle.begin(now_s, started_s)
            self._check_clock()
        else:
            # A job of many rows takes many steps, on a slow board more time than a worker may be silent for.
            self._beat(time.monotonic())

    def _check_clock(self) -> None:
        """Between a generator's steps, and during its pauses: end answers at their deadline, send a heartbeat."""
        now_s = time.monotonic()
        self._end_late(now_s)
        self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        """Send a heartbeat where jobs are inside and nothing else was sent for a second."""
        if self._pending and now_s - self._last_sent_s >= BEAT_S:
            self._send(Heartbeat())

    def _report(self, event: Event) -> None:
        if isinstance(event, Chunk):
            self._take_chunk(event, self._pending[event.job_id])
        elif isinstance(event, Failed):
            del self._pending[event.job_id]
            status, cause = (422, Cause.INVALID) if event.refused else (500, Cause.WORKER_FAILED)
            reason = event.reason
            if event.short_of_memory:
                status, cause = 503, Cause.MEMORY
                reason = str(self._memory_bound.explained(MemoryRefused(reason)))
            self._fail(event.job_id, status, cause, reason, event.costly)
        elif isinstance(event, GrammarReady):
            self._send(GrammarCompiled(event.job_id))
        else:
            self._conclude(event)

    def _take_chunk(self, chunk: Chunk, pending: Pending) -> None:
        if pending.reader is None:
            raise WorkerError("the session streams, its task does not", "worker")
        text = pending.coalescer.add(pending.reader.take(chunk), time.monotonic())
        if pending.reader.complete:
            done = self._loaded().finish(chunk.job_id)
            if done is not None:
                self._conclude(done, text)
                return
        if text:
            self._send(TextChunk(chunk.job_id, text))

    def _end_late(self, now_s: float) -> None:
        """End the answers whose deadline falls into the next step; one without a token fails with 408."""
        end_s = now_s + self._steps.ahead_s
        for job_id in [job_id for job_id, pending in self._pending.items() if pending.coalescer.late(end_s)]:
            done = self._loaded().finish(job_id)
            if done is None:
                self._loaded().cancel(job_id)
                del self._pending[job_id]
                self._fail(job_id, 408, Cause.EXPIRED, "the deadline came before its answer was begun")
                continue
            if done.outputs["completion_tokens"]:
                self._conclude(done._replace(outputs=dict(done.outputs, finish="deadline")))
            else:
                del self._pending[job_id]
                self._fail(job_id, 408, Cause.EXPIRED, "the deadline came while the prompt was read")

    def _conclude(self, done: Done, text: str = "") -> None:
        """Send a job's results; `text` is the part of a stream that was read and not sent."""
        pending = self._pending.pop(done.job_id)
        outputs: Mapping[str, Any] = done.outputs
        generated: GeneratedText | None = None
        if pending.reader is not None:
            held = pending.reader.end()
            generated = _generated(text + pending.coalescer.rest() + held, outputs)
            outputs = dict(outputs, **pending.reader.outputs())
            if pending.reader.complete:
                outputs["finish"] = "stop"  # also when the stop string came with the last token that max_tokens allows
        try:
            results = pending.task.answer(outputs, pending.prepared, pending.params)
        except BackendError as error:
            # The model's outputs do not fit its task (a mistake in the package): this job fails and no other.
            self._fail(done.job_id, 500, Cause.WORKER_FAILED, str(error))
            return
        answer = JobDone(
            done.job_id,
            results,
            tokenize_ms=pending.tokenize_s * 1000.0,
            compute_ms=done.compute_s * 1000.0,
            batch=done.batch_rows,
            wording=pending.prepared.wording,
            generated=generated,
            # A generator's steps are tokens; its costs are learned by answers.
            steps=1 if generated is not None else done.steps,
        )
        try:
            self._send(answer)
        except WorkerError as error:  # larger than a frame; nothing of it was sent
            self._fail(done.job_id, 413, Cause.TOO_LARGE, str(error))

    def _send(self, event: AnyEvent) -> None:
        self._last_sent_s = time.monotonic()
        self._channel.send(event)

    def _fail(self, job_id: str, status: int, cause: Cause, reason: str, costly: bool = False) -> None:
        self._send(JobFailed(job_id, status, cause, reason, costly))

    def _loaded(self) -> Session:
        if self._session is None:
            raise WorkerError("no model is loaded", "worker")
        return self._session


def _generated(text: str, outputs: Mapping[str, Any]) -> GeneratedText:
    """Milliseconds that a generated answer took; tokens per second from the first token to the last, if it has two."""
    steps, decode_s = outputs["completion_tokens"] - 1, outputs["decode_s"]
    rate = steps / decode_s if steps > 0 and decode_s > 0.0 else None
    return GeneratedText(text, outputs["wait_s"] * 1000.0, outputs["prompt_s"] * 1000.0, rate)


def in_turns(jobs: Sequence[SessionJob], company: Sequence[SessionJob], one_adapter: bool) -> list[SessionJob]:
    """The measured jobs with a job of the company before each and at the end (again from the first where there are too
    few), so that every batch of more than one row holds one.

    `one_adapter`: the runtime computes one adapter at a time, so a job of another one would end the batch; those come
    first.
    """
    first = [one for one in company if one_adapter and one.adapter != jobs[0].adapter]
    beside = [one for one in company if one not in first]
    missing = len(jobs) + 1 - len(beside) if beside else 0
    beside += [beside[place % len(beside)]._replace(job_id=f"company-again-{place}") for place in range(missing)]
    pairs = [one for pair in zip(beside, jobs, strict=False) for one in pair]
    return [*first, *pairs, *jobs[len(beside) :], *beside[len(jobs) :]]


def _measured(runs: Sequence[Mapping[str, Done]], jobs: Sequence[SessionJob]) -> TextsMeasured:
    """The outputs of the jobs in their order; the time of texts alone is their sum, in company that of the longest
    step."""
    done = {job_id: one for run in runs for job_id, one in run.items()}
    features: list[list[float]] = []
    logits: list[list[float]] = []
    for job in jobs:
        outputs = done[job.job_id].outputs
        features += _rows(outputs["features"])
        logits += _rows(outputs.get("logits", ()))
    return TextsMeasured(
        features=features,
        logits=logits if logits else None,
        compute_ms=sum(max(one.compute_s for one in run.values()) for run in runs) * 1000.0,
    )


def _rows(values: Any) -> list[list[float]]:
    """An array [texts, width] as lists of floats; of logits of every token, a text's one after another."""
    return [[float(value) for value in (row.ravel() if hasattr(row, "ravel") else row)] for row in values]


def _ms(started_s: float) -> float:
    return (time.monotonic() - started_s) * 1000.0


def _probed(name: str) -> RuntimeReport:
    try:
        return _report(registry.create(name))
    except EdgeError as error:
        return RuntimeUnavailable(error.what, error.remedy or "")
    # A library or a plug-in that is imported may raise anything: the reason is the answer, and this child ends then.
    except Exception as error:  # noqa: BLE001
        said = f"it crashed when it was imported: {type(error).__name__}: {error}"[:REASON_CHARS]
        return RuntimeUnavailable(said, RUNTIME_CRASH_REMEDY, crashed=True)


def _refused(error: EdgeError) -> CallRefused:
    return CallRefused(error=type(error).__name__, reason=error.what, where=error.where, remedy=error.remedy)


def _report(backend: Backend) -> RuntimeReport:
    found = backend.probe()
    if isinstance(found, Unavailable):
        return RuntimeUnavailable(found.reason, found.remedy)
    return RuntimeAvailable(*found)


def lower_priority(oom_score_adj: int, nice: int) -> None:
    """Set the OOM score, so that the kernel ends this process before the daemon, and the CPU niceness."""
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123 (pathlib costs memory for one line)
            stream.write(str(oom_score_adj))
        os.nice(nice)
    except OSError as error:
        sys.stderr.write(f"worker: cannot lower its own standing: {error}\n")


def main(arguments: list[str]) -> int:
    """`python -m edge_agent.worker.child FD OOM_SCORE_ADJ NICE`, started by `worker.supervisor`; FD is the channel."""
    fd, oom_score_adj, nice = (int(argument) for argument in arguments)
    # Inside a load or a step that does not return, it would not notice that its channel was closed, and would hold its
    # memory without end.
    die_with_parent(signal.SIGKILL)
    lower_priority(oom_score_adj, nice)
    channel = Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd))
    try:
        Child(channel).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
