"""The clock's view of all models: jobs that are too late, answers past their deadline, workers that fall silent.

A module of its own because it runs once a second for all models, while `serving` runs a loop for each: a load, a pause
or a long step holds such a loop up.
"""

from __future__ import annotations

from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.worker_events import Answers, WorkerEventHandler
from edge_agent.base.causes import Cause, DeathCause
from edge_agent.base.limits import WORKER_SILENCE_S
from edge_agent.base.units import duration_text
from edge_agent.core.forecast import take_hopeless
from edge_agent.core.job import JobState

OVERDUE_S = 0.25
"""A worker ends its answers itself a little before their deadlines. The daemon ends them only so long after."""


class DeadlineMonitor:
    """Ends what the clock says must end."""

    def __init__(self, context: Context, manager: ModelManager, events: WorkerEventHandler, answers: Answers) -> None:
        self._context = context
        self._manager = manager
        self._events = events
        self._answers = answers

    def look(self) -> None:
        """One look at all models; called once a second."""
        self.end_silent()
        self.expire_late()
        self.end_overdue()

    def expire_late(self) -> None:
        """Jobs whose deadline passed while they waited leave their queue without an answer."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in served.queue.take(lambda waiting: waiting.deadline_s <= now_s):
                self._answers.expire(job)

    def refuse_hopeless(self, served: ServedModel, now_s: float, begins_s: float) -> None:
        """Refuse the waiting jobs that no batch beginning at `begins_s` can answer in time: more urgent ones came
        later and went first. Their clients still listen now."""
        at = served.load_at(self._context.grant)
        for job, needed_s in take_hopeless(served.queue, self._context.costs, at, begins_s):
            reason = (
                f"cannot meet the deadline any more: {duration_text(needed_s + begins_s - now_s)} of queue and compute "
                f"are ahead, {duration_text(job.deadline_s - now_s)} are left"
            )
            self._answers.refuse(job, 503, Cause.OVERTAKEN, reason, round(needed_s, 3))

    def end_overdue(self) -> None:
        """End generated answers whose deadline has passed and whose worker has not ended them itself (a long step)."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            for job in [job for job in served.running.values() if served.sequences and job.state is JobState.RUNNING]:
                if job.deadline_s + OVERDUE_S <= now_s:
                    why = f"the deadline passed after {job.parts} parts"
                    self._events.stop(served, job, 408, Cause.EXPIRED, why)

    def end_silent(self) -> None:
        """Kill workers that have jobs and have reported nothing for `WORKER_SILENCE_S`."""
        now_s = self._context.clock.monotonic_s()
        for served in self._manager.every_served_model():
            worker = served.worker
            if served.running and worker is not None and now_s - worker.heard_s > WORKER_SILENCE_S:
                self._context.announce(
                    "worker-hung", f"model {served.name!r} is silent; ending it", {"model": served.name}
                )
                served.lifecycle.kill_for_silence()
                worker.process.kill(DeathCause.HUNG)
