"""The serving orders that `bench.deadlines` compares: the agent's core, first come first served, and an upper bound.

`AgentOrder` drives the real request table, admission, queue and cost model as `agent.intake` and `agent.serving` do.
`FifoOrder` has a queue of the same bound and ignores deadlines, or drops requests that are late when their turn comes.
`best_s` is the most work that any order could do.
"""

from __future__ import annotations

import functools
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from bench.deadlines_load import MAX_ROWS, Offer
from edge_agent.base.limits import QUEUE_JOBS
from edge_agent.core import admission
from edge_agent.core.forecast import (
    PriorityLoad,
    WorkerLoad,
    batch_s,
    least_s,
    remaining_s,
    take_hopeless,
    wait_and_compute_s,
    work_s,
)
from edge_agent.core.job import Job, JobState
from edge_agent.core.latency import CostModel
from edge_agent.core.request_table import RequestTable
from edge_agent.core.scheduler import BatchLimits, Queue

MODEL, THREADS = ("m", "variant"), 4
AT = WorkerLoad(MODEL, MAX_ROWS, THREADS)
Refuse = Callable[[Offer, int, float], None]
"""(offer, status, time in seconds): called for each refused or expired request."""


class ServingOrder(Protocol):
    """Takes offers and returns batches for one worker."""

    def arrive(self, offer: Offer, now_s: float, busy: bool) -> None:
        """A request arrives, while the worker is `busy` or not."""
        ...

    def next_batch(self, now_s: float) -> Sequence[Offer]:
        """The batch that runs now; empty when nothing waits."""
        ...

    def done(self, batch: Sequence[Offer], now_s: float, compute_s: float) -> Sequence[Offer]:
        """The batch has been computed; returns the offers that are answered with status 200."""
        ...


class AgentOrder:
    """The decisions of the agent's core."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._requests = RequestTable()
        self._queue = Queue()
        self._priority_load = PriorityLoad()
        self._costs = CostModel()
        self._jobs: dict[int, Job] = {}

    def arrive(self, offer: Offer, now_s: float, busy: bool) -> None:
        """See `agent.intake.Intake._admit`."""
        key = (offer.client, str(offer.number))
        text = "x" * offer.row_bytes
        job = Job(
            key, "m", offer.adapter, (text,) * offer.rows, {}, offer.priority, offer.deadline_s, now_s, origin=offer
        )
        refused = admission.decide(self._load(job, now_s, busy), job.deadline_s, now_s, None)
        if refused is not None:
            self._refuse(offer, refused.status, now_s)
            return
        self._requests.open(job)
        self._priority_load.note(job.priority, job.deadline_s - now_s, work_s(job, self._costs, AT), now_s)
        self._queue.add(job)

    def _load(self, job: Job, now_s: float, busy: bool) -> admission.QueueLoad:
        """See `agent.intake.Intake._load`."""
        running = self._jobs.values() if busy else ()
        at = replace(AT, running_s=remaining_s(running, self._costs, AT, now_s))
        wait_s, compute_s = wait_and_compute_s(self._queue, job, self._costs, at, now_s)
        if wait_s is not None:
            wait_s = self._priority_load.wait_s(job.priority, job.deadline_s - now_s, wait_s, now_s)
        own_jobs, own_bytes = self._requests.open_of(job.key[0])
        held_bytes = self._requests.held_bytes
        return admission.QueueLoad(len(self._requests), QUEUE_JOBS, wait_s, compute_s, own_jobs, held_bytes, own_bytes)

    def next_batch(self, now_s: float) -> Sequence[Offer]:
        """See `agent.serving.ModelServer._schedule`."""
        for job in self._queue.take(lambda waiting: waiting.deadline_s <= now_s):
            self._close(job, JobState.EXPIRED, 408, now_s)
        self._give_up(now_s, now_s)
        limits = BatchLimits(MAX_ROWS, mixed=True, predict_s=functools.partial(batch_s, self._costs, AT))
        batch = self._queue.next_batch(limits, now_s)
        self._give_up(now_s, now_s + least_s(batch, self._costs, AT))
        for job in batch:
            job.start(now_s)
            self._jobs[job.origin.number] = job
        return [job.origin for job in batch]

    def _give_up(self, now_s: float, begins_s: float) -> None:
        for job, _ in take_hopeless(self._queue, self._costs, AT, begins_s):
            self._close(job, JobState.REFUSED, 503, now_s)

    def done(self, batch: Sequence[Offer], now_s: float, compute_s: float) -> Sequence[Offer]:
        """See `agent.worker_events.WorkerEventHandler.take_event`."""
        rows, row_bytes = sum(offer.rows for offer in batch), max(offer.row_bytes for offer in batch)
        self._costs.learn(MODEL, rows, row_bytes * rows, compute_s, THREADS)
        answered = []
        for offer in batch:
            job = self._jobs.pop(offer.number)
            if job.deadline_s <= now_s:
                self._close(job, JobState.EXPIRED, 408, now_s)
                continue
            job.to(JobState.DONE)
            self._requests.close(job, b"{}")
            answered.append(offer)
        return answered

    def _close(self, job: Job, state: JobState, status: int, now_s: float) -> None:
        job.to(state)
        self._requests.close(job, None)
        self._refuse(job.origin, status, now_s)


class FifoOrder:
    """First come, first served, with batches and a queue bound like the agent's. Answers late; with `drops` it leaves
    out requests that are late when they would begin.
    """

    def __init__(self, refuse: Refuse, drops: bool) -> None:
        self._refuse = refuse
        self._drops = drops
        self._queue: deque[Offer] = deque(maxlen=QUEUE_JOBS)

    def arrive(self, offer: Offer, now_s: float, busy: bool) -> None:
        """See `ServingOrder`."""
        if len(self._queue) >= QUEUE_JOBS:
            self._refuse(offer, 429, now_s)
        else:
            self._queue.append(offer)

    def next_batch(self, now_s: float) -> Sequence[Offer]:
        """See `ServingOrder`."""
        batch: list[Offer] = []
        while self._queue and (not batch or sum(one.rows for one in batch) + self._queue[0].rows <= MAX_ROWS):
            offer = self._queue.popleft()
            if self._drops and offer.deadline_s <= now_s:
                self._refuse(offer, 408, now_s)
            else:
                batch.append(offer)
        return batch

    def done(self, batch: Sequence[Offer], now_s: float, compute_s: float) -> Sequence[Offer]:
        """See `ServingOrder`."""
        return batch


def best_s(offered: Sequence[Offer], begin_s: float, end_s: float) -> float:
    """Seconds of work that the best order can do in time from `begin_s` to `end_s`, knowing all arrivals beforehand.

    Every piece of work counts (a request may be left half done), batches are always full and attaching is free. Then
    taking, at every moment, the piece with the earliest deadline that is still in time does the most: unit pieces with
    arrivals and deadlines are a convex bipartite graph, for which that greedy choice is a maximum matching (Glover,
    Maximum matching in a convex bipartite graph, 1967).
    """
    waiting: list[tuple[float, int, float]] = []
    now_s = done_s = 0.0
    arrivals = [*offered, None]
    for offer in arrivals:
        until_s = max(begin_s, offer.arrival_s) if offer is not None else end_s
        while waiting and now_s < until_s:
            deadline_s, number, left_s = heapq.heappop(waiting)
            piece_s = min(left_s, until_s - now_s, max(0.0, deadline_s - now_s))
            now_s, done_s = now_s + piece_s, done_s + piece_s
            if left_s - piece_s > 1e-12 and deadline_s > now_s:
                heapq.heappush(waiting, (deadline_s, number, left_s - piece_s))
        if offer is not None:
            now_s = max(now_s, until_s)
            heapq.heappush(waiting, (offer.deadline_s, offer.number, offer.work_s))
    return done_s
