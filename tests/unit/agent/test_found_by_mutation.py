"""Lines that could be changed without a test noticing, until a reviewer did: each stands here with what it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_agent.agent.context import full_grant
from edge_agent.base.causes import Cause, Closure
from edge_agent.base.limits import ADAPTERS_RESIDENT
from edge_agent.bundle.catalog import TaskSpec
from edge_agent.core import governor
from edge_agent.core.governor import ComputeGrant, GovernorLevel, Observation
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    """What the governor is told each second."""
    found: list[Observation] = []

    def decide(
        _plan: Any, _temperature: Any, memory: Any, _now_s: float, seen: Observation
    ) -> tuple[ComputeGrant, Any]:
        found.append(seen)
        return full_grant(8, 4), memory

    monkeypatch.setattr(governor, "decide", decide)
    return found


def test_the_governor_is_told_how_busy_the_workers_were_and_how_long_a_row_takes(told: list[Observation]) -> None:
    async def scenario(device: Device) -> None:
        device.watch.tick()
        await device.ask("1", {"texts": ["a", "b"]})
        await settle()
        await later(0.5)
        device.spawner.last.finish()
        await later(0.5)
        device.watch.tick()
        assert told[-1].busy_share == pytest.approx(0.5, abs=0.02)
        assert told[-1].row_s == pytest.approx(0.25, abs=0.02)
        assert not told[-1].bandwidth_bound

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_the_governor_is_told_that_a_generator_waits_for_memory(told: list[Observation]) -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"prompt": "x"})
        await settle()
        device.watch.tick()
        assert told[-1].bandwidth_bound
        device.spawner.last.end("tester/1", "done")
        await settle()
        device.watch.tick()
        assert not told[-1].bandwidth_bound, "nothing of it runs"

    generator = replace(a_model(variant=a_variant(runtime="llamacpp")), task=TaskSpec("generate", max_tokens=64))
    Device.run(scenario, generator, plan=Plan(compute_s=None, sequences=2, mixed=False))


def test_where_the_host_runs_short_the_worker_that_holds_most_is_ended() -> None:
    async def scenario(device: Device) -> None:
        for name, held in (("a", 10), ("b", 30), ("c", 20)):
            await device.ask(name, model=name)
            await later(0.1)
            device.served(name).note_footprint(held)
        device.manager.kill_largest("the host is short of memory")
        await settle()
        assert [name for name in "abc" if device.served(name).worker is None] == ["b"]

    Device.run(scenario, *(a_model(name) for name in "abc"))


def test_an_adapter_at_work_is_not_the_one_that_makes_room() -> None:
    names = [f"a{number:02}" for number in range(ADAPTERS_RESIDENT + 1)]

    async def scenario(device: Device) -> None:
        device.spawner.plan.compute_s = 0.01
        for name in names[:-1]:
            await device.ask(name, {"text": "x", "adapter": name})
            await later(0.05)
        served = device.served()
        assert len(served.attached) == ADAPTERS_RESIDENT
        device.spawner.last.plan = replace(device.spawner.last.plan, compute_s=None)
        await device.ask("at-work", {"text": "x", "adapter": names[0]})
        await settle()
        served.worker.attached.move_to_end(names[0], last=False)  # the least recently used, and at work
        await device.manager.ensure_attached(served, names[-1])
        assert names[0] in served.attached
        assert names[1] not in served.attached
        device.spawner.last.finish()
        await settle()

    Device.run(scenario, a_model(adapters=names))


def test_a_model_is_not_loaded_while_the_host_is_short_of_memory() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=3.0)
        device.manager.close_admission(Closure(Cause.MEMORY, "no memory: 1 MiB is left"))
        await later(1.0)
        assert device.spawner.running() == []
        assert "no memory: 1 MiB is left" in [message for kind, message in device.events if kind == "load-failed"]
        device.manager.open_admission()
        await later(1.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model())


def test_a_control_group_leaves_no_more_than_the_host_has() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=4e9, ram_available=1e8, cgroup_limit=2e9, cgroup_used=1e9)
        assert device.host.memory().available_bytes == int(1e8)
        device.sensors.set(ram_total=4e9, ram_available=3e9, cgroup_limit=2e9, cgroup_used=1e9)
        assert device.host.memory().available_bytes == int(1e9)

    Device.run(scenario, a_model())


def test_a_generator_that_may_run_a_thousandth_of_the_time_may_run() -> None:
    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(8, 4), level=GovernorLevel.REDUCED, duty_share=1e-5)
        assert device.host.worker_limits().busy_permille == 1
        device.context.grant = replace(full_grant(8, 4), level=GovernorLevel.REDUCED, duty_share=0.0)
        assert device.host.worker_limits().busy_permille == 0

    Device.run(scenario, a_model())
