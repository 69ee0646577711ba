from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.worker.step_pacing import DEADLINE_MARGIN_S, STEP_GROWTH, ChunkCoalescer, StepTimes


def test_the_first_part_goes_at_once_and_the_next_are_joined() -> None:
    flow = ChunkCoalescer(True, 0.1, None)
    assert [flow.add("a", 1.0), flow.add("b", 1.05), flow.add("c", 1.09), flow.add("d", 1.1)] == ["a", "", "", "bcd"]
    assert flow.add("e", 1.15) == ""
    assert (flow.rest(), flow.rest()) == ("e", "")


def test_nothing_is_sent_of_an_answer_that_is_wanted_whole() -> None:
    flow = ChunkCoalescer(False, 0.0, None)
    assert (flow.add("a", 1.0), flow.rest()) == ("", "")


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0.0, 0.2)), max_size=30), st.floats(0.0, 0.5))
def test_nothing_is_lost_and_parts_keep_their_distance(parts: list[tuple[str, float]], flush_s: float) -> None:
    flow = ChunkCoalescer(True, flush_s, None)
    now_s, sent, times = 0.0, "", []
    for text, pause_s in parts:
        now_s += pause_s
        out = flow.add(text, now_s)
        if out:
            times.append(now_s)
        sent += out
    assert sent + flow.rest() == "".join(text for text, _ in parts)
    assert all(later - earlier >= flush_s for earlier, later in pairwise(times))


def test_an_answer_ends_a_little_before_its_deadline() -> None:
    flow = ChunkCoalescer(True, 0.1, 10.0)
    assert not flow.late(10.0 - 2 * DEADLINE_MARGIN_S)
    assert flow.late(10.0 - DEADLINE_MARGIN_S / 2)
    assert not ChunkCoalescer(True, 0.1, None).late(1e9)


def test_the_next_step_is_expected_to_take_a_little_more_than_the_longest_of_the_last_few() -> None:
    steps = StepTimes()
    assert steps.ahead_s == 0.0
    for step_s in (0.1, 0.4, 0.1):
        steps.add(step_s)
    assert steps.ahead_s == pytest.approx(STEP_GROWTH * 0.4)
    for _ in range(4):
        steps.add(0.1)
    assert steps.ahead_s == pytest.approx(STEP_GROWTH * 0.1), "the long one is forgotten"
