"""A job as it crosses to its worker, and what is learned of its cost when it comes back."""

from __future__ import annotations

from edge_agent.agent.context import Context
from edge_agent.agent.respond import Origin
from edge_agent.agent.served_model import ServedModel
from edge_agent.core.job import Job
from edge_agent.protocol.worker_messages import JobDone, JobWork


def job_work(served: ServedModel, job: Job, now_s: float, flush_ms: float) -> JobWork:
    """A job as it crosses to the child."""
    texts = () if job.messages else job.texts
    if not served.sequences:
        return JobWork(job.job_id, job.adapter, job.params, texts, job.messages)
    left_s = job.deadline_s - now_s
    return JobWork(job.job_id, job.adapter, job.params, texts, job.messages, job.key[0], job.stream, flush_ms, left_s)


def learn(context: Context, served: ServedModel, job: Job, event: JobDone) -> None:
    """Take what a job's answer says of compute time into the cost model, also when nobody waits for it any more: the
    slow ones are late. A batch is learned once, by its longest text: that is what all its rows were padded to."""
    costs, threads = context.costs, context.grant.threads
    compute_s = event.compute_ms / 1000.0
    if event.generated is not None:
        # An answer may be cut short, its first token not: that is what a deadline must leave time for.
        costs.learn(served.cost_key, 1, job.size_bytes, event.generated.prompt_ms / 1000.0, threads)
        costs.learn(served.whole_cost_key, 1, job.size_bytes, compute_s, threads)
        return
    rows = event.batch
    if served.learned != (rows, compute_s):
        served.learned = rows, compute_s
        row_bytes = max(inside.size_bytes // inside.rows for inside in (job, *served.running.values()))
        costs.learn(served.cost_key, rows, row_bytes * rows, compute_s, threads)


def reply_topic(job: Job) -> str | None:
    """The topic that a job's answer goes to."""
    return job.origin.request.reply_topic if isinstance(job.origin, Origin) else None
