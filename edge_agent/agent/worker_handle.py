"""The worker process of one served model as the daemon knows it: what was sent to it, and what it holds.

A handle exists exactly while the daemon counts on the worker. `ServedModel.worker` is the current one; when the worker
died or is being ended the handle is dropped, and nothing of it is left to be reset.
"""

from __future__ import annotations

from collections import OrderedDict

from edge_agent.agent.context_sizing import LoadPlan
from edge_agent.agent.ports import Worker
from edge_agent.bundle.catalog import Adapter, TaskSpec
from edge_agent.protocol.worker_messages import LoadMemory, LoadProgress, ModelLoaded, StepLimits


class WorkerHandle:
    """One worker. All times are monotonic seconds.

    `plan`: with what it loads the model. `mixed`: whether rows of one batch may use different adapters. `sequences`:
    jobs that a generator works on at once, each ending by itself (0: a model that answers a batch at a time), each
    with `context` tokens. `attached`: digests of the adapters that it holds, least recently used first. `loaded_s`:
    since when it holds the model; `last_used_s`: when a job was last inside; `heard_s`: when it last sent anything.
    `progress`: how far a load is that takes minutes, since `building_s` and last told at `told_s`; None where the
    process has told nothing.
    """

    def __init__(self, process: Worker, plan: LoadPlan, limits: StepLimits) -> None:
        """`limits`: what is sent to the process with the load."""
        self.process = process
        self.plan = plan
        self.limits = limits
        self.digest: str | None = None
        self.mixed = False
        self.sequences = 0
        self.computed_by = ""
        self.context = 0
        self.attached: OrderedDict[str, str] = OrderedDict()
        self.loaded_s = self.last_used_s = self.heard_s = 0.0
        self._learned: tuple[int, float] | None = None
        self.progress: LoadProgress | None = None
        self.building_s = self.told_s = 0.0

    def note_progress(self, progress: LoadProgress, now_s: float) -> bool:
        """The process told how far its load is; True the first time."""
        first, self.progress = self.progress is None, progress
        if first:
            self.building_s = now_s
        self.told_s = now_s
        return first

    def built(self, now_s: float) -> float | None:
        """The load is over: the seconds since it first told its progress, None where it told none."""
        told, self.progress = self.progress, None
        return None if told is None else now_s - self.building_s

    async def load(self, task: TaskSpec, limits: StepLimits, build: bool) -> ModelLoaded:
        """Let the process load the model as planned, and return its answer; `build`: see `LoadModel`. Raises
        EngineMissing, BackendError, WorkerError."""
        plan = self.plan
        memory = LoadMemory(plan.budget_bytes or plan.room_bytes, shrink=plan.budget_bytes > 0)
        room = memory if memory.memory_bytes else None
        return await self.process.load(plan.variant, task, limits, room, build=build)

    def note_loaded(self, answer: ModelLoaded, now_s: float) -> None:
        """The load is over; `answer` is what the process said of the model."""
        self.digest = self.plan.variant.digest
        self.mixed = answer.runtime.mixed_adapters
        self.sequences, self.context, self.computed_by = answer.sequences, answer.context, answer.computed_by
        self.loaded_s = self.last_used_s = self.heard_s = now_s

    def tell_limits(self, limits: StepLimits) -> None:
        """Pass the governor's limits on, unless they are the ones that were sent last."""
        if self.limits != limits:
            self.limits = limits
            self.process.set_limits(limits)

    def hear(self, now_s: float) -> None:
        """The process has sent something."""
        self.heard_s = now_s

    def begin_batch(self, now_s: float) -> None:
        """Jobs go inside. Silence is counted from here, too: an idle worker sends nothing."""
        self.heard_s = self.last_used_s = now_s
        self._learned = None

    def end_batch(self, now_s: float) -> None:
        """Nothing is inside any more."""
        self.last_used_s = now_s

    def is_new_cost(self, rows: int, compute_s: float) -> bool:
        """Whether the cost of a batch (rows, compute seconds) is not learned yet: every answer of a batch tells it."""
        if self._learned == (rows, compute_s):
            return False
        self._learned = rows, compute_s
        return True

    def use_adapter(self, name: str) -> None:
        """An attached adapter is used: it becomes the most recently used one."""
        self.attached.move_to_end(name)

    async def attach(self, adapter: Adapter) -> None:
        """Make an adapter resident. Raises AdapterRefused, BackendError, WorkerError."""
        await self.process.attach(adapter)
        self.attached[adapter.name] = adapter.digest

    async def detach(self, name: str) -> None:
        """Let an attached adapter go. Raises BackendError, WorkerError."""
        await self.process.detach(name)
        del self.attached[name]
