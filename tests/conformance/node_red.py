"""The flow of docs/examples in a real Node-RED, before a real agent: `python -m tests.conformance.node_red NODE_RED`.

NODE_RED is the program of a Node-RED (`make node-red` installs one with npm). It runs the flow as it stands, except for
the broker's port.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

from edge_agent.client import Client
from tests.support import tiny_slots
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.packages import keys

FLOW = Path(__file__).resolve().parents[2] / "docs" / "examples" / "node_red_intents.json"
WARNED = re.compile(r"\[error\]|\[warn\] \[")
"""Lines about nodes; others are about Node-RED's own installation."""
START_S = 90.0
WAIT_S = 15.0
TEXTS = ("turn the lamp on", "please switch the light off", "now please", 'a "quoted" ü lamp')


@contextlib.contextmanager
def node_red(program: str, folder: Path, port: int) -> Iterator[Path]:
    """Node-RED with the flow for the length of the block; its log."""
    folder.mkdir()
    flow = json.loads(FLOW.read_text(encoding="utf-8"))
    for node in flow:
        if node["type"] == "mqtt-broker":
            assert (node["broker"], node["port"]) == ("localhost", "1883")
            node.update(broker="127.0.0.1", port=str(port))
    (folder / "flow.json").write_text(json.dumps(flow))
    settings = {"uiHost": "127.0.0.1", "uiPort": free_port(), "telemetry": {"enabled": False}}
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
    command = [program, "--userDir", str(folder), "--settings", str(folder / "settings.js"), str(folder / "flow.json")]
    log = folder / "log"
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            end_s = time.monotonic() + START_S
            while "Connected to broker" not in log.read_text(errors="replace"):
                assert process.poll() is None and time.monotonic() < end_s, log.read_text(errors="replace")
                time.sleep(0.2)
            yield log
        finally:
            process.terminate()


class Listener:
    """Hears `home/#` and says texts."""

    def __init__(self, port: int) -> None:
        self.heard: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=100)
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.heard.put_nowait(
            (message.topic, json.loads(message.payload))
        )
        self._client.on_connect = lambda client, *_: client.subscribe([("home/intent", 1), ("home/refused", 1)])
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def say(self, text: str) -> tuple[str, Any]:
        """What the flow makes of a text."""
        self._client.publish("home/heard", text, qos=1)
        return self.heard.get(timeout=WAIT_S)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def check(program: str, folder: Path) -> None:
    """All of it. Raises AssertionError."""
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "agent", broker.port, "demo", backends=("onnx",))
        slots = tiny_slots.slots(folder / "slots", "home-slots", "minilm", merged=False)
        intents = tiny_slots.classes(folder / "intents", "home-intents", "minilm", out=folder / "slots" / "build")
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), slots["trust_root"]))
        for package in dict.fromkeys((*slots["packages"], *intents["packages"])):
            agent.install(Path(package))
        print("  two adapters of one base are built and installed")
        with running(agent), node_red(program, folder / "node-red", broker.port) as log:
            print("  the flow runs")
            listener, slots_found = Listener(broker.port), 0
            with Client(f"127.0.0.1:{broker.port}", "demo") as edge:
                for text in TEXTS:
                    meant = edge.ask("minilm", text, adapter="home-intents")
                    found = edge.ask("minilm", text, adapter="home-slots").spans
                    topic, heard = listener.say(text)
                    assert (topic, heard["text"], heard["label"]) == ("home/intent", text, meant.label)
                    # Two questions of one batch here, each alone there: the last digits of a score may differ.
                    assert math.isclose(heard["score"], meant.score, abs_tol=1e-3)
                    assert [(one["label"], one["text"]) for one in heard["slots"]] == [
                        (one.label, one.text) for one in found
                    ]
                    slots_found += len(found)
            assert slots_found >= 4
            print(f"  {len(TEXTS)} texts become the intents and the {slots_found} slots that the board gives")
            topic, refusal = listener.say("")
            assert (topic, refusal["text"], refusal["status"]) == ("home/refused", "", 422), refusal
            print(f"  a refusal is a message of its own: {refusal['status']}, {refusal['reason']}")
            listener.close()
            lines = [line for line in log.read_text(errors="replace").splitlines() if WARNED.search(line)]
            assert len(lines) == 1 and "422" in lines[0], lines
            print("  no other warning in its log")


def main(arguments: list[str]) -> int:
    """0: everything held."""
    with tempfile.TemporaryDirectory(prefix="edge-node-red-") as folder:
        try:
            check(arguments[0], Path(folder))
        except AssertionError as error:
            print(f"node-red: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
