"""The memory of its own that a worker may take for its model: a bound of the kernel on private memory.

A graph of 407 bytes can ask for gigabytes when it is loaded. What a package states of a model (`peak_bytes`) is checked
against the device's memory before the load; this makes the statement hold. The bound is RLIMIT_DATA: heap, stacks and
private mappings count, files that are mapped to be read do not, so that a GGUF of any size is no matter. An allocation
beyond it fails inside of the runtime, which says so and does not end the process. A file of its own because it knows
the kernel's limit and nothing of messages.
"""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path
from typing import NamedTuple

from edge_agent.base.errors import MemoryRefused
from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import Variant

MARGIN_BYTES, THREAD_BYTES = 256 * MIB, 16 * MIB
"""For what a runtime takes whatever the model, and for each thread: its stack (8 MiB) and the C library's arena."""
MEASURED_ROWS = 16
"""Packages state the memory with batches of so many rows; with more, what is computed grows with them."""
STATED_TIMES = 2
"""A load may take twice what is stated or was measured: measured is the resident memory after a load, and a load has
the file and its optimised copy at once."""
ADAPTER_TIMES = 24
"""An adapter lies once as it is, and once in each of up to 16 positions of a bank, whose rank may grow by it."""
_DATA = re.compile(r"^VmData:\s+(\d+) kB$", re.MULTILINE)


UNUSED_BYTES = 96 * MIB
"""Private memory that a worker reserves and does not touch, beside its threads' (measured: 75 MiB with ONNX Runtime or
llama.cpp on x86-64). The kernel's bound counts it; the board's memory does not pay for it."""


class Allowance(NamedTuple):
    """Bytes of private memory that a load may take; `by_board`: the device has no more, whatever the package states."""

    total_bytes: int
    by_board: bool


def allowance(variant: Variant, threads: int, rows: int, room_bytes: int | None = None) -> Allowance:
    """What a load of a variant may take, with all that its model computes later in batches of at most so many rows.

    `room_bytes`: what the device has for it; None: not known."""
    measured = variant.measured.peak_bytes if variant.measured is not None else 0
    stated = max(variant.peak_bytes, measured, variant.size_bytes)
    threads_bytes = THREAD_BYTES * threads
    by_package = STATED_TIMES * stated * max(1, -(-rows // MEASURED_ROWS)) + MARGIN_BYTES + threads_bytes
    if room_bytes is None or by_package <= room_bytes + UNUSED_BYTES + threads_bytes:
        return Allowance(by_package, by_board=False)
    return Allowance(room_bytes + UNUSED_BYTES + threads_bytes, by_board=True)


class MemoryBound:
    """The bound of this process: one for the model, and a part for every adapter that is attached."""

    def __init__(self) -> None:
        self._allowed = Allowance(0, by_board=False)
        self._model_bytes = 0
        self._adapters: dict[str, int] = {}

    def set(self, allowed: Allowance) -> None:
        """Allow so many bytes beyond what the process holds; 0 sets no bound."""
        if allowed.total_bytes:
            self._allowed = allowed
            self._model_bytes = _held_bytes() + allowed.total_bytes
            self._apply()

    def allow_adapter(self, name: str, file_bytes: int) -> None:
        """Allow an adapter of a file of that size, in place of one of that name."""
        self._adapters[name] = file_bytes
        self._apply()

    def forget_adapter(self, name: str) -> None:
        """Take back what an adapter was allowed; unknown names are no error."""
        self._adapters.pop(name, None)
        self._apply()

    def explained(self, error: MemoryRefused) -> MemoryRefused:
        """The error with the bound in it, where there is one and nothing is said about a way out yet."""
        if not self._allowed.total_bytes or error.remedy is not None:
            return error
        allowed = f"{error.what}; the model may take {self._allowed.total_bytes // MIB} MiB"
        if self._allowed.by_board:
            return MemoryRefused(
                f"{allowed}: the device has no more for it",
                remedy="end other programs, raise memory.models_bytes if it is set, or use a smaller variant",
            )
        return MemoryRefused(
            f"{allowed} by what its package states",
            remedy="it asks for more than it states: build the package again, so that its memory is measured",
        )

    def _apply(self) -> None:
        if not self._allowed.total_bytes:
            return
        limit_bytes = self._model_bytes + ADAPTER_TIMES * sum(self._adapters.values())
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, hard)
        with contextlib.suppress(OSError, ValueError):  # a unit may forbid the call; then its own memory limit remains
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _held_bytes() -> int:
    """The private memory of this process, as RLIMIT_DATA counts it; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        found = _DATA.search(Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0
