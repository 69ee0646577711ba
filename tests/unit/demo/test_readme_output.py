"""What README.md shows of `make demo` is what the demo prints: its lines, their order and their columns.

The demo runs as it is; what it trains is replaced by packages of echo models, its daemon by the answers of the README.
"""

import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

from edge_agent.app import packages
from edge_agent.demo import device, show, stage
from edge_agent.protocol.messages import Energy, Reply, Timing
from tests.support import pages
from tests.support.agents import demo_packages, echo_adapter_package
from tests.support.packages import keys

README = Path(__file__).resolve().parents[3] / "README.md"
ANSWER = re.compile(r" {4}(\S+) +(.+?) {2,}(\w+) +(\d\.\d\d) +([\d.]+) ms")
UNASKED = ("out_of_scope", "0.50", "1.0")
"""The answer to a question that README leaves out."""


def shown():
    """The first block of README that is an output."""
    return next(body for language, body in pages.FENCE.findall(README.read_text("utf-8")) if language == "text")


def shape(text):
    """The text with one number for all."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\d+(\.\d+)? m?s\b", "0 s", text))


class Answering:
    """A client whose device answers as README says."""

    def __init__(self):
        found = (ANSWER.fullmatch(line) for line in shown().splitlines())
        self.answers = {one.group(1, 2): one.group(3, 4, 5) for one in found if one}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def infer(self, _device, _base, body, _deadline_s):
        label, score, total_ms = self.answers.get((body["adapter"], body["text"]), UNASKED)
        timing = Timing(0.0, 0.0, 0.0, float(total_ms))
        result = {"label": label, "score": float(score)}
        return Reply(id="1", status=200, result=result, timing=timing, batch=16, energy=Energy(None, "unknown"))

    async def command(self, *_):
        reading = {"value": None, "unit": "", "reason": "no sensor", "source": ""}
        sensors = dict.fromkeys(("temperature", "power", "ram_available", "throttle"), reading)
        return {"result": {"board": "x86", "agent": "0.1.0", "sensors": sensors}}


def test_readme_shows_what_the_demo_prints(tmp_path, monkeypatch, capsys):
    built = demo_packages(tmp_path / "made", show.HEAD)
    lora = [echo_adapter_package(tmp_path / "made", built["base"], act.adapter) for act in show.LORA]
    part = SimpleNamespace(check=lambda: None)
    started = []

    def report(*found):
        return json.dumps({"packages": list(map(str, found)), "trust_root": str(keys().root_file)}).encode()

    def call(command, capture=False):
        if capture:
            return report(*built.values())
        print(packages.install(Path(command[-2]), Path(command[-1]))["text"])
        return b""

    @contextlib.contextmanager
    def daemon(*_):
        started.append(22858)
        yield stage.Running(22858, 1.6, part)

    monkeypatch.setattr(device, "call", call)
    monkeypatch.setattr(stage, "daemon", daemon)
    monkeypatch.setattr(packages, "running_daemon", lambda _: started[0] if started else None)
    broker = stage.Broker(45727, "mosquitto", "auto", part)
    monkeypatch.setattr(stage, "broker", lambda *_: contextlib.nullcontext(broker))
    beside = SimpleNamespace(result=lambda: report(built["base"], *lora))
    monkeypatch.setattr(stage, "beside", lambda _: contextlib.nullcontext(beside))
    own_device = device.device
    monkeypatch.setattr(show, "device", lambda folder, port: own_device(folder, port, "echo"))
    monkeypatch.setattr(show, "build_command", lambda *_: [])
    monkeypatch.setattr(device, "build_command", lambda *_: [])
    client = Answering()
    monkeypatch.setattr(show, "_client", lambda _: client)
    assert show.run(tmp_path / "build", Path("models")) == 0
    printed = capsys.readouterr().out
    whole = printed[: printed.index(" in all\n") + len(" in all\n")]
    rest = shape(whole)
    for part in shape(shown()).split("...\n"):
        assert part in rest, f"{part}\nis not in\n{rest}"
        before, rest = rest.split(part, 1)
        assert not before or before.endswith("\n")
    assert not rest
    assert len(client.answers) >= 3
    for line in filter(ANSWER.fullmatch, shown().splitlines()):
        assert line in whole.splitlines()
