"""The answer leaves once, is remembered for retries, and carries figures only where they were measured."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError
from edge_agent.core.job import Job, JobState
from tests.support.fakes import Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def test_a_reply_carries_energy_and_temperature_where_they_are_fresh() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(power=10.0, temperature=55.5)
        device.watch.tick()
        await device.ask("1", {"texts": ["a", "b"]})
        await later(0.5)
        device.spawner.last.finish(compute_ms=500.0)
        reply = device.transport.reply("1")
        assert reply["energy"] == {"joules": 5.0, "method": "power over the request's share of the compute"}
        assert reply["temperature_c"] == 55.5
        assert [result["text"] for result in reply["result"]] == ["a", "b"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_request_s_energy_is_its_share_of_the_batch() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(power=10.0)
        device.watch.tick()
        await device.ask("one")
        await settle()
        device.spawner.last.finish()
        await device.ask("busy")
        await settle()
        await device.ask("1", {"text": "a"})
        await device.ask("3", {"texts": ["a", "b", "c"]})
        device.spawner.last.finish()
        await later(1.0)
        device.spawner.last.finish(compute_ms=1000.0)
        assert device.transport.reply("1")["energy"]["joules"] == 2.5
        assert device.transport.reply("3")["energy"]["joules"] == 7.5

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_old_or_missing_readings_give_null_with_the_reason() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(power=10.0, temperature=55.5)
        device.watch.tick()
        await device.ask("old")
        await later(6.0)
        device.spawner.last.finish()
        reply = device.transport.reply("old")
        assert reply["energy"] == {"joules": None, "method": "the last power sample is too old"}
        assert reply["temperature_c"] is None
        device.sensors.lose("power", "the rail is gone")
        device.watch.tick()
        await device.ask("lost")
        await later(0.5)
        device.spawner.last.finish()
        assert device.transport.reply("lost")["energy"] == {"joules": None, "method": "the rail is gone"}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_times_add_up() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("first")
        await settle()
        await device.ask("second")
        await later(0.25)
        device.spawner.last.finish()
        await settle()
        await later(0.5)
        device.spawner.last.finish(compute_ms=400.0)
        timing = device.transport.reply("second")["timing"]
        assert timing == {"queue_ms": 250.0, "tokenize_ms": 0.1, "compute_ms": 400.0, "total_ms": 750.0}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_retry_of_an_answered_request_gets_the_same_words_without_work() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        first = device.transport.published[-1]
        again = device.message("1")
        await device.intake.take(again)
        await later(0.1)
        second = device.transport.published[-1]
        assert second is not first
        assert (second.topic, second.payload, second.correlation) == (first.topic, first.payload, first.correlation)
        assert [operation for operation, _ in device.spawner.last.heard].count("submit") == 1
        assert device.transport.acked == [1, 2]
        assert device.context.stats.duplicates == 1
        device.transport.published.clear()

    Device.run(scenario, a_model())


def test_a_refusal_is_repeated_until_its_time_to_come_back_and_then_decided_anew() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append(BackendError("no such operator"))
        await device.ask("1", deadline_s=100.0)
        await later(1.0)
        reply = device.transport.reply("1")
        assert (reply["status"], reply["retry_after_s"]) == (500, 30.0)
        tries = device.spawner.tries
        await later(20.0)
        await device.ask("1", deadline_s=80.0)
        await later(1.0)
        assert [body["status"] for body in device.transport.replies()] == [500, 500]
        assert device.spawner.tries == tries, "nothing was tried for the repeated one"
        await later(10.0)
        await device.ask("1", deadline_s=60.0)
        await later(1.0)
        assert [body["status"] for body in device.transport.replies()] == [500, 500, 200]
        device.transport.published.clear()

    Device.run(scenario, a_model())


def test_a_refusal_without_a_time_to_come_back_concludes_its_request() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=100.0)
        await settle()
        device.spawner.last.fail(next(iter(device.spawner.last.inside)), 422, Cause.INVALID, "top_k is too large")
        await later(50.0)
        await device.ask("1", deadline_s=50.0)
        await later(1.0)
        assert [body["status"] for body in device.transport.replies()] == [422, 422]
        assert [operation for operation, _ in device.spawner.last.heard].count("submit") == 1
        device.transport.published.clear()

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_retry_of_an_open_request_changes_nothing() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        await device.ask("1")
        await settle()
        device.spawner.last.finish()
        assert device.transport.statuses() == {"1": [200]}
        assert set(device.transport.acked) == {1, 2}
        assert len(device.transport.acked) == 2

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_the_same_id_of_another_client_is_another_request() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", client="a")
        await device.ask("1", client="b")
        await later(0.1)
        topics = [message.topic for message in device.transport.published if "/reply" in message.topic]
        assert topics == ["edge/v1/client/a/reply/here", "edge/v1/client/b/reply/here"]
        device.transport.published.clear()

    Device.run(scenario, a_model())


def test_a_final_job_cannot_be_answered_again() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        (job,) = device.context.requests.open_jobs()
        device.server._answers.refuse(job, 503, Cause.UNAVAILABLE, "first")
        with pytest.raises(ValueError, match="cannot become"):
            device.server._answers.refuse(job, 500, Cause.WORKER_FAILED, "second")
        assert device.transport.statuses() == {"1": [503]}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


@pytest.mark.parametrize(
    ("status", "cause", "running", "state"),
    [
        (499, Cause.CANCELLED, False, JobState.CANCELLED),
        (499, Cause.CANCELLED, True, JobState.CANCELLED),
        (500, Cause.WORKER_FAILED, False, JobState.FAILED),
        (500, Cause.WORKER_DIED, True, JobState.FAILED),
        (503, Cause.UNAVAILABLE, False, JobState.REFUSED),
        (503, Cause.UNAVAILABLE, True, JobState.FAILED),
        (404, Cause.UNKNOWN_ADAPTER, True, JobState.FAILED),
        (408, Cause.EXPIRED, True, JobState.EXPIRED),
    ],
)
def test_the_state_follows_from_the_cause(status: int, cause: Cause, running: bool, state: JobState) -> None:
    async def scenario(device: Device) -> None:
        jobs: list[Job] = []
        await device.ask("busy")
        await settle()
        jobs.extend(device.context.requests.open_jobs())
        if not running:
            await device.ask("waiting")
            jobs = [device.context.requests.open_jobs()[-1]]
            device.served().queue.remove(jobs[0])
        device.server._answers.refuse(jobs[0], status, cause, "because")
        assert jobs[0].state is state
        assert device.context.stats.causes == {cause: 1}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_an_answer_too_large_to_send_becomes_one_that_says_so() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"texts": ["x" * 32000] * 3})
        await later(0.1)
        assert device.status("1") == 200
        device.spawner.plan.compute_s = None
        await device.ask("2")
        await settle()
        inside = device.spawner.last.inside["tester/2"]
        device.spawner.last.inside["tester/2"] = msgspec.structs.replace(inside, texts=["x" * 140_000])
        device.spawner.last.finish()
        reply = device.transport.reply("2")
        assert reply["status"] == 413
        assert "ask for fewer texts" in reply["reason"]

    Device.run(scenario, a_model())


def test_an_answer_that_finds_no_room_is_told_as_an_event() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.compute_s = None
        await device.ask("1")
        await settle()
        device.transport.full = True
        device.spawner.last.finish()
        await settle()
        assert device.kinds() == ["answer-dropped"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "again", "cancel", "finish", "fail", "die", "wait", "tick"]),
        st.integers(0, 12),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happens_every_request_is_answered_once_or_expires(steps: list[tuple[str, int]]) -> None:
    """Duplicates are allowed to repeat the same words; nothing else is said twice, and nothing stays open."""

    async def scenario(device: Device) -> None:
        for step, number in steps:
            await play(device, step, number)
            await settle()
        device.spawner.plan.compute_s = 0.01
        for worker in device.spawner.running():
            worker.finish()
        await later(700.0)
        assert len(device.context.requests) == 0, device.dump()
        by_id: dict[str, set[bytes]] = {}
        for message in device.transport.published:
            if "/reply" in message.topic:
                by_id.setdefault(str(message.correlation), set()).add(message.payload)
        assert all(len(words) == 1 for words in by_id.values()), device.dump()
        device.transport.published.clear()

    Device.run(scenario, a_model(adapters=["a"]), plan=Plan(compute_s=None), quarantine_deaths=4)


async def play(device: Device, step: str, number: int) -> None:
    last = device.spawner.workers[-1] if device.spawner.workers else None
    if step in {"ask", "again"}:
        body = {"text": "x", "adapter": "a"} if number % 3 == 0 else {"text": "x"}
        if number % 2:
            # Short-lived ones have names of their own: after its deadline a name may be used for something new.
            await device.ask(f"short{device._acks}", body, deadline_s=number)
        else:
            await device.ask(f"r{number}", body, deadline_s=600.0)
    elif step == "cancel":
        await device.cancel(f"r{number}")
    elif step == "wait":
        await later(number / 4)
    elif step == "tick":
        device.watch.tick()
    elif last is not None and last.alive:
        if step == "finish":
            last.finish(list(last.inside)[: 1 + number // 2])
        elif step == "fail" and last.inside:
            last.fail(next(iter(last.inside)))
        elif step == "die":
            last.die()


def test_an_answer_too_large_for_a_message_is_counted_as_what_it_is() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        device.spawner.last.finish(label="z" * 200_000)
        await settle()
        stats = device.context.stats
        assert device.status("1") == 413
        assert (dict(stats.statuses), stats.model("m").answered) == ({413: 1}, 0)
        assert dict(stats.causes) == {Cause.TOO_LARGE: 1}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))
