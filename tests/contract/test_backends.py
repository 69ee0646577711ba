"""What every backend must do, in one place. A new backend joins by one line in conftest.py."""

import numpy as np
import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource, Capabilities, Done, Footprint, Limits, SessionJob
from edge_agent.base.errors import AdapterRefused, BackendError
from tests.support import small_graph

ROWS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9], [3, 2, 3, 8, 4, 6, 2, 6, 4, 3])
LIMITS = Limits(max_rows=8, threads=1)


def answers(session, jobs, limits=LIMITS):
    """Submit jobs, step until each had its event; the events by id."""
    for job in jobs:
        session.submit(job)
    found = {}
    for _ in range(100):
        if all(job.job_id in found for job in jobs):
            assert session.step(limits) == []
            return found
        for event in session.step(limits):
            assert event.job_id not in found, "answered twice"
            found[event.job_id] = event
    raise AssertionError("jobs were never answered")


def output(event, name="features"):
    assert isinstance(event, Done), event
    return np.asarray(event.outputs[name], np.float64)


def alone(session, row, adapter=None):
    return answers(session, [SessionJob("alone", adapter, [row], {})])["alone"]


def test_probe_tells_what_it_can_do(subject):
    found = registry.create(subject.name).probe()
    assert isinstance(found, Capabilities)
    assert found.runtime and found.version and found.devices
    assert (found.adapters, found.mixed_adapters) == (subject.adapters, subject.mixed)


def test_an_unknown_option_is_refused_by_name(subject):
    with pytest.raises(BackendError, match=r"max_row5.*known options: .*max_rows"):
        subject.load(max_row5=3)


@pytest.mark.parametrize("value", ["8", None, 2.5])
def test_an_option_of_another_type_is_refused(subject, value):
    with pytest.raises(BackendError, match="max_rows"):
        subject.load(max_rows=value)


def test_a_file_that_is_no_model_is_refused(subject):
    if not subject.files:
        pytest.skip("the echo backend reads no files")
    broken = subject.folder / "broken.onnx"
    broken.write_bytes(b"not a model at all")
    for path in (str(broken), str(subject.folder / "absent.onnx")):
        with pytest.raises(BackendError, match="cannot load"):
            registry.create(subject.name).load({"model": path}, subject.options)
    with pytest.raises(BackendError, match="role 'model'"):
        registry.create(subject.name).load({}, subject.options)


def test_nothing_queued_nothing_done(subject):
    assert subject.load().step(LIMITS) == []


def test_a_text_gets_the_same_answer_alone_and_in_a_batch(subject):
    session = subject.load()
    batched = answers(session, [SessionJob(str(place), None, [row], {}) for place, row in enumerate(ROWS)])
    assert {event.batch_rows for event in batched.values()} == {len(ROWS)}
    for place, row in enumerate(ROWS):
        assert output(batched[str(place)]) == pytest.approx(output(alone(session, row)), abs=subject.tolerance)


def test_the_rows_of_a_job_keep_their_order(adapting):
    session = adapting.load()
    session.attach(adapting.adapter("a", 1))
    jobs = [SessionJob("first", "a", ROWS[:3], {}), SessionJob("second", None, ROWS[2:], {})]
    found = answers(session, jobs)
    for job in jobs:
        for place, row in enumerate(job.rows):
            wanted = output(alone(session, row, job.adapter))[0]
            assert output(found[job.job_id])[place] == pytest.approx(wanted, abs=adapting.tolerance)


def test_every_row_of_a_mixed_batch_uses_its_own_adapter(adapting):
    session = adapting.load()
    session.attach(adapting.adapter("wide", 1, labels=5))
    session.attach(adapting.adapter("low", 2, rank=2, labels=3))
    session.attach(adapting.adapter("partial", 3, modules=("layer.0.value",), labels=2))
    for turn in range(6):
        names = [(None, "wide", "low", "partial")[(place * (turn + 1) + turn) % 4] for place in range(len(ROWS))]
        jobs = [SessionJob(str(place), names[place], [row], {}) for place, row in enumerate(ROWS)]
        mixed = answers(session, jobs)
        for place, row in enumerate(ROWS):
            single = alone(session, row, names[place])
            assert output(mixed[str(place)]) == pytest.approx(output(single), abs=adapting.tolerance)
            if names[place] is not None and adapting.heads:
                logits = output(mixed[str(place)], "logits")
                assert logits == pytest.approx(output(single, "logits"), abs=4 * adapting.tolerance)


def test_an_attached_adapter_changes_the_answer(adapting):
    """The silent no-op: accepted, attached, without effect."""
    session = adapting.load()
    before = output(alone(session, ROWS[0]))
    session.attach(adapting.adapter("a", 1))
    session.attach(adapting.adapter("b", 2))
    with_a, with_b = output(alone(session, ROWS[0], "a")), output(alone(session, ROWS[0], "b"))
    assert np.abs(with_a - before).max() > 0.02
    assert np.abs(with_a - with_b).max() > 0.02
    assert output(alone(session, ROWS[0])) == pytest.approx(before, abs=1e-7)


def test_a_replaced_adapter_leaves_nothing_of_the_old_one(adapting):
    session = adapting.load()
    session.attach(adapting.adapter("a", 1))
    session.attach(adapting.adapter("other", 9))
    answers(
        session, [SessionJob("1", "a", [ROWS[0]], {}), SessionJob("2", "other", [ROWS[1]], {})]
    )  # both now lie in the bank
    session.detach("a")
    session.attach(adapting.adapter("a", 2, rank=1))
    fresh = adapting.load()
    fresh.attach(adapting.adapter("a", 2, rank=1))
    mixed = answers(session, [SessionJob("1", "a", [ROWS[0]], {}), SessionJob("2", "other", [ROWS[1]], {})])
    if adapting.name != "echo":  # it knows an adapter by its name alone
        wanted = output(alone(fresh, ROWS[0], "a"))
        assert output(mixed["1"]) == pytest.approx(wanted, abs=adapting.tolerance)


def test_a_detached_adapter_is_refused_and_detaching_twice_is_no_error(adapting):
    session = adapting.load()
    session.attach(adapting.adapter("a"))
    session.detach("a")
    session.detach("a")
    session.detach("never-there")
    with pytest.raises(AdapterRefused, match="'a' is not attached"):
        session.submit(SessionJob("1", "a", [ROWS[0]], {}))
    assert session.step(LIMITS) == []


def test_an_adapter_of_another_base_is_refused(adapting):
    session = adapting.load()
    source = adapting.adapter("foreign")
    with pytest.raises(AdapterRefused, match="sha256:ff"):
        session.attach(AdapterSource(source.name, source.path, "sha256:" + "ff" * 32))
    with pytest.raises(AdapterRefused):
        session.submit(SessionJob("1", "foreign", [ROWS[0]], {}))


def test_a_model_without_a_bank_refuses_every_adapter(bankless):
    session = bankless.load()
    with pytest.raises(AdapterRefused, match="takes no adapters"):
        session.attach(AdapterSource("a", "a.safetensors", small_graph.BASE_ID))
    with pytest.raises(AdapterRefused, match="'a' is not attached"):
        session.submit(SessionJob("1", "a", [ROWS[0]], {}))


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], []]])
def test_rows_that_can_never_run_are_refused(subject, rows):
    session = subject.load()
    with pytest.raises(BackendError):
        session.submit(SessionJob("1", None, rows, {}))
    assert session.step(LIMITS) == []


def test_a_batch_keeps_within_the_rows_that_are_granted(subject):
    session = subject.load()
    for place, row in enumerate(ROWS):
        session.submit(SessionJob(str(place), None, [row], {}))
    first = session.step(Limits(max_rows=2, threads=1))
    assert [event.job_id for event in first] == ["0", "1"]
    assert first[0].batch_rows == 2
    assert [event.job_id for event in session.step(Limits(3, 1))] == ["2", "3", "4"]


def test_a_job_of_more_rows_than_a_batch_is_answered_whole(subject):
    session = subject.load(max_rows=4)
    rows = [list(range(1, 2 + place % 7)) for place in range(11)]
    found = answers(
        session, [SessionJob("big", None, rows, {}), SessionJob("small", None, [ROWS[0]], {})], Limits(4, 1)
    )
    assert len(output(found["big"])) == 11
    for place, row in enumerate(rows):
        wanted = output(alone(session, row))[0]
        assert output(found["big"])[place] == pytest.approx(wanted, abs=subject.tolerance)
    assert output(found["small"]) == pytest.approx(output(alone(session, ROWS[0])), abs=subject.tolerance)


def test_a_cancelled_job_is_never_heard_of_again(subject):
    session = subject.load()
    for place, row in enumerate(ROWS[:3]):
        session.submit(SessionJob(str(place), None, [row], {}))
    assert session.cancel("1")
    assert not session.cancel("1")
    assert not session.cancel("never-there")
    assert {event.job_id for event in session.step(LIMITS)} == {"0", "2"}


def test_a_job_cancelled_between_its_pieces_leaves_the_next_one_whole(subject):
    session = subject.load(max_rows=2)
    session.submit(SessionJob("big", None, [ROWS[0]] * 5, {}))
    session.submit(SessionJob("next", None, [ROWS[1], ROWS[2]], {}))
    first = session.step(Limits(2, 1))
    assert session.cancel("big") == (not first)
    (event,) = session.step(Limits(2, 1))
    assert event.job_id == "next"
    assert len(output(event)) == 2


def test_the_footprint_is_of_bytes(adapting):
    session = adapting.load()
    before = session.footprint()
    assert isinstance(before, Footprint)
    assert all(isinstance(value, int) and value >= 0 for value in before)
    size_bytes = session.attach(adapting.adapter("a"))
    assert session.footprint().adapters_bytes >= before.adapters_bytes + size_bytes
    session.detach("a")
    assert session.footprint().adapters_bytes <= before.adapters_bytes + size_bytes


def test_another_number_of_threads_changes_no_answer(subject):
    session = subject.load()
    before = output(alone(session, ROWS[0]))
    changed = answers(session, [SessionJob("1", None, [ROWS[0]], {})], Limits(8, 2))
    assert output(changed["1"]) == pytest.approx(before, abs=1e-5)


def test_closing_twice_is_no_error(subject):
    session = subject.load()
    session.submit(SessionJob("1", None, [ROWS[0]], {}))
    session.close()
    session.close()
