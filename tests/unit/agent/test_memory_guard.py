"""Short of memory: idle models leave first, then nothing is admitted, then a worker is ended; no request is lost."""

from __future__ import annotations

from edge_agent.agent.memory_guard import MemoryGuard
from edge_agent.base.limits import GIB, MIB
from edge_agent.core.memory_pressure import PressureStage
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

MODELS = [a_model(name, a_variant(f"{name}-v1", 100, 100)) for name in "ab"]


def available(device: Device, mib: float) -> None:
    """So much is free, whatever the workers hold, on a board of 1 GiB that keeps 200 MiB."""
    device.sensors.held_bytes = lambda: 0
    device.sensors.set(ram_total=float(GIB), ram_available=mib * MIB)


async def both_loaded(device: Device) -> MemoryGuard:
    available(device, 900)
    for name in "ab":
        await device.ask(f"first-{name}", model=name)
        await later(0.1)
    return MemoryGuard(device.context, device.manager, device.host)


def test_idle_models_leave_one_by_one_and_workers_shrink() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        await guard.look()
        assert guard.stage is PressureStage.CALM
        available(device, 120)
        await guard.look()
        assert guard.stage is PressureStage.TIGHT
        assert [worker.closed for worker in device.spawner.workers].count(True) == 1
        assert all(("shrink", None) in worker.heard for worker in device.spawner.workers)
        await guard.look()
        assert [worker.closed for worker in device.spawner.workers].count(True) == 1, "one at a time"
        await later(1.0)
        await guard.look()
        assert all(worker.closed for worker in device.spawner.workers)
        assert device.kinds() == ["memory-pressure", "evicted", "evicted"]

    Device.run(scenario, *MODELS)


def test_a_board_without_pressure_figures_that_swaps_lets_an_idle_model_go() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        available(device, 260)
        for second in range(3):
            device.sensors.set(major_faults=0.0, swapped_in=300.0 * second, refaults=0.0)
            await guard.look()
            await later(1.0)
        assert guard.stage is PressureStage.TIGHT
        assert device.kinds() == ["memory-pressure", "evicted"]
        assert "tasks waited for 300 pages a second" in device.events[0][1]

    Device.run(scenario, *MODELS)


def test_nothing_is_admitted_while_memory_is_short_and_all_is_well_afterwards() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        available(device, 70)
        await guard.look()
        assert guard.stage is PressureStage.SHORT
        await device.ask("refused", model="a")
        reply = device.transport.reply("refused")
        assert reply["status"] == 503
        assert reply["reason"] == "no memory: 70.0 MiB are available, 200.0 MiB are to stay free"
        assert reply["retry_after_s"] > 0
        available(device, 900)
        await guard.look()
        await later(5.0)
        await guard.look()
        assert guard.stage is PressureStage.CALM
        await device.ask("taken", model="a")
        await later(0.1)
        assert device.status("taken") == 200

    Device.run(scenario, *MODELS)


def test_a_worker_is_ended_at_last_and_its_request_is_answered_by_its_successor() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        device.spawner.plan.compute_s = None
        await device.ask("inside", model="a")
        await settle()
        available(device, 40)
        await guard.look()
        await later(0.3)
        await guard.look()
        assert guard.stage is PressureStage.CRITICAL
        assert device.spawner.workers[0].alive, "first the idle one leaves, and gets time to"
        await later(5.0)
        await guard.look()
        assert not device.spawner.workers[0].alive
        assert not device.served("a").lifecycle.deaths_s, "it counts as no death"
        available(device, 900)
        device.spawner.plan.compute_s = 0.01
        for _ in range(30):
            await guard.look()
            await later(0.25)
        assert device.status("inside") == 200

    Device.run(scenario, *MODELS, plan=Plan(compute_s=0.01))


def test_a_machine_that_does_not_tell_its_memory_is_left_alone() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        device.sensors.lose("ram_available")
        await guard.look()
        assert guard.stage is PressureStage.CALM

    Device.run(scenario, *MODELS)


def test_a_board_that_stops_to_tell_its_memory_is_not_closed_for_ever() -> None:
    async def scenario(device: Device) -> None:
        guard = await both_loaded(device)
        available(device, 30)
        await guard.look()
        assert guard.stage >= PressureStage.SHORT
        assert device.manager.closed is not None
        device.sensors.lose("ram_available", "the file is gone")
        await guard.look()
        assert (guard.stage, device.manager.closed) == (PressureStage.CALM, None)

    Device.run(scenario, *MODELS)
