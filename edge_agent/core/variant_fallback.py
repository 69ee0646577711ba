"""Which variant answers while the chosen one is compiled for the device, or cannot be loaded: one transition table.

A variant of a runtime that compiles on the device (`base.runtimes`) needs an engine file, whose build takes minutes.
Meanwhile another variant of the same package answers, where memory allows both.

Rules for changes:
- The fallback answers exactly in the states of `FALLBACK_ANSWERS`, where the model has one.
- The chosen variant takes over (PASSED) only after its engine was loaded and the golden probes held.
- A build or load that failed is not tried again before `again_s`; each further failure doubles the pause. An order to
  load (LIFTED) ends the pause.
- REPLACED comes with another version or with the removal of the model: what is known of the old variant is void.

The model's worker and its loads are `core.model_lifecycle`'s; this table stands beside it, because it says which
variant a load is for. It knows no clock and holds no worker. `agent.model_manager` and `agent.engine_builds` send the
events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.core import backoff

PAUSE_BASE_S, PAUSE_CAP_S = 900.0, 86400.0
"""After a failure the next try is 15 minutes later, then 30, at most a day: a build takes all of a small board."""


class FallbackState(Enum):
    """What the chosen variant of a model is waiting for."""

    CHOSEN = "chosen"
    """It answers, or is loaded next."""
    BUILDING_BESIDE = "building beside"
    """Its engine is built while the fallback answers."""
    BUILDING_FIRST = "building first"
    """Its engine is built and nothing answers: there is no fallback, or no memory for both."""
    PROBING = "probing"
    """It is loaded beside the fallback, and its golden probes run."""
    PUT_OFF = "put off"
    """It could not be built or loaded, or its probes failed."""


class FallbackEvent(Enum):
    """What happens to the chosen variant."""

    ENGINE_MISSING = "engine missing"
    ENGINE_MISSING_ALONE = "engine missing, no room for both"
    LOADED = "loaded"
    PASSED = "passed"
    FAILED = "failed"
    LIFTED = "lifted"
    """The pause is over, or an order to load ended it: the next load is for the chosen variant."""
    TRIED_AGAIN = "tried again"
    """The pause is over while the fallback is in memory."""
    REPLACED = "replaced"


_S, _E = FallbackState, FallbackEvent
TRANSITIONS: Mapping[FallbackState, Mapping[FallbackEvent, FallbackState]] = {
    _S.CHOSEN: {
        _E.ENGINE_MISSING: _S.BUILDING_BESIDE,
        _E.ENGINE_MISSING_ALONE: _S.BUILDING_FIRST,
        _E.PASSED: _S.CHOSEN,
        _E.FAILED: _S.PUT_OFF,
        _E.LIFTED: _S.CHOSEN,
        _E.REPLACED: _S.CHOSEN,
    },
    _S.BUILDING_BESIDE: {
        _E.LOADED: _S.PROBING,
        _E.FAILED: _S.PUT_OFF,
        _E.REPLACED: _S.CHOSEN,
    },
    _S.BUILDING_FIRST: {
        # The load was given up, and another one looks again.
        _E.ENGINE_MISSING: _S.BUILDING_BESIDE,
        _E.ENGINE_MISSING_ALONE: _S.BUILDING_FIRST,
        _E.PASSED: _S.CHOSEN,
        _E.FAILED: _S.PUT_OFF,
        _E.REPLACED: _S.CHOSEN,
    },
    _S.PROBING: {
        _E.PASSED: _S.CHOSEN,
        _E.FAILED: _S.PUT_OFF,
        _E.REPLACED: _S.CHOSEN,
    },
    _S.PUT_OFF: {
        _E.TRIED_AGAIN: _S.BUILDING_BESIDE,
        _E.FAILED: _S.PUT_OFF,
        _E.LIFTED: _S.CHOSEN,
        _E.REPLACED: _S.CHOSEN,
    },
}
FALLBACK_ANSWERS = frozenset({_S.BUILDING_BESIDE, _S.PROBING, _S.PUT_OFF})


@dataclass(slots=True, eq=False)
class VariantFallback:
    """The state of one model's chosen variant; other modules call the methods and only read.

    `wanted`: the chosen variant, None in CHOSEN; `variant`: the one that answers meanwhile, None where there is none.
    `reason`: why the wanted one does not answer, a sentence. `since_s`: monotonic, of the state; `again_s`: when it is
    tried again, in PUT_OFF. `failures`: in a row.
    """

    state: FallbackState = FallbackState.CHOSEN
    wanted: Variant | None = None
    variant: Variant | None = None
    reason: str = ""
    since_s: float = 0.0
    again_s: float = math.inf
    failures: int = 0

    @property
    def answers(self) -> bool:
        """Whether the fallback answers."""
        return self.state in FALLBACK_ANSWERS and self.variant is not None

    def applied(self, model: InstalledModel) -> InstalledModel:
        """The installed model with the variant that answers now. Another chosen variant than the one that was waited
        for ends the waiting."""
        if self.wanted is not None and model.variant.digest != self.wanted.digest:
            self.replaced()
        return replace(model, variant=self.variant) if self.answers and self.variant is not None else model

    def left_s(self, now_s: float) -> float:
        """Seconds until the wanted variant is tried again; 0 unless it was put off."""
        return max(0.0, self.again_s - now_s) if self.state is FallbackState.PUT_OFF else 0.0

    def engine_missing(self, wanted: Variant, variant: Variant | None, reason: str, now_s: float) -> None:
        """The chosen variant has no engine yet. `variant`: answers while it is built; None: nothing does, for
        `reason`. Raises ValueError unless the chosen one was to be loaded."""
        self._move(FallbackEvent.ENGINE_MISSING if variant else FallbackEvent.ENGINE_MISSING_ALONE, now_s)
        self.wanted, self.variant, self.reason = wanted, variant, reason

    def loaded(self, now_s: float) -> None:
        """The engine was built and is loaded beside the fallback. Raises ValueError where none was being built."""
        self._move(FallbackEvent.LOADED, now_s)

    def passed(self, now_s: float) -> None:
        """The golden probes held: the chosen variant answers from now on. Raises ValueError where it was put off."""
        self._move(FallbackEvent.PASSED, now_s)
        self._forget()

    def failed(self, wanted: Variant, variant: Variant | None, reason: str, now_s: float) -> None:
        """The chosen variant could not be built or loaded, or computes something else. `variant`: answers instead."""
        self._move(FallbackEvent.FAILED, now_s)
        self.wanted, self.variant, self.reason = wanted, variant, reason
        self.failures += 1
        self.again_s = now_s + backoff.delay_s(self.failures - 1, PAUSE_BASE_S, PAUSE_CAP_S, 1.0)

    def try_again(self, now_s: float) -> None:
        """Build once more beside the fallback. Raises ValueError unless it was put off."""
        self._move(FallbackEvent.TRIED_AGAIN, now_s)

    def lift(self, now_s: float) -> None:
        """The next load is for the chosen variant. No change while it is being built."""
        if FallbackEvent.LIFTED in TRANSITIONS[self.state]:
            failures = self.failures
            self._move(FallbackEvent.LIFTED, now_s)
            self._forget()
            self.failures = failures

    def replaced(self) -> None:
        """Another version was installed, or the model was removed."""
        self._move(FallbackEvent.REPLACED, self.since_s)
        self._forget()

    def _forget(self) -> None:
        self.wanted = self.variant = None
        self.reason, self.failures, self.again_s = "", 0, math.inf

    def _move(self, event: FallbackEvent, now_s: float) -> None:
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise ValueError(f"{event.value!r} cannot happen to a variant that is {self.state.value}")
        self.state, self.since_s = after, now_s
