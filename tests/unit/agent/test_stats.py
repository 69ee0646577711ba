"""Counters cover one interval and lose nothing between two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.agent.stats import ModelStats, Stats
from edge_agent.base.causes import Cause


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
            stats.refused(429, Cause.QUEUE_FULL)
            given_statuses += 1
        else:
            taken = stats.take()
            answers += sum(share.answered for share in taken.models.values())
            statuses += taken.statuses[429]
    assert (answers, statuses) == (given_answers, given_statuses)


def test_refusals_are_counted_by_status_and_by_cause() -> None:
    stats = Stats()
    for status, cause in ((503, Cause.HEAT), (503, Cause.HEAT), (503, Cause.MEMORY), (429, Cause.QUEUE_FULL)):
        stats.refused(status, cause)
    taken = stats.take()
    assert dict(taken.statuses) == {503: 3, 429: 1}
    assert dict(taken.causes) == {Cause.HEAT: 2, Cause.MEMORY: 1, Cause.QUEUE_FULL: 1}
    assert taken.refusal_reasons() == {"heat": 2, "memory": 1, "queue-full": 1}
    assert not stats.causes
    assert not stats.statuses


def test_causes_that_share_a_word_are_added() -> None:
    stats = Stats()
    for cause in (
        Cause.UNKNOWN_ADAPTER,
        Cause.MODEL_REMOVED,
        Cause.MODEL_REMOVED,
        Cause.UNKNOWN_COMMAND,
        Cause.INVALID,
    ):
        stats.refused(404, cause)
    assert stats.refusal_reasons() == {"unknown-adapter": 4, "invalid": 1}


def test_adapters_and_confidence_are_counted_apart() -> None:
    share = ModelStats()
    share.note_adapter("a", 5.0, [{"score": 0.95}, {"score": 0.31}])
    share.note_adapter(None, 7.0, [{"embedding": [0.0]}])
    assert share.adapters["a"].count == 1
    assert share.seen["a"].confidence[9] == share.seen["a"].confidence[3] == 1
    assert None not in share.seen


def test_how_texts_fall_apart_is_counted_by_adapter() -> None:
    share = ModelStats()
    share.note_adapter("a", 5.0, [{"score": 0.95}, {"score": 0.31}], [(20, 4, 1), (40, 20, 0)])
    share.note_adapter("a", 5.0, [{"score": 0.9}], [(10, 2, 2)])
    share.note_adapter(None, 7.0, [{"embedding": [0.0]}], [(10, 10, None)])
    seen = share.seen["a"]
    assert (seen.fragmentation[4], seen.fragmentation[8], sum(seen.fragmentation)) == (2, 1, 3)
    assert (seen.tokens, seen.unknown) == (26, 3)
    assert share.seen[None].unknown is None, "a tokenizer without an unknown token is not one that knows everything"
    assert sum(share.seen[None].confidence) == 0
