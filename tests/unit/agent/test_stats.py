"""Counters cover one interval and lose nothing between two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.agent.energy import FRESH_S, energy
from edge_agent.agent.stats import ModelStats, Stats
from edge_agent.base.reading import Reading, unavailable


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


def test_energy_is_power_over_the_share_of_the_batch() -> None:
    power = Reading(8.0, "watts", "ina3221", 100.0)
    assert energy(power, 100.0, 0.5, 1, 4) == (1.0, "ina3221 over the request's share of the batch")
    assert energy(power, 100.0, 0.5, 4, 4)[0] == 4.0


def test_energy_without_a_fresh_figure_is_none_with_the_reason() -> None:
    power = Reading(8.0, "watts", "ina3221", 100.0)
    assert energy(power, 100.0 + FRESH_S + 0.1, 0.5, 1, 1) == (None, "the last power sample is too old")
    assert energy(unavailable("watts", "none", 100.0, "no rail"), 100.0, 0.5, 1, 1) == (None, "no rail")


@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.floats(0.1, 50), st.floats(1e-4, 10))
def test_the_shares_of_a_batch_add_up_to_its_energy(rows: list[int], watts: float, compute_s: float) -> None:
    power = Reading(watts, "watts", "test", 0.0)
    shares = [energy(power, 0.0, compute_s, one, sum(rows))[0] for one in rows]
    assert sum(share for share in shares if share is not None) == pytest.approx(watts * compute_s)
