"""Admission control: whether a request is queued or refused at once, with the figures behind the refusal.

Pure: queue lengths, predicted times and closures are arguments. `agent.intake` checks that model and adapter exist,
`residency` decides about memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.limits import QUEUE_BYTES
from edge_agent.base.units import bytes_text, duration_text
from edge_agent.core.job import Job

PLACES_PER_FREE = 4
"""A client may hold four times as many places as are free: one client alone 4/5 of all places, two 4/9 each. So there
is always a place for another client (dynamic thresholds; Choudhury and Hahne, 1998). Where there are few, the last
one goes to a client that has none."""


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """The load that a new request meets.

    `jobs`, `max_jobs`: requests open on this device, and their bound; `own_jobs`: those of the same client. `wait_s`:
    predicted seconds until a worker begins with it; `compute_s`: predicted seconds of its own batch; None while nothing
    was measured. `held_bytes`: bodies of all open requests and of this one; `own_bytes`: those of the same client.
    """

    jobs: int
    max_jobs: int
    wait_s: float | None
    compute_s: float | None
    own_jobs: int = 0
    held_bytes: int = 0
    own_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken: the status, the cause, the sentence, and the seconds after which to try again.

    `lacks`: what the queue has too little of for this client; None where the reason is another.
    """

    status: int
    cause: Cause
    reason: str
    retry_after_s: float | None
    lacks: Literal["places", "bytes"] | None = field(default=None, compare=False)


def decide(load: QueueLoad, deadline_s: float, now_s: float, closed: Closure | None) -> Refused | None:
    """None when the request is admitted.

    429 when the queue is full, or when the client holds its share of it; 503 while admission is closed, or when the
    predicted end lies after the deadline.
    """
    if closed is not None:
        return Refused(503, closed.cause, closed.reason, 10.0)
    if load.jobs >= load.max_jobs:
        reason = f"queue full: {load.jobs} of {load.max_jobs} requests are open"
        return Refused(429, Cause.QUEUE_FULL, reason, round(load.wait_s or 1.0, 3), "places")
    free = load.max_jobs - load.jobs
    if load.own_jobs >= (PLACES_PER_FREE * free if free > 1 else 1):
        reason = (
            f"queue full for this client: {load.own_jobs} of its requests are open, "
            f"the last {free} of {load.max_jobs} places are left to others"
        )
        return Refused(429, Cause.CLIENT_SHARE, reason, round(load.wait_s or 1.0, 3), "places")
    if load.held_bytes > QUEUE_BYTES:
        reason = (
            f"queue full: with this request {bytes_text(load.held_bytes)} would wait, at most {bytes_text(QUEUE_BYTES)}"
        )
        return Refused(429, Cause.QUEUE_FULL, reason, round(load.wait_s or 1.0, 3), "bytes")
    free_bytes = QUEUE_BYTES - load.held_bytes
    if load.own_bytes > PLACES_PER_FREE * free_bytes:
        reason = (
            f"queue full for this client: with this request {bytes_text(load.own_bytes)} of its own would wait, "
            f"the last {bytes_text(free_bytes)} of {bytes_text(QUEUE_BYTES)} are left to others"
        )
        return Refused(429, Cause.CLIENT_SHARE, reason, round(load.wait_s or 1.0, 3), "bytes")
    if load.wait_s is None or load.compute_s is None:
        return None
    needed_s, left_s = load.wait_s + load.compute_s, deadline_s - now_s
    if needed_s <= left_s:
        return None
    reason = (
        f"cannot meet the deadline: {duration_text(load.wait_s)} of queue and {duration_text(load.compute_s)} of "
        f"compute are ahead, {duration_text(max(0.0, left_s))} are left"
    )
    return Refused(503, Cause.DEADLINE, reason, round(needed_s - left_s, 3))


def would_be_taken(load: QueueLoad, deadline_s: float, now_s: float) -> bool:
    """Whether the request would be admitted if the queue had room."""
    return decide(replace(load, jobs=0, own_jobs=0, held_bytes=0, own_bytes=0), deadline_s, now_s, None) is None


def gives_way(
    client: str, own: int, lacks: Literal["places", "bytes"], held: Collection[Job], waiting: Sequence[Job]
) -> tuple[Job, str] | None:
    """Which waiting job leaves the queue for one of `client`, which found no room, and the sentence about it.

    It is the newest one of the client that holds most places or bytes, where that one still holds as much as `client`
    afterwards: each has an equal part of the queue if it asks for it, whoever came first (longest queue drop; McKenney,
    1991). `own`: what `client` would hold with its new job; `held`: all open jobs; `waiting`: those that no worker has,
    the oldest first. None where nobody holds so much more.
    """
    amounts: Counter[str] = Counter()
    for one in held:
        amounts[one.key[0]] += 1 if lacks == "places" else one.message_bytes
    newest = {one.key[0]: one for one in waiting if one.key[0] != client}
    for holder, amount in amounts.most_common():
        if holder not in newest:
            continue
        if amount - (1 if lacks == "places" else newest[holder].message_bytes) < own:
            return None
        share = f"{amount} of its requests were open" if lacks == "places" else f"{bytes_text(amount)} of it waited"
        return newest[holder], f"queue full for this client: {share}, and its last request gave way to another client's"
    return None
