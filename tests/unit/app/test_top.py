"""What a terminal and a table show of a report that the real reporter made."""

from __future__ import annotations

from typing import Any

from edge_agent.app.top import COLUMNS, DeviceView, lines, rows, spark
from tests.support.fakes import a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def reports() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Telemetry and events of a device that answered, refused, and lost a sensor."""

    async def scenario(device: Device) -> None:
        import asyncio

        from tests.support.fakes import RecordingNotifier

        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        device.sensors.set(temperature=61.5, power=4.2)
        for number in range(60):
            device.transport.deliver(device.message(str(number), {"text": "x", "adapter": "a"}))
        device.transport.deliver(device.message("bad", model="nobody"))
        await later(5.0)
        device.sensors.lose("power", "the rail is gone")
        await later(26.0)
        device.agent.stop("done")
        await running

    device = Device.run(scenario, a_model(adapters=["a"]))
    return device.transport.bodies("/telemetry"), device.transport.bodies("/event")


def test_a_screen_shows_what_an_operator_asks_first() -> None:
    told, events = reports()
    seen = DeviceView("dev")
    assert lines(seen, 0.0) == ["dev   no status yet", "waiting for the next report ..."]
    seen.take("status", {"state": "online"}, 0.0)
    for event in events:
        seen.take("event", event, 0.0)
    seen.take("telemetry", told[0], 100.0)
    screen = "\n".join(lines(seen, 103.0, 200))
    for part in ("dev   online", "report 3.0 s old", "61.5 °C", "governor normal", "memory  calm", "m ", "  + a",
                 "refused 1 unknown-model", "sensor 'power' is lost"):  # fmt: skip
        assert part in screen, f"{part!r} is not in\n{screen}"
    assert max(map(len, lines(seen, 103.0, 40))) <= 40


def test_a_device_s_text_cannot_command_the_terminal() -> None:
    told, _ = reports()
    seen = DeviceView("dev")
    seen.take("telemetry", told[0], 0.0)
    seen.take("event", {"severity": "error", "message": "\x1b[2J gone\x07"}, 0.0)
    assert "\x1b" not in "".join(lines(seen, 1.0, 100))


def test_a_row_per_model_with_every_column_known() -> None:
    told, _ = reports()
    (first,) = rows("dev", told[0])
    assert set(first) <= set(COLUMNS)
    assert (first["model"], first["requests"], first["temperature_c"], first["refused"]) == ("m", 60, 61.5, 1)
    assert first["p50_ms"] <= first["p99_ms"]
    (idle,) = rows("dev", told[-1])
    assert (idle["model"], idle.get("requests"), idle["power_w"]) == ("", None, None)


def test_drift_is_the_larger_index_of_the_adapter_that_is_worst_off() -> None:
    told, _ = reports()
    body = told[0]
    quiet = {"confidence_psi": 0.02, "fragmentation_psi": None, "out_of_vocabulary": None}
    loud = {"confidence_psi": 0.11, "fragmentation_psi": 1.5, "out_of_vocabulary": 0.25}
    body["models"]["m"]["drift"] = {"a": quiet, "b": loud, "of an older agent": {"confidence_psi": None}}
    seen = DeviceView("dev")
    seen.take("telemetry", body, 0.0)
    (line,) = [line for line in lines(seen, 1.0) if line.startswith("m ")]
    assert "1.50" in line.split()
    (row,) = rows("dev", body)
    assert (row["confidence_psi"], row["fragmentation_psi"], row["out_of_vocabulary"]) == (0.11, 1.5, 0.25)


def test_an_adapter_whose_probes_fail_shows_on_its_line_and_its_model_s() -> None:
    told, _ = reports()
    body = told[0]
    one = {"ok": True, "reason": "", "age_s": 1.0}
    body["canaries"]["m"] = {**one, "adapters": {"a": one}}
    seen = DeviceView("dev")
    seen.take("telemetry", body, 0.0)
    shown = [line for line in lines(seen, 1.0) if line.startswith(("model ", "m ", "  + a"))]
    assert [line.split()[-1] for line in shown] == ["probes", "hold", "hold"]
    assert len({len(line) for line in shown}) == 1, "the column is one"
    body["canaries"]["m"]["adapters"] = {"a": {**one, "ok": False}}
    ends = [line.split()[-1] for line in lines(seen, 1.0) if line.startswith(("m ", "  + a"))]
    assert ends == ["FAIL", "FAIL"]
    body["canaries"]["m"] = one
    ends = [line.split()[-1] for line in lines(seen, 1.0) if line.startswith(("m ", "  + a"))]
    assert ends == ["hold", "-"], "an older agent says nothing of adapters"


def test_a_spark_line_shows_range_and_last_value() -> None:
    assert spark([1.0, None, 3.0, 2.0]) == "▁ █▅  1.0 to 3.0, now 2.0"
    assert spark([None]) == "no value"
    assert spark([5.0, 5.0]) == "▁▁  5.0 to 5.0, now 5.0"


def test_a_screen_says_why_where_something_is_limited() -> None:
    told, _ = reports()
    seen = DeviceView("dev")
    seen.take("status", {"state": "degraded", "reason": "quarantined: m"}, 0.0)
    normal = {**told[0], "governor": {**told[0]["governor"], "level": "normal", "derated": None}}
    seen.take("telemetry", normal, 0.0)
    assert "because" not in "\n".join(lines(seen, 1.0, 200))
    limited = {**normal, "governor": {**normal["governor"], "level": "closed", "why": "79.9 °C, soft limit 80.0 °C"}}
    seen.take("telemetry", limited, 0.0)
    screen = lines(seen, 1.0, 200)
    assert screen[0].startswith("dev   degraded (quarantined: m)")
    assert "        because: 79.9 °C, soft limit 80.0 °C" in screen
    lost = {**limited, "governor": {**limited["governor"], "derated": "the temperature is lost"}}
    seen.take("telemetry", lost, 0.0)
    assert "        because: the temperature is lost" in lines(seen, 1.0, 200)
