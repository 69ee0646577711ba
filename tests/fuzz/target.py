"""One fuzz target, and what counts as its failure: another error than those of the project that it may raise, a
sentence without end, more than a second of processor time, more memory than its bound.

Time is processor time of this process and memory is the growth of its largest resident set, so a busy machine fails
nothing. A second allows for the instrumentation, which makes Python two to four times slower.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import BinaryIO, NamedTuple

from edge_agent.base.limits import KIB, MIB

SECONDS = 1.0
MEMORY_BYTES = 64 * MIB
SENTENCE_CHARS = 1_000
HANG_S = 30
"""Wall-clock time after which libFuzzer takes an input for one that hangs: far above SECONDS, for loops in C."""


class Target(NamedTuple):
    """A parser with its input's form.

    `run` reads the bytes and may raise `allowed`; `seeds` are real inputs, which it takes; `mutated` changes one with
    its form in mind; no input is longer than `size_bytes`; `hang_s`: see `HANG_S`.
    """

    run: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    mutated: Callable[[bytes, Random], bytes]
    size_bytes: int = 64 * KIB
    memory_bytes: int = MEMORY_BYTES
    hang_s: int = HANG_S


class Found(Exception):
    """An input that a target failed on. `kind` is equal for failures at the same place."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def check(target: Target, data: bytes) -> bool:
    """Whether the target takes the input; False: it refuses it by name. Raises Found."""
    before, began = _resident_bytes(), time.process_time()
    try:
        target.run(data)
        taken = True
    except target.allowed as error:
        taken = False
        if len(str(error)) > SENTENCE_CHARS:
            raise Found("a sentence without end", str(error)[:SENTENCE_CHARS]) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Found(f"{type(error).__name__} at {_place(error)}", str(error)[:SENTENCE_CHARS]) from error
    took_s, grown = time.process_time() - began, _resident_bytes() - before
    if took_s > SECONDS:
        raise Found("time", f"{took_s:.2f} s of processor time for {len(data):,} bytes")
    if grown > target.memory_bytes:
        raise Found("memory", f"{grown / MIB:.0f} MiB for {len(data):,} bytes")
    return taken


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _place(error: BaseException) -> str:
    """The innermost line of the project, so that two inputs of one cause count as one."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if "/edge_agent/" in frame.filename or "/edge_forge/" in frame.filename or "/tests/fuzz/" in frame.filename
    ]  # fmt: skip
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[BinaryIO]:
    """The bytes as an open file with a descriptor, which is in memory alone."""
    with os.fdopen(os.memfd_create("fuzz"), "w+b", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file


@contextlib.contextmanager
def placed(data: bytes) -> Iterator[Path]:
    """The path of such a file."""
    with opened(data) as file:
        yield Path(f"/proc/self/fd/{file.fileno()}")
