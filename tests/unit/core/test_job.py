"""The life of a job: only the moves of the table, and nothing leaves a final state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.job import FINAL, MAX_ATTEMPTS, TRANSITIONS, Job, JobState

ALLOWED = {
    (JobState.QUEUED, JobState.RUNNING),
    (JobState.QUEUED, JobState.FAILED),
    (JobState.QUEUED, JobState.REFUSED),
    (JobState.QUEUED, JobState.CANCELLED),
    (JobState.QUEUED, JobState.EXPIRED),
    (JobState.RUNNING, JobState.QUEUED),
    (JobState.RUNNING, JobState.DONE),
    (JobState.RUNNING, JobState.FAILED),
    (JobState.RUNNING, JobState.CANCELLED),
    (JobState.RUNNING, JobState.EXPIRED),
}


def a_job(
    state: JobState = JobState.QUEUED, texts: tuple[str, ...] = ("hello",), key: tuple[str, str] = ("c", "1")
) -> Job:
    return Job(key, "m", None, texts, {}, 5, deadline_s=10.0, received_s=0.0, state=state)


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_every_move_is_in_the_table_or_raises(before: JobState, after: JobState) -> None:
    job = a_job(before)
    if (before, after) in ALLOWED:
        job.to(after)
        assert job.state is after
    else:
        with pytest.raises(ValueError, match=f"a {before.value} job cannot become {after.value}"):
            job.to(after)
        assert job.state is before, "a refused move must leave the job as it was"


def test_the_table_knows_every_state() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {JobState.QUEUED, JobState.RUNNING}.isdisjoint(FINAL)


@given(st.lists(st.sampled_from(JobState), max_size=20))
def test_any_walk_enters_at_most_one_final_state(moves: list[JobState]) -> None:
    job = a_job()
    finals = []
    for state in moves:
        try:
            job.to(state)
        except ValueError:
            continue
        if state in FINAL:
            finals.append(state)
    assert len(finals) <= 1
    assert (job.state in FINAL) == bool(finals)


def test_start_counts_attempts_and_keeps_the_time() -> None:
    job = a_job()
    job.start(3.0)
    job.to(JobState.QUEUED)
    job.start(4.5)
    assert (job.attempts, job.started_s, job.state) == (2, 4.5, JobState.RUNNING)
    assert job.attempts >= MAX_ATTEMPTS


def test_a_running_job_cannot_be_started_again() -> None:
    job = a_job()
    job.start(1.0)
    with pytest.raises(ValueError, match="running job cannot become running"):
        job.start(2.0)
    assert (job.attempts, job.started_s) == (1, 1.0)


def test_size_counts_all_texts() -> None:
    job = a_job(texts=("abc", "", "de"))
    assert (job.rows, job.size_bytes) == (3, 5)


CLIENT = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=8)


@given(CLIENT, st.text(max_size=8), CLIENT, st.text(max_size=8))
def test_worker_names_are_unique_because_a_client_is_one_topic_level(
    client: str, request: str, other_client: str, other_request: str
) -> None:
    one, other = a_job(key=(client, request)), a_job(key=(other_client, other_request))
    assert (one.job_id == other.job_id) == (one.key == other.key)


def test_a_job_is_told_from_an_earlier_one_of_its_key_that_is_still_inside() -> None:
    job = a_job()
    names = [job.job_id]
    for _ in range(2):
        job.rename()
        names.append(job.job_id)
    assert names == ["c/1", "c/1 (1)", "c/1 (2)"]
