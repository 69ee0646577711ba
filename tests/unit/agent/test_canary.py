"""Golden probes on a schedule: when idle, one model at a time; a changed result is an event and in telemetry."""

from __future__ import annotations

from typing import Any

from edge_agent.base.errors import StoreError
from edge_agent.bundle.probes import Expected, ProbeFile
from tests.support.fakes import FakeWorker, Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

PROBES = ProbeFile(
    schema=1, texts=("on", "off"),
    expected={"echo/fp32": Expected(features=((1.0, 0.0), (0.0, 1.0)), features_tolerance=0.01)},
)  # fmt: skip


def answering(features: list[list[float]]) -> Any:
    async def call(self: FakeWorker, operation: str, timeout_s: float = 30.0, **fields: Any) -> dict[str, Any]:
        assert operation == "measure"
        assert fields == {"adapter": None, "texts": ["on", "off"]}
        self.heard.append((operation, fields))
        return {"features": features}

    return call


async def ticks(device: Device, seconds: int) -> None:
    for _ in range(seconds):
        device.canary.tick()
        await later(1.0)


def test_the_probes_run_when_the_model_is_idle_and_on_their_date(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "call", answering([[1.0, 0.001], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await ticks(device, 50)
        assert device.seat().canary_ok is None, "not due yet"
        await ticks(device, 30)
        assert (device.seat().canary_ok, device.seat().canary_reason) == (True, "2 golden probes hold")
        heard = [operation for operation, _ in device.spawner.last.heard]
        assert heard.count("measure") == 1
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_model_that_computes_something_else_is_an_event_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "call", answering([[1.0, 0.5], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await ticks(device, 200)
        assert device.seat().canary_ok is False
        assert "features are off by 0.5" in device.seat().canary_reason
        assert device.kinds().count("verify-failed") == 1

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_busy_or_absent_model_is_left_alone_and_a_broken_store_is_no_verdict() -> None:
    async def scenario(device: Device) -> None:
        await ticks(device, 100)
        assert device.spawner.workers == [], "a probe loads nothing"
        await device.ask("1")
        await settle()
        await ticks(device, 20)
        assert device.seat().canary_s is None, "a request is with the worker"
        device.spawner.last.finish()

        def broken(_model: object) -> None:
            raise StoreError("Input/output error", "store")

        device.canary._read = broken
        await ticks(device, 100)
        assert device.seat().canary_ok is None
        assert device.seat().canary_reason == "the probes could not be run: store: Input/output error"
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(), canary_s=60.0, plan=Plan(compute_s=None))


def test_a_package_without_probes_says_so() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await ticks(device, 100)
        assert (device.seat().canary_ok, device.seat().canary_reason) == (
            None, "the package has no golden probes for this variant",
        )  # fmt: skip

    Device.run(scenario, a_model(), canary_s=60.0)
