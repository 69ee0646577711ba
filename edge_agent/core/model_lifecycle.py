"""The life of an installed model on this device, as one transition table.

A model that is in memory is held by a worker, a process of its own. This module knows in which state the model is, why
its worker is ended, and whether it is to be loaded.

Rules for changes:
- A worker exists only in the states of `MAY_HAVE_WORKER`. They are left by UNLOADED (the agent has ended the worker
  in order, or has given up a load) or by a death (DIED, DIED_TOO_OFTEN), and by nothing else.
- A model drains for a reason (`DrainReason`): it finishes what is inside its worker and takes nothing new. A reason may
  come in any state; it takes effect while the model is loaded. The model is READY again when the last reason is gone.
- REMOVED is entered only from a state without a worker: a model that is removed while it has one drains first. REMOVED
  is left only by RETURNED: the model was installed again before its serving loop had noticed the removal.
- QUARANTINED is left only by LIFTED (the order `load`) or REMOVED.
- A death in EVICTING is not counted against the model: the agent ended that worker, for another model's or for the
  host's sake.
- A load for which requests waited (WAITING_FOR_MEMORY) and that ends by a death goes back to waiting.
- What is published as the model's `reason` is `PUBLISHED`; clients read these words, so they do not change.

This module does not decide when an event happens, it holds no worker and no job, and it knows no clock: times are
monotonic seconds and are handed in. `agent.model_manager`, `agent.serving` and `agent.worker_events` send the events.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_agent.core import backoff

QUARANTINE_WINDOW_S = 900.0
"""Deaths within this time count towards the quarantine."""
RESPAWN_BASE_S = 0.05
RESPAWN_CAP_S = 30.0
DEMAND_S = 60.0
"""Load a model for requests that could not wait for the load at most once in this time."""
TOLD_AGAIN_S = 600.0
"""Report a failed load in an event at most once in this time: every request that arrives tries, and fails, again."""
FIRST_LOAD_S = 1.0
"""The assumed duration of a load before one was measured."""


class ModelState(Enum):
    """Where a model is between installed and removed."""

    ABSENT = "absent"
    WAITING_FOR_MEMORY = "waiting for memory"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    EVICTING = "evicting"
    KILLED_FOR_SILENCE = "killed for silence"
    QUARANTINED = "quarantined"
    REMOVED = "removed"


class LifecycleEvent(Enum):
    """What happens to a model."""

    NO_MEMORY = "no memory"
    """A load found no memory, and requests wait for the model."""
    WAITING_ENDED = "waiting ended"
    """Nothing waits for the memory any more."""
    LOAD_BEGUN = "load begun"
    LOADED = "loaded"
    UNLOADED = "unloaded"
    """The agent has ended the worker in order, or has given up a load."""
    DRAIN = "drain"
    RESUME = "resume"
    EVICTED = "evicted"
    """The worker is being ended for another model's or for the host's sake."""
    SILENT = "silent"
    """The worker has jobs, has reported nothing for too long, and is killed."""
    DIED = "died"
    DIED_TOO_OFTEN = "died too often"
    LIFTED = "quarantine lifted"
    REMOVED = "removed"
    RETURNED = "returned"


class DrainReason(Enum):
    """Why a model takes nothing new."""

    REMOVAL = "removal"
    NEWER_VERSION = "newer version"
    ORDER = "order"
    """An order (load, unload, attach, detach) waits until nothing is inside the worker."""
    GIVING_WAY = "giving way"
    """The model has had its turn, and another one waits for memory."""


TRANSITIONS: Mapping[ModelState, Mapping[LifecycleEvent, ModelState]] = {
    ModelState.ABSENT: {
        LifecycleEvent.NO_MEMORY: ModelState.WAITING_FOR_MEMORY,
        LifecycleEvent.LOAD_BEGUN: ModelState.LOADING,
        LifecycleEvent.REMOVED: ModelState.REMOVED,
    },
    ModelState.WAITING_FOR_MEMORY: {
        LifecycleEvent.WAITING_ENDED: ModelState.ABSENT,
        LifecycleEvent.LOAD_BEGUN: ModelState.LOADING,
        LifecycleEvent.REMOVED: ModelState.REMOVED,
    },
    ModelState.LOADING: {
        LifecycleEvent.LOADED: ModelState.READY,
        LifecycleEvent.UNLOADED: ModelState.ABSENT,
        LifecycleEvent.EVICTED: ModelState.EVICTING,
        LifecycleEvent.DIED: ModelState.ABSENT,
        LifecycleEvent.DIED_TOO_OFTEN: ModelState.QUARANTINED,
    },
    ModelState.READY: {
        LifecycleEvent.DRAIN: ModelState.DRAINING,
        LifecycleEvent.UNLOADED: ModelState.ABSENT,
        LifecycleEvent.EVICTED: ModelState.EVICTING,
        LifecycleEvent.SILENT: ModelState.KILLED_FOR_SILENCE,
        LifecycleEvent.DIED: ModelState.ABSENT,
        LifecycleEvent.DIED_TOO_OFTEN: ModelState.QUARANTINED,
    },
    ModelState.DRAINING: {
        LifecycleEvent.RESUME: ModelState.READY,
        LifecycleEvent.UNLOADED: ModelState.ABSENT,
        LifecycleEvent.EVICTED: ModelState.EVICTING,
        LifecycleEvent.SILENT: ModelState.KILLED_FOR_SILENCE,
        LifecycleEvent.DIED: ModelState.ABSENT,
        LifecycleEvent.DIED_TOO_OFTEN: ModelState.QUARANTINED,
    },
    ModelState.EVICTING: {
        # A signal takes a moment: until then the worker may end its load, and may be ended again.
        LifecycleEvent.LOADED: ModelState.EVICTING,
        LifecycleEvent.EVICTED: ModelState.EVICTING,
        LifecycleEvent.SILENT: ModelState.EVICTING,
        LifecycleEvent.UNLOADED: ModelState.ABSENT,
        LifecycleEvent.DIED: ModelState.ABSENT,
    },
    ModelState.KILLED_FOR_SILENCE: {
        LifecycleEvent.SILENT: ModelState.KILLED_FOR_SILENCE,
        LifecycleEvent.EVICTED: ModelState.EVICTING,
        LifecycleEvent.UNLOADED: ModelState.ABSENT,
        LifecycleEvent.DIED: ModelState.ABSENT,
        LifecycleEvent.DIED_TOO_OFTEN: ModelState.QUARANTINED,
    },
    ModelState.QUARANTINED: {
        LifecycleEvent.LIFTED: ModelState.ABSENT,
        LifecycleEvent.REMOVED: ModelState.REMOVED,
    },
    ModelState.REMOVED: {
        LifecycleEvent.RETURNED: ModelState.ABSENT,
    },
}
MAY_HAVE_WORKER = frozenset(
    {
        ModelState.LOADING,
        ModelState.READY,
        ModelState.DRAINING,
        ModelState.EVICTING,
        ModelState.KILLED_FOR_SILENCE,
    }
)
PUBLISHED: Mapping[ModelState, str] = {
    ModelState.ABSENT: "absent",
    ModelState.WAITING_FOR_MEMORY: "absent",
    ModelState.LOADING: "loading",
    ModelState.READY: "ready",
    ModelState.DRAINING: "ready",
    ModelState.EVICTING: "ready",
    ModelState.KILLED_FOR_SILENCE: "ready",
    ModelState.QUARANTINED: "quarantined",
    ModelState.REMOVED: "absent",
}
"""The word of each state in the retained message `models`. A worker that is ended in EVICTING before its load was over
is published as loading."""


@dataclass(slots=True, eq=False)
class ModelLifecycle:
    """The state of one model and what its next move depends on. Other modules call the methods and only read.

    `load_s`: seconds that a load takes, as last measured. `loading_since_s`: when the last load began.
    `waited_for_memory`: requests waited for the load that is under way. `resident`: load it again whenever it is not in
    memory; `wanted`: load it although no request waits. `demanded_s`: when it was last loaded for requests that could
    not wait for the load; `no_memory_s`: when a load last found no memory; `told_failed_s`: when a failed load was last
    reported. `deaths_s`: times of the deaths that count towards the quarantine; `deaths_in_a_row`: deaths since the
    last answer, whatever their cause but for evictions.
    """

    state: ModelState = ModelState.ABSENT
    drain_reasons: set[DrainReason] = field(default_factory=set)
    load_s: float = FIRST_LOAD_S
    loading_since_s: float = 0.0
    load_is_over: bool = False
    waited_for_memory: bool = False
    resident: bool = False
    wanted: bool = False
    demanded_s: float = -math.inf
    no_memory_s: float = -math.inf
    told_failed_s: float = -math.inf
    deaths_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    deaths_in_a_row: int = 0

    # ---- what others ask -------------------------------------------------------------------------------------------

    @property
    def published(self) -> str:
        """The word for the message `models`."""
        if self.state is ModelState.EVICTING and not self.load_is_over:
            return PUBLISHED[ModelState.LOADING]
        return PUBLISHED[self.state]

    @property
    def is_removed(self) -> bool:
        """Whether the model was removed from the device; its worker may still finish what it has."""
        return DrainReason.REMOVAL in self.drain_reasons

    @property
    def is_loaded(self) -> bool:
        """Whether the worker has finished its load. True also while it drains or is being ended."""
        return self.state in MAY_HAVE_WORKER and self.load_is_over

    @property
    def wants_memory(self) -> bool:
        """Whether requests wait for this model's memory; models that had their turn give way until its load is over."""
        return self.state is ModelState.WAITING_FOR_MEMORY or (
            self.state is ModelState.LOADING and self.waited_for_memory
        )

    @property
    def respawn_pause_s(self) -> float:
        """Seconds to wait before the next worker is started.

        The first successor starts at once; one that died before it answered anything makes the next one wait.
        """
        if self.state in MAY_HAVE_WORKER or self.state is ModelState.QUARANTINED or self.deaths_in_a_row <= 1:
            return 0.0
        return backoff.delay_s(self.deaths_in_a_row - 2, RESPAWN_BASE_S, RESPAWN_CAP_S, 1.0)

    def load_left_s(self, now_s: float) -> float:
        """Seconds until the model is in memory: the rest of the load under way, or all of the next one."""
        if self.is_loaded:
            return 0.0
        begun = self.state in MAY_HAVE_WORKER
        return max(0.0, self.load_s - (now_s - self.loading_since_s)) if begun else self.load_s

    def was_demanded(self, now_s: float) -> bool:
        """Whether requests could not wait for the load a short while ago: it may evict others for their sake."""
        return now_s - self.demanded_s < DEMAND_S

    # ---- loads -----------------------------------------------------------------------------------------------------

    def expect_load(self, load_s: float) -> None:
        """Set the seconds that the next load is expected to take."""
        self.load_s = load_s

    def keep_resident(self, resident: bool, up_to_date: bool) -> None:
        """Set whether the model is always to be in memory; `up_to_date`: it is, in its current version."""
        self.resident = resident
        if resident:
            self.wanted = not up_to_date

    def demand(self, now_s: float) -> bool:
        """A request could not wait for the load. True when it is to be loaded for those that come after it."""
        absent = self.state in {ModelState.ABSENT, ModelState.WAITING_FOR_MEMORY}
        if not absent or self.was_demanded(now_s):
            return False
        self.demanded_s, self.wanted = now_s, True
        return True

    def found_no_memory(self, now_s: float) -> None:
        """A load found no memory. The state stays: whether a request waits for it, the caller says next."""
        self.no_memory_s = now_s

    def wait_for_memory(self) -> None:
        """Requests wait until there is memory. Raises ValueError unless the model is absent."""
        if self.state is not ModelState.WAITING_FOR_MEMORY:
            self._move(LifecycleEvent.NO_MEMORY)
        self.wanted = False

    def settle_load(self) -> None:
        """No request waits for a load any more: the model is in memory, the load was refused, or no request is left."""
        self.wanted = self.waited_for_memory = False
        if self.state is ModelState.WAITING_FOR_MEMORY:
            self._move(LifecycleEvent.WAITING_ENDED)

    def begin_load(self, now_s: float) -> None:
        """Memory is promised and a worker is started. Raises ValueError unless the model may be loaded."""
        waited = self.state is ModelState.WAITING_FOR_MEMORY
        self._move(LifecycleEvent.LOAD_BEGUN)
        self.waited_for_memory, self.load_is_over, self.loading_since_s = waited, False, now_s

    def loaded(self, load_s: float) -> None:
        """The worker holds the model, after `load_s` seconds. Raises ValueError where no load is under way."""
        self._move(LifecycleEvent.LOADED)
        self.load_is_over, self.load_s, self.waited_for_memory = True, load_s, False
        if self.drain_reasons and self.state is ModelState.READY:
            self._move(LifecycleEvent.DRAIN)

    def unloaded(self) -> None:
        """The agent has ended the worker in order, or has given up a load. Raises ValueError without a worker."""
        self._move(LifecycleEvent.UNLOADED)
        self._rest()

    def may_tell_failure(self, now_s: float) -> bool:
        """Whether a failed load is to be reported in an event: not a quarantine, which was reported when it began."""
        if self.state is ModelState.QUARANTINED or now_s - self.told_failed_s < TOLD_AGAIN_S:
            return False
        self.told_failed_s = now_s
        return True

    # ---- the end of a worker ---------------------------------------------------------------------------------------

    def evict(self) -> None:
        """The worker is ended for another model's or for the host's sake. Raises ValueError without a worker."""
        self._move(LifecycleEvent.EVICTED)

    def kill_for_silence(self) -> None:
        """The worker has jobs and says nothing; it is killed. Raises ValueError where no worker can have jobs."""
        self._move(LifecycleEvent.SILENT)

    def died(self, now_s: float, quarantine_deaths: int) -> bool:
        """The worker died. True when the model is quarantined: `quarantine_deaths` in `QUARANTINE_WINDOW_S` (0: never).

        Raises ValueError without a worker.
        """
        evicted = self.state is ModelState.EVICTING
        if self.state not in MAY_HAVE_WORKER:
            raise ValueError(f"a model that is {self.state.value} has no worker that could die")
        too_often = not evicted and self._count_death(now_s, quarantine_deaths)
        self.deaths_in_a_row += 0 if evicted else 1
        self.wanted = self.resident and not (evicted or too_often)
        self._move(LifecycleEvent.DIED_TOO_OFTEN if too_often else LifecycleEvent.DIED)
        self._rest()
        return too_often

    def answered(self) -> None:
        """The worker has answered a job: the next death is the first in a row."""
        self.deaths_in_a_row = 0

    def lift_quarantine(self) -> None:
        """An operator wants the model loaded again. Raises ValueError for a model that is not quarantined."""
        self._move(LifecycleEvent.LIFTED)
        self.deaths_s.clear()

    # ---- draining and removal --------------------------------------------------------------------------------------

    def drain(self, reason: DrainReason) -> None:
        """Take nothing new, for this reason; a second time for the same reason changes nothing."""
        self.drain_reasons.add(reason)
        if self.state is ModelState.READY:
            self._move(LifecycleEvent.DRAIN)

    def resume(self, reason: DrainReason) -> None:
        """The reason is gone."""
        self.drain_reasons.discard(reason)
        if self.state is ModelState.DRAINING and not self.drain_reasons:
            self._move(LifecycleEvent.RESUME)

    def remove(self) -> None:
        """The model is no longer installed: REMOVED, or as soon as its worker is gone. Raises ValueError if it is."""
        if self.is_removed:
            raise ValueError("a model that is removed cannot be removed again")
        if self.state not in MAY_HAVE_WORKER:
            self._move(LifecycleEvent.REMOVED)
        self.drain(DrainReason.REMOVAL)

    def come_back(self) -> None:
        """The model is installed again, and its serving loop had not ended. Raises ValueError unless it was removed."""
        if not self.is_removed:
            raise ValueError(f"a model that is {self.state.value} was not removed")
        if self.state is ModelState.REMOVED:
            self._move(LifecycleEvent.RETURNED)
        self.resume(DrainReason.REMOVAL)

    # ---- moves -----------------------------------------------------------------------------------------------------

    def _count_death(self, now_s: float, quarantine_deaths: int) -> bool:
        self.deaths_s.append(now_s)
        recent = sum(1 for death_s in self.deaths_s if now_s - death_s <= QUARANTINE_WINDOW_S)
        return 0 < quarantine_deaths <= recent

    def _rest(self) -> None:
        """The worker is gone: do what was to be done then."""
        self.drain_reasons.discard(DrainReason.NEWER_VERSION)  # the next worker loads the current version
        if DrainReason.REMOVAL in self.drain_reasons:
            self._move(LifecycleEvent.REMOVED)
        elif self.waited_for_memory and self.state is ModelState.ABSENT:
            self._move(LifecycleEvent.NO_MEMORY)
        self.waited_for_memory = False

    def _move(self, event: LifecycleEvent) -> None:
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise ValueError(f"{event.value!r} cannot happen to a model that is {self.state.value}")
        self.state = after


def drawing() -> str:
    """`TRANSITIONS` as a Mermaid state diagram, one arrow for all events that lead from one state to another."""
    lines = ["stateDiagram-v2", f"    [*] --> {ModelState.ABSENT.name}"]
    lines += [f"    {state.name}: {state.value}" for state in ModelState]
    for before, moves in TRANSITIONS.items():
        for after in dict.fromkeys(moves.values()):
            events = ", ".join(event.value for event, target in moves.items() if target is after)
            lines.append(f"    {before.name} --> {after.name}: {events}")
    lines.append(f"    {ModelState.REMOVED.name} --> [*]")
    return "\n".join(lines) + "\n"
