"""Which jobs run next on one worker: earliest deadline first within priority, with ageing; micro-batches of what waits.

An idle worker never waits for a batch to fill: `next_batch` takes what is there. A job's priority rises by one class
for every `AGEING_S` it has waited, so that low priority is late, not starved. Where the runtime can mix adapters in a
batch, rows are taken in order; where it cannot, only jobs with the first one's adapter join it.

The scheduler does not know workers, sockets or messages, and does not refuse: see `admission`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_agent.base.limits import ADAPTERS_RESIDENT, FRAME_BYTES
from edge_agent.core.job import Job

AGEING_S = 2.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold. `mixed` says whether its rows may use different adapters, `max_adapters` how many.

    `max_chars` keeps a batch well inside one frame to the worker (a character has at most four bytes of UTF-8).
    """

    max_rows: int
    mixed: bool
    max_adapters: int = ADAPTERS_RESIDENT
    max_chars: int = FRAME_BYTES // 8


def urgency(job: Job, now_s: float) -> tuple[int, float]:
    """The sort key: effective priority class (0 first), then deadline."""
    waited_classes = int((now_s - job.received_s) / AGEING_S)
    return max(0, job.priority - waited_classes), job.deadline_s


class Queue:
    """The jobs that wait for one model."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def rows(self) -> int:
        """Texts that wait."""
        return sum(job.rows for job in self._jobs.values())

    def add(self, job: Job) -> None:
        """A job waits."""
        self._jobs[job.key] = job

    def remove(self, job: Job) -> bool:
        """A job waits no longer; True when it did."""
        return self._jobs.pop(job.key, None) is not None

    def jobs(self) -> tuple[Job, ...]:
        """Everything that waits, in order of arrival."""
        return tuple(self._jobs.values())

    def take(self, condition: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs for which `condition` holds."""
        taken = [job for job in self._jobs.values() if condition(job)]
        for job in taken:
            del self._jobs[job.key]
        return taken

    def next_batch(self, limits: BatchLimits, now_s: float) -> list[Job]:
        """Remove and return the jobs that run together next; at least one when any waits.

        A job larger than `max_rows` runs alone: the session takes it in pieces.
        """
        batch: list[Job] = []
        rows = 0
        for job in sorted(self._jobs.values(), key=lambda waiting: urgency(waiting, now_s)):
            if batch and not _fits(job, batch, rows, limits):
                continue
            batch.append(job)
            rows += job.rows
            if rows >= limits.max_rows:
                break
        for job in batch:
            del self._jobs[job.key]
        return batch


def rows_ahead(queue: Iterable[Job], job: Job, now_s: float) -> int:
    """Texts that would run before `job` if nothing else came."""
    mine = urgency(job, now_s)
    return sum(other.rows for other in queue if urgency(other, now_s) <= mine)


def _fits(job: Job, batch: list[Job], rows: int, limits: BatchLimits) -> bool:
    if (
        rows + job.rows > limits.max_rows
        or sum(other.wire_chars for other in batch) + job.wire_chars > limits.max_chars
    ):
        return False
    adapters = {other.adapter for other in batch} | {job.adapter}
    return len(adapters - {None}) <= limits.max_adapters if limits.mixed else len(adapters) == 1
