"""The life of a model: only the moves of the table, and what the table's rules promise holds after any sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import model_lifecycle
from edge_agent.core.model_lifecycle import (
    DEMAND_S,
    MAY_HAVE_WORKER,
    PUBLISHED,
    QUARANTINE_WINDOW_S,
    TOLD_AGAIN_S,
    TRANSITIONS,
    DrainReason,
    LifecycleEvent,
    ModelLifecycle,
    ModelState,
)

DEATHS = 3


class Recorded(ModelLifecycle):
    """A lifecycle that keeps the states it went through."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [self.state]

    def _move(self, event: LifecycleEvent) -> None:
        super()._move(event)
        self.path.append(self.state)


Act = Callable[[ModelLifecycle, float], object]
ACTS: Mapping[str, Act] = {
    "found no memory": lambda model, now_s: model.found_no_memory(now_s),
    "wait for memory": lambda model, now_s: model.wait_for_memory(),
    "settle load": lambda model, now_s: model.settle_load(),
    "begin load": lambda model, now_s: model.begin_load(now_s),
    "loaded": lambda model, _now_s: model.loaded(2.0),
    "unloaded": lambda model, now_s: model.unloaded(),
    "evict": lambda model, now_s: model.evict(),
    "kill for silence": lambda model, now_s: model.kill_for_silence(),
    "died": lambda model, now_s: model.died(now_s, DEATHS),
    "answered": lambda model, now_s: model.answered(),
    "lift": lambda model, now_s: model.lift_quarantine(),
    "remove": lambda model, now_s: model.remove(),
    "come back": lambda model, now_s: model.come_back(),
    "demand": lambda model, now_s: model.demand(now_s),
    "keep resident": lambda model, now_s: model.keep_resident(True, up_to_date=False),
    **{
        f"drain: {reason.value}": lambda model, now_s, reason=reason: model.drain(reason)  # type: ignore[misc]
        for reason in DrainReason
        if reason is not DrainReason.REMOVAL
    },
    **{
        f"resume: {reason.value}": lambda model, now_s, reason=reason: model.resume(reason)  # type: ignore[misc]
        for reason in DrainReason
        if reason is not DrainReason.REMOVAL
    },
}
# Ordinary lives are rare among random acts, and most walks would not leave the first states without them.
USUAL = ("begin load", "loaded", "died", "died", "unloaded", "wait for memory", "evict", "drain: order", "remove")
WALKS = st.lists(st.sampled_from([*ACTS, *USUAL]), max_size=40)


def facts(model: ModelLifecycle) -> tuple[object, ...]:
    return (
        model.state,
        frozenset(model.drain_reasons),
        tuple(model.deaths_s),
        model.deaths_in_a_row,
        model.wanted,
        model.load_s,
        model.waited_for_memory,
    )


def in_state(state: ModelState) -> ModelLifecycle:
    """A model that came to this state by the shortest way."""
    ways: Mapping[ModelState, tuple[str, ...]] = {
        ModelState.ABSENT: (),
        ModelState.WAITING_FOR_MEMORY: ("wait for memory",),
        ModelState.LOADING: ("begin load",),
        ModelState.READY: ("begin load", "loaded"),
        ModelState.DRAINING: ("begin load", "loaded", "drain: order"),
        ModelState.EVICTING: ("begin load", "loaded", "evict"),
        ModelState.KILLED_FOR_SILENCE: ("begin load", "loaded", "kill for silence"),
        ModelState.QUARANTINED: ("begin load", "died") * DEATHS,
        ModelState.REMOVED: ("remove",),
    }
    model = ModelLifecycle()
    for name in ways[state]:
        ACTS[name](model, 0.0)
    assert model.state is state
    return model


@given(WALKS)
def test_no_sequence_leads_to_a_move_that_the_table_does_not_have(walk: list[str]) -> None:
    model = Recorded()
    for now_s, name in enumerate(walk):
        before = facts(model)
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            assert facts(model) == before, f"{name!r} was refused and must leave the model as it was"
    for before_state, after_state in zip(model.path, model.path[1:], strict=False):
        assert after_state in TRANSITIONS[before_state].values()


@given(WALKS)
def test_a_worker_exists_only_in_the_states_that_may_have_one(walk: list[str]) -> None:
    model, worker = ModelLifecycle(), False
    for now_s, name in enumerate(walk):
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            continue
        if name == "begin load":
            worker = True
        elif name.startswith("died") or name == "unloaded":
            worker = False
        assert (model.state in MAY_HAVE_WORKER) == worker
        assert model.is_loaded <= worker
        assert model.published in {"absent", "loading", "ready", "quarantined"}


@given(WALKS)
def test_a_removed_model_stays_removed_unless_it_comes_back(walk: list[str]) -> None:
    model = ModelLifecycle()
    for now_s, name in enumerate(walk):
        removed, state = model.is_removed, model.state
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            continue
        if removed:
            assert model.is_removed == (name != "come back")
        if state is ModelState.REMOVED:
            assert model.state is (ModelState.ABSENT if name == "come back" else ModelState.REMOVED)


@given(WALKS)
def test_a_quarantine_ends_only_by_being_lifted_or_by_removal(walk: list[str]) -> None:
    model = ModelLifecycle()
    for now_s, name in enumerate(walk):
        before = model.state
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            continue
        if before is ModelState.QUARANTINED and model.state is not ModelState.QUARANTINED:
            assert name in {"lift", "remove"}


@given(WALKS)
def test_a_death_is_counted_unless_the_worker_was_evicted_or_a_request_is_to_blame(walk: list[str]) -> None:
    model = ModelLifecycle()
    for now_s, name in enumerate(walk):
        evicted, deaths, in_a_row = model.state is ModelState.EVICTING, len(model.deaths_s), model.deaths_in_a_row
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            continue
        if name.startswith("died"):
            assert len(model.deaths_s) - deaths == int(name == "died" and not evicted)
            assert model.deaths_in_a_row - in_a_row == int(not evicted)
            assert not evicted or model.state is not ModelState.QUARANTINED


@given(WALKS)
def test_a_loaded_model_is_ready_exactly_while_nothing_makes_it_drain(walk: list[str]) -> None:
    model = ModelLifecycle()
    for now_s, name in enumerate(walk):
        try:
            ACTS[name](model, float(now_s))
        except ValueError:
            continue
        if model.state is ModelState.READY:
            assert not model.drain_reasons
        if model.state is ModelState.DRAINING:
            assert model.drain_reasons


@pytest.mark.parametrize("state", ModelState)
@pytest.mark.parametrize("name", ACTS)
def test_what_a_state_refuses_is_refused_with_its_name(state: ModelState, name: str) -> None:
    model = in_state(state)
    before = facts(model)
    try:
        ACTS[name](model, 1.0)
    except ValueError as error:
        assert state.value in str(error) or "removed" in str(error)
        assert facts(model) == before


def test_every_state_is_in_the_table_and_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(PUBLISHED) == set(ModelState)
    targets = {after for moves in TRANSITIONS.values() for after in moves.values()}
    assert targets == set(ModelState)
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(LifecycleEvent)


def test_every_way_out_of_having_a_worker_is_an_end_of_the_worker() -> None:
    ends = {LifecycleEvent.UNLOADED, LifecycleEvent.DIED, LifecycleEvent.DIED_TOO_OFTEN}
    for before, moves in TRANSITIONS.items():
        for event, after in moves.items():
            assert (before in MAY_HAVE_WORKER and after not in MAY_HAVE_WORKER) == (event in ends)


def test_the_published_words_are_the_contract_with_clients() -> None:
    assert {state.name: in_state(state).published for state in ModelState} == {
        "ABSENT": "absent",
        "WAITING_FOR_MEMORY": "absent",
        "LOADING": "loading",
        "READY": "ready",
        "DRAINING": "ready",
        "EVICTING": "ready",
        "KILLED_FOR_SILENCE": "ready",
        "QUARANTINED": "quarantined",
        "REMOVED": "absent",
    }
    model = in_state(ModelState.LOADING)
    model.evict()
    assert model.published == "loading", "its load is not over"
    model.loaded(1.0)
    assert (model.published, model.state) == ("ready", ModelState.EVICTING)


def test_deaths_within_the_window_lead_to_quarantine_and_older_ones_do_not() -> None:
    model = ModelLifecycle()
    for now_s in (0.0, QUARANTINE_WINDOW_S + 1.0, QUARANTINE_WINDOW_S + 2.0):
        model.begin_load(now_s)
        assert not model.died(now_s, DEATHS)
    model.begin_load(QUARANTINE_WINDOW_S + 3.0)
    assert model.died(QUARANTINE_WINDOW_S + 3.0, DEATHS)
    assert model.state is ModelState.QUARANTINED
    model.lift_quarantine()
    model.begin_load(QUARANTINE_WINDOW_S + 4.0)
    assert not model.died(QUARANTINE_WINDOW_S + 4.0, DEATHS), "what was lifted begins to count anew"


def test_without_a_limit_of_deaths_there_is_no_quarantine() -> None:
    model = ModelLifecycle()
    for now_s in range(100):
        model.begin_load(float(now_s))
        assert not model.died(float(now_s), 0)


def test_the_first_successor_starts_at_once_and_later_ones_wait_longer_and_longer() -> None:
    model, pauses = ModelLifecycle(), []
    for _ in range(12):
        model.begin_load(0.0)
        model.died(0.0, 0)
        pauses.append(model.respawn_pause_s)
    assert pauses[:4] == pytest.approx([0.0, 0.05, 0.1, 0.2])
    assert pauses[-1] == 30.0
    model.answered()
    assert model.respawn_pause_s == 0.0


def test_a_load_that_was_waited_for_waits_again_after_a_death() -> None:
    model = in_state(ModelState.WAITING_FOR_MEMORY)
    model.begin_load(1.0)
    assert model.wants_memory, "others go on giving way until it is loaded"
    model.died(2.0, DEATHS)
    assert (model.state, model.wants_memory) == (ModelState.WAITING_FOR_MEMORY, True)
    model.begin_load(3.0)
    model.loaded(1.0)
    assert not model.wants_memory
    model.died(5.0, 0)
    assert model.state is ModelState.ABSENT, "that one was loaded"


def test_a_model_removed_while_it_loads_is_removed_when_its_worker_is_gone() -> None:
    model = in_state(ModelState.LOADING)
    model.remove()
    assert (model.state, model.is_removed) == (ModelState.LOADING, True)
    model.loaded(1.0)
    assert model.state is ModelState.DRAINING
    model.unloaded()
    assert (model.state, model.is_removed) == (ModelState.REMOVED, True)


def test_a_model_that_comes_back_while_its_worker_finishes_keeps_it() -> None:
    model = in_state(ModelState.READY)
    model.remove()
    assert model.state is ModelState.DRAINING
    model.come_back()
    assert (model.state, model.is_removed) == (ModelState.READY, False)


def test_a_model_drains_until_the_last_reason_is_gone() -> None:
    model = in_state(ModelState.READY)
    model.drain(DrainReason.ORDER)
    model.drain(DrainReason.GIVING_WAY)
    model.resume(DrainReason.ORDER)
    assert model.state is ModelState.DRAINING
    model.resume(DrainReason.GIVING_WAY)
    assert model.state is ModelState.READY


def test_an_order_that_waited_for_the_load_makes_the_model_drain_when_it_is_loaded() -> None:
    model = ModelLifecycle()
    model.drain(DrainReason.ORDER)
    assert model.state is ModelState.ABSENT
    model.begin_load(0.0)
    model.loaded(1.0)
    assert model.state is ModelState.DRAINING


def test_the_next_worker_holds_the_newer_version() -> None:
    model = in_state(ModelState.READY)
    model.drain(DrainReason.NEWER_VERSION)
    model.unloaded()
    model.begin_load(1.0)
    model.loaded(1.0)
    assert model.state is ModelState.READY


def test_a_model_that_requests_did_not_wait_for_is_loaded_for_them_now_and_then() -> None:
    model = ModelLifecycle()
    assert model.demand(0.0)
    assert (model.wanted, model.was_demanded(1.0)) == (True, True)
    assert not model.demand(DEMAND_S - 1.0)
    assert model.demand(DEMAND_S)
    assert not in_state(ModelState.READY).demand(0.0), "it is in memory"
    assert not in_state(ModelState.QUARANTINED).demand(0.0)


def test_a_resident_model_is_wanted_again_after_a_death_of_its_own_only() -> None:
    for act, wanted in (("answered", True), ("evict", False)):
        model = in_state(ModelState.READY)
        model.keep_resident(True, up_to_date=True)
        assert not model.wanted
        ACTS[act](model, 1.0)
        model.died(1.0, DEATHS)
        assert model.wanted is wanted


def test_a_quarantined_model_is_not_wanted_even_if_it_is_to_be_resident() -> None:
    model = in_state(ModelState.READY)
    model.keep_resident(True, up_to_date=True)
    assert model.died(1.0, 1)
    assert not model.wanted


@pytest.mark.parametrize("name", ["settle load", "wait for memory"])
def test_a_load_is_not_wanted_any_more_once_it_was_tried(name: str) -> None:
    model = ModelLifecycle()
    model.demand(0.0)
    ACTS[name](model, 1.0)
    assert not model.wanted


def test_it_is_known_when_a_load_last_found_no_memory() -> None:
    model = ModelLifecycle()
    assert model.no_memory_s == -math.inf
    model.found_no_memory(3.0)
    assert (model.no_memory_s, model.state) == (3.0, ModelState.ABSENT)


def test_the_rest_of_a_load_under_way_is_told() -> None:
    model = ModelLifecycle()
    model.expect_load(10.0)
    assert model.load_left_s(0.0) == 10.0
    model.begin_load(100.0)
    assert model.load_left_s(104.0) == 6.0
    assert model.load_left_s(120.0) == 0.0
    model.loaded(20.0)
    assert (model.load_left_s(121.0), model.load_s) == (0.0, 20.0)


def test_a_failed_load_is_told_once_in_a_while() -> None:
    model = ModelLifecycle()
    assert model.may_tell_failure(0.0)
    assert not model.may_tell_failure(TOLD_AGAIN_S - 1.0)
    assert model.may_tell_failure(TOLD_AGAIN_S)
    assert not in_state(ModelState.QUARANTINED).may_tell_failure(0.0), "that was told when it began"


def test_the_drawing_has_every_move_of_the_table() -> None:
    lines = model_lifecycle.drawing().splitlines()
    assert lines[0] == "stateDiagram-v2"
    for before, moves in TRANSITIONS.items():
        for event, after in moves.items():
            (line,) = [one for one in lines if one.startswith(f"    {before.name} --> {after.name}: ")]
            assert event.value in line.partition(": ")[2].split(", ")
