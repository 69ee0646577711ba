"""Which jobs run next on one worker, in micro-batches: by priority within a client's turn, then turn, then deadline.

Batching: `next_batch` takes the jobs that wait now; an idle worker never waits for a batch to fill. Where the runtime
can mix adapters in a batch, rows are taken in order; where it cannot, only jobs with the first job's adapter join.

Ageing: a job's priority rises by one class for every `AGEING_S` of waiting, so that low priority delays and never
starves.

Adapters: a generator computes with one adapter at a time. Within a priority, jobs whose adapter is active go first,
until the others have waited `AGEING_S`.

Fairness: while jobs of several clients wait, a client's rows may be served at most `TURN_ROWS` rows ahead of the client
that was served least (start-time fair queueing by rows; Goyal, Vin and Cheng, 1996). Its further jobs are ordered
behind those of the other clients within their priority, do not age meanwhile, and are not more urgent than requests
without a priority: a priority is a client's word, and orders what is within its turn. A client that floods the device
therefore delays its own requests. A client alone has the whole device.

Sequences: a generator's sequence is held for as long as its answer takes. While another client asks that holds none, a
client that holds some does not get the last free one, so that one with many long answers leaves it to the next.

This module knows no workers, sockets or messages, and refuses nothing (see `admission`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.base.limits import ADAPTERS_RESIDENT, FRAME_BYTES, PRIORITY_DEFAULT
from edge_agent.core.job import Job

AGEING_S = 2.0
TURN_ROWS = 8
"""Rows of one client's turn: half a usual micro-batch of 16, so that two clients share one."""
CLIENTS_KEPT = 256
OTHERS_S = 60.0
"""A client counts as one that asks for so long after its last request; a client alone has all sequences."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch.

    `mixed`: its rows may use different adapters, at most `max_adapters`. `max_chars` keeps a batch well inside one
    frame to the worker (a character takes at most four bytes of UTF-8). `predict_s`: seconds of a batch from its rows
    and its longest text's bytes (None: not known); a batch does not grow beyond the time that its jobs have left.
    `active_adapters`: those at work in a runtime that computes with one at a time, whose jobs go first within their
    priority (None: the order does not depend on the adapter). `held`: rows that clients hold inside already, where rows
    are held for long (a generator's sequences); None where a batch ends as a whole. `may_join`: jobs for which it is
    false are left in the queue.
    """

    max_rows: int
    mixed: bool
    max_adapters: int = ADAPTERS_RESIDENT
    max_chars: int = FRAME_BYTES // 8
    predict_s: Callable[[int, int], float | None] | None = None
    active_adapters: frozenset[str | None] | None = None
    held: Mapping[str, int] | None = None
    may_join: Callable[[Job], bool] | None = None


def urgency(job: Job, now_s: float) -> tuple[int, float]:
    """The sort key: aged priority class (0 first), then deadline."""
    waited_classes = int((now_s - job.received_s) / AGEING_S)
    return max(0, job.priority - waited_classes), job.deadline_s


class Queue:
    """The jobs that wait for one model, and the rows that its clients were served recently.

    `_served`: rows served, by client. `_virtual_time`: the count of the client that was served least among those that
    wait. A client that is new or returns starts at the virtual time, so it cannot save up service while it is away.
    """

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], Job] = {}
        self._served: dict[str, float] = {}
        self._virtual_time = 0.0
        # When each client asked last, the latest at the end.
        self._asked_s: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def rows(self) -> int:
        """Number of rows that wait (`Job.rows`)."""
        return sum(job.rows for job in self._jobs.values())

    def add(self, job: Job) -> None:
        """Add a job."""
        client = job.key[0]
        # The client had no job waiting: it starts at the virtual time, see the class.
        if all(other.key[0] != client for other in self._jobs.values()):
            self._served[client] = max(self._served.get(client, 0.0), self._virtual_time)
        self._jobs[job.key] = job
        self._asked_s[client] = max(job.received_s, self._asked_s.get(client, job.received_s))
        self._asked_s.move_to_end(client)
        if len(self._asked_s) > CLIENTS_KEPT:
            self._asked_s.popitem(last=False)

    def remove(self, job: Job) -> bool:
        """Remove a job; True when it waited."""
        return self._jobs.pop(job.key, None) is not None

    def jobs(self) -> tuple[Job, ...]:
        """All jobs that wait, in order of arrival."""
        return tuple(self._jobs.values())

    def take(self, condition: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs for which `condition` holds."""
        taken = [job for job in self._jobs.values() if condition(job)]
        for job in taken:
            del self._jobs[job.key]
        return taken

    def next_batch(self, limits: BatchLimits, now_s: float) -> list[Job]:
        """Remove and return the jobs that run together next: at least one when any waits, unless the last sequence is
        left to others.

        A job larger than `max_rows` runs alone; the worker's session splits it.
        """
        batch: list[Job] = []
        rows = 0
        for job in self._ordered(self.jobs(), now_s, self._active_adapters(limits, now_s)):
            # A job that does not fit is skipped and not waited for: later, smaller ones may fill the batch.
            if batch and not (_fits(job, batch, rows, limits) and _has_time(job, batch, rows, limits, now_s)):
                continue
            if limits.may_join is not None and not limits.may_join(job):
                continue
            if limits.held is not None and self._leaves_none(job, batch, limits, now_s):
                continue
            batch.append(job)
            rows += job.rows
            if rows >= limits.max_rows:
                break
        self._note_served(batch)
        for job in batch:
            del self._jobs[job.key]
        return batch

    def charge(self, client: str, rows: int) -> None:
        """A client's job took so many rows more than was expected, or fewer."""
        if client in self._served:
            self._served[client] = max(0.0, self._served[client] + rows)

    def rows_ahead(self, job: Job, now_s: float, active: frozenset[str | None] | None = None) -> int:
        """Rows that would run before `job` (not queued yet) if no other job arrived; `active`: the active adapters."""
        rows = 0
        for other in self._ordered((*self._jobs.values(), job), now_s, active or None):
            if other is job:
                break
            rows += other.rows
        return rows

    def is_beyond_turn(self, job: Job) -> bool:
        """Whether the client of a job that is not queued yet has more waiting, or was served more, than one turn: then
        the job overtakes no other client's."""
        client = job.key[0]
        ahead = max(0.0, self._served.get(client, self._virtual_time) - self._virtual_time)
        return ahead + sum(one.rows for one in self._jobs.values() if one.key[0] == client) >= TURN_ROWS

    def _leaves_none(self, job: Job, batch: list[Job], limits: BatchLimits, now_s: float) -> bool:
        """Whether a client that holds a sequence would take the last one, while another client asks that holds none."""
        holds = Counter(limits.held)
        for other in batch:
            holds[other.key[0]] += other.rows
        last = sum(other.rows for other in batch) + job.rows >= limits.max_rows
        if not (holds[job.key[0]] and last):
            return False
        return any(not holds[client] and now_s - asked_s <= OTHERS_S for client, asked_s in self._asked_s.items())

    def _active_adapters(self, limits: BatchLimits, now_s: float) -> frozenset[str | None] | None:
        """The active adapters; where there is none, the adapter of the most urgent job will be."""
        if limits.active_adapters is None or limits.active_adapters or not self._jobs:
            return limits.active_adapters
        return frozenset({self._ordered(self.jobs(), now_s)[0].adapter})

    def _ordered(self, jobs: Sequence[Job], now_s: float, active: frozenset[str | None] | None = None) -> list[Job]:
        def inactive(job: Job) -> bool:
            return active is not None and job.adapter not in active and now_s - job.received_s < AGEING_S

        by_urgency = sorted(jobs, key=lambda job: urgency(job, now_s))
        if len({job.key[0] for job in jobs}) < 2:
            if active is None:
                return by_urgency
            return sorted(jobs, key=lambda job: _grouped(urgency(job, now_s), inactive(job)))
        taken: dict[str, float] = {}
        ranks: dict[tuple[str, str], tuple[int, int, bool, float]] = {}
        for job in by_urgency:
            client = job.key[0]
            ahead = taken.setdefault(
                client, max(0.0, self._served.get(client, self._virtual_time) - self._virtual_time)
            )
            taken[client] = ahead + job.rows
            turn = int(ahead // TURN_ROWS)
            aged, deadline_s = urgency(job, now_s)
            # Beyond the client's first turn a job does not age and is not urgent.
            first = aged if turn == 0 else max(aged, job.priority, PRIORITY_DEFAULT)
            ranks[job.key] = (first, turn, inactive(job), deadline_s)
        return sorted(by_urgency, key=lambda job: ranks[job.key])

    def _note_served(self, batch: Sequence[Job]) -> None:
        waiting = {job.key[0] for job in self._jobs.values()}
        self._virtual_time = max(
            self._virtual_time, min((self._served.get(client, 0.0) for client in waiting), default=0.0)
        )
        for job in batch:
            client = job.key[0]
            self._served[client] = self._served.get(client, self._virtual_time) + job.rows
        if len(self._served) > CLIENTS_KEPT:
            kept = {
                client: rows for client, rows in self._served.items() if client in waiting or rows > self._virtual_time
            }
            self._served = dict(sorted(kept.items(), key=lambda item: -item[1])[:CLIENTS_KEPT])


def _grouped(rank: tuple[int, float], inactive: bool) -> tuple[int, bool, float]:
    return rank[0], inactive, rank[1]


def _fits(job: Job, batch: list[Job], rows: int, limits: BatchLimits) -> bool:
    if (
        rows + job.rows > limits.max_rows
        or sum(other.wire_chars for other in batch) + job.wire_chars > limits.max_chars
    ):
        return False
    adapters = {other.adapter for other in batch} | {job.adapter}
    return len(adapters - {None}) <= limits.max_adapters if limits.mixed else len(adapters) == 1


def _has_time(job: Job, batch: list[Job], rows: int, limits: BatchLimits, now_s: float) -> bool:
    """Whether the batch with `job` still ends before the deadlines of all its jobs.

    A job that would be late even in a batch of its own is ignored.
    """
    if limits.predict_s is None:
        return True
    members = [*batch, job]
    together_s = limits.predict_s(rows + job.rows, max(one.size_bytes // one.rows for one in members))
    # Without a measurement batches are filled; the first one is what the costs are learned from.
    if together_s is None:
        return True
    for one in members:
        if now_s + together_s > one.deadline_s:
            alone_s = limits.predict_s(one.rows, one.size_bytes // one.rows)
            if alone_s is not None and now_s + alone_s <= one.deadline_s:
                return False
    return True
