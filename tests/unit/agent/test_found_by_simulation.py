"""What the whole-agent simulation found, each as a scenario of its own: a seed's story changes with the simulation."""

from __future__ import annotations

import asyncio

from edge_agent.base.limits import PACED_STEP_S, WORKER_SILENCE_S
from edge_agent.core.duty_cycle import DutyCycle, FinishedStep
from edge_agent.core.governor import ComputeGrant, GovernorLevel
from edge_agent.mqtt.outbox import Outbox
from edge_agent.protocol import encode
from edge_agent.protocol.address import ReplyAddress
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

HALF = ComputeGrant(GovernorLevel.REDUCED, 8, 4, None, "warm", duty_share=0.5)


async def seconds(device: Device, count: int) -> None:
    """Time passes, with the watch's look at every second of it."""
    for _ in range(count):
        device.watch.tick()
        await later(1.0)


def test_models_that_wait_for_memory_do_not_wake_each_other_for_ever() -> None:
    """Seed 13: 100 % of a core without a moment passing; virtual time calls that stuck."""

    async def scenario(device: Device) -> None:
        await device.ask("held", model="busy", deadline_s=300.0)
        await settle()
        for name in ("one", "two", "three"):
            await device.ask(name, model=name, deadline_s=20.0)
        await later(30.0)
        assert [device.status(name) for name in ("one", "two", "three")] == [503, 503, 503]
        device.spawner.last.finish()

    sizes = {"busy": 1800, "one": 900, "two": 900, "three": 900}
    models = [a_model(name, a_variant(f"{name}-v1", mib, mib)) for name, mib in sizes.items()]
    Device.run(scenario, *models, plan=Plan(compute_s=None))


def test_an_answer_waits_in_the_outbox_no_longer_than_its_deadline() -> None:
    """Seed 16: whole seconds, rounded up, let it leave almost a second late."""
    box = Outbox()
    to = ReplyAddress("edge/v1/client/c/reply", "1", "c", b"1", "v5")
    box.put(encode.refusal(503, "no", to, 0.3), 10.0)
    assert box.take(10.31, qos1=True) is None
    box.put(encode.refusal(503, "no", to, 0.3), 10.0)
    sent = box.take(10.29, qos1=True)
    assert sent is not None
    assert sent.fresh(10.29).expiry_s == 1.0, "on the wire there are only whole seconds"


def test_a_worker_that_loads_is_not_measured() -> None:
    """Seed 131: half of a model was taken for all of it, and the next load overbooked the memory."""

    async def scenario(device: Device) -> None:
        device.sensors.pss[4000] = 1
        await device.ask("1", deadline_s=120.0)
        await later(30.0)
        device.manager.measure()
        account = device.manager.ledger.account("m")
        assert account is not None
        assert account.held_bytes == 0
        device.sensors.pss.clear()
        await later(60.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model(), plan=Plan(load_s=60.0))


def test_a_removed_model_whose_worker_hangs_is_ended_and_its_requests_with_it() -> None:
    """Seed 317: nobody looked after its served any more, and worker, memory and requests stayed for ever."""

    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=20.0)
        await settle()
        device.library.remove("m")
        await seconds(device, int(WORKER_SILENCE_S) + 5)
        assert len(device.context.requests) == 0
        assert device.spawner.running() == []
        assert device.manager.every_served_model() == ()

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_model_that_returns_while_its_worker_finishes_has_one_worker() -> None:
    """The second served of a name promised memory a second time: 'has an account already'."""

    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=20.0)
        await settle()
        device.library.remove("m")
        device.watch.tick()
        device.library.install(a_model())
        device.watch.tick()
        await device.ask("2", deadline_s=20.0)
        device.spawner.last.finish()
        await later(1.0)
        device.spawner.last.finish()
        await settle()
        assert (device.status("1"), device.status("2")) == (200, 200)
        assert len(device.spawner.running()) == 1
        assert device.server.fault is None

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_requests_past_their_deadline_do_not_fill_the_queue_while_a_load_hangs() -> None:
    """Seed 352: the served that would have let them go waited for the load."""

    async def scenario(device: Device) -> None:
        for number in range(4):
            await device.ask(f"old{number}", deadline_s=2.0)
        await seconds(device, 5)
        assert len(device.context.requests) == 0
        await device.ask("new", deadline_s=200.0)
        assert device.transport.statuses() == {}, "there is room for it"
        await later(150.0)
        assert device.status("new") == 200

    Device.run(scenario, a_model(), plan=Plan(load_s=100.0), queue_jobs=4)


def test_a_successor_does_not_rest_from_the_silence_of_the_one_before() -> None:
    """Seed 5: half a minute of hanging counted as a step, and at half cycle the next one waited as long again."""

    async def scenario(device: Device) -> None:
        device.context.grant = HALF
        await device.ask("1", deadline_s=60.0)
        await later(31.0)
        device.spawner.last.die()
        device.spawner.plan.compute_s = 0.01
        await later(2.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_step_that_a_stopped_process_made_long_is_rested_from_for_seconds() -> None:
    """Seed 1613: a daemon that stood still for 40 s left a model unserved for minutes."""
    cycle = DutyCycle()
    cycle.begin("m", 1, 0.0)
    cycle.end("m", 40.0)
    assert cycle.pause_s("m", HALF, 40.0) == PACED_STEP_S


def test_what_rounding_leaves_of_a_rest_is_none() -> None:
    """Seed 18: a rest of a billionth of a second was waited for again and again."""

    async def scenario(device: Device) -> None:
        device.context.grant = HALF
        device.context.duty_cycle.begin("m", 1, 0.0)
        device.context.duty_cycle.end("m", device.clock.monotonic_s() - 1.0)
        device.context.duty_cycle._last = FinishedStep(device.clock.monotonic_s() - 1.0, 1.0 + 1e-9, 1)
        await device.ask("1")
        await asyncio.wait_for(later(1.0), 5.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model())
