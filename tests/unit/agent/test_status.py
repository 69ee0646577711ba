"""The reported state: when it changes, and how often it is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.bundle.catalog import TaskSpec
from tests.support.fakes import RecordingNotifier, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


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


def test_labels_leave_the_list_of_models_where_it_would_be_larger_than_a_message() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        device.reporter.report_models()
        told = device.transport.bodies("/models")[-1]["models"]
        assert len(msgspec.json.encode(told)) < MESSAGE_BYTES
        assert {entry["name"]: entry["labels"] for entry in told} == {"m": [], "big": []}
        assert [adapter["labels"] for entry in told for adapter in entry["adapters"]] == [[]] * 40
        device.agent.stop("enough")
        await task

    labels = tuple(f"a label of a whole sentence, number {number}" for number in range(150))
    classes = TaskSpec("classify", labels=labels)
    many = replace(a_model(adapters=[f"a{n}" for n in range(40)]), task=classes)
    many = replace(many, adapters=tuple(replace(adapter, task=classes) for adapter in many.adapters))
    Device.run(scenario, many, replace(a_model("big"), task=classes))


def test_labels_stand_in_the_list_of_models_where_they_fit() -> None:
    async def scenario(device: Device) -> None:
        task = await running(device)
        device.reporter.report_models()
        (entry,) = device.transport.bodies("/models")[-1]["models"]
        assert entry["labels"] == ["on", "off"]
        device.agent.stop("enough")
        await task

    Device.run(scenario, replace(a_model(), task=TaskSpec("classify", labels=("on", "off"))))
