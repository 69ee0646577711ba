import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.api import SessionJob
from edge_agent.backends.encoder_session import JobQueue
from edge_agent.base.errors import BackendError
from edge_agent.base.limits import QUEUE_JOBS


def job(name, rows):
    return SessionJob(name, None, [[place + 1] for place in range(rows)], {})


@given(st.lists(st.integers(1, 20), max_size=12), st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_every_row_runs_once_in_the_order_of_its_job_and_no_batch_is_too_large(sizes, grants):
    queue = JobQueue()
    for place, rows in enumerate(sizes):
        queue.submit(job(str(place), rows))
    seen, turn = [], 0
    while len(queue):
        granted = grants[turn % len(grants)]
        pieces = queue.take(granted)
        turn += 1
        assert 0 < sum(len(piece.rows) for piece in pieces) <= granted
        for piece in pieces:
            seen += [(piece.job.job_id, place) for place in range(piece.start, piece.stop)]
            assert piece.last == (piece.stop == len(piece.job.rows))
            whole = len(piece.job.rows) <= min(grants)
            assert not whole or (piece.start, piece.stop) == (0, len(piece.job.rows)), "split without need"
    for place, rows in enumerate(sizes):
        assert [row for name, row in seen if name == str(place)] == list(range(rows))
    short = [place for place, rows in enumerate(sizes) if rows <= min(grants)]
    assert [int(name) for name, row in seen if int(name) in short and row == 0] == short, "in order of arrival"
    assert queue.take(8) == []


def test_cancel_reaches_a_job_that_has_begun_and_only_it():
    queue = JobQueue()
    for name in ("a", "b", "c"):
        queue.submit(job(name, 5))
    assert [(piece.start, piece.stop) for piece in queue.take(3)] == [(0, 3)]
    assert queue.cancel("a")
    assert not queue.cancel("a")
    assert queue.cancel("c")
    assert [(piece.job.job_id, piece.start, piece.stop) for piece in queue.take(9)] == [("b", 0, 5)]


def test_a_job_of_many_steps_holds_nobody_up_for_longer_than_one():
    queue = JobQueue()
    queue.submit(job("long", 64))
    steps = [queue.take(4)]
    for name in ("a", "b"):
        queue.submit(job(name, 3))
    while len(queue):
        steps.append(queue.take(4))
    assert [[piece.job.job_id for piece in step] for step in steps][:5] == [["long"], ["long"], ["a"], ["b"], ["long"]]
    assert sum(len(piece.rows) for step in steps for piece in step if piece.job.job_id == "long") == 64


def test_uses_names_the_adapters_that_wait():
    queue = JobQueue()
    queue.submit(SessionJob("1", "x", [[1]], {}))
    assert queue.uses("x") and not queue.uses("y")
    queue.clear()
    assert not queue.uses("x") and len(queue) == 0


def test_a_full_queue_refuses_a_job_and_keeps_those_it_has():
    queue = JobQueue()
    for place in range(QUEUE_JOBS):
        queue.submit(job(str(place), 1))
    with pytest.raises(BackendError, match="256 jobs wait in this worker already"):
        queue.submit(job("one more", 1))
    assert [piece.job.job_id for piece in queue.take(2)] == ["0", "1"]
