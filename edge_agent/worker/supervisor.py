"""The daemon's side of a worker child: spawn it, speak to it, notice its death or silence, end it.

It decides nothing about requests: `agent.serving` says what to send and what a death means for the jobs inside.
A worker that died is not revived; a new one is spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.base import openmp
from edge_agent.base.errors import AdapterRefused, BackendError, BackendMissing, EdgeError, WorkerError
from edge_agent.base.limits import GIB, LOAD_BASE_S, LOAD_S_PER_GIB
from edge_agent.bundle.catalog import Adapter, TaskSpec, Variant
from edge_agent.worker.wire import HEADER, check_length, pack, unpack

CHILD_MODULE = "edge_agent.worker.child"
JOB_EVENTS = ("chunk", "done", "failed", "beat")
EVENT_KINDS = ("ok", "refused", *JOB_EVENTS)
CHANNEL_CLOSED = "its channel closed"
CALL_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0
_ERRORS: Mapping[str, type[EdgeError]] = {
    error.__name__: error for error in (AdapterRefused, BackendError, BackendMissing, WorkerError)
}


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """How a child is started.

    `python` is the interpreter (None: the daemon's own); `oom_score_adj` lets the kernel take the child first;
    `environment` is added to the daemon's.
    """

    python: str | None = None
    oom_score_adj: int = 500
    nice: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


Event = Mapping[str, Any]


class WorkerProcess:
    """A running child. `on_event` gets `JOB_EVENTS` frames, `on_death` one sentence, once, when it is gone."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        on_event: Callable[[Event], None],
        on_death: Callable[[str], None],
    ) -> None:
        self._process = process
        self._writer = writer
        self._on_event = on_event
        self._on_death = on_death
        self._calls: dict[int, asyncio.Future[Event]] = {}
        self._next_call = 0
        self._closing = False
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
        limits: Mapping[str, int],
        memory: Mapping[str, int | bool] | None = None,
    ) -> Event:
        """Load a model; the time allowed grows with the size of its files. Raises BackendError, WorkerError.

        `memory` (`memory_bytes`, `shrink`) is for runtimes that can make themselves smaller.
        """
        try:
            size_bytes = sum(Path(path).stat().st_size for path in variant.files.values())
        except OSError as error:
            raise BackendError(f"cannot read {error.filename}: {error.strerror}", variant.name) from error
        timeout_s = LOAD_BASE_S + LOAD_S_PER_GIB * size_bytes / GIB
        return await self.call(
            "load",
            timeout_s,
            backend=variant.runtime,
            files=dict(variant.files),
            options=dict(variant.options),
            task=task_fields(task),
            limits=dict(limits),
            **({"memory": dict(memory)} if memory else {}),
        )

    async def call(self, operation: str, timeout_s: float = CALL_TIMEOUT_S, **fields: object) -> Event:
        """One question, one answer. Raises what the child refused with, or WorkerError on death or silence."""
        if self._task.done():
            raise WorkerError("the worker has ended", "worker")
        self._next_call += 1
        number = self._next_call
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._send({"op": operation, "n": number, **fields})
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError as error:
            self.kill()
            raise WorkerError(f"no answer to {operation!r} within {timeout_s:.0f} s, worker ended", "worker") from error
        finally:
            self._calls.pop(number, None)

    async def attach(self, adapter: Adapter) -> Event:
        """Make an adapter resident. Raises AdapterRefused, BackendError, WorkerError."""
        return await self.call(
            "attach",
            name=adapter.name,
            path=adapter.path,
            base_id=adapter.base_id,
            task=task_fields(adapter.task),
        )

    def submit(self, jobs: Sequence[Mapping[str, object]]) -> None:
        """Hand over a micro-batch; its events come through `on_event`."""
        self._send({"op": "submit", "jobs": list(jobs)})

    def cancel(self, job_id: str) -> None:
        """Ask for a job to be dropped; an event may still come for it when it was already under way."""
        self._send({"op": "cancel", "id": job_id})

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Pass on the governor's limits; they hold from the next step."""
        self._send({"op": "limits", "limits": dict(limits)})

    def kill(self) -> None:
        """End the child at once; the only sure way to get its memory back."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End the child: ask, wait a bounded time, kill. `on_death` is not called for an end that was asked for.

        Cancelled, it kills at once: nobody else may know of the child any more.
        """
        self._closing = True
        self._send({"op": "close"})
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            raise
        await asyncio.gather(self._task, return_exceptions=True)

    def _send(self, message: Mapping[str, object]) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(dict(message)))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "what it said could not be handled"
        try:
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._take(unpack(await reader.readexactly(check_length(length))))
        except (asyncio.IncompleteReadError, ConnectionError):
            reason = CHANNEL_CLOSED
        except WorkerError as error:
            reason = str(error)
        finally:
            # Whatever ended the reading, a bug of ours included: a child that nobody hears is ended and reported.
            self._writer.close()
            if reason != CHANNEL_CLOSED:
                self.kill()
            self._bury(exit_text(await self._process.wait(), reason))

    def _take(self, event: Event) -> None:
        kind, number = event.get("ev"), event.get("n")
        if kind not in EVENT_KINDS or not (number is None or isinstance(number, int)):
            raise WorkerError(f"a frame with ev {kind!r:.40} and n {number!r:.40} is no event", "worker channel")
        future = self._calls.get(number or 0)
        if future is None or future.done():
            if kind in JOB_EVENTS:
                self._on_event(event)
            return
        if kind == "ok":
            future.set_result(event)
        else:
            error = _ERRORS.get(str(event.get("kind")), WorkerError)
            future.set_exception(error(str(event.get("reason"))))

    def _bury(self, reason: str) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(WorkerError(f"the worker ended: {reason}", "worker"))
        if not self._closing:
            self._on_death(reason)


async def spawn(
    options: SpawnOptions, on_event: Callable[[Event], None], on_death: Callable[[str], None]
) -> WorkerProcess:
    """Start a child and connect to it. Raises WorkerError when the interpreter cannot be started."""
    ours, theirs = socket.socketpair()
    command = [options.python or sys.executable, "-m", CHILD_MODULE, str(theirs.fileno())]
    command += [str(options.oom_score_adj), str(options.nice)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, env=_environment(options)
        )
    except OSError as error:
        ours.close()
        raise WorkerError(
            f"cannot start {command[0]}: {error.strerror}", "worker.python", "name an interpreter that exists"
        ) from error
    finally:
        theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return WorkerProcess(process, writer, reader, on_event, on_death)


def task_fields(task: TaskSpec) -> dict[str, object]:
    """A task spec as the plain map that crosses to the child."""
    return {
        "kind": task.kind,
        "labels": list(task.labels),
        "max_tokens": task.max_tokens,
        "threshold": task.threshold,
        "out_of_scope": task.out_of_scope,
    }


def exit_text(returncode: int, reason: str) -> str:
    """Why a child ended, in words: 'killed by SIGKILL' or 'exit code 3 (its channel closed)'."""
    if returncode >= 0:
        return f"exit code {returncode} ({reason})"
    names = {int(known): known.name for known in signal.Signals}
    ended = f"killed by {names.get(-returncode, f'signal {-returncode}')}"
    return ended if reason == CHANNEL_CLOSED else f"{ended} ({reason})"


def _environment(options: SpawnOptions) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "GGML_NO_BACKTRACE": "1"}
    return {**os.environ, **quiet, **openmp.ENVIRONMENT, "PYTHONPATH": path, **options.environment}
