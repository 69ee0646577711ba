"""A share that turned is not turned back within the dwell, unless that leads near the soft limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.governor import DWELL_S, REVERSAL_SHARE, ReversalState, limit_reversals

shares = st.floats(0.0, 1.0)


def _run(wanted: list[float], urgent: list[bool] | None = None, points: list[int] | None = None) -> list[float]:
    state, kept = ReversalState(), []
    for second, share in enumerate(wanted):
        near = urgent[second] if urgent else False
        point = points[second] if points else 0
        got, state = limit_reversals(state, share, float(second), point, urgent=near)
        kept.append(got)
    return kept


def _turns(shares: list[float]) -> list[int]:
    """Independently of the subject: the seconds at which the share had gone back by a tenth from its last extreme."""
    found, rising, extreme = [], 0, shares[0]
    for second, share in enumerate(shares):
        if rising == 0:
            if abs(share - extreme) >= REVERSAL_SHARE:
                rising, extreme = (1 if share > extreme else -1), share
        elif rising * (share - extreme) >= 0.0:
            extreme = share
        elif abs(share - extreme) >= REVERSAL_SHARE:
            found.append(second)
            rising, extreme = -rising, share
    return found


def test_a_pace_that_turns_back_within_the_dwell_waits_for_its_end() -> None:
    wanted = [0.5, 0.8, 0.5, *[0.8] * 12]
    kept = _run(wanted)
    assert kept[:3] == [0.5, 0.8, 0.5], "the first turn is free"
    assert kept[3:12] == pytest.approx([0.6] * 9, abs=1e-3), "just short of a tenth above the turn at second 2"
    assert kept[12:] == [0.8] * 3, "ten seconds after the turn"


def test_small_movements_are_nobodys_business() -> None:
    wanted = [0.5, 0.8, 0.5, 0.55, 0.5, 0.59, 0.51]
    assert _run(wanted) == wanted


def test_the_way_down_is_free_where_it_leads_near_the_soft_limit() -> None:
    wanted = [0.5, 0.2, 0.5, 0.1]
    assert _run(wanted)[-1] == pytest.approx(0.4, abs=1e-3)
    assert _run(wanted, urgent=[False, False, False, True])[-1] == 0.1


def test_the_way_up_is_never_urgent() -> None:
    wanted = [0.5, 0.8, 0.5, 0.9]
    assert _run(wanted, urgent=[True] * 4)[-1] == pytest.approx(0.6, abs=1e-3)


def test_another_operating_point_is_no_reversal() -> None:
    wanted = [0.5, 0.8, 0.5, 0.9, 0.88]
    assert _run(wanted, points=[0, 0, 0, 1, 1]) == wanted


@given(st.lists(shares, min_size=1, max_size=80))
def test_no_two_turns_lie_within_the_dwell(wanted: list[float]) -> None:
    turns = _turns(_run(wanted))
    assert all(later - earlier >= DWELL_S for earlier, later in itertools.pairwise(turns))


@given(st.lists(st.tuples(shares, st.booleans(), st.integers(0, 2)), min_size=1, max_size=80))
def test_what_is_urgent_never_gets_more_than_was_wanted(steps: list[tuple[float, bool, int]]) -> None:
    wanted, urgent, points = (list(part) for part in zip(*steps, strict=True))
    kept = _run(wanted, urgent, points)
    for asked, got, near in zip(wanted, kept, urgent, strict=True):
        assert 0.0 <= got <= 1.0
        assert not near or got <= asked + REVERSAL_SHARE, "at most the tenth that is no turn"


@given(st.lists(shares, min_size=1, max_size=40), shares)
def test_a_steady_wish_is_fulfilled_after_the_dwell(before: list[float], steady: float) -> None:
    assert _run([*before, *[steady] * (int(DWELL_S) + 1)])[-1] == steady
