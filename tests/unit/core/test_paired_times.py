"""Times taken in turns: the interval of their ratio, and how often boards of one kind agree under noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.paired_times import LEVEL, PairedTimes, Ratio, interval_rank

TIMES = st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=60)


def coverage(count: int) -> float:
    """Of the interval of a median: not (all but `interval_rank` values on one side)."""
    return 1.0 - 2 * sum(math.comb(count, heads) for heads in range(interval_rank(count) + 1)) / 2.0**count


@pytest.mark.parametrize("count", [8, 9, 15, 21, 31, 60])
def test_the_interval_holds_its_level_and_is_the_shortest_that_does(count: int) -> None:
    assert coverage(count) >= LEVEL
    outside = interval_rank(count) + 1
    wider = 1.0 - 2 * sum(math.comb(count, heads) for heads in range(outside + 1)) / 2.0**count
    assert wider < LEVEL or 2 * outside >= count - 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_turns_give_their_range(count: int) -> None:
    found = PairedTimes({"a": [float(place + 1) for place in range(count)], "b": [1.0] * count}).ratio("a", "b")
    assert found is not None
    assert (found.low, found.high) == (1.0, float(count))


@given(TIMES, st.randoms(use_true_random=False))
def test_a_ratio_is_within_its_interval_and_turns_round(times: list[float], chance: random.Random) -> None:
    other = [chance.uniform(0.1, 1000.0) for _ in times]
    paired = PairedTimes({"a": times, "b": other})
    found, back = paired.ratio("a", "b"), paired.ratio("b", "a")
    assert found is not None and back is not None
    assert found.low <= found.median <= found.high
    assert (1 / back.high, 1 / back.low) == pytest.approx((found.low, found.high))


@given(TIMES, st.floats(1.0, 50.0))
def test_what_slows_every_turn_alike_changes_no_ratio(times: list[float], slower: float) -> None:
    quiet = PairedTimes({"a": times, "b": [2.0 * one for one in times]}).ratio("b", "a")
    noisy = PairedTimes({"a": [slower * one for one in times], "b": [2.0 * slower * one for one in times]})
    assert quiet == pytest.approx(Ratio(2.0, 2.0, 2.0))
    assert noisy.ratio("b", "a") == pytest.approx(quiet)


def test_what_was_not_measured_has_no_ratio() -> None:
    paired = PairedTimes({"a": [1.0], "b": []})
    assert paired.ratio("a", "b") is None
    assert paired.ratio("a", "c") is None
    assert paired.turns == 0
    assert PairedTimes({}).turns == 0


def test_the_sentences_carry_figures_and_how_they_were_taken() -> None:
    assert Ratio(1.351, 1.418, 1.5).text() == "1.42 times (1.35 to 1.50)"
    assert PairedTimes({"a": [1.0] * 31}).text() == "31 turns"
    assert PairedTimes({"a": [1.0] * 3}, apart=True).text().startswith("3 loads each, since they do not fit")
