"""The jobs inside a session in order of arrival, and the rows of the next micro-batch. Pure.

Only a job with more rows than a batch may have is split: it runs in pieces, one per step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from edge_agent.backends.api import SessionJob
from edge_agent.base.errors import BackendError
from edge_agent.base.limits import QUEUE_JOBS


class Piece(NamedTuple):
    """Rows `start` to `stop` of a job; `last` when the job is complete with them."""

    job: SessionJob
    start: int
    stop: int
    last: bool

    @property
    def rows(self) -> Sequence[Sequence[int]]:
        """The piece's rows of token ids."""
        return self.job.rows[self.start : self.stop]


class JobQueue:
    """First in, first out, of at most `QUEUE_JOBS` jobs: the daemon has no more requests open."""

    def __init__(self) -> None:
        self._jobs: deque[SessionJob] = deque(maxlen=QUEUE_JOBS)
        self._done_rows = 0

    def submit(self, job: SessionJob) -> None:
        """Put a job at the end. Raises BackendError when the queue is full, where a deque would drop its first job."""
        if len(self._jobs) == QUEUE_JOBS:
            raise BackendError(f"{QUEUE_JOBS} jobs wait in this worker already", job.job_id)
        self._jobs.append(job)

    def take(self, max_rows: int, one_adapter: bool = False) -> list[Piece]:
        """The pieces of the next batch, of `max_rows` rows at most; empty when nothing waits.

        With `one_adapter` the batch ends before the first job with another adapter than the first one's.
        """
        pieces: list[Piece] = []
        free = max(1, max_rows)
        while self._jobs:
            job, start = self._jobs[0], self._done_rows
            left = len(job.rows) - start
            if left > free and (pieces or len(job.rows) <= max_rows):
                break
            if one_adapter and pieces and job.adapter != pieces[0].job.adapter:
                break
            stop = start + min(left, free)
            pieces.append(Piece(job, start, stop, stop == len(job.rows)))
            free -= stop - start
            if stop < len(job.rows):
                self._done_rows = stop
                break
            self._jobs.popleft()
            self._done_rows = 0
        return pieces

    def cancel(self, job_id: str) -> bool:
        """Forget a job, begun or not; True when it was here."""
        for place, job in enumerate(self._jobs):
            if job.job_id == job_id:
                del self._jobs[place]
                if place == 0:
                    self._done_rows = 0
                return True
        return False

    def uses(self, adapter: str) -> bool:
        """True while a job with that adapter waits."""
        return any(job.adapter == adapter for job in self._jobs)

    def clear(self) -> None:
        """Forget every job."""
        self._jobs.clear()
        self._done_rows = 0

    def __len__(self) -> int:
        return len(self._jobs)
