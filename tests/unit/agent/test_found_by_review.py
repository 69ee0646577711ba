"""What reviewers brought about, with fresh eyes, on a fresh clone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.errors import BackendError
from edge_agent.bundle.catalog import InstalledModel, TaskSpec
from tests.support.fakes import Plan, RecordingNotifier, a_model, an_adapter
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

TWO_AT_ONCE = Plan(compute_s=None, sequences=2, mixed=False)


def generator() -> InstalledModel:
    return replace(a_model(), task=TaskSpec("generate", max_tokens=64))


async def withdrawn_and_asked_again(device: Device) -> None:
    """The worker has not dropped the first question yet, when another one comes under its id."""
    await device.ask("1", {"prompt": "first"}, deadline_s=20.0)
    await settle()
    device.spawner.last.plan = replace(device.spawner.last.plan, call_s=0.2)
    await device.cancel("1")
    await settle()
    await device.ask("1", {"prompt": "second"}, deadline_s=20.0)
    await settle()


def answers(device: Device) -> list[tuple[int, object]]:
    return [(one["status"], (one.get("result") or {}).get("text")) for one in device.transport.replies()]


def test_a_cancel_under_way_takes_nothing_from_the_next_question_of_that_id() -> None:
    async def scenario(device: Device) -> None:
        await withdrawn_and_asked_again(device)
        await later(0.5)
        device.spawner.last.end(next(iter(device.spawner.last.inside)), "to the second")
        await settle()
        assert answers(device) == [(499, None), (200, "to the second")]
        assert len(device.context.requests) == 0
        device.transport.published.clear()  # each question was answered once, under the same id

    Device.run(scenario, generator(), plan=TWO_AT_ONCE)


def test_the_answer_to_a_withdrawn_question_is_not_given_to_the_next_one_of_that_id() -> None:
    async def scenario(device: Device) -> None:
        await withdrawn_and_asked_again(device)
        first, second = device.spawner.last.inside
        device.spawner.last.end(first, "to the first")
        device.spawner.last.end(second, "to the second")
        await later(0.5)
        assert answers(device) == [(499, None), (200, "to the second")]
        device.transport.published.clear()

    Device.run(scenario, generator(), plan=TWO_AT_ONCE)


def test_what_comes_too_late_is_learned_from() -> None:
    """Else a board that slows down goes on to promise what it cannot keep."""

    async def scenario(device: Device) -> None:
        await device.ask("quick")
        await settle()
        device.spawner.last.finish(compute_ms=5.0)
        await settle()
        for number in range(4):
            await device.ask(f"late-{number}", deadline_s=1.0)
            await later(2.0)
            device.spawner.last.finish(compute_ms=2000.0)
            await settle()
        assert device.context.stats.expired == 1, "the next ones are refused at the door"
        assert device.status("late-3") == 503

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_batch_is_learned_once_and_as_long_as_its_longest_text() -> None:
    async def scenario(device: Device) -> None:
        learned: list[tuple[object, ...]] = []
        device.context.costs.learn = lambda *sample: learned.append(sample)  # type: ignore[method-assign]
        for round_ in "ab":
            await device.ask(f"first-{round_}", {"text": "x"})
            await settle()
            for number in range(3):
                await device.ask(f"{round_}{number}", {"text": "y" * (10 + number)})
            await settle()
            device.spawner.last.finish(compute_ms=5.0)
            await settle()
            device.spawner.last.finish(compute_ms=7.0)
            await settle()
        assert [sample[1:4] for sample in learned] == 2 * [(1, 1, 0.005), (3, 36, 0.007)]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_an_adapter_that_cannot_be_detached_fails_its_request_alone() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "one"})
        await later(0.1)
        device.spawner.plan.refuses["detach"] = BackendError("the runtime does not let go of it")
        device.library.change("m", adapters=(an_adapter("one", "sha256:new"),))
        device.watch.tick()
        await device.ask("2", {"text": "y", "adapter": "one"})
        await later(0.1)
        assert (device.status("1"), device.status("2"), device.server.fault) == (200, 500, None)

    Device.run(scenario, a_model(adapters=("one",)))


async def running(device: Device) -> asyncio.Task[None]:
    task = asyncio.create_task(device.agent.run(RecordingNotifier()))
    await later(2.0)
    return task


def test_a_resident_model_that_dies_idle_comes_back() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        device.spawner.last.die()
        await later(5.0)
        assert len(device.spawner.running()) == 1
        device.agent.stop("enough")
        await task

    Device.run(scenario, a_model(), resident=("all",))


def test_the_heartbeat_comes_at_its_own_interval() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        before = len(device.transport.bodies("/status"))
        await later(600.0)
        assert len(device.transport.bodies("/status")) - before == 10
        device.agent.stop("enough")
        await task

    Device.run(scenario, a_model(), interval_s=600.0)


def test_a_running_answer_of_a_removed_model_can_be_cancelled() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"prompt": "x"})
        await settle()
        device.library.remove("m")
        device.watch.tick()
        await device.cancel("1")
        await settle()
        assert device.status("1") == 499

    Device.run(scenario, generator(), plan=TWO_AT_ONCE)


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


def states(device: Device) -> list[tuple[str, str]]:
    return [(body["state"], body["reason"]) for body in device.transport.bodies("/status")]


def test_whoever_watches_from_afar_is_told_at_once_that_nothing_is_taken_and_that_it_is_again() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        device.manager.close_admission(Closure(Cause.MEMORY, "no memory: 3 MiB are left"))
        device.guard.look = _nothing  # type: ignore[method-assign]
        await later(2.0)
        device.manager.close_admission(Closure(Cause.MEMORY, "no memory: 2 MiB are left"))
        await later(2.0)
        device.manager.open_admission()
        await later(2.0)
        assert states(device)[-2:] == [("degraded", "no requests are taken for want of memory"), ("online", "serving")]
        device.agent.stop("enough")
        await task

    Device.run(scenario, a_model(), heartbeat_s=600.0, interval_s=600.0)


async def _nothing() -> None:
    pass


def test_a_quarantine_is_in_the_status_within_a_second_and_gone_when_it_is_lifted() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        device.quarantine()
        await later(1.5)
        assert states(device)[-1] == ("degraded", "quarantined: m")
        device.served().lifecycle.lift_quarantine()
        await later(1.5)
        assert states(device)[-1] == ("online", "serving")
        device.agent.stop("enough")
        await task

    Device.run(scenario, a_model(), heartbeat_s=600.0, interval_s=600.0)


def test_a_load_that_fails_for_every_request_is_told_once_in_a_while() -> None:
    async def scenario(device: Device) -> None:
        for number in range(20):
            device.spawner.plan.load_faults.append(BackendError("the file is no model"))
            await device.ask(str(number))
            await later(1.0)
        assert device.status("19") == 500
        assert device.kinds().count("load-failed") == 1

    Device.run(scenario, a_model())


def test_requests_to_a_quarantined_model_are_no_events() -> None:
    async def scenario(device: Device) -> None:
        device.quarantine()
        for number in range(5):
            await device.ask(str(number))
            await later(0.1)
        assert device.status("4") == 503
        assert device.kinds() == []

    Device.run(scenario, a_model())


def test_a_model_that_was_slow_to_load_once_is_loaded_for_those_who_cannot_wait_for_it() -> None:
    """Found by seed 1218: a load of 45 s, during which the process stood still, kept all others out for ever."""

    async def scenario(device: Device) -> None:
        device.context.costs.expect(device.served().cost_key, 16, 0.01)
        device.served().lifecycle.expect_load(45.0)
        await device.ask("1", deadline_s=10.0)
        refused = device.transport.reply("1")
        assert (refused["status"], "cannot meet the deadline: 45.0 s of queue" in refused["reason"]) == (503, True)
        await later(1.0)
        await device.ask("2", deadline_s=10.0)
        await later(0.1)
        assert device.status("2") == 200

    Device.run(scenario, a_model())


def test_requests_that_cannot_wait_load_a_model_that_finds_no_room_once_a_minute() -> None:
    async def scenario(device: Device) -> None:
        device.context.costs.expect(device.served().cost_key, 16, 0.01)
        device.served().lifecycle.expect_load(45.0)
        device.sensors.held_bytes = lambda: 0
        device.sensors.set(ram_total=4e9, ram_available=1.0)
        for number in range(100):
            await device.ask(str(number), deadline_s=10.0)
            await later(1.0)
        assert device.kinds().count("load-failed") <= 2

    Device.run(scenario, a_model())
