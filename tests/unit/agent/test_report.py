"""What the agent says of itself; whoever provokes events cannot flood with them."""

from __future__ import annotations

from edge_agent.agent.device_reporter import EVENTS_PER_MINUTE
from edge_agent.core.memory_ledger import TAKEN_AT_LOAD
from edge_agent.protocol.envelope import LinkChange
from tests.support.fakes import a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def test_events_of_a_kind_are_limited_by_the_minute_and_the_last_one_says_so() -> None:
    async def scenario(device: Device) -> None:
        for index in range(100):
            device.publisher.event("worker-died", f"number {index}", {})
        device.publisher.event("installed", "another kind", {}, "info")
        died = [body for body in device.transport.bodies("/event") if body["kind"] == "worker-died"]
        assert len(died) == EVENTS_PER_MINUTE + 1
        assert died[-1]["message"].endswith("more of this kind within the minute are not reported")
        assert device.transport.bodies("/event")[-1]["kind"] == "installed"
        await later(60.0)
        device.publisher.event("worker-died", "a minute later", {})
        assert device.transport.bodies("/event")[-1]["message"] == "a minute later"

    Device.run(scenario, a_model())


def test_sequence_numbers_rise_without_gaps() -> None:
    async def scenario(device: Device) -> None:
        for _ in range(5):
            device.publisher.event("installed", "x", {}, "info")
            device.publisher.status("online", "serving")
        numbers = [body["seq"] for body in device.transport.bodies()]
        assert numbers == list(range(numbers[0], numbers[0] + 10))

    Device.run(scenario, a_model())


def test_the_models_message_tells_residency_and_footprint() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "a"})
        await later(0.1)
        device.reporter.report_models()
        (entry,) = device.transport.bodies("/models")[-1]["models"]
        assert (entry["name"], entry["resident"], entry["reason"]) == ("m", True, "ready")
        assert entry["footprint_bytes"] == device.served().footprint_bytes
        assert [(adapter["name"], adapter["resident"]) for adapter in entry["adapters"]] == [("a", True), ("b", False)]

    Device.run(scenario, a_model(adapters=["a", "b"]))


def test_telemetry_counts_refusals_and_shows_sensors_with_reasons() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=50.0)
        device.sensors.lose("power", "no rail on this board")
        device.watch.tick()
        await device.ask("1")
        await device.ask("2", model="nobody")
        await later(0.1)
        device.transport.events_waiting, device.transport.events_lost = 3, 2
        device.host.daemon_bytes = lambda: 123
        device.publisher.telemetry(device.reporter.figures())
        report = device.transport.bodies("/telemetry")[-1]
        assert report["refusals"] == {"404": 1}
        assert report["refusal_reasons"] == {"unknown-model": 1}
        assert report["models"]["m"]["requests"] == 1
        assert report["sensors"]["temperature"]["value"] == 50.0
        assert report["sensors"]["power"]["value"] is None
        assert report["sensors"]["power"]["reason"] == "no rail on this board"
        assert report["energy"] == {"joules": None, "method": "no rail on this board"}
        assert report["rss_bytes"] == 123
        assert (report["events_waiting"], report["events_lost"]) == (3, 2)
        assert report["memory"]["stage"] == "calm"
        assert report["memory"]["models"]["m"]["held_bytes"] == int(device.served().footprint_bytes * TAKEN_AT_LOAD)
        assert report["memory"]["available_bytes"] > report["memory"]["reserve_bytes"] > 0

    Device.run(scenario, a_model())


def test_a_link_that_comes_back_is_told_and_the_state_said_again() -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(LinkChange(False, "transient", "connection lost"))
        assert not device.transport.bodies("/status")
        device.agent.link_changed(LinkChange(True, "connected", "connected", 5))
        assert [body["state"] for body in device.transport.bodies("/status")] == ["online"]
        assert len(device.transport.bodies("/info")) == len(device.transport.bodies("/models")) == 1
        assert [body["data"] for body in device.transport.bodies("/event")] == [
            {"connected": False},
            {"connected": True},
        ]

    Device.run(scenario, a_model())
