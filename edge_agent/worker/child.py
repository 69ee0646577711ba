"""The worker child: one process, one resident model. One thread computes; a generator's channel is read by a second
(`listen`).

It loads a backend session, turns texts into rows with the model's tasks, steps the session while there is work,
and reports; what a session streams it joins to parts before it sends them. It keeps no queue of its own beyond what
the daemon gave it credit for, knows nothing of MQTT or temperature, and ends when its channel closes. A native crash
here ends this process only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edge_agent.backends import registry
from edge_agent.backends.api import (
    AdapterSource,
    Backend,
    Chunk,
    Done,
    Event,
    Failed,
    Job,
    Limits,
    Session,
    Unavailable,
)
from edge_agent.base.causes import Cause
from edge_agent.base.errors import AdapterRefused, BackendError, EdgeError, ProgramRefused, RequestError, WorkerError
from edge_agent.tasks import api as tasks
from edge_agent.tasks import registry as kinds
from edge_agent.worker import standing
from edge_agent.worker.flow import BEAT_S, Flow, StepTimes
from edge_agent.worker.listen import Listener
from edge_agent.worker.rest import Rest
from edge_agent.worker.wire import Channel

BY_A_REQUEST = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


class Pending(NamedTuple):
    """A job inside the session, with what its answer needs."""

    task: tasks.Task
    prepared: tasks.Prepared
    params: Mapping[str, Any]
    tokenize_s: float
    reader: tasks.Reader | None
    flow: Flow


class Child:
    """The state of the process: at most one session, its tasks, and the jobs inside it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: Channel | Listener = channel
        self._session: Session | None = None
        self._tasks: dict[str | None, tasks.Task] = {}
        self._tokenizer_path: str | None = None
        self._pending: dict[str, Pending] = {}
        self._limits = Limits(max_rows=1, threads=1)
        self._rest = Rest()
        self._steps = StepTimes()
        self._said_s = 0.0

    def run(self) -> None:
        """Serve until the daemon closes the channel or says so."""
        while True:
            message = self._inbox.receive(self._patience_s())
            if message is not None:
                if message["op"] == "close":
                    break
                self._handle(message)
                continue
            if self._rest.left_s(time.monotonic()) > 0.0:
                self._look_around()
            else:
                self._step()
        if self._session is not None:
            self._session.close()

    def _patience_s(self) -> float | None:
        """How long to wait for a message: for ever without work, else until there is something to do by itself."""
        if not self._pending:
            return None
        ends_s = [pending.flow.ends_s - self._steps.ahead_s for pending in self._pending.values()]
        return self._rest.wait_s(time.monotonic(), self._said_s + BEAT_S, *ends_s)

    def _handle(self, message: dict[str, Any]) -> None:
        operation = self._operations().get(message["op"])
        number = message.get("n")
        try:
            if operation is None:
                raise WorkerError(f"unknown operation {message['op']!r}", "worker channel")
            answer = operation(message)
        except EdgeError as error:
            kind = type(error).__name__
            self._channel.send({"ev": "refused", "n": number, "kind": kind, "reason": str(error)})
        else:
            if number is not None:
                self._channel.send(dict(answer or {}, ev="ok", n=number))

    def _operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]]:
        return {
            "probe": self._probe,
            "load": self._load,
            "attach": self._attach,
            "detach": self._detach,
            "submit": self._submit,
            "cancel": self._cancel,
            "measure": self._measure,
            "limits": self._set_limits,
            "footprint": self._footprint,
            "shrink": self._shrink,
        }

    def _probe(self, message: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name in message["backends"]:
            try:
                found[name] = _describe(registry.create(name))
            except EdgeError as error:
                found[name] = {"available": False, "reason": error.what, "remedy": error.remedy or ""}
        return {"backends": found}

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._session is not None:
            raise WorkerError("a model is already loaded; a worker serves one", "worker")
        backend = registry.create(message["backend"])
        started_s = time.monotonic()
        self._set_limits(message)
        bounds = {
            "max_rows": message["limits"].get("most_rows", self._limits.max_rows),
            "max_tokens": message["task"]["max_tokens"],
            # The first step must not find another number of threads and build the session a second time.
            "threads": self._limits.threads,
        }
        bounds.update(message.get("memory", {}))
        session = self._session = backend.load(message["files"], dict(bounds, **message["options"]))
        self._rest.concerned = session.sequences > 0
        self._tokenizer_path = message["files"].get("tokenizer")
        self._tasks[None] = self._build_task(message["task"])
        answer = _describe(backend)
        answer.update(self._footprint(message), load_ms=_ms(started_s))
        answer.update(sequences=session.sequences, context=session.context)
        if answer["streams"]:
            self._inbox = Listener(self._channel, session.interrupt)
        return answer

    def _build_task(self, spec: dict[str, Any]) -> tasks.Task:
        return kinds.build(spec, self._tokenizer_path, self._loaded().vocabulary())

    def _attach(self, message: dict[str, Any]) -> dict[str, Any]:
        started_s = time.monotonic()
        source = AdapterSource(message["name"], message["path"], message["base_id"])
        task = self._build_task(message["task"])
        size_bytes = self._loaded().attach(source)
        self._tasks[source.name] = task
        return {"bytes": size_bytes, "attach_ms": _ms(started_s)}

    def _detach(self, message: dict[str, Any]) -> None:
        self._loaded().detach(message["name"])
        self._tasks.pop(message["name"], None)

    def _submit(self, message: dict[str, Any]) -> None:
        """Queue a micro-batch: each job is tokenised and refused on its own, so that one bad text harms no other."""
        for fields in message["jobs"]:
            job_id = fields["id"]
            try:
                self._submit_one(job_id, fields)
            except RequestError as error:
                self._fail(job_id, error.status, error.cause, error.reason)
            except AdapterRefused as error:
                self._fail(job_id, 404, Cause.UNKNOWN_ADAPTER, str(error))
            except BackendError as error:
                self._fail(job_id, 422, Cause.INVALID, str(error), isinstance(error, ProgramRefused))
            except BY_A_REQUEST as error:
                # Whatever a request can still bring about ends it, and not its neighbours.
                reason = f"the request broke the worker's preparation: {error!r}"[:200]
                self._fail(job_id, 500, Cause.WORKER_FAILED, reason)

    def _submit_one(self, job_id: str, fields: dict[str, Any]) -> None:
        adapter = fields.get("adapter")
        task = self._tasks.get(adapter)
        if task is None:
            raise AdapterRefused(f"adapter {adapter!r} is not attached", "worker")
        started_s = time.monotonic()
        params = fields["params"]
        if "messages" in fields:
            prepared = task.prepare_chat(fields["messages"], params)
        else:
            prepared = task.prepare(fields["texts"], params)
        left_s = fields.get("left_s")
        flow = Flow(
            fields.get("stream", False),
            fields.get("flush_ms", 0.0) / 1000.0,
            None if left_s is None else started_s + left_s,
        )
        tokenize_s = time.monotonic() - started_s
        pending = Pending(task, prepared, params, tokenize_s, task.reader(prepared, params), flow)
        self._loaded().submit(Job(job_id, adapter, prepared.rows, prepared.settings, fields.get("client", "")))
        self._pending[job_id] = pending

    def _measure(self, message: dict[str, Any]) -> dict[str, Any]:
        """Raw outputs for golden probes; only while no job is inside, so that the step is theirs alone."""
        task, session = self._tasks.get(message["adapter"]), self._loaded()
        if task is None or self._pending:
            raise WorkerError("cannot measure: adapter not attached, or jobs are running", "worker")
        prepared = task.probe(message["texts"])
        session.submit(Job("measure", message["adapter"], prepared.rows, {}))
        while True:
            for event in session.step(self._limits):
                if isinstance(event, Failed):
                    raise BackendError(event.reason, "measure")
                if isinstance(event, Done):
                    outputs = {name: _rows(values) for name, values in event.outputs.items()}
                    return dict(outputs, compute_ms=event.compute_s * 1000.0)

    def _cancel(self, message: dict[str, Any]) -> dict[str, Any]:
        job_id = message["id"]
        cancelled = job_id in self._pending and self._loaded().cancel(job_id)
        if cancelled:
            del self._pending[job_id]
        return {"cancelled": cancelled}

    def _set_limits(self, message: dict[str, Any]) -> None:
        self._limits = _limits(message["limits"])
        self._rest.share = message["limits"].get("busy_permille", 1000) / 1000.0

    def _footprint(self, _message: dict[str, Any]) -> dict[str, Any]:
        return {"footprint": dict(self._loaded().footprint()._asdict()), "pid": os.getpid()}

    def _shrink(self, message: dict[str, Any]) -> dict[str, Any]:
        """Give freed memory back to the system: Python's garbage, and what the C library keeps for later (glibc)."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such thing
            ctypes.CDLL(None).malloc_trim(0)
        return self._footprint(message)

    def _step(self) -> None:
        started_s = time.monotonic()
        try:
            events = self._loaded().step(self._limits)
        except BackendError as error:
            # The session could not run this batch and cannot say which job is to blame: all of them fail, with the
            # reason, and the worker goes on. A runtime that is beyond use raises something else and ends the child.
            events = [Failed(job_id, str(error)) for job_id in self._pending]
            for job_id in self._pending:
                self._loaded().cancel(job_id)
        for event in events:
            # One job's end may be taken from the others' chunks: a stop string, a deadline.
            if event.job_id in self._pending:
                self._report(event)
        if self._loaded().sequences:
            now_s = time.monotonic()
            self._steps.add(now_s - started_s)
            self._rest.begin(now_s, started_s)
            self._look_around()

    def _look_around(self) -> None:
        """A generator works for long: between its steps, and while it rests, deadlines are looked at, and it beats."""
        now_s = time.monotonic()
        self._end_late(now_s)
        if self._pending and now_s - self._said_s >= BEAT_S:
            self._send({"ev": "beat"})

    def _report(self, event: Event) -> None:
        if isinstance(event, Chunk):
            self._take_chunk(event, self._pending[event.job_id])
        elif isinstance(event, Failed):
            del self._pending[event.job_id]
            self._fail(event.job_id, 500, Cause.WORKER_FAILED, event.reason, event.costly)
        else:
            self._conclude(event)

    def _take_chunk(self, chunk: Chunk, pending: Pending) -> None:
        if pending.reader is None:
            raise WorkerError("the session streams, its task does not", "worker")
        text = pending.flow.add(pending.reader.take(chunk), time.monotonic())
        if pending.reader.complete:
            done = self._loaded().finish(chunk.job_id)
            if done is not None:
                self._conclude(done, text)
                return
        if text:
            self._send({"ev": "chunk", "id": chunk.job_id, "text": text})

    def _end_late(self, now_s: float) -> None:
        """Answers whose deadline comes end as they stand; one that has not begun is told so."""
        end_s = now_s + self._steps.ahead_s
        for job_id in [job_id for job_id, pending in self._pending.items() if pending.flow.late(end_s)]:
            done = self._loaded().finish(job_id)
            if done is None:
                continue  # it has no place yet: the daemon lets it expire
            if done.outputs["completion_tokens"]:
                self._conclude(done._replace(outputs=dict(done.outputs, finish="deadline")))
            else:
                del self._pending[job_id]
                self._fail(job_id, 408, Cause.EXPIRED, "the deadline came while the prompt was read")

    def _conclude(self, done: Done, text: str = "") -> None:
        """Send a job's results; `text` was read of a stream and not sent yet."""
        pending = self._pending.pop(done.job_id)
        outputs: Mapping[str, Any] = done.outputs
        figures: dict[str, Any] = {}
        if pending.reader is not None:
            held = pending.reader.end()
            figures = {"text": text + pending.flow.rest() + held, **_figures(outputs)}
            outputs = dict(outputs, **pending.reader.outputs())
            if pending.reader.complete:
                outputs["finish"] = "stop"  # also where the stop text came with the last token that was allowed
        try:
            results = pending.task.answer(outputs, pending.prepared, pending.params)
        except BackendError as error:
            # The model's outputs do not fit its task: this job's trouble, not that of the others in the worker.
            self._fail(done.job_id, 500, Cause.WORKER_FAILED, str(error))
            return
        answer = {
            "ev": "done",
            "id": done.job_id,
            "results": results,
            "tokenize_ms": pending.tokenize_s * 1000.0,
            "compute_ms": done.compute_s * 1000.0,
            "batch": done.batch_rows,
            "wording": pending.prepared.wording,
            **figures,
        }
        try:
            self._send(answer)
        except WorkerError as error:  # larger than a frame, of which nothing was sent
            self._fail(done.job_id, 413, Cause.TOO_LARGE, str(error))

    def _send(self, message: dict[str, Any]) -> None:
        self._said_s = time.monotonic()
        self._channel.send(message)

    def _fail(self, job_id: str, status: int, cause: Cause, reason: str, costly: bool = False) -> None:
        said = {"ev": "failed", "id": job_id, "status": status, "cause": cause.value, "reason": reason}
        self._send(dict(said, costly=True) if costly else said)

    def _loaded(self) -> Session:
        if self._session is None:
            raise WorkerError("no model is loaded", "worker")
        return self._session


def _limits(fields: Mapping[str, Any]) -> Limits:
    return Limits(int(fields["max_rows"]), int(fields["threads"]), int(fields.get("decode_threads", 0)))


def _figures(outputs: Mapping[str, Any]) -> dict[str, float]:
    """What a generated answer took, in milliseconds; tokens per second only where there is a second token."""
    steps, decode_s = outputs["completion_tokens"] - 1, outputs["decode_s"]
    figures = {
        "wait_ms": outputs["wait_s"] * 1000.0,
        "prompt_ms": outputs["prompt_s"] * 1000.0,
    }
    if steps > 0 and decode_s > 0.0:
        figures["tokens_per_s"] = steps / decode_s
    return figures


def _rows(values: Any) -> list[list[float]]:
    """An array with one row per text, as plain lists."""
    return [[float(value) for value in row] for row in values]


def _ms(started_s: float) -> float:
    return (time.monotonic() - started_s) * 1000.0


def _describe(backend: Backend) -> dict[str, Any]:
    found = backend.probe()
    if isinstance(found, Unavailable):
        return {"available": False, "reason": found.reason, "remedy": found.remedy}
    return dict(found._asdict(), available=True)


def main(arguments: list[str]) -> int:
    """`python -m edge_agent.worker.child FD OOM_SCORE_ADJ NICE`, started by the supervisor only."""
    fd, oom_score_adj, nice = (int(argument) for argument in arguments)
    standing.die_with_the_daemon()
    standing.step_back(oom_score_adj, nice)
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
