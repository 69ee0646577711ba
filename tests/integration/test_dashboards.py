"""The dashboards and alert rules that are shipped, over a real Prometheus that scrapes `edge-agent metrics` while an
agent is under load: every query of a panel and every part of a rule finds something."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.bundle.drift_reference import to_metrics
from edge_agent.client import Client, EdgeError
from edge_agent.tasks.tokens import open_tokenizer
from sim.boards import BOARDS
from sim.sysfs import BoardTree, Shown
from tests.integration.test_canaries import often
from tests.integration.test_drift import USUAL, package
from tests.integration.test_metrics import exporter
from tests.support.agents import AgentProcess, echo_adapter_package, running
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.needs import need, program

SHIPPED = Path(__file__).resolve().parents[2] / "edge_agent" / "exporter" / "monitoring"
WITHIN_S = 60.0
VARIABLES = {"$__rate_interval": "10s", "$device": "pi", "$model": ".*", "$datasource": ""}


class Prometheus:
    """A running Prometheus that scrapes one address every second."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **arguments: str) -> Any:
        """The data of an answer of its interface."""
        url = f"{self._base}/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def found(self, query: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        result: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return result


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with the shipped rules, once it is ready."""
    port, config = free_port(), folder / "prometheus.yml"
    scrape = {"job_name": "edge-agent", "static_configs": [{"targets": [target]}]}
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(SHIPPED / "edge-agent-alerts.yml")],
                "scrape_configs": [scrape],
            }
        )
    )
    command = [
        program("prometheus", "prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until_s = time.monotonic() + WITHIN_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "prometheus.log").read_text()
                    assert time.monotonic() < until_s, "Prometheus does not get ready"
                    time.sleep(0.1)
            yield Prometheus(port)
        finally:
            process.terminate()


def queries() -> dict[str, str]:
    """Every query of every panel, by the panel's title."""
    found = {}
    for path in SHIPPED.glob("*.json"):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                text = target["expr"]
                for name, value in VARIABLES.items():
                    text = text.replace(name, value)
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = text
    return found


def rule_parts(rules: Mapping[str, Any]) -> dict[str, str]:
    """The selectors of every rule without their states: what a rule compares must be there while all is well."""
    found = {}
    for group in rules["groups"]:
        for rule in group["rules"]:
            for selector in re.findall(r"edge_agent_\w+(?:\{[^}]*\})?", rule["query"]):
                found[f"{rule['name']}: {selector}"] = re.sub(r',?severity="error"', "", selector)
    return found


def ask(port: int, stop: threading.Event) -> None:
    """Requests that are answered with and without the adapter, and some that are refused, until told to stop."""
    with Client(f"127.0.0.1:{port}", "pi") as edge:
        number = 0
        while not stop.is_set():
            number += 1
            text = USUAL[number % len(USUAL)]
            edge.ask("echo", [text] * 8)
            edge.ask("echo", text, adapter="home")
            for wrong in ({"model": "nobody"}, {"model": "echo", "adapter": "none"}):
                try:
                    edge.ask(wrong["model"], text, adapter=wrong.get("adapter"))
                except EdgeError:
                    continue
            stop.wait(0.05)


def test_every_panel_and_rule_finds_something_while_an_agent_works(tmp_path: Path) -> None:
    need("prometheus_client")
    program("prometheus", "prometheus")
    model = next(model for model in BOARDS.values() if model.board == "pi-5")
    with BoardTree(tmp_path / "board", model) as tree, Mosquitto(tmp_path) as broker:
        tree.update(Shown(61.0, 5.0, 1.0, 1.0))
        agent = often(AgentProcess(tmp_path / "device", broker.port, "pi", f'[sensors]\nsysroot = "{tree.root}"\n'))
        base = package(tmp_path, **to_metrics([0.1] * 10, "confidence"))
        opened = open_tokenizer(str(tmp_path / "tokenizer.json"), 64)
        agent.install(base)
        agent.install(echo_adapter_package(tmp_path, base, "home", ids=lambda text: opened.encode([text])[0].ids))
        with running(agent), exporter(agent, "--all", "--listen-port", "0") as line:
            with Client(f"127.0.0.1:{broker.port}", "pi") as edge:
                edge.ask("echo", "on", adapter="home")  # its golden probes are run while it is idle, so before the load
            address = next(word for word in line.split() if word.startswith("http://"))
            with prometheus(tmp_path, urllib.parse.urlsplit(address).netloc) as server:
                _all_find(server, {"golden probes": "edge_agent_canary_ok"})
                stop = threading.Event()
                load = threading.Thread(target=ask, args=(broker.port, stop))
                load.start()
                try:
                    _all_find(server, queries())
                finally:
                    stop.set()
                    load.join()
                rules = server.get("rules")
                assert {rule["health"] for group in rules["groups"] for rule in group["rules"]} == {"ok"}
                _all_find(server, rule_parts(rules))
                assert not server.found('edge_agent_device_up{device="pi"} == 0')
                agent.stop(signal.SIGKILL)
                _pending(server, "EdgeAgentDeviceAway")


def _all_find(server: Prometheus, texts: Mapping[str, str]) -> None:
    """Each finds at least one series."""
    assert texts
    until_s = time.monotonic() + WITHIN_S
    empty = dict(texts)
    while empty and time.monotonic() < until_s:
        empty = {name: text for name, text in empty.items() if not server.found(text)}
        time.sleep(0.2)
    assert not empty, json.dumps(empty, indent=1)


def _pending(server: Prometheus, alert: str) -> None:
    until_s = time.monotonic() + WITHIN_S
    while not any(one["labels"]["alertname"] == alert for one in server.get("alerts")["alerts"]):
        assert time.monotonic() < until_s, f"{alert} does not wait to fire"
        time.sleep(0.2)
