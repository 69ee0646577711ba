"""Deadlines that pass and workers that fall silent: who waited too long, computes too long, or cannot be in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.served_model import ServedModel
from edge_agent.base.causes import Cause, DeathCause
from edge_agent.base.limits import WORKER_SILENCE_S
from edge_agent.base.units import duration_text
from edge_agent.core.forecast import take_hopeless
from edge_agent.core.job import Job, JobState

OVERDUE_S = 0.25
"""A worker ends its answers itself a little before their deadlines; only after this is it made to."""


class Endings(Protocol):
    """How a job ends without the worker's answer; `agent.respond.Responder`."""

    def refuse(self, job: Job, status: int, cause: Cause, reason: str, retry_after_s: float | None = None) -> None:
        """A status other than 200; the job's state follows from it, and `cause` is what telemetry counts."""
        ...

    def expire(self, job: Job) -> None:
        """The deadline passed: no answer."""
        ...


class DeadlineMonitor:
    """Looks at the clock for all served models. `stop` ends a running answer with a status, a cause and a reason."""

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        answers: Endings,
        stop: Callable[[ServedModel, Job, int, Cause, str], None],
    ) -> None:
        self._context = context
        self._manager = manager
        self._answers = answers
        self._stop = stop

    def look(self) -> None:
        """Once a second; the models' own loops are not enough where a load, a rest or a long step holds them
        up.
        """
        self.end_silent()
        self.expire_late()
        self.end_overdue()

    def expire_late(self) -> None:
        """What waited too long leaves, also where a load or a rest holds its served model up."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in served.queue.take(lambda waiting: waiting.deadline_s <= now_s):
                self._answers.expire(job)

    def refuse_hopeless(self, served: ServedModel, now_s: float, begins_s: float) -> None:
        """What others overtook and can no longer be computed in time is told so while its client still listens."""
        at = served.station(self._context.grant)
        for job, needed_s in take_hopeless(served.queue, self._context.costs, at, begins_s):
            reason = (
                f"cannot meet the deadline any more: {duration_text(needed_s + begins_s - now_s)} of queue and compute "
                f"are ahead, {duration_text(job.deadline_s - now_s)} are left"
            )
            self._answers.refuse(job, 503, Cause.OVERTAKEN, reason, round(needed_s, 3))

    def end_overdue(self) -> None:
        """Generated answers whose deadline has passed, and whose worker has not ended them itself (a long step)."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in [job for job in served.running.values() if served.sequences and job.state is JobState.RUNNING]:
                if job.deadline_s + OVERDUE_S <= now_s:
                    self._stop(served, job, 408, Cause.EXPIRED, f"the deadline passed after {job.parts} parts")

    def end_silent(self) -> None:
        """Kill workers that have jobs and have reported nothing for too long."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            if served.running and served.worker is not None and now_s - served.heard_s > WORKER_SILENCE_S:
                self._context.announce(
                    "worker-hung", f"model {served.name!r} is silent; ending it", {"model": served.name}
                )
                served.worker.kill(DeathCause.HUNG)
