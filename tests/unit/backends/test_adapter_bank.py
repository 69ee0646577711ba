from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.adapter_bank import PositionalCache

NAMES = st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g", "h", "i"])


@st.composite
def histories(draw):
    """Positions, and batches that fit them, with adapters forgotten in between."""
    positions = draw(st.integers(1, 12))
    batch = st.lists(NAMES, min_size=1, max_size=positions)
    return positions, draw(st.lists(st.one_of(batch, NAMES), max_size=25))


@given(histories())
def test_after_a_plan_every_row_lies_where_its_adapter_is(history):
    positions, steps = history
    cache = PositionalCache(positions)
    bank = [None] * positions  # what a device's memory would hold
    for step in steps:
        if isinstance(step, str):
            cache.forget(step)
            bank = [None if held == step else held for held in bank]
            continue
        plan = cache.place(step)
        for position, adapter in plan.writes:
            bank[position] = adapter
        assert sorted(plan.order) == list(range(len(step)))
        assert 0 <= plan.start <= positions - len(step)
        for place, row in enumerate(plan.order):
            assert bank[plan.start + place] == step[row]
        assert tuple(bank) == cache.holds


@given(histories())
def test_no_window_would_have_needed_fewer_writes(history):
    positions, steps = history
    cache = PositionalCache(positions)
    for step in steps:
        if isinstance(step, str):
            continue
        held, needed = cache.holds, Counter(step)
        hits = [
            sum(min(number, held[start : start + len(step)].count(name)) for name, number in needed.items())
            for start in range(positions - len(step) + 1)
        ]
        assert len(cache.place(step).writes) == len(step) - max(hits)


def test_the_same_batch_again_writes_nothing_in_any_order():
    cache = PositionalCache(8)
    assert len(cache.place(["a", "b", "a", ""]).writes) == 4
    assert cache.place(["", "a", "b", "a"]).writes == ()


def test_a_popular_adapter_comes_to_hold_several_positions():
    cache = PositionalCache(8)
    cache.place(["a", "a", "a", "b"])
    assert Counter(cache.holds)["a"] == 3


def test_what_was_unused_for_longest_is_overwritten_first():
    cache = PositionalCache(4)
    cache.place(["a", "b"])
    cache.place(["c", "d"])
    cache.place(["a", "b"])
    cache.place(["e", "f"])
    assert cache.holds == ("a", "b", "e", "f")


def test_more_rows_than_positions_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="3 rows do not fit 2"):
        PositionalCache(2).place(["a", "b", "c"])
    with pytest.raises(ValueError, match="0 rows"):
        PositionalCache(2).place([])
