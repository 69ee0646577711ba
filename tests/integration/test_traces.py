"""A trace from the one who asks, through a real broker and a real agent, to a collector beside them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.client import Client, RequestError, traced
from tests.support import told_devices
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, SILENT = (f"00-{TRACE}-{SPAN}-0{flag}" for flag in (1, 0))


def until(condition: Callable[[], object], within_s: float = 40.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, f"not so within {within_s} s"
        time.sleep(0.05)


def test_requests_are_spans_at_the_collector_and_metrics_come_too(tmp_path: Path) -> None:
    need("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    from tests.support.otlp import Collector, collector

    with Mosquitto(tmp_path) as broker, collector() as found:
        agent = AgentProcess(tmp_path / "device", broker.port, device="pi")
        agent.install(echo_package(tmp_path / "package", "home"))
        command = [sys.executable, "-m", "edge_agent", "metrics", "--config", str(agent.config), "--otlp", found.url]
        with (
            running(agent, EDGE_AGENT__TELEMETRY__TRACES="true"),
            subprocess.Popen([*command, "--all", "--interval", "1"], stdout=subprocess.PIPE, text=True) as process,
        ):
            assert process.stdout is not None and found.url in process.stdout.readline()
            until(lambda: found.metrics.get(("edge_agent_device_up", (("device", "pi"),))) == ("gauge", "", 1.0))
            with Client(f"127.0.0.1:{broker.port}", "pi") as edge:
                edge.ask("home", "before any trace")
                with traced(SILENT):
                    edge.ask("home", "a trace that nobody records")
                with traced(SAMPLED, "vendor=1"):
                    edge.ask("home", "one")
                    try:
                        edge.ask("home", "two", adapter="nobody")
                        raise AssertionError("there is no such adapter")
                    except RequestError as error:
                        refused = error.cause.value
            until(lambda: ("edge_agent_requests", (("device", "pi"), ("model", "home"))) in found.metrics)
            with told_devices.Teller(broker.port) as teller:
                teller.say("pi", "trace", {"traceparent": "none"})
            until(lambda: found.metrics["edge_agent_unreadable_messages", ()] == ("sum", "", 1.0))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        whole = [span for _, span in found.spans if span.parent_span_id.hex() == SPAN]
        assert sorted(span.name for span in whole) == ["classify home", "infer home"], "and none of the two others"
        answered = next(span for span in whole if span.name == "classify home")
        assert {span.trace_id.hex() for _, span in found.spans} == {TRACE} and answered.trace_state == "vendor=1"
        parts = [span for _, span in found.spans if span.parent_span_id == answered.span_id]
        assert [span.name for span in sorted(parts, key=lambda span: span.start_time_unix_nano)] == [
            "queue", "tokenize", "compute", "answer"
        ]  # fmt: skip
        assert abs(answered.end_time_unix_nano / 1e9 - time.time()) < 120.0
        (other,) = (span for span in whole if span.name == "infer home")
        assert Collector.attributes(other)["error.type"] == refused
        kind, _, value = found.metrics["edge_agent_requests", (("device", "pi"), ("model", "home"))]
        assert (kind, value) == ("sum", 3.0)


def test_a_collector_that_is_away_is_said_once_and_when_it_is_back(capfd: pytest.CaptureFixture[str]) -> None:
    need("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    from edge_agent.exporter.device_metrics import DeviceMetrics
    from edge_agent.exporter.otlp import exporting
    from tests.support.otlp import collector

    known = DeviceMetrics()
    known.connection(True)
    with collector() as found:
        found.refuses = True
        with exporting(found.url, known, 0.05):
            time.sleep(0.5)
            found.refuses = False
            until(lambda: ("edge_agent_broker_up", ()) in found.metrics)
            time.sleep(0.2)
        assert found.metrics["edge_agent_broker_up", ()] == ("gauge", "", 1.0)
    said = [line for line in capfd.readouterr().err.splitlines() if "collector" in line]
    assert len(said) == 2, said
    assert "takes no metrics" in said[0] and "400" in said[0]
    assert said[1].endswith("takes metrics again")


def test_an_agent_without_the_setting_answers_the_trace_and_tells_nothing(tmp_path: Path) -> None:
    import asyncio

    from tests.support.desk import desk

    async def ask(broker: Mosquitto) -> tuple[list[str | None], list[str]]:
        async with desk(broker, "pi") as table:
            await table.ask("1", {"text": "x"}, "home", user={"traceparent": SAMPLED})
            await table.ask("2", {"text": "x"}, "home", user={"traceparent": SAMPLED.upper()})
            answers = [message for message in table.heard if "/reply" in message.topic]
            return [one.user.get("traceparent") for one in answers], [message.topic for message in table.heard]

    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, device="pi")
        agent.install(echo_package(tmp_path / "package", "home"))
        with running(agent):
            answered, topics = asyncio.run(ask(broker))
    assert answered == [SAMPLED, None]
    assert not any(topic.endswith("/trace") for topic in topics)
