"""Stages of memory pressure: they rise at once, by bytes or by PSI, and fall when it has been better for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import MIB
from edge_agent.core.memory_pressure import (
    CALM_AFTER_S,
    NO_STALLS,
    STALLS_WINDOW_S,
    FaultCounts,
    MemorySigns,
    PressureStage,
    PressureState,
    decide,
    reason,
    stall_rate,
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
    for second in range(1, 100):
        state = decide(signs(99), state, second / 10.0)
        assert state.stage is PressureStage.SHORT, "less than a quarter above where it began is not clearly better"
    state = decide(signs(300), state, 10.0)
    assert state.stage is PressureStage.SHORT
    state = decide(signs(70), state, 11.0)
    state = decide(signs(300), state, 12.0)
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S - 0.1).stage is PressureStage.SHORT
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S).stage is PressureStage.CALM


def test_the_reason_carries_the_figures() -> None:
    assert reason(signs(80)) == "80.0 MiB are available, 200.0 MiB are to stay free"
    assert reason(signs(80, 12.0, 0.0)).endswith("tasks waited for memory in 12 % of the last ten seconds")


def by_bytes(mib: float) -> PressureStage:
    """The table of stages in figures of its own: 66, 40 and 25 % of the 200 MiB that are to stay free."""
    return PressureStage((mib < 132.0) + (mib < 80.0) + (mib < 50.0))


def clearly_less(mib: float, stage: PressureStage) -> bool:
    """Whether that much memory is clearly more than where the stage begins: by a quarter of the reserve's figures."""
    return by_bytes(mib / 1.25) < stage


MIB_PER_LOOK = st.one_of(st.floats(-100, 500), st.sampled_from([165.1, 164.9, 100.1, 99.9, 62.6, 62.4, 49.0, 300.0]))


@given(st.lists(st.tuples(MIB_PER_LOOK, st.floats(0.0, 10.0)), max_size=50))
def test_the_stage_rises_at_once_and_falls_after_five_clearly_better_seconds(looks: list[tuple[float, float]]) -> None:
    state, now_s, expected, better_since_s = PressureState(), 0.0, PressureStage.CALM, None
    for mib, passed_s in looks:
        now_s += passed_s
        state = decide(signs(mib), state, now_s)
        if by_bytes(int(mib * MIB) / MIB) >= expected:
            expected, better_since_s = by_bytes(int(mib * MIB) / MIB), None
        elif not clearly_less(int(mib * MIB) / MIB, expected):
            better_since_s = None
        else:
            better_since_s = now_s if better_since_s is None else better_since_s
            if now_s - better_since_s >= 5.0:
                expected, better_since_s = by_bytes(int(mib * MIB) / MIB), None
        assert state.stage is expected


# ---- boards without PSI ----------------------------------------------------------------------------------------------

LOOK_S = 0.25


def stalling(mib: float, per_s: float, seconds: float = 4.0, some: float | None = None) -> PressureState:
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
def test_the_rate_of_stalls_replaces_psi_where_memory_is_nearly_used_up(
    mib: float, per_s: float, stage: PressureStage
) -> None:
    assert stalling(mib, per_s).stage is stage


def test_where_there_is_psi_the_counts_say_nothing() -> None:
    assert stalling(190, 900, some=0.0).stage is PressureStage.CALM


def test_a_model_that_is_read_for_the_first_time_is_no_thrashing() -> None:
    """Every page of a mapped file is a major fault the first time; it is a refault only when it had been dropped."""
    first = stall_rate(
        FaultCounts(700.0, 0.0, 0.0), stall_rate(FaultCounts(0.0, 0.0, 0.0), NO_STALLS, 0.0), STALLS_WINDOW_S
    )
    again = stall_rate(
        FaultCounts(700.0, 0.0, 9000.0), stall_rate(FaultCounts(0.0, 0.0, 0.0), NO_STALLS, 0.0), STALLS_WINDOW_S
    )
    unknown = stall_rate(FaultCounts(700.0, 0.0), stall_rate(FaultCounts(0.0, 0.0), NO_STALLS, 0.0), STALLS_WINDOW_S)
    assert (first.per_s, again.per_s, unknown.per_s) == (0.0, 350.0, 350.0)


def test_refaults_count_from_the_beginning_of_the_window_and_not_since_the_boot() -> None:
    begun = stall_rate(FaultCounts(1000.0, 0.0, 5000.0), NO_STALLS, 0.0)
    assert stall_rate(FaultCounts(9000.0, 0.0, 5000.0), begun, STALLS_WINDOW_S).per_s == 0.0
    assert stall_rate(FaultCounts(9000.0, 0.0, 5600.0), begun, STALLS_WINDOW_S).per_s == 300.0


def test_the_reason_tells_the_rate() -> None:
    state = stalling(190, 900)
    assert reason(signs(190), state.stalls).endswith("tasks waited for 900 pages a second to come back from the disk")
    assert reason(signs(190), NO_STALLS).endswith("to stay free")


def test_counters_that_begin_again_are_no_rate() -> None:
    """The tree under `sysroot` was replaced, or a counter went back: a new window, and no negative rate."""
    stalls = stall_rate(FaultCounts(1000.0, 1000.0, 1000.0), NO_STALLS, 0.0)
    assert stall_rate(FaultCounts(0.0, 0.0, 0.0), stalls, 10.0).per_s is None


steps = st.tuples(st.floats(0.0, 5.0), st.integers(0, 5000), st.integers(0, 5000), st.none() | st.integers(0, 5000))


@given(st.lists(steps, max_size=60))
def test_a_rate_is_what_was_counted_over_a_whole_window(course: list[tuple[float, int, int, int | None]]) -> None:
    """Whatever the counters do: no rate is negative, none comes from less than a window, and none exceeds what the
    faults and the swap-ins of the window add up to."""
    stalls, now_s, faults, swapped, refaults = NO_STALLS, 0.0, 0, 0, 0
    for passed_s, more_faults, more_swapped, more_refaults in course:
        now_s, faults, swapped = now_s + passed_s, faults + more_faults, swapped + more_swapped
        refaults += more_refaults or 0
        counts = FaultCounts(faults, swapped, None if more_refaults is None else refaults)
        before, stalls = stalls, stall_rate(counts, stalls, now_s)
        if before.counts is not None and stalls.since_s != before.since_s:
            elapsed_s = stalls.since_s - before.since_s
            assert elapsed_s >= STALLS_WINDOW_S
            grown = (counts.major_faults - before.counts.major_faults, counts.swapped_in - before.counts.swapped_in)
            assert stalls.per_s is not None
            assert grown[1] / elapsed_s <= stalls.per_s <= max(grown) / elapsed_s


def by_stalls(mib: float, per_s: float) -> PressureStage:
    """TIGHT above 75 pages a second with less than 300 MiB, SHORT above 500 with less than 200 MiB; never CRITICAL."""
    return PressureStage(max((per_s > 75.0 and mib < 300.0) * 1, (per_s > 500.0 and mib < 200.0) * 2))


@given(
    st.floats(-100, 500).map(round),
    st.integers(0, 5000).filter(lambda per_s: not 60 <= per_s <= 75 and not 400 <= per_s <= 500),
)
def test_stalls_only_ever_raise_the_stage_and_never_end_a_worker(mib: int, per_s: int) -> None:
    """Rates that are within the hysteresis of a threshold are left out: there the history decides."""
    assert stalling(mib, per_s).stage is max(by_bytes(mib), by_stalls(mib, per_s))
