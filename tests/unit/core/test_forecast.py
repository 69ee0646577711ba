"""How long a request will take: whole batches ahead, what is left of the one inside, and the one it will be part of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.core.forecast import (
    GeneratorLoad,
    WorkerLoad,
    expected_windows,
    generator_wait_and_first_token_s,
    generator_work_s,
    least_s,
    remaining_s,
    take_hopeless,
    wait_and_compute_s,
    work_s,
)
from edge_agent.core.job import Job
from edge_agent.core.latency import CostModel
from edge_agent.core.scheduler import Queue

AT = WorkerLoad("m", max_rows=4, threads=2)
NOW_S = 100.0


def a_job(name: str, deadline_s: float = 200.0, rows: int = 1) -> Job:
    return Job(("c", name), "m", None, ("x" * 64,) * rows, {}, 5, deadline_s, NOW_S)


def costs() -> CostModel:
    """A tenth of a second for a row and for a batch of two, two tenths for four."""
    model = CostModel()
    for rows, seconds in ((1, 0.1), (2, 0.1), (4, 0.2)):
        model.learn("m", rows, 64 * rows, seconds, 2)
    return model


def waiting(count: int, deadline_s: float = 150.0) -> Queue:
    queue = Queue()
    for index in range(count):
        queue.add(a_job(str(index), deadline_s))
    return queue


def test_nothing_is_said_while_nothing_is_known() -> None:
    assert wait_and_compute_s(Queue(), a_job("x"), CostModel(), AT, NOW_S) == (None, None)


@pytest.mark.parametrize(
    ("ahead", "wait_s", "compute_s"), [(0, 0.0, 0.1), (1, 0.0, 0.1), (3, 0.0, 0.2), (4, 0.2, 0.2), (9, 0.4, 0.2)]
)
def test_whole_batches_are_ahead_and_the_last_one_is_shared(ahead: int, wait_s: float, compute_s: float) -> None:
    found = wait_and_compute_s(waiting(ahead), a_job("x"), costs(), AT, NOW_S)
    assert found == (pytest.approx(wait_s), pytest.approx(compute_s))


def test_pauses_loads_and_the_batch_inside_count() -> None:
    at = replace(AT, duty_share=0.5, running_s=0.15, load_s=3.0)
    wait_s, _ = wait_and_compute_s(waiting(4), a_job("x"), costs(), at, NOW_S)
    assert wait_s == pytest.approx(0.2 / 0.5 + 0.15 + 3.0)


def test_a_request_larger_than_a_batch_takes_several() -> None:
    assert wait_and_compute_s(Queue(), a_job("x", rows=9), costs(), AT, NOW_S) == (0.0, pytest.approx(0.6))


def test_of_the_batch_inside_counts_what_is_left() -> None:
    inside = [a_job("a"), a_job("b")]
    for job in inside:
        job.started_s = NOW_S
    assert remaining_s([], costs(), AT, NOW_S) == 0.0
    assert remaining_s(inside, costs(), AT, NOW_S + 0.04) == pytest.approx(0.06)
    assert remaining_s(inside, costs(), AT, NOW_S + 5.0) == 0.0
    assert remaining_s(inside, CostModel(), AT, NOW_S) == 0.0


def test_a_long_job_of_another_client_holds_a_request_up_for_two_steps_at_most() -> None:
    inside = a_job("long", rows=40)
    inside.started_s = NOW_S
    assert remaining_s([inside], costs(), AT, NOW_S) == pytest.approx(2.0)
    assert remaining_s([inside], costs(), AT, NOW_S, "c") == pytest.approx(2.0), "one's own is waited for"
    assert remaining_s([inside], costs(), AT, NOW_S, "another") == pytest.approx(0.4)
    ahead = remaining_s([inside], costs(), AT, NOW_S, "another", rows_ahead=2 * AT.max_rows)
    assert ahead == pytest.approx(0.8), "a step of the list comes before each batch that is ahead"
    assert remaining_s([inside], costs(), AT, NOW_S, "another", rows_ahead=1000) == pytest.approx(2.0)
    assert remaining_s([inside], costs(), replace(AT, duty_share=0.5), NOW_S, "another") == pytest.approx(2.0)
    assert remaining_s([inside], costs(), AT, NOW_S + 1.9, "another") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("question", "context", "windows"),
    [(20, 200, 1), (20, 1500, 1), (20, 8000, 5), (1500, 1024, 3), (1990, 1024, 42), (4000, 4000, 1 + 999)],
)
def test_windows_are_expected_from_bytes(question: int, context: int, windows: int) -> None:
    asked = [("q" * question, "c" * context)]
    assert expected_windows(asked, 512, 128) == min(windows, 64)
    assert expected_windows(asked * 3, 512, 128) == min(3 * windows, 64)


def test_a_context_in_a_script_of_three_bytes_a_character_has_more_windows():
    """5,000 Chinese characters are about as many tokens, 16 windows; by characters four were expected."""
    assert expected_windows([("問", "文" * 5000)], 384, 64) == 12
    assert expected_windows([("q", "x" * 5000)], 384, 64) == 4


def test_the_hopeless_are_those_that_no_batch_of_the_waiting_can_answer() -> None:
    queue = waiting(3, NOW_S + 50.0)
    queue.add(a_job("hopeless", NOW_S + 0.15))
    assert [(job.key[1], needed_s) for job, needed_s in take_hopeless(queue, costs(), AT, NOW_S)] == [("hopeless", 0.2)]
    assert len(queue) == 3
    queue = Queue()
    queue.add(a_job("alone", NOW_S + 0.15))
    assert take_hopeless(queue, costs(), AT, NOW_S) == []
    assert len(take_hopeless(queue, costs(), AT, NOW_S + 0.1)) == 1
    assert take_hopeless(waiting(9, NOW_S + 1e-3), CostModel(), AT, NOW_S) == [], "nothing is known"


def test_the_least_of_a_batch() -> None:
    assert least_s([], costs(), AT) == 0.0
    assert least_s([a_job("a"), a_job("b")], costs(), AT) == pytest.approx(0.1)


GENERATOR = GeneratorLoad("first", "whole", "token", sequences=2, threads=2)


def generator_costs() -> CostModel:
    """Half a second to the first token, eight seconds for a whole answer."""
    model = CostModel()
    model.learn("first", 1, 64, 0.5, 2)
    model.learn("whole", 1, 64, 8.0, 2)
    return model


def running(count: int, adapter: str | None = None) -> list[Job]:
    return [replace(a_job(f"running-{index}"), adapter=adapter) for index in range(count)]


@pytest.mark.parametrize(
    ("ahead", "inside", "wait_s"), [(0, 0, 0.0), (0, 1, 0.0), (0, 2, 4.0), (1, 2, 8.0), (4, 2, 20.0), (2, 0, 4.0)]
)
def test_a_generators_answers_end_one_by_one(ahead: int, inside: int, wait_s: float) -> None:
    found = generator_wait_and_first_token_s(
        waiting(ahead), a_job("x"), running(inside), generator_costs(), GENERATOR, NOW_S
    )
    assert found == (pytest.approx(wait_s), pytest.approx(0.5))


def inside(count: int, parts: int = 0, size: int = 64) -> list[Job]:
    """Jobs of other clients, one each."""
    return [
        Job((f"client-{number}", "1"), "m", None, ("x" * size,), {}, 5, 200.0, NOW_S, parts=parts)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("others", "parts", "wait_s"), [(1, 0, 0.0), (2, 0, 1.0), (5, 0, 2.5), (5, 3, 1.25), (6, 3, 20.0)]
)
def test_a_client_that_has_nothing_inside_waits_for_turns_and_not_for_answers(
    others: int, parts: int, wait_s: float
) -> None:
    """A turn, and the prompt of who has not begun; beyond four more than the sequences nobody comes in."""
    found = generator_wait_and_first_token_s(
        Queue(), a_job("x"), inside(others, parts), generator_costs(), GENERATOR, NOW_S
    )
    assert found == (pytest.approx(wait_s), pytest.approx(0.5))


def test_clients_that_wait_take_the_places_before_a_newcomer() -> None:
    queue = Queue()
    for job in inside(6):
        queue.add(job)
    found = generator_wait_and_first_token_s(queue, a_job("x"), [], generator_costs(), GENERATOR, NOW_S)
    assert found[0] == pytest.approx(5 / 2 * 8.0)


@pytest.mark.parametrize(
    ("deadline_s", "most", "wait_s"), [(24.0, None, 1.0), (12.0, None, 8.0), (12.0, 64, 1.0), (5.0, 64, 8.0)]
)
def test_turns_are_for_answers_that_end_in_time_beside_the_others(
    deadline_s: float, most: int | None, wait_s: float
) -> None:
    """Four others on two sequences: whole answers take 2.5 times their 8 s, 64 tokens of 0.05 s 2.5 times 3.7 s."""
    costs = generator_costs()
    costs.learn("token", 1, 1, 0.05, 2)
    job = replace(a_job("x", NOW_S + deadline_s), params={"max_tokens": most} if most else {})
    wait, _ = generator_wait_and_first_token_s(Queue(), job, inside(4, 1), costs, GENERATOR, NOW_S)
    assert wait == pytest.approx(1.0 if wait_s == 1.0 else 3 / 2 * 8.0)


def test_pauses_stretch_a_generators_wait_and_its_load_comes_first() -> None:
    load = replace(GENERATOR, duty_share=0.5, load_s=3.0)
    wait_s, first_s = generator_wait_and_first_token_s(Queue(), a_job("x"), running(2), generator_costs(), load, NOW_S)
    assert (wait_s, first_s) == (pytest.approx(8.0 + 3.0), pytest.approx(0.5))


def test_without_a_whole_answer_measured_a_generators_wait_is_unknown() -> None:
    costs = CostModel()
    assert generator_wait_and_first_token_s(Queue(), a_job("x"), running(2), costs, GENERATOR, NOW_S) == (None, None)
    costs.learn("first", 1, 64, 0.5, 2)
    found = generator_wait_and_first_token_s(Queue(), a_job("x"), running(2), costs, GENERATOR, NOW_S)
    assert found == (None, pytest.approx(0.5))


def test_jobs_whose_adapter_a_generator_uses_already_go_before_a_job_that_needs_another() -> None:
    queue = Queue()
    for index in range(4):
        queue.add(replace(a_job(str(index), deadline_s=1000.0), adapter="in-use"))
    late = replace(a_job("x", deadline_s=900.0), adapter="other")
    before, _ = generator_wait_and_first_token_s(queue, late, running(2), generator_costs(), GENERATOR, NOW_S)
    behind, _ = generator_wait_and_first_token_s(queue, late, running(2, "in-use"), generator_costs(), GENERATOR, NOW_S)
    assert (before, behind) == (pytest.approx(4.0), pytest.approx(20.0))


def test_a_job_takes_its_share_of_full_batches() -> None:
    """A batch of four rows takes 0.2 s, so a row takes 0.05 s of the worker's time."""
    assert AT.max_rows == 4
    assert work_s(a_job("x"), costs(), AT) == pytest.approx(0.05)
    assert work_s(a_job("x", rows=6), costs(), AT) == pytest.approx(0.3)
    assert work_s(a_job("x"), costs(), replace(AT, duty_share=0.5)) == pytest.approx(0.1)
    assert work_s(a_job("x"), CostModel(), AT) == 0.0


def test_a_generators_answer_takes_its_share_of_the_sequences() -> None:
    assert generator_work_s(a_job("x"), generator_costs(), GENERATOR) == pytest.approx(4.0)
    assert generator_work_s(a_job("x"), generator_costs(), replace(GENERATOR, duty_share=0.5)) == pytest.approx(8.0)
    assert generator_work_s(a_job("x"), CostModel(), GENERATOR) == 0.0
