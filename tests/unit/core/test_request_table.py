"""Exactly one answer per request; a retry within its deadline is recognised, and not for long after."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.base.limits import DEDUP_ENTRIES
from edge_agent.core.job import FINAL, Job, JobState
from edge_agent.core.request_table import ANSWERS_BYTES, GRACE_S, RequestStatus, RequestTable


def a_job(name: str = "1", deadline_s: float = 10.0, client: str = "client") -> Job:
    return Job((client, name), "m", None, ("text",), {}, 5, deadline_s=deadline_s, received_s=0.0)


def closed(
    table: RequestTable, name: str, deadline_s: float, answer: bytes | None = b"{}", client: str = "client"
) -> Job:
    job = a_job(name, deadline_s, client)
    table.open(job)
    job.start(0.0)
    job.to(JobState.DONE)
    assert table.close(job, answer)
    return job


def test_a_request_is_new_then_open_then_answered_then_forgotten() -> None:
    table, job = RequestTable(), a_job(deadline_s=10.0)
    assert table.status(job.key, 0.0) is RequestStatus.NEW
    table.open(job)
    assert table.status(job.key, 1.0) is RequestStatus.OPEN
    assert table.get(job.key) is job
    assert len(table) == 1
    job.to(JobState.REFUSED)
    assert table.close(job, b"no")
    assert table.status(job.key, 9.999 + GRACE_S) is RequestStatus.ANSWERED
    assert table.answer(job.key) == b"no"
    assert table.status(job.key, 10.0 + GRACE_S) is RequestStatus.NEW
    assert table.answer(job.key) is None
    assert table.open_jobs() == ()


def test_an_open_request_stays_open_past_its_deadline() -> None:
    table, job = RequestTable(), a_job(deadline_s=10.0)
    table.open(job)
    assert table.status(job.key, 1e9) is RequestStatus.OPEN, "it is not forgotten while it may still be inside a worker"


def test_a_key_opens_once() -> None:
    table = RequestTable()
    table.open(a_job())
    with pytest.raises(ValueError, match="open already"):
        table.open(a_job())


def test_only_final_jobs_close() -> None:
    table, job = RequestTable(), a_job()
    table.open(job)
    with pytest.raises(ValueError, match="a queued job cannot be closed"):
        table.close(job, b"")
    job.start(0.0)
    with pytest.raises(ValueError, match="a running job cannot be closed"):
        table.close(job, b"")
    assert len(table) == 1


def test_closing_twice_counts_once_and_keeps_the_first_answer() -> None:
    table = RequestTable()
    job = closed(table, "1", 10.0, b"first")
    assert not table.close(job, b"second")
    assert table.answer(job.key) == b"first"


def test_a_stranger_with_the_same_key_closes_nothing() -> None:
    table, job, stranger = RequestTable(), a_job(), a_job()
    table.open(job)
    stranger.to(JobState.CANCELLED)
    assert not table.close(stranger, b"stolen")
    assert table.get(job.key) is job


def test_a_silent_end_keeps_the_key_without_an_answer() -> None:
    table, job = RequestTable(), a_job(deadline_s=10.0)
    table.open(job)
    job.to(JobState.EXPIRED)
    assert table.close(job, None)
    assert table.status(job.key, 9.0) is RequestStatus.ANSWERED
    assert table.answer(job.key) is None


def test_a_key_is_forgotten_at_its_own_deadline_whatever_was_answered_before_it() -> None:
    table = RequestTable()
    closed(table, "long", 3600.0)
    short = closed(table, "short", 1.0)
    assert table.status(short.key, 2.0 + GRACE_S) is RequestStatus.NEW
    assert table.answer(short.key) is None


def test_an_id_used_again_for_another_question_is_never_given_the_first_ones_answer() -> None:
    table, job = RequestTable(), a_job()
    job.fingerprint = b"first"
    table.open(job)
    assert table.status(job.key, 1.0, b"first") is RequestStatus.OPEN
    assert table.status(job.key, 1.0, b"other") is RequestStatus.TAKEN
    job.to(JobState.REFUSED)
    table.close(job, b"no")
    assert table.status(job.key, 2.0, b"first") is RequestStatus.ANSWERED
    assert table.status(job.key, 2.0, b"other") is RequestStatus.NEW
    table.status(("client", "x"), 10.0 + GRACE_S)
    assert table._fingerprints == {}


def test_forgotten_entries_free_their_memory_in_any_order_of_deadlines() -> None:
    table = RequestTable()
    closed(table, "long", 3600.0)
    for index in range(100):
        closed(table, f"short-{index}", 1.0, b"x" * 100)
    table.status(("client", "anything"), 2.0 + GRACE_S)
    assert (table.closed_count, table.answer_bytes) == (1, len(b"{}"))


def test_when_full_the_entry_nearest_to_its_deadline_leaves() -> None:
    table = RequestTable(max_entries=3)
    long = closed(table, "long", 3600.0)
    for index in range(5):
        closed(table, f"short-{index}", 10.0 + index)
    assert table.closed_count == 3
    assert table.status(long.key, 0.0) is RequestStatus.ANSWERED, (
        "a retry of the long one is the likeliest still to come"
    )


def test_answers_are_bounded_in_bytes_the_oldest_leaves_first_and_its_key_stays() -> None:
    table = RequestTable(max_answer_bytes=800)
    jobs = [closed(table, str(index), 10.0, bytes(100)) for index in range(9)]
    assert table.answer_bytes == 800
    assert table.answer(jobs[0].key) is None
    assert table.status(jobs[0].key, 1.0) is RequestStatus.ANSWERED, (
        "executed once is enough, even without the answer at hand"
    )
    assert all(table.answer(job.key) is not None for job in jobs[1:])


def test_one_huge_answer_does_not_push_out_the_others() -> None:
    table = RequestTable(max_answer_bytes=800)
    small = closed(table, "small", 10.0, b"small")
    huge = closed(table, "huge", 10.0, bytes(101))
    assert table.answer(small.key) == b"small"
    assert table.answer(huge.key) is None
    assert table.status(huge.key, 1.0) is RequestStatus.ANSWERED


def test_the_largest_message_still_fits_the_answer_cache() -> None:
    from edge_agent.base.limits import MESSAGE_BYTES

    table = RequestTable()
    job = closed(table, "1", 10.0, bytes(MESSAGE_BYTES))
    assert table.answer(job.key) is not None
    assert ANSWERS_BYTES >= MESSAGE_BYTES
    assert DEDUP_ENTRIES > 0


def test_noting_a_key_again_replaces_answer_and_deadline() -> None:
    table = RequestTable()
    key = ("client", "1")
    table.remember(key, 10.0, b"first")
    table.remember(key, 20.0, b"other")
    assert table.status(key, 15.0) is RequestStatus.ANSWERED
    assert table.answer(key) == b"other"
    assert (table.closed_count, table.answer_bytes) == (1, 5)
    table.remember(key, 17.0, None)
    assert table.status(key, 16.0) is RequestStatus.ANSWERED
    assert table.status(key, 17.0) is RequestStatus.NEW
    assert table.answer_bytes == 0


@given(st.integers(1, 2000))
def test_bookkeeping_does_not_grow_when_one_key_is_noted_for_ever(times: int) -> None:
    table = RequestTable(max_entries=4)
    for index in range(times):
        table.remember(("client", "1"), 3600.0 + index, b"answer")
    assert table.closed_count == 1
    assert len(table._by_time) <= 3 * 4


class LedgerMachine(RuleBasedStateMachine):
    """The table against a plain model: every key's job, its end, its deadline."""

    ENTRIES, BYTES = 6, 160

    def __init__(self) -> None:
        super().__init__()
        self.table = RequestTable(self.ENTRIES, self.BYTES)
        self.now_s = 0.0
        self.opened: dict[tuple[str, str], Job] = {}
        self.ended: dict[tuple[str, str], tuple[float, bytes | None]] = {}
        self.closings: dict[int, int] = {}

    @rule(name=st.sampled_from("abcdefghij"), lasts_s=st.floats(0.5, 50.0))
    def ask(self, name: str, lasts_s: float) -> None:
        key = ("client", name)
        seen = self.table.status(key, self.now_s)
        assert (seen is RequestStatus.OPEN) == (key in self.opened)
        if seen is RequestStatus.ANSWERED:
            assert self.ended[key][0] > self.now_s, "known past its deadline"
        if seen is not RequestStatus.NEW:
            return
        job = a_job(name, self.now_s + lasts_s)
        self.table.open(job)
        self.opened[key] = job
        self.ended.pop(key, None)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), answer=st.none() | st.binary(max_size=40))
    def finish(self, data: st.DataObject, answer: bytes | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.opened)))
        job = self.opened.pop(key)
        job.to(JobState.CANCELLED)
        assert job.state in FINAL
        assert self.table.close(job, answer)
        assert not self.table.close(job, answer), "closed twice"
        self.ended[key] = (job.deadline_s + GRACE_S, answer)

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def bounded(self) -> None:
        assert self.table.closed_count <= self.ENTRIES
        assert self.table.answer_bytes <= self.BYTES
        assert len(self.table._by_time) <= 3 * self.ENTRIES

    @invariant()
    def honest(self) -> None:
        alive = {key for key, (deadline_s, _) in self.ended.items() if deadline_s > self.now_s}
        known = {key for key in self.ended if self.table.status(key, self.now_s) is RequestStatus.ANSWERED}
        assert known <= alive
        if len(alive) <= self.ENTRIES and len(self.ended) <= self.ENTRIES:
            assert known == alive, "forgotten too early although there was room"
        held = sum(len(answer) for key in known if (answer := self.table.answer(key)) is not None)
        assert held == self.table.answer_bytes
        for key in known:
            assert self.table.answer(key) in {self.ended[key][1], None}


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestLedgerMachine = LedgerMachine.TestCase


def test_a_client_that_floods_forgets_its_own_requests_and_answers_not_anothers() -> None:
    table = RequestTable(max_entries=64, max_answer_bytes=800)
    good = [closed(table, f"good-{index}", 20.0, b"good", client="good") for index in range(8)]
    flood = [closed(table, f"flood-{index}", 30.0, bytes(90), client="flood") for index in range(500)]
    assert table.closed_count <= 64
    assert table.answer_bytes <= 800
    assert all(table.answer(job.key) == b"good" for job in good)
    assert table.status(flood[0].key, 0.0) is RequestStatus.NEW
    assert table.answer(flood[-1].key) is not None
