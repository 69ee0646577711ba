"""Stages of memory pressure: they rise at once, by bytes or by PSI, and fall when it has been better for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import MIB
from edge_agent.core.memory_pressure import (
    CALM_AFTER_S,
    CALM_FACTOR,
    NO_WAITS,
    WAITS_BELOW_RESERVE,
    WAITS_PER_S,
    WAITS_WINDOW_S,
    FaultCounts,
    MemorySigns,
    PressureStage,
    PressureState,
    decide,
    rate,
    reason,
)

RESERVE = 200 * MIB


def signs(mib: float, some: float | None = None, full: float | None = None) -> MemorySigns:
    return MemorySigns(int(mib * MIB), RESERVE, some, full)


@pytest.mark.parametrize(
    ("seen", "stage"),
    [
        (signs(200), PressureStage.CALM),
        (signs(133), PressureStage.CALM),
        (signs(131), PressureStage.TIGHT),
        (signs(79), PressureStage.SHORT),
        (signs(49), PressureStage.CRITICAL),
        (signs(-10), PressureStage.CRITICAL),
        (signs(500, 6.0, 0.0), PressureStage.TIGHT),
        (signs(500, 20.0, 6.0), PressureStage.SHORT),
        (signs(49, 0.0, 0.0), PressureStage.CRITICAL),
        (signs(500, 5.0, 5.0), PressureStage.CALM),
    ],
)
def test_the_stage_follows_from_what_is_seen(seen: MemorySigns, stage: PressureStage) -> None:
    assert decide(seen, PressureState(), 1.0).stage is stage


def test_it_falls_only_when_it_has_clearly_been_better_for_a_while() -> None:
    state = decide(signs(70), PressureState(), 0.0)
    assert state.stage is PressureStage.SHORT
    assert decide(signs(90), state, 100.0).stage is PressureStage.SHORT, (
        "just above where it began is not clearly better"
    )
    state = decide(signs(300), state, 10.0)
    assert state.stage is PressureStage.SHORT
    state = decide(signs(70), state, 11.0)
    state = decide(signs(300), state, 12.0)
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S - 0.1).stage is PressureStage.SHORT
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S).stage is PressureStage.CALM


def test_the_reason_carries_the_figures() -> None:
    assert reason(signs(80)) == "80.0 MiB are available, 200.0 MiB are to stay free"
    assert reason(signs(80, 12.0, 0.0)).endswith("tasks waited for memory in 12 % of the last ten seconds")


@given(st.lists(st.tuples(st.floats(-100, 500), st.floats(0.0, 10.0)), max_size=50))
def test_it_never_says_less_than_is_seen(looks: list[tuple[float, float]]) -> None:
    state, now_s = PressureState(), 0.0
    for mib, passed_s in looks:
        now_s += passed_s
        state = decide(signs(mib), state, now_s)
        assert state.stage >= decide(signs(mib), PressureState(), now_s).stage


# ---- boards without PSI ----------------------------------------------------------------------------------------------

LOOK_S = 0.25


def waiting(mib: float, per_s: float, seconds: float = 4.0, some: float | None = None) -> PressureState:
    """The state after so many seconds at this rate of swap-ins."""
    state = PressureState()
    for look in range(int(seconds / LOOK_S) + 1):
        now_s = look * LOOK_S
        seen = MemorySigns(int(mib * MIB), RESERVE, some, some, FaultCounts(0.0, per_s * now_s, 0.0))
        state = decide(seen, state, now_s)
    return state


@pytest.mark.parametrize(
    ("mib", "per_s", "stage"),
    [
        (290, 70, PressureStage.CALM),
        (290, 80, PressureStage.TIGHT),
        (290, 900, PressureStage.TIGHT),
        (190, 900, PressureStage.SHORT),
        (190, 490, PressureStage.TIGHT),
        (310, 900, PressureStage.CALM),
        (40, 0, PressureStage.CRITICAL),
    ],
)
def test_waits_for_pages_stand_in_for_psi_where_memory_is_near_its_end(
    mib: float, per_s: float, stage: PressureStage
) -> None:
    assert waiting(mib, per_s).stage is stage
    assert waiting(mib, 0.0).stage <= stage


def test_where_there_is_psi_the_counts_say_nothing() -> None:
    assert waiting(190, 900, some=0.0).stage is PressureStage.CALM


def test_a_model_that_is_read_for_the_first_time_is_no_thrashing() -> None:
    """Every page of a mapped file is a major fault the first time; it is a refault only when it had been dropped."""
    first = rate(FaultCounts(700.0, 0.0, 0.0), rate(FaultCounts(0.0, 0.0, 0.0), NO_WAITS, 0.0), WAITS_WINDOW_S)
    again = rate(FaultCounts(700.0, 0.0, 9000.0), rate(FaultCounts(0.0, 0.0, 0.0), NO_WAITS, 0.0), WAITS_WINDOW_S)
    unknown = rate(FaultCounts(700.0, 0.0), rate(FaultCounts(0.0, 0.0), NO_WAITS, 0.0), WAITS_WINDOW_S)
    assert (first.per_s, again.per_s, unknown.per_s) == (0.0, 350.0, 350.0)


def test_the_reason_tells_the_rate() -> None:
    state = waiting(190, 900)
    assert reason(signs(190), state.waits).endswith("tasks waited for 900 pages a second to come back from the disk")
    assert reason(signs(190), NO_WAITS).endswith("to stay free")


def test_counters_that_begin_again_are_no_rate() -> None:
    """The tree under `sysroot` was replaced, or a counter went back: a new window, and no negative rate."""
    waits = rate(FaultCounts(1000.0, 1000.0, 1000.0), NO_WAITS, 0.0)
    assert rate(FaultCounts(0.0, 0.0, 0.0), waits, 10.0).per_s is None


steps = st.tuples(st.floats(0.0, 5.0), st.integers(0, 5000), st.integers(0, 5000), st.none() | st.integers(0, 5000))


@given(st.lists(steps, max_size=60))
def test_a_rate_is_what_was_counted_over_a_whole_window(course: list[tuple[float, int, int, int | None]]) -> None:
    """Whatever the counters do: no rate is negative, none comes from less than a window, and none exceeds what the
    faults and the swap-ins of the window add up to."""
    waits, now_s, faults, swapped, refaults = NO_WAITS, 0.0, 0, 0, 0
    for passed_s, more_faults, more_swapped, more_refaults in course:
        now_s, faults, swapped = now_s + passed_s, faults + more_faults, swapped + more_swapped
        refaults += more_refaults or 0
        counts = FaultCounts(faults, swapped, None if more_refaults is None else refaults)
        before, waits = waits, rate(counts, waits, now_s)
        if before.counts is not None and waits.since_s != before.since_s:
            elapsed_s = waits.since_s - before.since_s
            assert elapsed_s >= WAITS_WINDOW_S
            grown = (counts.major_faults - before.counts.major_faults, counts.swapped_in - before.counts.swapped_in)
            assert waits.per_s is not None
            assert grown[1] / elapsed_s <= waits.per_s <= max(grown) / elapsed_s


@given(st.floats(-100, 500), st.floats(0, 5000))
def test_waits_only_ever_raise_the_stage_and_never_end_a_worker(mib: float, per_s: float) -> None:
    without, found = decide(signs(mib), PressureState(), 1.0).stage, waiting(mib, per_s).stage
    assert without <= found <= max(without, PressureStage.SHORT)
    share = mib / 200.0
    if found > without:
        assert share < CALM_FACTOR * WAITS_BELOW_RESERVE[found]
        assert per_s > WAITS_PER_S[found] * 0.99
