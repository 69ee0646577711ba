"""Run a training process, hand on what it reports, keep its output: the caller's side of `serve`."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from edge_agent.base import errors

_TAIL_LINES = 20


def follow(command: Sequence[str], log: Path, progress: Callable[[str, float], None]) -> None:
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
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _events(process: subprocess.Popen[str], progress: Callable[[str, float], None]) -> errors.EdgeError | None:
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
