"""The searches for the number of threads and of sequences per call end near the best, whatever the costs are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.tuners import (
    FEWER_MAY_TAKE,
    LATE_CALLS,
    LOOK_AGAIN_STEPS,
    BatchSizeTuner,
    CallKind,
    ThreadTuner,
)

ONE: CallKind = (1, False)


def run(threads: ThreadTuner, cost_s: Callable[[int], float], calls: int, kind: CallKind = ONE) -> list[int]:
    """The counts that were used."""
    used = []
    for _ in range(calls):
        used.append(threads.count(kind))
        threads.learn(kind, cost_s(used[-1]))
    return used


def test_threads_that_only_wait_for_each_other_are_given_up() -> None:
    used = run(ThreadTuner(2), lambda count: 0.011 * count, 200)
    assert used[:8] == [2] * 8, "what is granted comes first"
    assert used[-1] == 1
    assert used.count(2) < 40


def test_threads_that_help_are_kept() -> None:
    used = run(ThreadTuner(4), lambda count: 0.04 / min(count, 3) + 0.001 * count, 2000)
    assert used[-1] in (3, 2, 4)
    late = used[-LATE_CALLS:]
    assert late.count(3) > 0.9 * len(late), "trials are rare once nothing changes"


def test_a_neighbour_that_comes_and_goes_is_followed() -> None:
    threads = ThreadTuner(2)
    assert run(threads, lambda count: 0.02 / count, 500)[-1] == 2
    assert run(threads, lambda count: 0.02 * count, 1000)[-1] == 1
    assert run(threads, lambda count: 0.02 / count, 1000)[-1] == 2


def test_one_thread_has_nothing_to_search() -> None:
    assert set(run(ThreadTuner(1), lambda _count: 0.01, 100)) == {1}


def test_kinds_are_searched_apart_and_trials_are_known_as_such() -> None:
    threads = ThreadTuner(2)
    run(threads, lambda count: 0.01 * count, 100)
    assert (threads.count(ONE), threads.count((4, True))) == (1, 2)
    fresh = ThreadTuner(2)
    assert not fresh.settled(ONE)
    seen = set()
    for _ in range(20):
        count = fresh.count(ONE)
        seen.add((count, fresh.settled(ONE)))
        fresh.learn(ONE, 0.01 / count)
    assert seen == {(2, True), (1, False)}


@given(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=8), st.integers(0, 1000))
def test_the_end_is_a_count_that_no_neighbour_beats(costs_s: list[float], seed: int) -> None:
    noise = random.Random(seed)
    threads = ThreadTuner(len(costs_s))
    used = run(threads, lambda count: costs_s[count - 1] * noise.choice((1.0, 1.0, 1.0, 1.001, 5.0)), 3000)
    assert set(used) <= set(range(1, len(costs_s) + 1))
    best = max(set(used[-200:]), key=used[-200:].count)
    near_s = [costs_s[count - 1] for count in (best - 1, best, best + 1) if 1 <= count <= len(costs_s)]
    assert costs_s[best - 1] <= 1.15 * FEWER_MAY_TAKE * min(near_s)


def taken(cost_s: dict[int, float], count: int, steps: int = 10 * LOOK_AGAIN_STEPS) -> Counter[int]:
    """How often each way was taken, when calls cost so much."""
    calls, found = BatchSizeTuner(), Counter[int]()
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
    assert BatchSizeTuner().rows(1) == 1


def test_what_changes_is_noticed() -> None:
    calls = BatchSizeTuner()
    for cost_s, better in (({1: 0.007, 2: 0.031}, 1), ({1: 0.007, 2: 0.008}, 2)):
        for _ in range(20 * LOOK_AGAIN_STEPS):
            rows = calls.rows(2)
            calls.learn(rows, cost_s[rows])
        assert Counter(calls.rows(2) for _ in range(LOOK_AGAIN_STEPS))[better] >= LOOK_AGAIN_STEPS - 1


def test_one_slow_call_changes_nothing() -> None:
    calls = BatchSizeTuner()
    calls.learn(2, 0.010)
    calls.learn(1, 0.007)
    calls.learn(2, 5.0)
    assert calls.rows(2) == 2


def test_other_threads_are_other_times() -> None:
    calls = BatchSizeTuner()
    calls.learn(2, 0.031)
    calls.learn(1, 0.007)
    assert calls.rows(2) == 1
    calls.forget()
    assert calls.rows(2) == 2
