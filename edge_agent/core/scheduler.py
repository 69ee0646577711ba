"""Which jobs run next on one worker: earliest deadline first within priority, with ageing; micro-batches of what waits.

An idle worker never waits for a batch to fill: `next_batch` takes what is there. A job's priority rises by one class
for every `AGEING_S` it has waited, so that low priority is late, not starved. Where the runtime can mix adapters in a
batch, rows are taken in order; where it cannot, only jobs with the first one's adapter join it. A generator computes
with one adapter at a time: within a priority those with an adapter that is at work go first, for as long as the others
have not waited `AGEING_S`.

Clients take turns where several wait: each may have `TURN_ROWS` rows run ahead of what the others were served
(start-time fair queueing by rows); what lies beyond is behind them within its priority, and does not age until its
turn comes. So a client that floods the device delays itself. Alone it has everything.

The scheduler does not know workers, sockets or messages, and does not refuse: see `admission`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.base.limits import ADAPTERS_RESIDENT, FRAME_BYTES
from edge_agent.core.job import Job

AGEING_S = 2.0
TURN_ROWS = 8
"""Rows of one client's turn: half a usual micro-batch, so that two clients share one."""
CLIENTS_KEPT = 256


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold. `mixed` says whether its rows may use different adapters, `max_adapters` how many.

    `max_chars` keeps a batch well inside one frame to the worker (a character has at most four bytes of UTF-8).
    `takes_s` predicts the seconds of a batch from its rows and its longest text's bytes (None: not known): a batch does
    not grow beyond what its most urgent job has time for. `near`: the adapters at work in a runtime that computes with
    one at a time; jobs with one of these go first within their priority (None: whichever adapter, all the same).
    """

    max_rows: int
    mixed: bool
    max_adapters: int = ADAPTERS_RESIDENT
    max_chars: int = FRAME_BYTES // 8
    takes_s: Callable[[int, int], float | None] | None = None
    near: frozenset[str | None] | None = None


def urgency(job: Job, now_s: float) -> tuple[int, float]:
    """The sort key: effective priority class (0 first), then deadline."""
    waited_classes = int((now_s - job.received_s) / AGEING_S)
    return max(0, job.priority - waited_classes), job.deadline_s


class Queue:
    """The jobs that wait for one model, and what its clients were served lately.

    `_served` counts rows by client, `_level` is the count of the client that was served least among those who wait. Who
    comes new or after a pause begins at that level: nobody saves up.
    """

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], Job] = {}
        self._served: dict[str, float] = {}
        self._level = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def rows(self) -> int:
        """Texts that wait."""
        return sum(job.rows for job in self._jobs.values())

    def add(self, job: Job) -> None:
        """A job waits."""
        client = job.key[0]
        if all(other.key[0] != client for other in self._jobs.values()):
            self._served[client] = max(self._served.get(client, 0.0), self._level)
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
        for job in self._ordered(self.jobs(), now_s, self._near(limits, now_s)):
            if batch and not (_fits(job, batch, rows, limits) and _has_time(job, batch, rows, limits, now_s)):
                continue
            batch.append(job)
            rows += job.rows
            if rows >= limits.max_rows:
                break
        self._note_served(batch)
        for job in batch:
            del self._jobs[job.key]
        return batch

    def rows_ahead(self, job: Job, now_s: float, near: frozenset[str | None] | None = None) -> int:
        """Texts that would run before `job`, which does not wait yet, if nothing else came; `near` as in the limits."""
        rows = 0
        for other in self._ordered((*self._jobs.values(), job), now_s, near or None):
            if other is job:
                break
            rows += other.rows
        return rows

    def _near(self, limits: BatchLimits, now_s: float) -> frozenset[str | None] | None:
        """Where no adapter is at work, the one of the most urgent job will be."""
        if limits.near is None or limits.near or not self._jobs:
            return limits.near
        return frozenset({self._ordered(self.jobs(), now_s)[0].adapter})

    def _ordered(self, jobs: Sequence[Job], now_s: float, near: frozenset[str | None] | None = None) -> list[Job]:
        def far(job: Job) -> bool:
            return near is not None and job.adapter not in near and now_s - job.received_s < AGEING_S

        by_urgency = sorted(jobs, key=lambda job: urgency(job, now_s))
        if len({job.key[0] for job in jobs}) < 2:
            return by_urgency if near is None else sorted(jobs, key=lambda job: _grouped(urgency(job, now_s), far(job)))
        taken: dict[str, float] = {}
        ranks: dict[tuple[str, str], tuple[int, int, bool, float]] = {}
        for job in by_urgency:
            client = job.key[0]
            ahead = taken.setdefault(client, max(0.0, self._served.get(client, self._level) - self._level))
            taken[client] = ahead + job.rows
            turn = int(ahead // TURN_ROWS)
            aged, deadline_s = urgency(job, now_s)
            ranks[job.key] = (aged if turn == 0 else max(aged, job.priority), turn, far(job), deadline_s)
        return sorted(by_urgency, key=lambda job: ranks[job.key])

    def _note_served(self, batch: Sequence[Job]) -> None:
        waiting = {job.key[0] for job in self._jobs.values()}
        self._level = max(self._level, min((self._served.get(client, 0.0) for client in waiting), default=0.0))
        for job in batch:
            client = job.key[0]
            self._served[client] = self._served.get(client, self._level) + job.rows
        if len(self._served) > CLIENTS_KEPT:
            kept = {client: rows for client, rows in self._served.items() if client in waiting or rows > self._level}
            self._served = dict(sorted(kept.items(), key=lambda item: -item[1])[:CLIENTS_KEPT])


def _grouped(rank: tuple[int, float], far: bool) -> tuple[int, bool, float]:
    return rank[0], far, rank[1]


def _fits(job: Job, batch: list[Job], rows: int, limits: BatchLimits) -> bool:
    if (
        rows + job.rows > limits.max_rows
        or sum(other.wire_chars for other in batch) + job.wire_chars > limits.max_chars
    ):
        return False
    adapters = {other.adapter for other in batch} | {job.adapter}
    return len(adapters - {None}) <= limits.max_adapters if limits.mixed else len(adapters) == 1


def _has_time(job: Job, batch: list[Job], rows: int, limits: BatchLimits, now_s: float) -> bool:
    """Whether the batch with `job` still ends before the deadlines of those in it, and its own.

    Who would be late even alone does not hold the others up.
    """
    if limits.takes_s is None:
        return True
    members = [*batch, job]
    together_s = limits.takes_s(rows + job.rows, max(one.size_bytes // one.rows for one in members))
    if together_s is None:
        return True
    for one in members:
        if now_s + together_s > one.deadline_s:
            alone_s = limits.takes_s(one.rows, one.size_bytes // one.rows)
            if alone_s is not None and now_s + alone_s <= one.deadline_s:
                return False
    return True
