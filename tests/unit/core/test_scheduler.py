"""Order and batches: earliest deadline within priority, ageing, bounds, nothing lost, nothing twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.core.job import Job
from edge_agent.core.scheduler import AGEING_S, CLIENTS_KEPT, OTHERS_S, TURN_ROWS, BatchLimits, Queue, urgency

NOW_S = 100.0
MIXED = BatchLimits(max_rows=8, mixed=True)


def a_job(
    name: str,
    priority: int = 5,
    deadline_s: float = 200.0,
    received_s: float = NOW_S,
    rows: int = 1,
    adapter: str | None = None,
    client: str = "c",
) -> Job:
    texts = tuple("x" * rows)
    return Job((client, name), "m", adapter, texts, {}, priority, deadline_s=deadline_s, received_s=received_s)


def filled(*jobs: Job) -> Queue:
    queue = Queue()
    for job in jobs:
        queue.add(job)
    return queue


def names(jobs: list[Job]) -> list[str]:
    return [job.key[1] for job in jobs]


@st.composite
def job_lists(draw: st.DrawFn) -> list[Job]:
    count = draw(st.integers(0, 12))
    return [
        a_job(
            str(index),
            priority=draw(st.integers(0, 9)),
            deadline_s=draw(st.floats(NOW_S, 300.0)),
            received_s=draw(st.floats(50.0, NOW_S)),
            rows=draw(st.integers(1, 12)),
            adapter=draw(st.sampled_from([None, "a", "b", "c"])),
        )
        for index in range(count)
    ]


LIMITS = st.builds(BatchLimits, max_rows=st.integers(1, 10), mixed=st.booleans())


@settings(max_examples=60)
@given(job_lists(), LIMITS)
def test_batches_empty_the_queue_and_lose_or_repeat_nothing(jobs: list[Job], limits: BatchLimits) -> None:
    queue = filled(*jobs)
    served: list[Job] = []
    while len(queue):
        waiting = len(queue)
        batch = queue.next_batch(limits, NOW_S)
        assert batch, "an idle worker must get something while something waits"
        assert len(queue) == waiting - len(batch)
        served += batch
    assert sorted(names(served)) == sorted(names(jobs))
    assert queue.next_batch(limits, NOW_S) == []


@settings(max_examples=60)
@given(job_lists(), LIMITS)
def test_a_batch_keeps_its_bounds(jobs: list[Job], limits: BatchLimits) -> None:
    queue = filled(*jobs)
    while batch := queue.next_batch(limits, NOW_S):
        rows = sum(job.rows for job in batch)
        assert rows <= limits.max_rows or len(batch) == 1, "only one that is larger by itself may exceed the bound"
        if not limits.mixed:
            assert len({job.adapter for job in batch}) == 1


@settings(max_examples=60)
@given(job_lists(), LIMITS)
def test_the_most_urgent_leads_every_batch(jobs: list[Job], limits: BatchLimits) -> None:
    queue = filled(*jobs)
    while len(queue):
        most_urgent = min(urgency(job, NOW_S) for job in queue.jobs())
        batch = queue.next_batch(limits, NOW_S)
        assert urgency(batch[0], NOW_S) == most_urgent
        assert [urgency(job, NOW_S) for job in batch] == sorted(urgency(job, NOW_S) for job in batch)


@settings(max_examples=60)
@given(job_lists(), LIMITS)
def test_a_batch_leaves_no_room_that_a_waiting_job_could_fill(jobs: list[Job], limits: BatchLimits) -> None:
    queue = filled(*jobs)
    batch = queue.next_batch(limits, NOW_S)
    room = limits.max_rows - sum(job.rows for job in batch)
    left = [job for job in queue.jobs() if limits.mixed or job.adapter == batch[0].adapter]
    assert all(job.rows > room for job in left)


def test_earliest_deadline_first_within_a_priority() -> None:
    queue = filled(a_job("late", deadline_s=150), a_job("soon", deadline_s=120), a_job("first", 0, deadline_s=190))
    assert names(queue.next_batch(MIXED, NOW_S)) == ["first", "soon", "late"]


GROUPED = BatchLimits(max_rows=1, mixed=True, active_adapters=frozenset({"a"}))


def test_an_adapter_at_work_goes_first_within_a_priority() -> None:
    jobs = [a_job("soon", deadline_s=120, adapter="b"), a_job("near", deadline_s=190, adapter="a")]
    urgent = a_job("urgent", 0, deadline_s=195, adapter="b")
    order = filled(*jobs, urgent)
    assert [names(order.next_batch(GROUPED, NOW_S)) for _ in range(3)] == [["urgent"], ["near"], ["soon"]]
    of_two = filled(a_job("soon", deadline_s=120, adapter="b"), a_job("near", adapter="a", client="d"))
    assert names(of_two.next_batch(GROUPED, NOW_S)) == ["near"]


def test_what_is_grouped_before_a_job_counts_as_ahead_of_it() -> None:
    queue = filled(*(a_job(str(index), deadline_s=190.0, adapter="a") for index in range(6)))
    other = a_job("other", deadline_s=101.5, adapter="b")
    assert (queue.rows_ahead(other, NOW_S), queue.rows_ahead(other, NOW_S, frozenset({"a"}))) == (0, 6)


def test_where_none_is_at_work_the_most_urgent_ones_adapter_is() -> None:
    queue = filled(*(a_job(f"{index}", deadline_s=120 + index, adapter="ab"[index % 2]) for index in range(6)))
    assert names(queue.next_batch(BatchLimits(3, mixed=True, active_adapters=frozenset()), NOW_S)) == ["0", "2", "4"]


@settings(max_examples=40)
@given(job_lists())
def test_who_waits_for_another_adapter_is_passed_for_an_ageing_period_at_most(jobs: list[Job]) -> None:
    queue = filled(*jobs, a_job("other", 0, deadline_s=190.0, received_s=NOW_S - AGEING_S, adapter="z"))
    for index in range(20):
        queue.add(a_job(f"new{index}", 0, deadline_s=200.0, received_s=NOW_S, adapter="a"))
    served: list[str] = []
    while "other" not in served:
        served += names(queue.next_batch(GROUPED, NOW_S))
    assert not any(name.startswith("new") for name in served)


def test_equal_urgency_keeps_the_order_of_arrival() -> None:
    queue = filled(*(a_job(str(index)) for index in range(5)))
    assert names(queue.next_batch(MIXED, NOW_S)) == ["0", "1", "2", "3", "4"]


def test_priority_rises_by_one_for_every_ageing_period() -> None:
    job = a_job("x", priority=3, received_s=NOW_S)
    waits_s = (0.0, AGEING_S * 0.99, AGEING_S, 2 * AGEING_S, 3 * AGEING_S, 50 * AGEING_S)
    assert [urgency(job, NOW_S + wait_s)[0] for wait_s in waits_s] == [3, 3, 2, 1, 0, 0]


def test_a_clock_a_little_behind_does_not_lift_a_job() -> None:
    assert urgency(a_job("x", priority=3, received_s=NOW_S), NOW_S - 0.5)[0] >= 3


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_stream_of_the_highest_priority_does_not_starve_the_lowest(low: int, per_second: int) -> None:
    """One row a batch, priority 0 arriving for ever with the same time to live: the low one is served in time."""
    queue = filled(a_job("low", priority=low, deadline_s=NOW_S + 30.0, received_s=NOW_S))
    limits = BatchLimits(max_rows=1, mixed=True)
    for step in range(40):
        now_s = NOW_S + step
        for index in range(per_second + 1):
            queue.add(a_job(f"{step}.{index}", 0, deadline_s=now_s + 30.0, received_s=now_s))
        for _ in range(per_second + 1):
            if "low" in names(queue.next_batch(limits, now_s)):
                assert step <= low * AGEING_S + 1
                return
    raise AssertionError("starved")


def test_a_job_larger_than_a_batch_runs_alone() -> None:
    queue = filled(a_job("big", rows=20, deadline_s=110), a_job("small"))
    assert names(queue.next_batch(MIXED, NOW_S)) == ["big"]
    assert names(queue.next_batch(MIXED, NOW_S)) == ["small"]


def test_a_large_job_behind_small_ones_is_overtaken_once_not_for_ever() -> None:
    queue = filled(a_job("a", deadline_s=110), a_job("big", rows=8, deadline_s=120), a_job("b", deadline_s=130))
    assert names(queue.next_batch(MIXED, NOW_S)) == ["a", "b"]
    queue.add(a_job("c", deadline_s=140))
    assert names(queue.next_batch(MIXED, NOW_S)) == ["big"]


def test_unmixed_batches_take_the_first_ones_adapter_from_anywhere_in_the_queue() -> None:
    jobs = [a_job(str(index), deadline_s=110 + index, adapter="ab"[index % 2]) for index in range(6)]
    queue = filled(*jobs)
    limits = BatchLimits(max_rows=8, mixed=False)
    assert names(queue.next_batch(limits, NOW_S)) == ["0", "2", "4"]
    assert names(queue.next_batch(limits, NOW_S)) == ["1", "3", "5"]


def test_the_base_without_an_adapter_is_an_adapter_of_its_own_in_unmixed_batches() -> None:
    queue = filled(a_job("base"), a_job("a", adapter="a"))
    assert names(queue.next_batch(BatchLimits(8, mixed=False), NOW_S)) == ["base"]


def test_a_mixed_batch_holds_no_more_adapters_than_may_be_resident() -> None:
    jobs = [a_job(str(index), deadline_s=110 + index, adapter=f"a{index % 5}") for index in range(10)]
    queue = filled(*jobs, a_job("base", deadline_s=130))
    limits = BatchLimits(max_rows=64, mixed=True, max_adapters=3)
    assert names(queue.next_batch(limits, NOW_S)) == ["0", "1", "2", "5", "6", "7", "base"], "the base needs no adapter"
    assert names(queue.next_batch(limits, NOW_S)) == ["3", "4", "8", "9"]


def test_a_batch_stays_inside_a_frame() -> None:
    queue = filled(*(a_job(str(index), deadline_s=110 + index, rows=40) for index in range(5)))
    limits = BatchLimits(max_rows=1000, mixed=True, max_chars=2 * a_job("0", rows=40).wire_chars)
    assert names(queue.next_batch(limits, NOW_S)) == ["0", "1"]
    queue.add(a_job("huge", deadline_s=100, rows=500))
    assert names(queue.next_batch(limits, NOW_S)) == ["huge"], "alone, however long"


def test_no_limit_however_small_stops_the_queue() -> None:
    queue = filled(a_job("x"))
    assert names(queue.next_batch(BatchLimits(max_rows=0, mixed=True), NOW_S)) == ["x"]


def test_rows_counts_texts() -> None:
    queue = filled(a_job("x", rows=3), a_job("y", rows=2))
    assert (len(queue), queue.rows) == (2, 5)


def test_remove_tells_whether_it_waited() -> None:
    job = a_job("x")
    queue = filled(job)
    assert queue.remove(job)
    assert not queue.remove(job)
    assert len(queue) == 0


def test_take_removes_exactly_what_the_condition_names() -> None:
    queue = filled(a_job("x", 1), a_job("y", 2), a_job("z", 1))
    assert names(queue.take(lambda job: job.priority == 1)) == ["x", "z"]
    assert names(list(queue.jobs())) == ["y"]


@settings(max_examples=60)
@given(job_lists(), st.integers(0, 9), st.floats(NOW_S, 300.0))
def test_rows_ahead_are_the_rows_that_an_unbatched_run_would_serve_first(
    jobs: list[Job], priority: int, deadline_s: float
) -> None:
    mine = a_job("mine", priority, deadline_s)
    ahead = filled(*jobs).rows_ahead(mine, NOW_S)
    queue = filled(*jobs, mine)
    served = 0
    while (batch := queue.next_batch(BatchLimits(1, mixed=True), NOW_S)) != [mine]:
        served += batch[0].rows
    assert ahead == served


ONE = BatchLimits(max_rows=1, mixed=True)


def served_by(queue: Queue, count: int, now_s: float = NOW_S) -> list[str]:
    """The clients of the next jobs, one a batch."""
    return [batch[0].key[0] for _ in range(count) if (batch := queue.next_batch(ONE, now_s))]


def test_a_flood_delays_its_own_client_and_nobody_else() -> None:
    """Two hundred urgent jobs of one client; another asks with a later deadline, and waits for one turn."""
    queue = filled(*(a_job(f"f{index}", deadline_s=110.0 + index, client="flood") for index in range(200)))
    for step in range(10):
        queue.add(a_job(f"p{step}", deadline_s=400.0, client="polite"))
        assert "polite" in served_by(queue, 2 * TURN_ROWS + 1)


def test_an_aged_flood_does_not_pass_for_urgent() -> None:
    flood = [a_job(f"f{index}", deadline_s=200.0, received_s=NOW_S - 60.0, client="flood") for index in range(100)]
    queue = filled(*flood, a_job("p", deadline_s=300.0, client="polite"))
    assert "polite" in served_by(queue, TURN_ROWS + 1)


def test_a_flood_of_the_highest_priority_is_overtaken_by_who_has_waited() -> None:
    flood = [a_job(f"f{index}", 0, deadline_s=200.0, client="flood") for index in range(100)]
    queue = filled(*flood, a_job("p", 5, deadline_s=300.0, client="polite"))
    assert "polite" not in served_by(queue, TURN_ROWS)
    assert "polite" in served_by(queue, 2, NOW_S + 5 * AGEING_S)


def test_a_flood_of_the_highest_priority_has_one_turn_before_who_asks_without_a_priority() -> None:
    flood = [a_job(f"f{index}", 0, deadline_s=200.0, client="flood") for index in range(100)]
    queue = filled(*flood, a_job("p", 5, deadline_s=300.0, client="polite"))
    assert served_by(queue, 100).index("polite") == TURN_ROWS


def test_only_what_is_within_a_clients_turn_overtakes_others() -> None:
    queue = Queue()
    for index in range(TURN_ROWS):
        assert not queue.is_beyond_turn(a_job("next", client="flood")), index
        queue.add(a_job(str(index), client="flood"))
    assert queue.is_beyond_turn(a_job("next", client="flood"))
    assert not queue.is_beyond_turn(a_job("other", client="polite"))


def test_a_priority_still_counts_between_clients() -> None:
    queue = filled(a_job("low", 7, deadline_s=110.0, client="a"), a_job("high", 1, deadline_s=300.0, client="b"))
    assert served_by(queue, 2) == ["b", "a"]


def test_who_comes_back_has_saved_nothing_up() -> None:
    queue = Queue()
    for index in range(100):
        queue.add(a_job(f"a{index}", client="a"))
        served_by(queue, 1)
    jobs = [a_job(f"{client}{index}", deadline_s=200.0, client=client) for index in range(40) for client in "ab"]
    for job in jobs:
        queue.add(job)
    first = served_by(queue, 40)
    assert abs(first.count("a") - first.count("b")) <= 2 * TURN_ROWS


def test_the_clients_that_a_queue_remembers_are_bounded() -> None:
    queue = Queue()
    for index in range(3 * CLIENTS_KEPT):
        queue.add(a_job("x", client=str(index)))
        queue.add(a_job("y", client=str(index)))
        queue.next_batch(ONE, NOW_S)
        queue.take(lambda _job: True)
    assert len(queue._served) <= CLIENTS_KEPT + 1


def takes(rows: int, row_bytes: int) -> float:
    """A second a row."""
    return float(rows)


def test_a_batch_does_not_outgrow_the_time_of_its_most_urgent_job() -> None:
    limits = BatchLimits(max_rows=8, mixed=True, predict_s=takes)
    queue = filled(a_job("soon", deadline_s=NOW_S + 3.5), *(a_job(str(index), deadline_s=190.0) for index in range(6)))
    assert names(queue.next_batch(limits, NOW_S)) == ["soon", "0", "1"]
    assert len(queue.next_batch(limits, NOW_S)) == 4, "nobody is in a hurry any more"


def test_who_is_late_even_alone_does_not_hold_the_others_up() -> None:
    limits = BatchLimits(max_rows=8, mixed=True, predict_s=takes)
    queue = filled(a_job("late", deadline_s=NOW_S + 0.5), *(a_job(str(index), deadline_s=190.0) for index in range(6)))
    assert len(queue.next_batch(limits, NOW_S)) == 7


def test_a_job_that_would_be_late_in_this_batch_waits_for_its_own() -> None:
    limits = BatchLimits(max_rows=8, mixed=True, predict_s=takes)
    big, small = a_job("big", 1, deadline_s=190.0, rows=4), a_job("small", 5, deadline_s=NOW_S + 4.5)
    queue = filled(big, small)
    assert names(queue.next_batch(limits, NOW_S)) == ["big"]
    assert names(queue.next_batch(limits, NOW_S)) == ["small"]


def test_without_a_prediction_batches_are_filled() -> None:
    limits = BatchLimits(max_rows=8, mixed=True, predict_s=lambda _rows, _bytes: None)
    queue = filled(a_job("soon", deadline_s=NOW_S + 1.5), *(a_job(str(index), deadline_s=190.0) for index in range(6)))
    assert len(queue.next_batch(limits, NOW_S)) == 7


class Clients(RuleBasedStateMachine):
    """Clients ask, withdraw and are served in any order; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.waiting: dict[tuple[str, str], Job] = {}
        self.now_s = NOW_S
        self.count = 0
        self.since_served = dict.fromkeys("abc", 0)

    @rule(
        client=st.sampled_from("abc"),
        priority=st.integers(0, 9),
        lasts_s=st.floats(1.0, 60.0),
        rows=st.integers(1, 4),
        jobs=st.integers(1, 12),
    )
    def ask(self, client: str, priority: int, lasts_s: float, rows: int, jobs: int) -> None:
        for _ in range(jobs):
            self.count += 1
            job = a_job(str(self.count), priority, self.now_s + lasts_s, self.now_s, rows, client=client)
            self.queue.add(job)
            self.waiting[job.key] = job

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.waiting:
            job = data.draw(st.sampled_from(list(self.waiting.values())))
            assert self.queue.remove(job)
            del self.waiting[job.key]

    @rule(seconds=st.floats(0.0, 10.0))
    def later(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(max_rows=st.integers(1, 16), mixed=st.booleans())
    def serve(self, max_rows: int, mixed: bool) -> None:
        batch = self.queue.next_batch(BatchLimits(max_rows, mixed), self.now_s)
        assert bool(batch) == bool(self.waiting)
        asked = {key[0] for key in self.waiting}
        for job in batch:
            del self.waiting[job.key]
        assert sum(job.rows for job in batch) <= max_rows or len(batch) == 1
        same = len({job.priority for job in [*batch, *self.waiting.values()]}) == 1
        for client in asked:
            served = any(job.key[0] == client for job in batch)
            # Only where all ask with one priority: a higher one may go first for as long as ageing lasts.
            self.since_served[client] = 0 if served or not same else self.since_served[client] + 1

    @rule(priority=st.integers(0, 9), lasts_s=st.floats(1.0, 60.0))
    def predict(self, priority: int, lasts_s: float) -> None:
        job = a_job("new", priority, self.now_s + lasts_s, self.now_s, client="d")
        assert 0 <= self.queue.rows_ahead(job, self.now_s) <= self.queue.rows

    @invariant()
    def nothing_is_lost_or_repeated(self) -> None:
        assert {job.key for job in self.queue.jobs()} == set(self.waiting)

    @invariant()
    def nobody_starves(self) -> None:
        assert max(self.since_served.values()) <= 6 * TURN_ROWS


Clients.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestClients = Clients.TestCase


def test_the_length_that_counts_is_that_of_one_text() -> None:
    one = a_job("one", deadline_s=NOW_S + 3.0)
    many = a_job("many", deadline_s=190.0, rows=4)
    per_text = max(job.size_bytes // job.rows for job in (one, many))
    limits = BatchLimits(max_rows=8, mixed=True, predict_s=lambda _rows, size: 1.0 if size <= per_text else 9.0)
    assert names(filled(one, many).next_batch(limits, NOW_S)) == ["one", "many"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from("ab"), max_size=20), st.integers(1, 6), st.integers(0, 6))
def test_with_others_about_a_client_never_takes_the_last_sequence_unless_it_holds_none(
    clients: list[str], sequences: int, held_by_a: int
) -> None:
    held_by_a = min(held_by_a, sequences - 1)
    queue = filled(a_job("met", client="c"))
    assert queue.take(lambda _job: True)
    for number, client in enumerate(clients):
        queue.add(a_job(str(number), client=client))
    limits = BatchLimits(sequences - held_by_a, mixed=True, held={"a": held_by_a})
    batch = queue.next_batch(limits, NOW_S)
    together = Counter({"a": held_by_a}) + Counter(job.key[0] for job in batch)
    if together.total() == sequences and batch:
        assert together[batch[-1].key[0]] == 1, "the last one went to a client without any"
    elif clients and not (set(clients) == {"a"} and held_by_a):
        assert batch, "somebody without a sequence waits, or several are free"
    assert len(batch) + len(queue) == len(clients)


def test_a_client_alone_has_all_sequences_and_again_when_the_others_are_gone() -> None:
    def free_of(queue: Queue, now_s: float) -> int:
        return len(queue.next_batch(BatchLimits(4, mixed=True, held={}), now_s))

    assert free_of(filled(*(a_job(str(number), client="a") for number in range(4))), NOW_S) == 4
    both = [a_job(str(number), client="ab"[number % 2]) for number in range(6)]
    assert free_of(filled(*both), NOW_S) == 4, "nobody that asks is without one"
    jobs = [a_job("met", client="b"), *(a_job(str(number), client="a") for number in range(4))]
    for now_s, taken in ((NOW_S + OTHERS_S, 3), (NOW_S + OTHERS_S + 1.0, 4)):
        queue = filled(*jobs)
        queue.take(lambda job: job.key[0] == "b")
        assert free_of(queue, now_s) == taken
