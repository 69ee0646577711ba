"""`edge-agent metrics` as a real process between a real broker and a real agent, scraped as Prometheus does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.client import Client
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need

WITHIN_S = 40.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    need("prometheus_client")
    with Mosquitto(tmp_path, persistence=True) as found:
        yield found


@contextmanager
def exporter(agent: AgentProcess, *options: str) -> Iterator[str]:
    """The line that it prints when it has begun; it ends by SIGTERM as a service does."""
    command = [sys.executable, "-m", "edge_agent", "metrics", "--config", str(agent.config), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def until(read: Callable[[], str], *parts: str, gone: tuple[str, ...] = ()) -> str:
    """The metrics, once they have these parts and none of those that are to be gone."""
    until_s = time.monotonic() + WITHIN_S
    while time.monotonic() < until_s:
        text = read()
        if all(part in text for part in parts) and not any(part in text for part in gone):
            return text
        time.sleep(0.1)
    raise AssertionError(f"not so within {WITHIN_S} s: {parts}, without {gone}:\n{text}")


def test_a_device_is_scraped_until_its_last_will_and_after_the_broker_has_gone(
    tmp_path: Path, broker: Mosquitto
) -> None:
    agent = AgentProcess(tmp_path / "device", broker.port, device="pi")
    agent.install(echo_package(tmp_path / "package", "home"))
    with running(agent), exporter(agent, "--all", "--listen-port", "0") as line:
        address = next(word for word in line.split() if word.startswith("http://")).rstrip(";")

        def scraped() -> str:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text: str = answer.read().decode()
                return text

        until(scraped, "edge_agent_broker_up 1.0", 'edge_agent_device_up{device="pi"} 1.0')
        with Client(f"127.0.0.1:{broker.port}", "pi") as edge:
            for number in range(5):
                edge.ask("home", f"text {number}")
        text = until(scraped, 'edge_agent_requests_total{device="pi",model="home"} 5.0')
        assert 'edge_agent_request_seconds{device="pi",model="home",percentile="99"}' in text
        assert "edge_agent_build_info{board=" in text
        agent.stop(signal.SIGKILL)
        text = until(scraped, 'edge_agent_device_up{device="pi"} 0.0')
        assert "edge_agent_requests_total" not in text, "the broker published the last will: the series has ended"
        broker.stop()
        until(scraped, "edge_agent_broker_up 0.0")
        broker.start()
        until(scraped, "edge_agent_broker_up 1.0")


def test_the_text_file_is_whole_and_goes_with_the_exporter(tmp_path: Path, broker: Mosquitto) -> None:
    agent = AgentProcess(tmp_path / "device", broker.port, device="pi")
    path = tmp_path / "edge-agent.prom"
    with running(agent), exporter(agent, "--textfile", str(path), "--interval", "1") as line:
        assert str(path) in line
        text = until(path.read_text, 'edge_agent_telemetry_age_seconds{device="pi"}', "edge_agent_uptime_seconds")
        assert text.endswith("\n")
    assert not path.exists(), "what it says would stay true for ever"
    assert list(tmp_path.glob("edge-agent.prom*")) == []


def test_dashboards_and_rules_are_written_without_a_broker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_agent", "metrics", "--dashboards", str(tmp_path / "new" / "folder")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert {Path(line).name for line in done.stdout.splitlines()} == {
            "edge-agent-alerts.yml",
            "edge-agent-device.json",
            "edge-agent-fleet.json",
        }
        assert all(Path(line).stat().st_size > 1000 for line in done.stdout.splitlines())


def test_a_broker_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    need("prometheus_client")
    command = [sys.executable, "-m", "edge_agent", "metrics", "--config", str(tmp_path / "edge-agent.toml")]
    (tmp_path / "edge-agent.toml").write_text('[device]\nid = "pi"\n[mqtt]\nhost = "127.0.0.1"\nport = 1\n')
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--listen-port", "0"], **options) as process:  # type: ignore[call-overload]
        said = process.stderr.readline()
        time.sleep(3.0)  # tried again meanwhile
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert said.startswith("edge-agent: no broker, tried again: 127.0.0.1:1: nothing listens there"), said
    assert rest == ""


def test_what_cannot_be_started_is_a_sentence(tmp_path: Path, broker: Mosquitto) -> None:
    agent = AgentProcess(tmp_path / "device", broker.port)

    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "edge_agent", "metrics", "--config", str(agent.config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    for options, said in (
        (("--textfile", str(tmp_path / "x.txt")), "name it *.prom"),
        (("--textfile", str(tmp_path / "nowhere" / "x.prom")), "cannot be written"),
        (("--dashboards", str(agent.config)), "cannot be written"),
        (("--interval", "0"), "--interval is 0"),
        (("--listen-port", "70000"), "'70000' is no port"),
        (("--listen-port", str(broker.port)), f"cannot listen on 127.0.0.1:{broker.port}"),
    ):
        code, text = run(*options)
        assert (code, said in text) == (2, True), text
