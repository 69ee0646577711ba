"""How long a request will take that has just arrived: what is ahead of it, and the batch that it will be part of.

Pure; `admission` decides by it, `agent.intake` and the workload simulation ask for it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from edge_agent.core.job import Job
from edge_agent.core.latency import CostModel
from edge_agent.core.scheduler import Queue


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker as a request finds it.

    `key` names model and variant for the cost model; `max_rows`, `threads` and `duty_share` are the governor's grant;
    `running_s`: seconds until the batch inside is done, 0 without one; `load_s`: seconds until the model is in
    memory, 0 where it is.
    """

    key: Hashable
    max_rows: int
    threads: int
    duty_share: float = 1.0
    running_s: float = 0.0
    load_s: float = 0.0


def batched(
    queue: Queue, job: Job, costs: CostModel, at: WorkerLoad, now_s: float
) -> tuple[float | None, float | None]:
    """(seconds until its batch begins, seconds that this takes), None for both while nothing is known.

    Ahead are whole batches and the one inside; its own batch it shares with whoever waits beside it. What comes later
    and goes first is not among them: see `overtaking`.
    """
    row_bytes = max(1, job.size_bytes // job.rows)
    own_rows = min(at.max_rows, job.rows + queue.rows)
    compute_s = costs.predict_s(at.key, own_rows, own_rows * row_bytes, at.threads)
    batch_s = costs.predict_s(at.key, at.max_rows, at.max_rows * row_bytes, at.threads)
    if compute_s is None or batch_s is None:
        return None, None
    batch_s /= max(0.01, at.duty_share)  # pauses between steps
    wait_s = queue.rows_ahead(job, now_s) // at.max_rows * batch_s + at.running_s + at.load_s
    return wait_s, compute_s * max(1, -(-job.rows // at.max_rows))


def work_s(job: Job, costs: CostModel, at: WorkerLoad) -> float:
    """Seconds of the worker's time that a request costs: its share of full batches; 0 while nothing is known."""
    row_bytes = max(1, job.size_bytes // job.rows)
    full_s = costs.predict_s(at.key, at.max_rows, at.max_rows * row_bytes, at.threads) or 0.0
    return full_s / at.max_rows * job.rows / max(0.01, at.duty_share)


def batch_s(costs: CostModel, at: WorkerLoad, rows: int, row_bytes: int) -> float | None:
    """Predicted seconds of a batch of so many rows, the longest of so many bytes; None while nothing is known."""
    return costs.predict_s(at.key, rows, rows * row_bytes, at.threads)


def remaining_s(running: Collection[Job], costs: CostModel, at: WorkerLoad, now_s: float) -> float:
    """Seconds that the batch inside will still take; one of which nothing is known is taken to end at once."""
    if not running:
        return 0.0
    rows, row_bytes = sum(job.rows for job in running), max(job.size_bytes // job.rows for job in running)
    whole_s = costs.predict_s(at.key, min(rows, at.max_rows), min(rows, at.max_rows) * row_bytes, at.threads) or 0.0
    began_s = min(job.started_s if job.started_s is not None else now_s for job in running)
    return max(0.0, whole_s * max(1, -(-rows // at.max_rows)) - (now_s - began_s))


def least_s(batch: Sequence[Job], costs: CostModel, at: WorkerLoad) -> float:
    """The shortest time that such a batch took lately; 0 while none was measured."""
    if not batch:
        return 0.0
    rows, row_bytes = sum(job.rows for job in batch), max(job.size_bytes // job.rows for job in batch)
    return costs.least_s(at.key, rows, rows * row_bytes, at.threads) or 0.0


def take_hopeless(queue: Queue, costs: CostModel, at: WorkerLoad, begins_s: float) -> list[tuple[Job, float]]:
    """Remove the jobs that no batch beginning at `begins_s` can answer in time, with the seconds that it takes.

    A job runs with whoever waits beside it, so it is the batch of that size that counts.
    """
    beside = min(at.max_rows, queue.rows)

    def needed(job: Job) -> float:
        rows = max(min(job.rows, at.max_rows), beside)
        return costs.least_s(at.key, rows, rows * (job.size_bytes // job.rows), at.threads) or 0.0

    needs = {job.key: needed(job) for job in queue.jobs()}
    gone = queue.take(lambda job: begins_s + needs[job.key] > job.deadline_s)
    return [(job, needs[job.key]) for job in gone]
