"""Requests that their clients withdraw, and ids that are used again meanwhile."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.bundle.catalog import InstalledModel, TaskSpec
from tests.support.fakes import Plan, a_model
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
