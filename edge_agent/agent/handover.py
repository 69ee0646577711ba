"""A job as it crosses to its worker, and what is learned of its cost when it comes back."""

from __future__ import annotations

from edge_agent.agent.context import Context
from edge_agent.agent.ports import WorkerEvent
from edge_agent.agent.respond import Origin
from edge_agent.agent.served_model import ServedModel
from edge_agent.core.job import Job


def work_fields(served: ServedModel, job: Job, now_s: float, flush_ms: float) -> dict[str, object]:
    """A job as the plain map that crosses to the child."""
    fields: dict[str, object] = {"id": job.job_id, "adapter": job.adapter, "params": job.params}
    fields.update({"messages": job.messages} if job.messages else {"texts": job.texts})
    if served.sequences:
        fields.update(client=job.key[0], stream=job.stream, flush_ms=flush_ms, left_s=job.deadline_s - now_s)
    return fields


def learn(context: Context, served: ServedModel, job: Job, event: WorkerEvent) -> None:
    """Take what a job's answer says of compute time into the cost model, also when nobody waits for it any more: the
    slow ones are late. A batch is learned once, by its longest text: that is what all its rows were padded to."""
    costs, threads = context.costs, context.grant.threads
    compute_s = event["compute_ms"] / 1000.0
    if served.sequences:
        # An answer may be cut short, its first token not: that is what a deadline must leave time for.
        costs.learn(served.cost_key, 1, job.size_bytes, event["prompt_ms"] / 1000.0, threads)
        costs.learn(served.whole_cost_key, 1, job.size_bytes, compute_s, threads)
        return
    rows = event["batch"]
    if served.learned != (rows, compute_s):
        served.learned = rows, compute_s
        row_bytes = max(inside.size_bytes // inside.rows for inside in (job, *served.running.values()))
        costs.learn(served.cost_key, rows, row_bytes * rows, compute_s, threads)


def reply_topic(job: Job) -> str | None:
    """The topic that a job's answer goes to."""
    return job.origin.request.reply_topic if isinstance(job.origin, Origin) else None
