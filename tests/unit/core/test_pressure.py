"""Stages of memory pressure: they rise at once, by bytes or by PSI, and fall when it has been better for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import MIB
from edge_agent.core.pressure import CALM_AFTER_S, Signs, Stage, State, decide, reason

RESERVE = 200 * MIB


def signs(mib: float, some: float | None = None, full: float | None = None) -> Signs:
    return Signs(int(mib * MIB), RESERVE, some, full)


@pytest.mark.parametrize(
    ("seen", "stage"),
    [
        (signs(200), Stage.CALM),
        (signs(133), Stage.CALM),
        (signs(131), Stage.TIGHT),
        (signs(79), Stage.SHORT),
        (signs(49), Stage.CRITICAL),
        (signs(-10), Stage.CRITICAL),
        (signs(500, 6.0, 0.0), Stage.TIGHT),
        (signs(500, 20.0, 6.0), Stage.SHORT),
        (signs(49, 0.0, 0.0), Stage.CRITICAL),
        (signs(500, 5.0, 5.0), Stage.CALM),
    ],
)
def test_the_stage_follows_from_what_is_seen(seen: Signs, stage: Stage) -> None:
    assert decide(seen, State(), 1.0).stage is stage


def test_it_falls_only_when_it_has_clearly_been_better_for_a_while() -> None:
    state = decide(signs(70), State(), 0.0)
    assert state.stage is Stage.SHORT
    assert decide(signs(90), state, 100.0).stage is Stage.SHORT, "just above where it began is not clearly better"
    state = decide(signs(300), state, 10.0)
    assert state.stage is Stage.SHORT
    state = decide(signs(70), state, 11.0)
    state = decide(signs(300), state, 12.0)
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S - 0.1).stage is Stage.SHORT
    assert decide(signs(300), state, 12.0 + CALM_AFTER_S).stage is Stage.CALM


def test_the_reason_carries_the_figures() -> None:
    assert reason(signs(80)) == "80.0 MiB are available, 200.0 MiB are to stay free"
    assert reason(signs(80, 12.0, 0.0)).endswith("tasks waited for memory in 12 % of the last ten seconds")


@given(st.lists(st.tuples(st.floats(-100, 500), st.floats(0.0, 10.0)), max_size=50))
def test_it_never_says_less_than_is_seen(looks: list[tuple[float, float]]) -> None:
    state, now_s = State(), 0.0
    for mib, passed_s in looks:
        now_s += passed_s
        state = decide(signs(mib), state, now_s)
        assert state.stage >= decide(signs(mib), State(), now_s).stage
