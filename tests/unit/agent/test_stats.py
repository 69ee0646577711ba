"""Counters cover one interval and lose nothing between two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.agent.stats import ModelStats, Stats


def test_answers_add_up() -> None:
    stats = ModelStats()
    stats.note_answer(2, 4, 10.0, 5.0, [{"score": 0.5, "truncated": True}, {"score": 1.0, "out_of_scope": True}], 0.25)
    stats.note_answer(1, 2, 20.0, 6.0, [{"embedding": [0.0]}], None)
    assert (stats.answered, stats.rows, stats.batch_rows) == (2, 3, 6)
    assert (stats.truncated, stats.out_of_scope, stats.classified, stats.confidence_sum) == (1, 1, 2, 1.5)
    assert stats.joules == 0.25
    assert stats.total_ms.summary()["p50"] == 10.0


def test_no_power_is_null_not_zero() -> None:
    stats = ModelStats()
    stats.note_answer(1, 1, 1.0, 1.0, [{}], None)
    assert stats.joules is None


@given(st.lists(st.sampled_from(["answer", "status", "take"]), max_size=40))
def test_every_count_is_reported_in_exactly_one_interval(steps: list[str]) -> None:
    stats = Stats()
    answers = statuses = given_answers = given_statuses = 0
    for step in [*steps, "take"]:
        if step == "answer":
            stats.model("m").note_answer(1, 1, 1.0, 1.0, [{}], None)
            given_answers += 1
        elif step == "status":
            stats.statuses[429] += 1
            given_statuses += 1
        else:
            taken = stats.take()
            answers += sum(share.answered for share in taken.models.values())
            statuses += taken.statuses[429]
    assert (answers, statuses) == (given_answers, given_statuses)
