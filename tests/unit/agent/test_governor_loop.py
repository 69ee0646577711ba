"""The look around: sensors, the governor's limits, what is lost, silent or newly installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_agent.agent.context import full_grant
from edge_agent.agent.governor_loop import GovernorLoop
from edge_agent.base.errors import StoreError
from edge_agent.base.limits import GIB, MIB
from edge_agent.bundle.catalog import InstalledModel, TaskSpec, TrialFigures
from edge_agent.core import governor
from edge_agent.core.governor import ComputeGrant, GovernorLevel, Observation
from edge_agent.protocol.worker_messages import StepLimits
from tests.support.fakes import FakeLibrary, Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def test_a_lost_sensor_is_reported_once_and_so_is_its_return() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(power=4.0)
        device.watch.tick()
        device.sensors.lose("power", "the rail is gone")
        for _ in range(3):
            device.watch.tick()
        assert device.events == [("sensor-lost", "sensor 'power' is lost: the rail is gone")]
        device.sensors.set(power=4.0)
        device.watch.tick()
        device.sensors.lose("power", "gone again")
        device.watch.tick()
        assert [text for _, text in device.events[1:]] == [
            "sensor 'power' is back",
            "sensor 'power' is lost: gone again",
        ]

    Device.run(scenario, a_model())


def test_a_sensor_that_never_was_is_not_lost() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.lose("temperature", "this board has none")
        device.watch.tick()
        assert device.events == []
        assert device.host.reading("temperature").reason == "this board has none"
        assert device.host.reading("fan").reason == "this board has no fan sensor"

    Device.run(scenario, a_model())


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A governor that halves everything from 70 °C on; the real one's curve is tested where it stands."""

    def decide(plan: Any, temperature: Any, memory: Any, now_s: float, *more: Any, **most: Any) -> Any:
        hot = temperature.value is not None and temperature.value >= 70.0
        full = full_grant(8, 4)
        half = replace(full, level=GovernorLevel.REDUCED, max_rows=4, threads=2, why=f"{temperature.value} °C")
        return (half if hot else full), memory

    monkeypatch.setattr(governor, "decide", decide)


@pytest.mark.usefixtures("halved")
def test_the_governors_limits_reach_the_workers_and_are_told_on_a_change_of_level() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        assert device.spawner.last.limits == StepLimits(8, 4, busy_permille=1000, most_rows=8)
        device.sensors.set(temperature=79.0)
        for _ in range(3):
            device.watch.tick()
        assert device.spawner.last.limits == StepLimits(4, 2, busy_permille=1000)
        assert [operation for operation, _ in device.spawner.last.heard].count("limits") == 1
        assert device.events == [("throttled", "governor normal -> reduced: 79.0 °C")]
        device.sensors.set(temperature=50.0)
        device.watch.tick()
        assert device.spawner.last.limits == StepLimits(8, 4, busy_permille=1000)
        assert device.kinds() == ["throttled", "throttled"]

    Device.run(scenario, a_model())


@pytest.mark.usefixtures("halved")
def test_a_new_worker_starts_with_the_limits_of_the_moment() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=79.0)
        device.watch.tick()
        await device.ask("1")
        await later(0.1)
        limits = StepLimits(4, 2, busy_permille=1000, most_rows=8)
        assert device.spawner.last.limits == limits, "and makes room for what comes after"

    Device.run(scenario, a_model())


def test_an_installed_model_is_served_and_a_removed_one_is_not() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", model="new")
        assert device.status("1") == 404
        device.watch.take_changed()
        device.library.install(a_model("new"))
        device.watch.tick()
        assert device.watch.take_changed()
        await device.ask("2", model="new")
        await later(0.1)
        assert device.status("2") == 200
        device.library.remove("new")
        device.watch.tick()
        await later(0.1)
        assert device.spawner.last.closed
        await device.ask("3", model="new")
        assert device.status("3") == 404

    Device.run(scenario)


def test_nothing_is_reloaded_when_nothing_changed() -> None:
    async def scenario(device: Device) -> None:
        device.watch.take_changed()
        for _ in range(5):
            device.watch.tick()
        assert not device.watch.take_changed()

    Device.run(scenario, a_model())


def test_a_control_group_bounds_the_memory() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=8.0 * GIB, ram_available=6.0 * GIB, cgroup_limit=2.0 * GIB, cgroup_used=1.5 * GIB)
        device.watch.tick()
        memory = device.host.memory()
        assert (memory.total_bytes, memory.available_bytes) == (2 * GIB, GIB // 2)
        device.sensors.set(cgroup_limit=64.0 * GIB)
        device.watch.tick()
        assert device.host.memory().total_bytes == 8 * GIB

    Device.run(scenario, a_model())


def test_a_busy_worker_that_speaks_is_not_taken_for_hung() -> None:
    async def scenario(device: Device) -> None:
        for index in range(8):
            await device.ask(str(index), deadline_s=300.0)
        await settle()
        for index in range(8):
            await later(20.0)
            device.watch.tick()
            device.spawner.last.finish([f"tester/{index}"])
        assert device.kinds() == []
        assert len(device.transport.replies()) == 8

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_temperature_that_is_not_believed_is_said_when_it_begins_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    doubts = {"derated": None, "disagree": None}

    def decide(plan: Any, temperature: Any, memory: Any, now_s: float, *more: Any, **most: Any) -> Any:
        return replace(full_grant(8, 4), derated=doubts["derated"], disagree=doubts["disagree"]), memory

    monkeypatch.setattr(governor, "decide", decide)

    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=71.0)
        device.watch.tick()
        doubts.update(derated="it has said 71.0 °C for 12 s while the load must have moved it")
        device.watch.tick()
        device.watch.tick()
        doubts.update(derated=None, disagree="a says 50.0 °C, b 71.0 °C")
        device.watch.tick()
        device.watch.tick()
        doubts.update(disagree=None)
        device.watch.tick()
        device.watch.tick()
        assert device.kinds() == ["sensor-lost", "sensor-lost", "sensors-disagree", "sensors-disagree"]
        assert "12 s while the load" in device.events[0][1]
        assert device.events[1][1] == "the temperature is believed again"
        assert "agree again" in device.events[3][1]

    Device.run(scenario, a_model())


def test_a_lost_second_temperature_is_an_event() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=50.0, temperature_firmware=50.5)
        device.watch.tick()
        device.sensors.lose("temperature_firmware", "/dev/vcio: Permission denied")
        device.watch.tick()
        device.watch.tick()
        said = "sensor 'temperature_firmware' is lost: /dev/vcio: Permission denied"
        assert device.events == [("sensor-lost", said)]

    Device.run(scenario, a_model())


def test_a_clock_that_the_firmware_holds_down_is_said_when_it_begins_and_ends() -> None:
    async def scenario(device: Device) -> None:
        async def pass_s(seconds: int, real_hz: float, requested_hz: float) -> None:
            device.sensors.set(cpu_clock=real_hz, cpu_clock_requested=requested_hz)
            for _ in range(seconds):
                await later(1.0)
                device.watch.tick()

        await pass_s(20, 2.4e9, 2.4e9)
        await pass_s(20, 1.5e9, 1.5e9)
        assert device.events == [], "a lower clock that was asked for is a cap, not a throttled board"
        await pass_s(3, 1.5e9, 2.4e9)
        await pass_s(1, 2.4e9, 2.4e9)
        assert device.events == [], "it did not last"
        await pass_s(20, 1.5e9, 2.4e9)
        await pass_s(20, 2.4e9, 2.4e9)
        assert device.events == [
            (
                "clock-held",
                "the firmware holds the clock down: 1500 MHz, 2400 MHz are requested (cool the board or give it a "
                "stronger supply; on a Jetson a power mode of fewer watts helps as well)",
            ),
            ("clock-held", "the firmware has let go of the clock: 2400 MHz, 2400 MHz are requested"),
        ]

    Device.run(scenario, a_model())


def test_a_second_temperature_reaches_the_governor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def decide(plan: Any, temperature: Any, memory: Any, now_s: float, what: Any) -> Any:
        seen.append(what.second)
        return full_grant(8, 4), memory

    monkeypatch.setattr(governor, "decide", decide)

    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=50.0, temperature_second=71.0)
        device.watch.tick()
        assert seen[0] is None
        assert seen[-1].value == 71.0

    Device.run(scenario, a_model())


def test_a_hot_board_runs_the_cheaper_variant_and_returns_to_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = TrialFigures(latency_ms=20.0, peak_bytes=MIB, load_s=0.1, text_bytes=17)
    fp32 = replace(a_variant("m-fp32"), files={"model": "/a"}, accuracy=0.92, measured=here)
    int8 = replace(fp32, digest="sha256:m-int8", dtype="int8", measured=replace(here, latency_ms=8.0))
    tier = {"now": 0}

    def decide(plan: Any, temperature: Any, memory: Any, now_s: float, *more: Any, **most: Any) -> Any:
        return replace(full_grant(8, 4), tier=tier["now"], why="79.0 °C"), memory

    monkeypatch.setattr(governor, "decide", decide)

    async def scenario(device: Device) -> None:
        assert device.context.costs.predict_s(("m", "sha256:m-int8"), 1, 17) == pytest.approx(0.008)
        for request_id, now, dtype in (("1", 0, "fp32"), ("2", 1, "int8"), ("3", 0, "fp32")):
            tier["now"] = now
            device.watch.tick()
            await device.ask(request_id)
            await later(0.5)
            assert device.transport.reply(request_id)["variant"] == dtype
        assert device.kinds() == ["variant-changed", "variant-changed"]
        assert device.events[0][1] == "model 'm' runs echo/int8 instead of echo/fp32: 79.0 °C"

    Device.run(scenario, replace(a_model(variant=fp32), variants=(fp32, int8)))


class FakeClocks:
    """A clock that remembers what it was told, and refuses when told to."""

    shares = (1.0, 0.8, 0.6)

    def __init__(self) -> None:
        self.told: list[float | None] = []
        self.refuses: str | None = None

    def set(self, share: float) -> str | None:
        """See `ports.Clocks`."""
        self.told.append(share)
        return self.refuses

    def restore(self) -> None:
        """See `ports.Clocks`."""
        self.told.append(None)


def test_the_clock_follows_the_governor_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []

    def decide(plan: Any, temperature: Any, memory: Any, now_s: float, *more: Any, **most: Any) -> Any:
        plans.append(plan.clocks)
        hot = (temperature.value or 0.0) > 70.0
        return replace(full_grant(8, 4), clock=0.8 if hot and plan.clocks else 1.0), memory

    monkeypatch.setattr(governor, "decide", decide)

    async def scenario(device: Device) -> None:
        clocks = FakeClocks()
        plan = governor.GovernorConfig(80.0, 8, 4)
        watch = GovernorLoop(device.context, plan, device.host, device.changes, device.manager, device.server, clocks)
        for celsius in (50.0, 75.0, 76.0, 50.0):
            device.sensors.set(temperature=celsius)
            watch.tick()
        watch.close()
        assert clocks.told == [0.8, 1.0, None]
        assert plans[-1] == (1.0, 0.8, 0.6)
        clocks.refuses = "permission denied"
        device.sensors.set(temperature=75.0)
        watch.tick()
        watch.tick()
        assert device.events[-1] == ("clock-refused", "the clock cannot be set: permission denied")
        assert plans[-1] == (), "the governor does not count on it any longer"
        assert device.kinds().count("clock-refused") == 1
        assert clocks.told[-2:] == [0.8, None], "what some domains took is given back"

    Device.run(scenario, a_model())


def test_a_board_that_refuses_its_clock_while_it_is_hot_is_governed_on() -> None:
    """With the governor itself: the rung that it held is none of the ladder without clocks."""

    async def scenario(device: Device) -> None:
        clocks = FakeClocks()
        plan = governor.GovernorConfig(80.0, 8, 4)
        watch = GovernorLoop(device.context, plan, device.host, device.changes, device.manager, device.server, clocks)
        device.context.duty_cycle.begin("m", 8, device.clock.monotonic_s())
        for second in range(120):
            device.sensors.set(temperature=70.0 + 0.5 * (second % 2) + min(8.5, second / 8))
            if device.context.grant.clock < 1.0:
                clocks.refuses = "permission denied"
            watch.tick()
            await later(1.0)
        assert device.kinds().count("clock-refused") == 1
        assert device.context.grant.clock == 1.0
        assert device.context.grant.level >= governor.GovernorLevel.REDUCED

    Device.run(scenario, a_model())


def test_the_operators_decode_threads_are_passed_on_and_capped_by_the_grant() -> None:
    async def scenario(device: Device) -> None:
        assert device.host.worker_limits().decode_threads == 3
        device.context.grant = replace(device.context.grant, threads=2)
        limits = device.host.worker_limits()
        assert limits.threads == limits.decode_threads == 2

    Device.run(scenario, a_model(), decode_threads=3)


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


class HalfReadable(FakeLibrary):
    """Its number can be read while its content cannot, as when the record is damaged on its way from the card."""

    unreadable = False

    def active(self) -> tuple[InstalledModel, ...]:
        """See `ports.Library`."""
        if self.unreadable:
            raise StoreError("Input/output error", "record.json")
        return super().active()


def test_a_change_that_could_not_be_read_is_read_at_the_next_look() -> None:
    """The number was taken for read before the content was: the new model was never served."""
    library = HalfReadable(a_model("old"))

    async def scenario(device: Device) -> None:
        library.install(a_model("new"))
        library.unreadable = True
        with pytest.raises(StoreError):
            device.watch.tick()
        library.unreadable = False
        device.watch.tick()
        await device.ask("1", model="new")
        await later(1.0)
        assert device.status("1") == 200

    Device.run(scenario, ports={"library": library})
