"""What a change of the store needs from the rest of the device: prober, board, trust, clock, operator's settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent.base import limits
from edge_agent.base.clock import Clock, SystemClock
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.probes import ProbeOutcome, ProbeRequest
from edge_agent.bundle.trust import Trust
from edge_agent.store.crash_points import At, nowhere
from edge_agent.store.disk import FreeBytes, free_bytes
from edge_agent.store.variant_selection import Hardware, SelectionPolicy


class Prober(Protocol):
    """Runs a model that is not active yet in a worker of its own. Implemented by `worker.one_shot.WorkerProber`."""

    def probe(self, model: InstalledModel, requests: Sequence[ProbeRequest]) -> ProbeOutcome:
        """Load the chosen variant and its adapters, run the requests, unload.

        Raises WorkerError or BackendError (AdapterRefused) when that fails; must end in bounded time.
        """
        ...


Progress = Callable[[str, int, int], None]
"""(phase, bytes done, bytes in all); called while an install goes on."""


def silent(_phase: str, _done_bytes: int, _total_bytes: int) -> None:
    """A progress report that is thrown away."""


def never_trusted() -> bool:
    """For a clock that is not known to be synchronised."""
    return False


@dataclass(frozen=True, slots=True)
class InstallContext:
    """Everything that a change of the store needs.

    `trust` is the operator's root, None where there is none (then only `allow_unsigned` lets a package in).
    `time_trusted` says whether the wall clock is synchronised. `reserve_bytes` stay free on the file system. `keep_all`
    keeps the weights of every variant that passed its trial, not only the chosen one's. `measure` tries all variants
    that can run here, to choose by what was measured. `again` tries a package whose trials were cut off too often. `at`
    and `free_bytes` are for tests.
    """

    prober: Prober
    hardware: Hardware
    trust: Trust | None = None
    allow_unsigned: bool = False
    clock: Clock = field(default_factory=SystemClock)
    time_trusted: Callable[[], bool] = never_trusted
    reserve_bytes: int = 256 * limits.MIB
    selection: SelectionPolicy = field(default_factory=SelectionPolicy)
    keep_all: bool = False
    measure: bool = False
    again: bool = False
    free_bytes: FreeBytes = free_bytes
    at: At = nowhere
