"""Messages of devices to metrics: what is counted, when series end, what hostile publishers can do."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes import RecordingNotifier, a_model
from tests.support.in_process import Device
from tests.support.needs import need, program
from tests.support.virtual_time import later

need("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402 - after `need`
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

from edge_agent.exporter import device_metrics  # noqa: E402
from edge_agent.exporter.device_metrics import KINDS, DeviceMetrics  # noqa: E402


def said() -> dict[str, list[bytes]]:
    """What a device published that answered, refused, and lost a sensor; by kind."""

    async def scenario(device: Device) -> None:
        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        device.sensors.set(temperature=61.5, power=4.2)
        for number in range(60):
            device.transport.deliver(device.message(str(number), {"text": "x", "adapter": "a"}))
        device.transport.deliver(device.message("bad", model="nobody"))
        await later(26.0)
        device.agent.stop("done")
        await running

    device = Device.run(scenario, a_model(adapters=["a"]))
    return {kind: [msgspec.json.encode(body) for body in device.transport.bodies(f"/{kind}")] for kind in KINDS}


SAID = said()
ONLINE = next(body for body in SAID["status"] if msgspec.json.decode(body)["state"] == "online")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def exported(known: DeviceMetrics, now_s: float) -> tuple[str, Samples]:
    """The text form, and its samples as Prometheus' own parser reads them."""

    class Once(Collector):
        def collect(self) -> Any:
            return known.collect(now_s)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    text = generate_latest(registry).decode()
    samples = {
        (sample.name.removeprefix("edge_agent_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return text, samples


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted({"device": "pi", **labels}.items()))))


def fed(reports: int = 1) -> DeviceMetrics:
    known = DeviceMetrics()
    known.connection(True)
    known.take("pi", "status", ONLINE, 100.0)
    known.take("pi", "info", SAID["info"][0], 100.0)
    for body in SAID["telemetry"][:reports]:
        known.take("pi", "telemetry", body, 101.0)
    for body in SAID["event"]:
        known.take("pi", "event", body, 101.0)
    return known


def test_a_report_becomes_metrics_in_base_units() -> None:
    _, found = exported(fed(), 103.0)
    assert of(found, "device_up") == 1.0
    assert of(found, "requests_total", model="m") == 60
    assert of(found, "adapter_requests_total", model="m", adapter="a") == 60
    assert of(found, "refused_requests_total", reason="unknown-model") == 1
    assert of(found, "temperature_celsius") == 61.5
    assert of(found, "telemetry_age_seconds") == 2.0
    assert of(found, "status_age_seconds") == 3.0
    assert of(found, "reported_seconds_total") == 10.0
    told = msgspec.json.decode(SAID["telemetry"][0])
    p50_ms = told["models"]["m"]["total_ms"]["p50"]
    assert of(found, "request_seconds", model="m", percentile="50") == pytest.approx(p50_ms / 1000)
    assert of(found, "model_memory_held_bytes", model="m") == told["memory"]["models"]["m"]["held_bytes"]
    assert of(found, "device_state", state="online") == 1.0
    assert of(found, "memory_stage", state="calm") == 1.0
    assert sum(value for (name, _), value in found.items() if name == "governor_level") == 1.0
    assert sum(value for (name, _), value in found.items() if name == "events_total") == len(SAID["event"])
    assert found["broker_up", ()] == 1.0


def test_intervals_add_up_and_an_event_that_comes_twice_counts_once() -> None:
    known = fed()
    known.take("pi", "telemetry", SAID["telemetry"][0], 111.0)
    known.take("pi", "event", SAID["event"][-1], 111.0)
    _, found = exported(known, 111.0)
    assert of(found, "requests_total", model="m") == 120
    assert of(found, "reports_total") == 2
    assert sum(value for (name, _), value in found.items() if name == "events_total") == len(SAID["event"])


def test_what_a_sensor_does_not_know_has_no_series() -> None:
    lost = msgspec.json.decode(SAID["telemetry"][0])
    lost["sensors"]["temperature"] = {"value": None, "unit": "celsius", "source": "x", "reason": "gone"}
    known = fed()
    known.take("pi", "telemetry", msgspec.json.encode(lost), 101.0)
    assert of(exported(known, 102.0)[1], "temperature_celsius") is None


def test_a_device_whose_retained_status_is_taken_back_has_no_series() -> None:
    known = fed()
    for kind in ("info", "status"):
        known.take("pi", kind, b"", 104.0)
    _, found = exported(known, 104.0)
    assert of(found, "device_up") is None
    assert found["unreadable_messages_total", ()] == 0
    known.count_unreadable()
    assert exported(known, 104.0)[1]["unreadable_messages_total", ()] == 1


def test_series_end_with_the_last_will() -> None:
    known = fed()
    will = msgspec.json.encode({**msgspec.json.decode(ONLINE), "state": "offline", "reason": "connection lost"})
    known.take("pi", "status", will, 104.0)
    _, found = exported(known, 104.0)
    assert of(found, "device_up") == 0.0
    assert {name for name, labels in found if ("device", "pi") in labels} == {"device_up", "status_age_seconds"}
    known.take("pi", "status", ONLINE, 200.0)
    _, found = exported(known, 200.0)
    assert of(found, "requests_total", model="m") == 60, "a counter goes on where it was"
    assert of(found, "temperature_celsius") is None, "the report from before the end is not shown as news"


def test_a_status_older_than_two_heartbeats_is_a_lost_device() -> None:
    heartbeat_s = msgspec.json.decode(ONLINE)["heartbeat_s"]
    known = fed()
    assert of(exported(known, 100.0 + 2 * heartbeat_s)[1], "device_up") == 1.0
    known.take("pi", "status", ONLINE, 100.0 + 2 * heartbeat_s)  # retained, given once more by a broker that came back
    _, found = exported(known, 101.0 + 2 * heartbeat_s)
    assert of(found, "device_up") == 0.0
    assert of(found, "temperature_celsius") is None
    assert of(found, "telemetry_age_seconds") == 2 * heartbeat_s


def test_a_first_refusal_is_an_increase() -> None:
    """A series that began with it would have none (Prometheus: `increase` needs a value before)."""
    known = DeviceMetrics()
    known.take("pi", "status", ONLINE, 100.0)
    _, found = exported(known, 100.0)
    assert of(found, "refused_requests_total", reason="unknown-model") == 0
    assert of(found, "dropped_messages_total", cause="unread") == 0
    assert of(found, "expired_requests_total") == 0


def test_a_broker_that_is_away_is_a_metric() -> None:
    known = DeviceMetrics()
    assert exported(known, 1.0)[1]["broker_up", ()] == 0.0


def test_names_from_elsewhere_are_bounded_and_cannot_break_the_text() -> None:
    known = fed()
    body = msgspec.json.decode(SAID["telemetry"][0])
    body["models"] = {f'm"}} 1\nx{number}': body["models"]["m"] for number in range(5)} | {
        f"m{number}": body["models"]["m"] for number in range(500)
    }
    body["refusal_reasons"] = {f"word-{number}": 1 for number in range(500)}
    body["governor"]["level"] = '"}\n'
    body["memory"]["models"] = {"m": "x"}
    for number in range(20):
        body["models"] = {f"{name[:40]}.{number}": model for name, model in body["models"].items()}
        known.take("pi", "telemetry", msgspec.json.encode(body), 102.0)
    text, found = exported(known, 102.0)
    assert of(found, "refused_requests_total", reason="other") == 500 * 20
    assert len(found) < 40_000
    assert '\n"' not in text
    for name in ("#", "", "client", "pi/x", "x" * 65, "\n"):
        known.take(name, "status", ONLINE, 102.0)
    known.take("pi", "cmd", b"{}", 102.0)
    assert exported(known, 102.0)[1]["unreadable_messages_total", ()] == 7.0


def test_devices_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_metrics, "DEVICES_WATCHED", 3)
    known = DeviceMetrics()
    for number in range(9):
        known.take(f"d{number}", "status", ONLINE, 1.0)
    names = {dict(labels)["device"] for name, labels in exported(known, 1.0)[1] if name == "device_up"}
    assert names == {"d0", "d1", "d2"}


@given(st.sampled_from([*KINDS, "other"]), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_are_counted(kind: str, payload: bytes) -> None:
    known = DeviceMetrics()
    known.take("pi", kind, payload, 1.0)
    assert exported(known, 1.0)[1]["unreadable_messages_total", ()] == float(bool(payload))


@pytest.mark.parametrize("place", ["queue_jobs", "rss_bytes", "expired", "memory.reserve_bytes", "governor.threads"])
def test_a_number_that_is_no_float_does_not_end_the_scrapes(place: str) -> None:
    body = msgspec.json.decode(SAID["telemetry"][0])
    *above, key = place.split(".")
    inner = body[above[0]] if above else body
    inner[key] = 1234567
    huge = msgspec.json.encode(body).replace(b"1234567", b"1" * 400)
    known = fed()
    known.take("pi", "telemetry", huge, 102.0)
    _, found = exported(known, 103.0)
    assert of(found, "device_up") == 1.0
    assert of(found, "reports_total") == 2


def test_promtool_has_nothing_to_say() -> None:
    """Names, units, types and help by Prometheus' own linter."""
    text, _ = exported(fed(2), 103.0)
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_manual_names_every_metric_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([a-z_]+)`", row[1])}
    known = fed()
    body = msgspec.json.decode(SAID["telemetry"][0])
    body["rss_bytes"] = 1
    body["models"]["m"]["drift"]["a"] |= {"confidence_psi": 0.1, "fragmentation_psi": 0.1, "out_of_vocabulary": 0.1}
    body["canaries"]["m"] = {"ok": True, "reason": "", "age_s": 1.0}
    body["sensors"]["power"] = {"value": 4.2, "unit": "watts", "source": "x", "reason": None}
    body["dropped"] = {"unread": 1}
    known.take("pi", "telemetry", msgspec.json.encode(body), 101.0)
    assert named == {name for name, _ in exported(known, 102.0)[1]}
