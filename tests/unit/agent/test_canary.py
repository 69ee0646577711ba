"""Golden probes on a schedule: when idle, one model at a time; a changed result is an event and in telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edge_agent.agent import status_builder
from edge_agent.base.causes import Cause, Closure
from edge_agent.base.errors import StoreError
from edge_agent.bundle.probes import Expected, ProbeFile
from edge_agent.protocol.worker_messages import CompanyTexts, TextsMeasured
from tests.support.fakes import FakeWorker, Plan, a_model, a_variant, an_adapter
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

PROBES = ProbeFile(
    schema=1, texts=("on", "off"),
    expected={"echo/fp32": Expected(features=((1.0, 0.0), (0.0, 1.0)), features_tolerance=0.01)},
)  # fmt: skip


def answering(features: list[list[float]], beside: list[list[float]] | None = None) -> Any:
    """Workers that give these features; `beside`: in company (None: the same)."""

    async def measure(
        self: FakeWorker, adapter: str | None, texts: Sequence[str], company: Sequence[CompanyTexts] = ()
    ) -> TextsMeasured:
        assert (adapter, list(texts)) == (None, ["on", "off"])
        self.heard.append(("measure" if not company else "in company", (adapter, texts)))
        return TextsMeasured(features=features if not company or beside is None else beside, compute_ms=1.0)

    return measure


def verdict(device: Device, adapter: str | None = None) -> tuple[bool | None, str]:
    last = device.served().last_probed(adapter)
    return (None, "not yet") if last is None else (last.ok, last.reason)


async def ticks(device: Device, seconds: int) -> None:
    for _ in range(seconds):
        device.canary.tick()
        await later(1.0)


def test_the_probes_run_when_the_model_is_idle_and_on_their_date(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", answering([[1.0, 0.001], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await ticks(device, 50)
        assert verdict(device)[0] is None, "not due yet"
        await ticks(device, 30)
        assert verdict(device) == (True, "2 golden probes hold, alone and in company")
        heard = [operation for operation, _ in device.spawner.last.heard]
        assert (heard.count("measure"), heard.count("in company")) == (1, 1)
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(), canary_s=60.0)


def test_no_probe_runs_while_requests_are_refused_for_heat_or_memory(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", answering([[1.0, 0.0], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await later(1.0)
        device.manager.close_admission(Closure(Cause.MEMORY, "no memory: 12 MiB are left"))
        await ticks(device, 90)
        assert verdict(device) == (None, "not yet")
        device.manager.open_admission()
        grant = device.context.grant
        device.context.grant = replace(grant, closed=Closure(Cause.HEAT, "too hot: 80.1 °C"))
        await ticks(device, 5)
        assert verdict(device) == (None, "not yet")
        device.context.grant = grant
        await ticks(device, 5)
        assert verdict(device)[0] is True

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_model_that_computes_something_else_is_an_event_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", answering([[1.0, 0.5], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await ticks(device, 200)
        assert verdict(device)[0] is False
        assert "features are off by 0.5" in verdict(device)[1]
        assert device.kinds().count("verify-failed") == 1

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_model_whose_answers_depend_on_their_company_is_named_as_such(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", answering([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.05, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await ticks(device, 100)
        assert verdict(device) == (
            False,
            "probe 2 ('off') holds alone; beside other texts in its batch its features differ by 0.05, 0.01 is "
            "tolerated",
        )
        assert device.kinds().count("verify-failed") == 1

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_request_that_arrives_meanwhile_ends_the_probe_without_a_verdict(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", answering([[1.0, 0.0], [0.0, 1.0]]))

    async def scenario(device: Device) -> None:
        device.probes["m"] = PROBES
        await device.ask("1")
        await later(100.0)
        queue = device.served().queue
        waits = {"waits": True}
        monkeypatch.setattr(
            type(queue),
            "__len__",
            lambda _self: 1 if waits["waits"] and device.spawner.last.heard[-1][0] == "measure" else 0,
        )
        await ticks(device, 3)
        assert verdict(device) == (None, "not yet")
        waits["waits"] = False
        await ticks(device, 3)
        assert verdict(device)[0] is True

    Device.run(scenario, a_model(), canary_s=60.0)


def test_a_busy_or_absent_model_is_left_alone_and_a_broken_store_is_no_verdict() -> None:
    async def scenario(device: Device) -> None:
        await ticks(device, 100)
        assert device.spawner.workers == [], "a probe loads nothing"
        await device.ask("1")
        await settle()
        await ticks(device, 20)
        assert device.served().probed == {}, "a request is with the worker"
        device.spawner.last.finish()

        def broken(_model: object, _adapter: object) -> None:
            raise StoreError("Input/output error", "store")

        device.canary._read = broken
        await ticks(device, 100)
        assert verdict(device)[0] is None
        assert verdict(device)[1] == "the probes could not be run: store: Input/output error"
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(), canary_s=60.0, plan=Plan(compute_s=None))


def test_a_package_without_probes_says_so() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await ticks(device, 100)
        assert verdict(device) == (
            None, "the package has no golden probes for this variant",
        )  # fmt: skip

    Device.run(scenario, a_model(), canary_s=60.0)


OF_ADAPTER = ProbeFile(
    schema=1, texts=("cold", "warm"),
    expected={"echo/fp32": Expected(features=((2.0, 0.0), (0.0, 2.0)), features_tolerance=0.01, min_effect=0.1)},
)  # fmt: skip
RIGHT: dict[str | None, list[list[float]]] = {
    None: [[1.0, 0.0], [0.0, 1.0]], "a": [[2.0, 0.0], [0.0, 2.0]], "b": [[2.0, 0.0], [0.0, 2.0]],
}  # fmt: skip


def computing(features: dict[str | None, list[list[float]]], beside: list[set[str | None]] | None = None) -> Any:
    """Workers that give these features by adapter; the adapters that share batches with each run go into `beside`."""
    beside = [] if beside is None else beside

    async def measure(
        self: FakeWorker, adapter: str | None, texts: Sequence[str], company: Sequence[CompanyTexts] = ()
    ) -> TextsMeasured:
        self.heard.append(("measure" if not company else "in company", (adapter, texts)))
        assert adapter is None or adapter in self.attached
        assert all(one.adapter in (None, *self.attached) for one in company)
        beside.append({one.adapter for one in company})
        return TextsMeasured(features=features[adapter], compute_ms=1.0)

    return measure


def measured(device: Device) -> list[tuple[str | None, str]]:
    """What the newest worker was asked to measure: adapter and first text."""
    heard = [asked for operation, asked in device.spawner.last.heard if operation == "measure"]
    return [(adapter, texts[0]) for adapter, texts in heard]


async def with_adapters(device: Device, *names: str) -> None:
    device.probes.update({"m": PROBES, ("m", "a"): OF_ADAPTER, ("m", "b"): OF_ADAPTER})
    for name in names:
        await device.ask(name, {"text": "x", "adapter": name})
    await later(1.0)


def test_attached_adapters_are_probed_one_a_tick_and_no_other_is_attached_for_it(monkeypatch: Any) -> None:
    beside: list[set[str | None]] = []
    monkeypatch.setattr(FakeWorker, "measure", computing(RIGHT, beside))

    async def scenario(device: Device) -> None:
        await with_adapters(device, "a", "b")
        await later(100.0)
        order = list(device.served().attached)
        for count in (1, 3, 5, 5):
            await ticks(device, 1)
            assert len(measured(device)) == count, "the model by itself; an adapter, and the model on its texts"
        assert measured(device) == [(None, "on"), ("a", "cold"), (None, "cold"), ("b", "cold"), (None, "cold")]
        assert [one for one in beside if one] == [{None, "a", "b"}] * 3, "what is attached shares the batches"
        assert verdict(device, "a") == verdict(device, "b") == (True, "2 golden probes hold, alone and in company")
        assert verdict(device, "c") == (None, "not yet")
        assert list(device.served().attached) == order, "being probed is no use: the one used least leaves first"
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(adapters=["a", "b", "c"]), canary_s=60.0)


def test_an_adapter_that_computes_something_else_is_named_once_and_shown(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", computing({**RIGHT, "b": [[2.0, 0.5], [0.0, 2.0]]}))

    async def scenario(device: Device) -> None:
        await with_adapters(device, "a", "b")
        await ticks(device, 200)
        assert verdict(device)[0] is True
        assert verdict(device, "a")[0] is True
        failed = [body for body in device.transport.bodies("/event") if body["kind"] == "verify-failed"]
        assert [body["data"] for body in failed] == [{"model": "m", "adapter": "b"}]
        assert failed[0]["message"].startswith("adapter 'b' of model 'm' computes something else than it did: probe 1")
        now_s = device.clock.monotonic_s()
        told = status_builder.canaries(device.manager.served_models, now_s)["m"]
        assert (told.ok, {name: one.ok for name, one in told.adapters.items()}) == (True, {"a": True, "b": False})
        await device.manager.unload(device.served())
        assert list(status_builder.canaries(device.manager.served_models, now_s)["m"].adapters) == ["b"], (
            "not forgotten by leaving"
        )

    Device.run(scenario, a_model(adapters=["a", "b"]), canary_s=60.0)


def test_an_adapter_that_changes_nothing_any_more_is_found(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", computing({**RIGHT, None: RIGHT["a"]}))

    async def scenario(device: Device) -> None:
        await with_adapters(device, "a")
        await ticks(device, 100)
        assert verdict(device, "a")[0] is False
        assert "with and without it the features differ by 0, at least 0.1 is due" in verdict(device, "a")[1]

    Device.run(scenario, a_model(adapters=["a"]), canary_s=60.0)


def test_what_the_worker_holds_in_an_older_version_is_not_held_to_the_newer_one(monkeypatch: Any) -> None:
    """Its probes are another package's; they would fail, and the fault would be ours."""
    monkeypatch.setattr(FakeWorker, "measure", computing(RIGHT))

    async def scenario(device: Device) -> None:
        await with_adapters(device, "a")
        device.library.change("m", adapters=(an_adapter("a", "sha256:newer"),))
        device.watch.tick()
        await ticks(device, 100)
        assert {adapter for adapter, _ in measured(device)} == {None}
        await device.ask("again", {"text": "x", "adapter": "a"})
        await ticks(device, 100)
        assert verdict(device, "a")[0] is True
        before = len(measured(device))
        device.library.install(replace(a_model(adapters=["a"]), variant=a_variant("newer")))
        device.watch.tick()
        await ticks(device, 100)
        assert len(measured(device)) == before
        assert verdict(device) == verdict(device, "a") == (None, "not yet")

    Device.run(scenario, a_model(adapters=["a"]), canary_s=60.0)


def test_an_adapter_without_probes_for_this_variant_has_no_verdict(monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeWorker, "measure", computing(RIGHT))

    async def scenario(device: Device) -> None:
        await with_adapters(device, "a", "b")
        del device.probes["m", "a"]
        entry = OF_ADAPTER.expected["echo/fp32"]
        device.probes["m", "b"] = ProbeFile(schema=1, texts=OF_ADAPTER.texts, expected={"onnx/int8": entry})
        await ticks(device, 100)
        assert verdict(device, "a") == (None, "the package has no golden probes for this variant")
        assert verdict(device, "b")[0] is None
        assert "there are no golden probes for variant echo/fp32" in verdict(device, "b")[1]
        assert "verify-failed" not in device.kinds()

    Device.run(scenario, a_model(adapters=["a", "b"]), canary_s=60.0)
