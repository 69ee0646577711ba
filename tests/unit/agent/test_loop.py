"""The whole agent in one process: start, serve, report on time, stop in order."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable

from edge_agent.base.errors import BackendError, StoreError
from tests.support.fakes import Plan, RecordingNotifier, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def run(scenario: Callable[[Device, RecordingNotifier], Awaitable[None]], *models: object, **options: object) -> Device:
    """The agent runs; the scenario plays; the agent is stopped and must end."""

    async def whole(device: Device) -> None:
        notifier = RecordingNotifier()
        running = asyncio.create_task(device.agent.run(notifier))
        await scenario(device, notifier)
        device.agent.stop("the test is over")
        await asyncio.wait_for(running, 60.0)
        assert notifier.names()[-1] == "stopping"
        assert device.spawner.running() == []
        assert len(device.context.requests) == 0

    return Device.run(whole, *models, **options)  # type: ignore[arg-type]


def states(device: Device) -> list[str]:
    return [body["state"] for body in device.transport.bodies("/status")]


def test_messages_from_the_broker_are_answered() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.transport.deliver(device.message("1"), device.message("2"))
        await later(1.0)
        assert device.transport.statuses() == {"1": [200], "2": [200]}
        assert device.transport.acked == [1, 2]

    run(scenario, a_model())


def test_ready_comes_once_and_after_the_resident_models_were_tried() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(50.0)
        assert "ready" not in notifier.names()
        assert notifier.names().count("extend_timeout") >= 2
        await later(100.0)
        assert notifier.names().count("ready") == 1
        assert device.served("a").worker is not None
        assert device.served("b").worker is None

    run(scenario, a_model("a"), a_model("b"), plan=Plan(load_s=60.0), resident=("a",))


def test_all_stands_for_every_model() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(1.0)
        assert {served.name for served in device.manager.served_models.values() if served.worker is not None} == {
            "a",
            "b",
        }

    run(scenario, a_model("a"), a_model("b"), resident=("all",))


def test_a_resident_model_that_cannot_be_loaded_does_not_hold_up_readiness() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(2.0)
        assert "ready" in notifier.names()
        assert "load-failed" in device.kinds()

    broken = Plan(load_faults=deque([BackendError("the graph is broken", "onnx")], maxlen=1))
    run(scenario, a_model(), plan=broken, resident=("all",))


def test_a_resident_model_is_loaded_when_it_is_installed_later() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(2.0)
        device.library.install(a_model("late"))
        await later(3.0)
        assert device.served("late").worker is not None

    run(scenario, resident=("all",))


def test_watchdog_and_status_line_every_second() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(10.5)
        assert notifier.names().count("watchdog") == 10
        lines = [text for name, text in notifier.calls if name == "status"]
        assert lines[-1] == "connected; 0 of 1 models in memory; 0 requests open"

    run(scenario, a_model())


def test_being_offline_is_healthy_and_is_said() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.transport.connected = False
        await later(5.5)
        assert notifier.names().count("watchdog") == 5
        assert "ready" in notifier.names()
        lines = [str(text) for name, text in notifier.calls if name == "status"]
        assert lines[-1].startswith("broker away; ")
        assert device.agent.fault() is None
        device.transport.broken = True
        assert device.agent.fault() == "the MQTT link has stopped working"

    run(scenario, a_model())


def test_telemetry_comes_on_its_interval_and_covers_it() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.transport.deliver(*(device.message(str(index)) for index in range(3)))
        await later(30.5)
        reports = device.transport.bodies("/telemetry")
        assert len(reports) == 3
        assert reports[0]["models"]["m"]["requests"] == 3
        assert "m" not in reports[1]["models"], "a model without a request in the interval is left out"
        assert [report["seq"] for report in reports] == sorted({report["seq"] for report in reports})

    run(scenario, a_model())


def test_status_is_retained_online_then_offline_as_the_last_words() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(130.0)
        assert states(device)[-1] == "online"
        assert len(states(device)) >= 3, "start and two heartbeats"
        assert all(message.retain for message in device.transport.published if message.topic.endswith("/status"))

    device = run(scenario, a_model())
    assert device.transport.last_words is not None
    (words,) = device.transport.last_words
    assert (json.loads(words.payload)["state"], words.retain) == ("offline", True)


def test_a_quarantined_model_makes_the_device_degraded() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.spawner.plan.load_faults.extend(["die"] * 3)
        device.transport.deliver(device.message("1"))
        await later(70.0)
        assert states(device)[-1] == "degraded"

    run(scenario, a_model())


def test_stopping_answers_what_is_open_with_503() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.transport.deliver(*(device.message(str(index), deadline_s=600.0) for index in range(3)))
        await later(1.0)

    device = run(scenario, a_model(), plan=Plan(compute_s=None))
    assert device.transport.statuses() == {"0": [503], "1": [503], "2": [503]}
    assert device.transport.reply("0")["reason"] == "the device is stopping"


def test_stopping_in_the_middle_of_a_load_ends_too() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.transport.deliver(device.message("1", deadline_s=600.0))
        await later(1.0)
        assert device.spawner.running()

    device = run(scenario, a_model(), plan=Plan(load_s=500.0))
    assert device.transport.statuses() == {"1": [503]}


def test_a_store_that_cannot_be_read_does_not_stop_the_serving() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(1.5)
        device.library.broken = StoreError("the disk is gone", "store")
        device.transport.deliver(device.message("1"))
        await later(5.0)
        assert device.status("1") == 200
        assert notifier.names().count("watchdog") == 6

    run(scenario, a_model())


def test_stop_twice_is_stop_once() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        device.agent.stop("first")

    run(scenario, a_model())


def test_the_models_message_follows_the_store() -> None:
    async def scenario(device: Device, notifier: RecordingNotifier) -> None:
        await later(1.5)
        device.library.install(a_model("new", adapters=["a"]))
        await later(2.0)
        latest = device.transport.bodies("/models")[-1]
        assert [entry["name"] for entry in latest["models"]] == ["m", "new"]
        assert latest["models"][1]["adapters"][0]["name"] == "a"

    run(scenario, a_model())


def test_an_orderly_stop_leaves_nothing_in_the_queues() -> None:
    """Seed 3: what was answered with 503 still stood in its queue while the workers were being ended."""

    async def scenario(device: Device) -> None:
        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        for name in ("1", "2", "3"):
            await device.ask(name)
        await later(0.5)
        device.agent.stop("restart")
        await running
        assert [device.status(name) for name in ("1", "2", "3")] == [503, 503, 503]
        assert not len(device.served().queue)

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), max_rows=1)


def test_an_order_under_way_is_answered_by_an_orderly_stop() -> None:
    """It was acknowledged when it began: without an answer its sender waited for the whole deadline."""

    async def scenario(device: Device) -> None:
        device.operator.takes_s = 60.0
        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        await settle()
        await device.order("install", {"package": "p.tar"})
        await later(0.5)
        device.agent.stop("restart")
        await running
        assert device.status("order") == 503

    Device.run(scenario, a_model())
