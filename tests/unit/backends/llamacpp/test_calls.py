from __future__ import annotations

from collections import Counter

import pytest

from edge_agent.backends.llamacpp.calls import LOOK_AGAIN_STEPS, Calls


def taken(cost_s: dict[int, float], count: int, steps: int = 10 * LOOK_AGAIN_STEPS) -> Counter[int]:
    """How often each way was taken, when calls cost so much."""
    calls, found = Calls(), Counter[int]()
    for _ in range(steps):
        rows = calls.rows(count)
        found[rows] += 1
        for _ in range(count // rows):
            calls.learn(rows, cost_s[rows])
    return found


@pytest.mark.parametrize(("together_s", "better"), [(0.010, 4), (0.027, 4), (0.029, 1), (0.035, 1)])
def test_the_cheaper_way_is_taken_and_the_other_looked_at_now_and_then(together_s: float, better: int) -> None:
    found = taken({1: 0.007, 4: together_s}, 4)
    other = 5 - better
    assert found[better] > 9 * LOOK_AGAIN_STEPS
    assert 1 <= found[other] <= 12


def test_one_sequence_is_one_call() -> None:
    assert Calls().rows(1) == 1


def test_what_changes_is_noticed() -> None:
    calls = Calls()
    for cost_s, better in (({1: 0.007, 2: 0.031}, 1), ({1: 0.007, 2: 0.008}, 2)):
        for _ in range(20 * LOOK_AGAIN_STEPS):
            rows = calls.rows(2)
            calls.learn(rows, cost_s[rows])
        assert Counter(calls.rows(2) for _ in range(LOOK_AGAIN_STEPS))[better] >= LOOK_AGAIN_STEPS - 1


def test_one_slow_call_changes_nothing() -> None:
    calls = Calls()
    calls.learn(2, 0.010)
    calls.learn(1, 0.007)
    calls.learn(2, 5.0)
    assert calls.rows(2) == 2


def test_other_threads_are_other_times() -> None:
    calls = Calls()
    calls.learn(2, 0.031)
    calls.learn(1, 0.007)
    assert calls.rows(2) == 1
    calls.forget()
    assert calls.rows(2) == 2
