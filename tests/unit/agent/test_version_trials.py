"""A version on trial beside the one that answers: judged, kept or returned; never in the way of a request."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from edge_agent.agent.answer_pairs import COPIES, Copy, WaitingCopies, compare, work_of
from edge_agent.base.causes import Cause, Closure, DeathCause
from edge_agent.base.errors import StoreError
from edge_agent.core.job import Job
from edge_agent.core.version_trial import MOST_DEATHS, MOST_RESTARTS
from edge_agent.protocol.worker_messages import Heartbeat, JobWork
from tests.support.fakes import FakeLibrary, KeptTrials, Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later

NEW = a_variant("new")
TERMS = json.dumps({"least": 20, "most": 60, "agreement": 0.5, "failures": 0.4, "slower": 2.0})


async def look(device: Device, seconds: int = 1) -> None:
    for _ in range(seconds):
        device.watch.tick()
        await device.trials.tick()
        await later(1.0)


async def asked(device: Device, count: int, prefix: str = "q") -> None:
    """Requests, one after another, each answered by the version before."""
    for number in range(count):
        await device.ask(f"{prefix}{number}")
        await later(0.4)
        assert device.transport.reply(f"{prefix}{number}")["result"]["label"] == "on", device.dump()
        if number % 3 == 0:
            await look(device)


async def begun(device: Device, terms: str = TERMS, **fields: Any) -> None:
    await device.ask("first")
    await later(0.4)
    device.library.put_on_trial("m", terms, variant=NEW, variants=(NEW,), **fields)
    await look(device, 2)


def record(device: Device) -> Any:
    return device.context.trials["m"]


@pytest.mark.parametrize(
    ("answers", "state", "word"),
    [
        ((5.0, "on"), "promoted", "agreement 1.000"),
        ((5.0, "off"), "returned", "agreement 0.000"),
        ((25.0, "on"), "returned", "latency 5.000"),
        ((5.0, "fail"), "returned", "failures 1.000"),
        ((5.0, "die"), "returned", f"its worker ended {MOST_DEATHS} times"),
    ],
)
def test_a_version_is_kept_or_returned_by_what_it_does(answers: tuple[float, str], state: str, word: str) -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.answers[NEW.digest] = answers
        await begun(device)
        assert "trial-started" in device.kinds() and device.served().model.version == 1
        await asked(device, 45)
        await look(device, 3)
        assert record(device).state == state and word in record(device).reason, record(device)
        assert device.kinds().count("trial-ended") == 1
        act = "promote" if state == "promoted" else "rollback"
        assert device.operator.calls == [(act, "m")]
        assert device.served().model.version == (2 if state == "promoted" else 1)
        assert "m/trial" not in device.manager.ledger.accounts()
        assert device.served().observer is None
        told = device.transport.bodies("models")
        assert all("m/trial" not in str(body) for body in told)

    Device.run(scenario, a_model(), plan=Plan())


def test_a_version_that_dies_between_copies_is_counted_and_one_that_somebody_killed_is_not() -> None:
    async def scenario(device: Device) -> None:
        await begun(device)
        for cause in (DeathCause.SIGNALLED_FROM_OUTSIDE, *[DeathCause.CRASHED] * MOST_DEATHS):
            assert record(device).state == "running", record(device)
            await asked(device, 2, f"{len(device.spawner.workers)}-")
            await look(device, 30)  # what was copied is computed by then
            device.spawner.workers[-1].die("killed by SIGSEGV", cause)
            await look(device, 2)
        assert record(device).state == "returned" and f"ended {MOST_DEATHS} times" in record(device).reason

    Device.run(scenario, a_model())


@pytest.mark.parametrize("terms", ['{"mode": "split"}', '{"shares": 0.5}', '{"least": 1}', "x"])
def test_terms_of_a_later_release_return_the_version_and_end_nothing(terms: str) -> None:
    async def scenario(device: Device) -> None:
        await begun(device, terms)
        await look(device, 3)
        assert record(device).state == "returned" and "does not know its terms" in record(device).reason
        assert device.operator.calls == [("rollback", "m")] and device.served().model.version == 1

    Device.run(scenario, a_model())


@pytest.mark.parametrize("wall_s", [0.0, 4e9], ids=["1970", "2096"])
def test_a_clock_that_jumps_in_a_trial_neither_ends_nor_prolongs_it(wall_s: float) -> None:
    """A board without a battery begins in 1970, and is set in the middle: the trial's time is that of its running."""

    async def scenario(device: Device) -> None:
        await begun(device, json.dumps({**json.loads(TERMS), "within_s": 60}))
        since_s = record(device).since_s
        device.clock.set_wall(wall_s)
        await look(device, 30)
        assert (record(device).state, record(device).since_s) == ("running", since_s)
        await look(device, 60)
        assert record(device).state == "returned" and record(device).spent_s < 61.0, record(device)
        assert device.served().model.version == 1 and device.operator.calls == [("rollback", "m")]

    Device.run(scenario, a_model())


def test_a_silent_version_fails_and_its_worker_is_ended() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.answers[NEW.digest] = (5.0, "silence")
        await begun(device)
        await asked(device, 30)
        assert record(device).state == "running"
        for number in range(40):
            await asked(device, 1, f"later{number}-")
            await look(device, 12)
        assert record(device).state == "returned", record(device)

    Device.run(scenario, a_model())


def test_the_verdict_is_carried_out_until_the_store_shows_it() -> None:
    async def scenario(device: Device) -> None:
        device.operator.fault = StoreError("another command changes it", cause=Cause.BUSY)
        await begun(device)
        await asked(device, 30)
        await look(device, 12)
        assert device.operator.calls == [("promote", "m")] * 2 and device.served().model.version == 2

    Device.run(scenario, a_model())


def test_nothing_is_copied_while_requests_run_or_memory_is_short() -> None:
    def loaded(device: Device) -> bool:
        return any(one.alive and one.variant == NEW for one in device.spawner.workers)

    async def scenario(device: Device) -> None:
        await begun(device)
        device.spawner.plan.compute_s = None
        for name in ("one", "two", "three"):
            await device.ask(name)
        await later(0.1)
        device.spawner.workers[0].finish()  # a row at a time: the others wait or run
        await look(device, 5)
        assert device.status("one") == 200 and not loaded(device), device.dump()
        device.manager.close_admission(Closure(Cause.MEMORY, "short"))
        for _ in range(2):
            device.spawner.workers[0].finish()
            await later(0.1)
        await look(device, 5)
        assert device.status("three") == 200 and not loaded(device)
        device.manager.open_admission()
        await look(device, 5)
        assert loaded(device), device.dump()

    Device.run(scenario, a_model(), max_rows=1)


def test_the_worker_of_a_version_on_trial_is_the_first_to_be_evicted() -> None:
    async def scenario(device: Device) -> None:
        await begun(device)
        await asked(device, 3)
        await look(device, 2)
        assert "m/trial" in device.manager.ledger.accounts()
        assert await device.manager.evict_idle("the host needs memory")
        assert "m/trial" not in device.manager.ledger.accounts() and device.served().worker is not None
        await asked(device, 45, "again")
        await look(device, 2)
        assert record(device).state == "promoted", "it is loaded again, and an eviction is no death"

    Device.run(scenario, a_model())


def test_a_daemon_that_was_killed_goes_on_and_a_verdict_is_not_forgotten() -> None:
    kept, library = KeptTrials(), FakeLibrary(a_model())

    async def first(device: Device) -> None:
        await begun(device)
        await asked(device, 5)

    async def second(device: Device) -> None:
        await look(device, 2)
        assert device.served().model.version == 1 and record(device).restarts == 1
        assert "trial-started" not in device.kinds()
        device.operator.library = None  # the store command is killed with the daemon
        await asked(device, 40)
        assert kept.records["m"].state == "promoted"

    async def third(device: Device) -> None:
        await look(device, 4)
        assert device.operator.calls == [("promote", "m")] and device.served().model.version == 2

    for scenario in (first, second, third):
        Device.run(scenario, ports={"library": library, "trials": kept})


def test_a_version_during_whose_trial_the_daemon_ends_again_and_again_is_returned() -> None:
    kept, library = KeptTrials(), FakeLibrary(a_model())

    async def first(device: Device) -> None:
        await begun(device)

    async def again(device: Device) -> None:
        await look(device, 3)

    Device.run(first, ports={"library": library, "trials": kept})
    for _ in range(MOST_RESTARTS):
        last = Device.run(again, ports={"library": library, "trials": kept})
    assert kept.records["m"].state == "returned" and last.operator.calls == [("rollback", "m")]


def test_a_person_ends_a_trial_and_a_model_without_a_version_before_has_none() -> None:
    async def scenario(device: Device) -> None:
        await begun(device)
        device.library.end_trial("m", promote=True)
        await look(device, 2)
        assert record(device).state == "promoted" and "ended on the device" in record(device).reason
        assert device.operator.calls == []
        device.library.change("m", trial=TERMS, version=3)  # its version before is damaged
        await look(device, 3)
        assert device.operator.calls == [("promote", "m")]

    Device.run(scenario, a_model())


def test_a_version_that_was_returned_is_tried_again_when_it_comes_again() -> None:
    kept, library = KeptTrials(), FakeLibrary(a_model())

    async def first(device: Device) -> None:
        device.spawner.plan.answers[NEW.digest] = (5.0, "off")
        await begun(device)
        await asked(device, 45)

    async def second(device: Device) -> None:
        assert kept.records["m"].state == "returned"
        await look(device, 2)
        await begun(device)
        assert "trial-started" in device.kinds() and record(device).state == "running"
        await asked(device, 45)
        assert record(device).state == "promoted"

    for scenario in (first, second):
        Device.run(scenario, ports={"library": library, "trials": kept})


@pytest.mark.parametrize("promote", [True, False])
def test_a_trial_that_ends_while_no_daemon_runs_is_no_longer_shown_as_running(promote: bool) -> None:
    kept, library = KeptTrials(), FakeLibrary(a_model())

    async def second(device: Device) -> None:
        library.end_trial("m", promote)
        await look(device, 2)
        assert record(device).state == ("promoted" if promote else "returned")
        assert "ended on the device" in record(device).reason and "trial-ended" in device.kinds()

    for scenario in (begun, second):
        Device.run(scenario, ports={"library": library, "trials": kept})


def copy(client: str, number: int) -> Copy:
    return Copy(client, JobWork(f"{number}", None, {}), 1, (), 1.0, True, None, None)


def test_no_client_decides_a_trial_alone_by_asking_more() -> None:
    waiting = WaitingCopies()
    for number in range(1000):
        waiting.add(copy("hog", number))
        if number % 100 == 0:
            waiting.add(copy("a", number))
        if number % 250 == 0:
            waiting.add(copy("b", number))
    assert len(waiting) == COPIES
    order = [waiting.take().client for _ in range(COPIES)]
    assert set(order[:3]) == set(order[3:6]) == {"a", "b", "hog"}
    assert Counter(order) == {"a": 6, "b": 4, "hog": 6}
    for number in range(40):
        waiting.add(copy("hog", number))
    assert [waiting.take().work.id for _ in range(COPIES)] == [f"{number}" for number in range(24, 40)], "the newest"
    assert not len(waiting)


def test_no_client_takes_all_places_of_what_the_new_version_has_answered() -> None:
    waiting = WaitingCopies()
    for number in range(COPIES):
        assert waiting.has_room("hog", 0) and waiting.has_room("hog", COPIES - number - 1)
        waiting.add(copy("hog", number))
    assert not waiting.has_room("hog") and waiting.has_room("a")
    for number in range(COPIES // 2):
        waiting.add(copy("a", number))
    assert not waiting.has_room("a") and not waiting.has_room("hog") and waiting.has_room("b")


def test_a_copy_is_its_clients_to_the_worker() -> None:
    """What a worker bounds by client, such as the cost of grammars, was used up by one client for the copies of all."""
    job = Job(("edge/v1/client/a/reply/x", "1"), "m", None, ("x",), {}, 5, 9.0, 0.0)
    assert work_of(job).client == "edge/v1/client/a/reply/x"


def test_labelled_spans_agree_by_label_and_place() -> None:
    def answer(label: str, start: int, score: float = 0.9) -> list[dict[str, Any]]:
        return [{"spans": [{"label": label, "start": start, "end": 12, "text": "", "score": score}], "tokens": 5}]

    assert compare(answer("room", 8), answer("room", 8, 0.7))
    assert not compare(answer("room", 8), answer("time", 8))
    assert not compare(answer("room", 8), answer("room", 7))
    assert not compare(answer("room", 8), [{"spans": []}])
    assert not compare(answer("room", 8), [{"label": "room"}])


SHARE = json.dumps({**json.loads(TERMS), "mode": "share", "share": 1.0})


@pytest.mark.parametrize(
    ("answers", "state", "by_new"),
    [
        ((5.0, "on"), "promoted", 20),
        ((5.0, "off"), "returned", 20),
        ((5.0, "fail"), "returned", 0),
        ((5.0, "die"), "returned", 0),
    ],
)
def test_a_share_of_the_requests_is_answered_by_the_new_version_and_none_fails(
    answers: tuple[float, str], state: str, by_new: int
) -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.answers[NEW.digest] = answers
        await begun(device, SHARE)
        for number in range(60):
            await device.ask(f"q{number}")
            await later(0.4)
            assert device.status(f"q{number}") == 200, device.dump()
            if number % 3 == 0:
                await look(device)
        await look(device, 3)
        assert record(device).state == state, record(device)
        assert (record(device).figures["answered"] or 0) >= by_new
        assert device.served().observer is None and device.served().diverter is None
        assert "m/trial" not in device.manager.ledger.accounts()

    Device.run(scenario, a_model(), plan=Plan())


def test_a_silent_version_gives_a_request_back_in_time_for_the_version_before() -> None:
    async def scenario(device: Device) -> None:
        await begun(device, SHARE)
        await asked(device, 4)
        device.spawner.plan.answers[NEW.digest] = (5.0, "silence")
        await device.ask("hung", deadline_s=8.0)
        await later(7.9)
        assert device.status("hung") == 200, device.dump()
        await device.ask("cancelled", deadline_s=30.0)
        await later(0.2)
        await device.cancel("cancelled")
        await later(0.2)
        assert device.status("cancelled") == 499

    Device.run(scenario, a_model())


@pytest.mark.parametrize(("old_ms", "beats", "failed"), [(5.0, False, 1), (2000.0, False, 0), (2000.0, True, 0)])
def test_a_long_request_after_short_ones_is_no_fault_where_the_version_before_took_as_long(
    old_ms: float, beats: bool, failed: int
) -> None:
    """Else a client returns any version that gets a share, by a short request and then a long one, again and again."""

    async def scenario(device: Device) -> None:
        await begun(device, SHARE)
        await asked(device, 4)
        before = record(device).figures["failed"]
        candidate = next(one for one in device.spawner.workers if one.variant == NEW)
        device.spawner.plan.answers[NEW.digest] = (5.0, "silence")
        device.spawner.plan.answers[a_model().variant.digest] = (old_ms, "on")
        await device.ask("long", deadline_s=60.0)
        for _ in range(13):
            await later(1.0)
            if beats:
                candidate.tell(Heartbeat())
        await later(0.2)
        assert device.status("long") == 200, device.dump()
        assert candidate.alive is beats, "a worker that is heard is not ended"
        await look(device, 26)
        assert record(device).figures["failed"] == before + failed, record(device)

    Device.run(scenario, a_model())


def test_what_a_clients_grammar_costs_is_no_fault_of_the_version() -> None:
    async def scenario(device: Device) -> None:
        await begun(device, SHARE)
        await asked(device, 4)
        before = record(device).figures["failed"]
        candidate = next(one for one in device.spawner.workers if one.variant == NEW)
        device.spawner.plan.answers[NEW.digest] = (5.0, "silence")
        await device.ask("costly", deadline_s=60.0)
        await later(0.2)
        (name,) = candidate.inside
        device.spawner.plan.answers[NEW.digest] = (5.0, "on")
        candidate.refuse_grammar(name)
        await later(1.0)
        assert device.status("costly") == 200, device.dump()
        await look(device, 26)
        assert record(device).figures["failed"] == before

    Device.run(scenario, a_model())


def test_requests_of_the_share_run_beside_the_others_and_go_back_when_the_trial_ends() -> None:
    async def scenario(device: Device) -> None:
        await begun(device, SHARE)
        await asked(device, 4)
        device.spawner.plan.answers[NEW.digest] = (5.0, "silence")
        for name in ("one", "two", "three"):
            await device.ask(name)
        await later(0.5)
        assert device.status("two") == device.status("three") == 200, "the new version takes one at a time"
        device.library.end_trial("m", promote=False)
        await look(device, 3)
        assert device.status("one") == 200, device.dump()

    Device.run(scenario, a_model())


BIG_OLD, BIG_NEW = a_variant("old", 1500, 1600), a_variant("new", 1500, 1600)


async def begun_without_room(device: Device, terms: str) -> None:
    await device.ask("first")
    await later(0.4)
    device.library.put_on_trial("m", terms, variant=BIG_NEW, variants=(BIG_NEW,))
    await look(device, 2)


@pytest.mark.parametrize("mode", ["shadow", "share"])
@pytest.mark.parametrize(("answer", "state"), [("on", "promoted"), ("off", "returned"), ("fail", "returned")])
def test_where_memory_does_not_hold_both_they_take_turns(mode: str, answer: str, state: str) -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.answers[BIG_NEW.digest] = (5.0, answer)
        await begun_without_room(device, json.dumps({**json.loads(SHARE), "mode": mode}))
        for number in range(150):
            await device.ask(f"q{number}", deadline_s=60.0)
            await later(3.0)
            assert device.status(f"q{number}") == 200, device.dump()
            if number % 2 == 0:
                await look(device)
        await look(device, 3)
        assert record(device).state == state, record(device)
        assert record(device).figures["turns"] >= 2
        assert device.served().worker is not None or state == "promoted", "the version before is in memory again"
        assert not device.served().lent

    Device.run(scenario, a_model(variant=BIG_OLD), plan=Plan(load_s=1.0))


@pytest.mark.parametrize(
    ("terms", "deadline_s", "why"),
    [({"turns": False}, 60.0, "the terms exclude them"), ({}, 3.0, "a request had 3.0 s, and 4.0 s are needed")],
)
def test_no_turn_is_begun_where_a_request_could_be_late_for_it(
    terms: dict[str, Any], deadline_s: float, why: str
) -> None:
    async def scenario(device: Device) -> None:
        await begun_without_room(device, json.dumps({**json.loads(TERMS), **terms}))
        for number in range(40):
            await device.ask(f"q{number}", deadline_s=deadline_s)
            await later(2.0)
            assert device.status(f"q{number}") == 200
        await look(device, 27)
        assert record(device).state == "running" and record(device).figures["turns"] == 0
        assert why in record(device).reason, record(device)
        assert all(one.variant == BIG_OLD for one in device.spawner.running())

    Device.run(scenario, a_model(variant=BIG_OLD), plan=Plan(load_s=1.0))


def test_a_request_that_the_new_version_cannot_take_ends_its_turn() -> None:
    async def scenario(device: Device) -> None:
        await begun_without_room(device, TERMS)
        for number in range(16):
            await device.ask(f"q{number}", deadline_s=60.0)
            await later(0.2)
        device.spawner.plan.answers[BIG_NEW.digest] = (5.0, "silence")
        for _ in range(600):
            await later(0.1)
            if any(one.alive and one.variant == BIG_NEW and one.inside for one in device.spawner.workers):
                break
        else:
            pytest.fail(device.dump())
        for number in range(6):  # more than wait for the new version
            await device.ask(f"late{number}", deadline_s=60.0)
        await later(29.0)
        assert [device.status(f"late{number}") for number in range(6)] == [200] * 6, device.dump()

    Device.run(scenario, a_model(variant=BIG_OLD), plan=Plan(load_s=1.0))


def test_what_was_measured_goes_on_over_a_restart() -> None:
    kept, library = KeptTrials(), FakeLibrary(a_model())

    async def first(device: Device) -> None:
        await begun(device)
        await asked(device, 12)
        await device.trials._trials.close()  # type: ignore[union-attr]

    async def second(device: Device) -> None:
        seen = kept.samples["m"].seen
        assert seen >= 8
        await look(device, 2)
        assert record(device).figures["requests"] >= seen
        await asked(device, 35)
        await look(device, 2)
        assert record(device).state == "promoted" and kept.samples == {}

    for scenario in (first, second):
        Device.run(scenario, ports={"library": library, "trials": kept})
