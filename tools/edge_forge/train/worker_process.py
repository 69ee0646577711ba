"""Training in a process of its own: `serve` is the worker's side, `follow` the caller's side.

The worker writes JSON lines to its standard output: {"phase", "share"} while it runs, {"evaluation": {...}} after each
evaluation, and {"error": {...}} when it fails with an EdgeError. Everything else that it prints goes to its standard
error, which the caller keeps as a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Protocol, TextIO

from edge_agent.base import child_python, errors
from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import EdgeError


class Report(Protocol):
    """What a training run tells while it runs; on both sides of the pipe. Who is told may end the run by raising."""

    def __call__(self, phase: str, share: float) -> None:
        """`share` (0..1) of `phase` is done."""

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """The validation rows were scored: an entry of `TrainRecord.curves`. Who started the process also gets `cpu_s`,
        its processor time since its libraries were loaded."""


class _Events:
    """The worker's side: each report is a line of JSON. Of several processes only the first tells."""

    def __init__(self, stream: TextIO, chief: bool) -> None:
        self._stream, self._chief = stream, chief
        self._begun_cpu_s: float | None = None

    def __call__(self, phase: str, share: float) -> None:
        if self._begun_cpu_s is None:
            self._begun_cpu_s = time.process_time()
        self._write({"phase": phase, "share": round(share, 4)})

    def evaluated(self, scores: Mapping[str, float]) -> None:
        cpu_s = time.process_time() - (self._begun_cpu_s or 0.0)
        self._write({"evaluation": {**scores, "cpu_s": round(cpu_s, 3)}})

    def failed(self, error: EdgeError) -> None:
        told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
        self._write({"error": told})

    def _write(self, event: Mapping[str, object]) -> None:
        if self._chief:
            self._stream.write(json.dumps(event) + "\n")


# oneDNN keeps a compiled product per shape, 1024 of them by default; batches of many lengths make that a gigabyte.
# With 16 an epoch of home-intents in bf16 peaks at 812 instead of 1000 MB and takes as long.
# OpenMP threads that wait by spinning keep the core from the thread they wait for as soon as another program runs.
_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "OMP_WAIT_POLICY": "passive"}


def serve(run: Callable[[Report], object]) -> int:
    """Let `run` report its phases to standard output, and say there what it fails with; 0 done, 1 failed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # before the tensor library is imported
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    events = _Events(stream, os.environ.get("RANK", "0") == "0")
    try:
        run(events)
    except EdgeError as error:
        events.failed(error)
        return 1
    return 0


def launched(worker: str, processes: int, job: str) -> list[str]:
    """The command of one process, or of several under `accelerate launch` on this machine (CPUs by gloo, or GPUs).

    Processes, machines, precision and compilation are named here, and `--multi_gpu` keeps sharding by FSDP or DeepSpeed
    out; the rest of the user's own `accelerate config` is taken.
    """
    if processes == 1:
        return module_command(worker, job)
    counts = ["--multi_gpu", f"--num_processes={processes}", "--num_machines=1", "--main_process_port=0"]
    usual = ["--mixed_precision=no", "--dynamo_backend=no"]
    return module_command("accelerate.commands.launch", *counts, *usual, child_python.__file__, worker, job)


_TAIL_LINES = 20


def follow(command: Sequence[str], log: Path, progress: Report) -> None:
    """Run `command`, hand its events to `progress`, keep its standard error in `log`; raise what it reports.

    Whatever ends this call, the process is gone afterwards.
    """
    with log.open("w", encoding="utf-8") as file, _started(command) as process:
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        reader = Thread(target=_drain, args=(process.stderr, file, tail), daemon=True)
        reader.start()
        try:
            failure = _events(process, progress)
            code = process.wait()
        finally:
            _end(process)
            reader.join(timeout=5)
    if failure is not None:
        raise failure
    if code:
        last = next((line.strip() for line in reversed(tail) if line.strip()), "no message")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise errors.EdgeError(f"training ended with {how}: {last}", "train", f"the whole output is in {log}")


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=child_environment(os.environ))


def _events(process: subprocess.Popen[str], progress: Report) -> errors.EdgeError | None:
    failure: errors.EdgeError | None = None
    for line in process.stdout or ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if "error" in event:
            told = event["error"]
            kind = getattr(errors, told["kind"], errors.EdgeError)
            made = kind if isinstance(kind, type) and issubclass(kind, errors.EdgeError) else errors.EdgeError
            failure = made(told["what"], told["where"], told["remedy"])
        elif "phase" in event:
            progress(event["phase"], float(event["share"]))
        elif "evaluation" in event:
            progress.evaluated(event["evaluation"])
    return failure


def _drain(stream: IO[str] | None, file: IO[str], tail: deque[str]) -> None:
    # Who inherited the stream may hold it open after the process has ended; it is closed under us then.
    with contextlib.suppress(ValueError):
        for line in stream or ():
            file.write(line)
            tail.append(line)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
