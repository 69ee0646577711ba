"""A refusal comes with its status word, its numbers and when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.limits import QUEUE_BYTES
from edge_agent.core.admission import QueueLoad, Refused, decide, gives_way, would_be_taken
from edge_agent.core.job import Job


def test_an_empty_device_takes_what_it_knows_nothing_about() -> None:
    assert decide(QueueLoad(0, 256, None, None), 10.0, 0.0, None) is None


def test_a_full_queue_is_429_with_the_counts() -> None:
    refused = decide(QueueLoad(256, 256, 1.25, 0.1), 1000.0, 0.0, None)
    assert refused == Refused(429, Cause.QUEUE_FULL, "queue full: 256 of 256 requests are open", 1.25)


@pytest.mark.parametrize("wait_s", [None, 0.0])
def test_a_full_queue_never_says_come_back_at_once(wait_s: float | None) -> None:
    refused = decide(QueueLoad(5, 5, wait_s, None), 10.0, 0.0, None)
    assert refused is not None
    assert refused.retry_after_s == 1.0


def test_the_last_free_place_is_given() -> None:
    assert decide(QueueLoad(255, 256, 0.1, 0.1), 10.0, 0.0, None) is None


def test_a_deadline_out_of_reach_is_503_with_the_arithmetic() -> None:
    refused = decide(QueueLoad(3, 256, 1.5, 0.25), 101.0, 100.0, None)
    assert refused is not None
    assert refused.status == 503
    assert refused.reason == (
        "cannot meet the deadline: 1.5 s of queue and 250.0 ms of compute are ahead, 1.0 s are left"
    )
    assert refused.retry_after_s == 0.75


def test_exactly_in_time_is_taken() -> None:
    assert decide(QueueLoad(3, 256, 0.75, 0.25), 101.0, 100.0, None) is None


def test_a_deadline_in_the_past_does_not_print_a_negative_time() -> None:
    refused = decide(QueueLoad(0, 256, 0.0, 0.1), 90.0, 100.0, None)
    assert refused is not None
    assert "0.0 ms are left" in refused.reason


@pytest.mark.parametrize(("wait_s", "compute_s"), [(None, 5.0), (5.0, None), (None, None)])
def test_nobody_is_refused_on_a_guess(wait_s: float | None, compute_s: float | None) -> None:
    assert decide(QueueLoad(0, 256, wait_s, compute_s), 101.0, 100.0, None) is None


def test_a_closed_governor_comes_first_and_speaks_itself() -> None:
    refused = decide(QueueLoad(256, 256, 9.0, 9.0), 101.0, 100.0, Closure(Cause.HEAT, "too hot: 86.0 °C"))
    assert refused == Refused(503, Cause.HEAT, "too hot: 86.0 °C", 10.0)


SECONDS = st.none() | st.floats(0, 1e4)
CLOSURES = st.none() | st.just(Closure(Cause.HEAT, "hot"))


@given(st.integers(0, 300), st.integers(1, 256), SECONDS, SECONDS, st.floats(-1e4, 1e4), CLOSURES)
def test_any_refusal_is_whole(
    jobs: int, max_jobs: int, wait_s: float | None, compute_s: float | None, left_s: float, closed: Closure | None
) -> None:
    refused = decide(QueueLoad(jobs, max_jobs, wait_s, compute_s), 1e5 + left_s, 1e5, closed)
    needed_s = None if wait_s is None or compute_s is None else wait_s + compute_s
    if refused is None:
        assert closed is None
        assert jobs < max_jobs
        assert needed_s is None or needed_s <= left_s + 1e-9
        return
    assert refused.status in {429, 503}
    assert refused.reason
    assert refused.cause in {Cause.HEAT, Cause.QUEUE_FULL, Cause.CLIENT_SHARE, Cause.DEADLINE}
    assert (refused.cause is Cause.DEADLINE) == (refused.status == 503 and closed is None)
    assert refused.retry_after_s is not None
    assert refused.retry_after_s >= 0
    assert (refused.status == 429) == (closed is None and jobs >= max_jobs)


def test_one_client_leaves_places_to_others() -> None:
    assert decide(QueueLoad(200, 256, 0.1, 0.1, own_jobs=200), 10.0, 0.0, None) is None
    refused = decide(QueueLoad(205, 256, 0.5, 0.1, own_jobs=205), 10.0, 0.0, None)
    assert refused == Refused(
        429,
        Cause.CLIENT_SHARE,
        "queue full for this client: 205 of its requests are open, the last 51 of 256 places are left to others",
        0.5,
    )
    assert decide(QueueLoad(205, 256, 0.1, 0.1, own_jobs=3), 10.0, 0.0, None) is None


@given(st.integers(1, 256), st.lists(st.integers(0, 4), max_size=600))
def test_however_many_flood_the_next_client_finds_a_place(places: int, asks: list[int]) -> None:
    held = dict.fromkeys(range(5), 0)
    for client in asks:
        load = QueueLoad(sum(held.values()), places, 0.0, 0.0, held[client])
        if decide(load, 10.0, 0.0, None) is None:
            held[client] += 1
    assert places < 40 or sum(held.values()) < places
    assert sum(held.values()) <= places


def test_a_queue_of_large_bodies_is_full_before_its_places_are() -> None:
    refused = decide(QueueLoad(70, 256, 0.5, 0.1, held_bytes=QUEUE_BYTES + 1024), 100.0, 0.0, None)
    assert refused == Refused(
        429, Cause.QUEUE_FULL, "queue full: with this request 8.0 MiB would wait, at most 8.0 MiB", 0.5
    )
    assert decide(QueueLoad(70, 256, 0.5, 0.1, held_bytes=QUEUE_BYTES), 100.0, 0.0, None) is None


def test_a_client_with_exactly_four_times_what_is_free_is_refused() -> None:
    assert decide(QueueLoad(8, 10, 0.1, 0.1, own_jobs=7), 10.0, 0.0, None) is None
    refused = decide(QueueLoad(8, 10, 0.1, 0.1, own_jobs=8), 10.0, 0.0, None)
    assert refused is not None
    assert (refused.status, refused.cause) == (429, Cause.CLIENT_SHARE)


def test_the_last_place_goes_to_a_client_that_has_none() -> None:
    assert decide(QueueLoad(2, 4, 0.1, 0.1, own_jobs=2), 10.0, 0.0, None) is None
    refused = decide(QueueLoad(3, 4, 0.1, 0.1, own_jobs=3), 10.0, 0.0, None)
    assert refused is not None and refused.cause is Cause.CLIENT_SHARE
    assert decide(QueueLoad(3, 4, 0.1, 0.1, own_jobs=0), 10.0, 0.0, None) is None
    assert decide(QueueLoad(0, 1, 0.1, 0.1), 10.0, 0.0, None) is None, "a queue of one place has one"


def test_a_client_whose_bodies_take_four_times_what_is_free_is_refused() -> None:
    free = 1024 * 1024
    held, own = QUEUE_BYTES - free, 4 * free
    assert decide(QueueLoad(9, 256, 0.5, 0.1, held_bytes=held, own_bytes=own), 10.0, 0.0, None) is None
    assert decide(QueueLoad(9, 256, 0.5, 0.1, held_bytes=held, own_bytes=own + 1), 10.0, 0.0, None) == Refused(
        429,
        Cause.CLIENT_SHARE,
        "queue full for this client: with this request 4.0 MiB of its own would wait, "
        "the last 1.0 MiB of 8.0 MiB are left to others",
        0.5,
    )


def a_job(client: str, number: int, size_bytes: int = 100) -> Job:
    return Job((client, str(number)), "m", None, ("x",), {}, 5, 10.0, float(number), message_bytes=size_bytes)


def test_the_newest_waiting_job_of_the_client_that_holds_most_gives_way() -> None:
    held = [*(a_job("hog", number) for number in range(5)), a_job("other", 5), a_job("other", 6), a_job("other", 7)]
    found = gives_way("new", 1, "places", held, held)
    assert found is not None
    assert (found[0].key, "5 of its requests were open" in found[1]) == (("hog", "4"), True)
    inside = gives_way("new", 1, "places", held, held[5:])
    assert inside is not None and inside[0].key == ("other", "7"), "what a worker has is not taken back"
    assert gives_way("new", 4, "places", held, held) is not None, "four each"
    assert gives_way("new", 5, "places", held, held) is None, "then the other one would have fewer"
    assert gives_way("hog", 1, "places", held[:5], held[:5]) is None, "never its own"
    large = [a_job("large", 0, 5000), a_job("many", 1, 100), a_job("many", 2, 100)]
    by_bytes = gives_way("new", 300, "bytes", [*large, a_job("large", 3, 900)], [*large, a_job("large", 3, 900)])
    assert by_bytes is not None and by_bytes[0].key == ("large", "3")


@given(st.integers(2, 64), st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=400))
def test_who_asks_for_an_equal_part_of_the_places_has_it(places: int, asks: list[tuple[int, bool]]) -> None:
    """Whoever came first, and whatever leaves in between: a refused client holds as much as anybody, less one."""
    held: list[Job] = []
    for number, (client, one_leaves) in enumerate(asks):
        name = str(client)
        while True:
            own = sum(one.key[0] == name for one in held)
            refused = decide(QueueLoad(len(held), places, 0.0, 0.0, own), 10.0, 0.0, None)
            if refused is None:
                held.append(a_job(name, number))
                break
            assert refused.lacks == "places"
            found = gives_way(name, own + 1, refused.lacks, held, held)
            if found is None:
                most = max(sum(one.key[0] == other for one in held) for other in {one.key[0] for one in held})
                assert own >= most - 1
                break
            held.remove(found[0])
        assert len(held) <= places
        if one_leaves and held:
            held.pop(0)


def test_nobody_gives_way_to_a_request_that_would_be_refused_anyway() -> None:
    assert would_be_taken(QueueLoad(256, 256, 1.0, 1.0), 10.0, 0.0)
    assert not would_be_taken(QueueLoad(256, 256, 20.0, 1.0), 10.0, 0.0)
