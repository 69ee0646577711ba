"""`edge-agent demo`: the whole way on one machine, each step done by the command that a user would type.

Two adapters are trained on one base, exported, quantised, signed and packaged (`edge-forge build`, cached), a broker is
started, the packages are installed, the daemon is started, and questions are asked over MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.base.errors import EdgeError, RequestError
from edge_agent.base.units import duration_text
from edge_agent.demo import stage
from edge_agent.mqtt.client import RequestClient
from edge_agent.mqtt.options import MqttOptions

DEVICE = "demo"
RECIPES = ("home-intents", "urgency")
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("home-intents", "it's getting a bit chilly in here"),
    ("home-intents", "kill the lights in the hallway pls"),
    ("home-intents", "did i leave the front door unlocked?"),
    ("home-intents", "who won the match last night"),
    ("urgency", "there is a strong smell of gas in the stairwell"),
    ("urgency", "the bulb in the cellar flickers again"),
    ("urgency", "thanks, the plumber came and all is well"),
)
READY_S = 60.0
STOP_S = 10.0


def run(build: Path, models: Path, port: int = 0, stay: bool = False) -> int:
    """The demo; returns the exit code. `stay` keeps broker and daemon until Ctrl-C, so that others may ask them."""
    started_s = time.monotonic()
    packages, root = _build_packages(build, models)
    folder = (build / "demo").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(stage.broker(folder, port))
        _say("broker", f"{broker.name} on port {broker.port}")
        config = stage.write_config(folder, broker, root, DEVICE)
        _say("install", "verify signatures, run the golden probes on this machine, activate")
        for package in packages:
            _call([sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)])
        running = stack.enter_context(stage.daemon(config, folder))
        _say("daemon", f"pid {running.pid}, ready after {duration_text(running.ready_s)}")
        asyncio.run(_converse(broker))
        _say("done", f"{duration_text(time.monotonic() - started_s)} in all")
        print(_next_steps(build, config, stay))
        if stay:
            _say("stay", f"broker on 127.0.0.1:{broker.port}, device {DEVICE!r}; Ctrl-C ends both")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


def _build_packages(build: Path, models: Path) -> tuple[list[Path], Path]:
    """Run the recipes; returns the packages in the order of installation and the trust root."""
    packages: list[Path] = []
    root = build / "keys" / "root.json"
    for name in RECIPES:
        recipe = models / name / "recipe.toml"
        if not recipe.is_file():
            raise EdgeError(
                f"there is no recipe {recipe}", "demo", "run it from a clone of the project, or name --models"
            )
        _say("build", f"{recipe}: train, evaluate, export, quantise, sign (cached: the second time it takes seconds)")
        command = [sys.executable, "-m", "edge_forge.cli", "build", str(recipe), "--build", str(build), "--json"]
        built = msgspec.json.decode(_call(command, capture=True))
        packages += [Path(path) for path in built["packages"] if Path(path) not in packages]
        root = Path(built["trust_root"])
    return packages, root


async def _converse(broker: stage.Broker) -> None:
    """Ask, one by one and then all at once, and show what came back."""
    options = MqttOptions(
        host="127.0.0.1",
        port=broker.port,
        client_id="demo-client",
        protocol=311 if broker.protocol == "3.1.1" else "auto",
    )
    async with RequestClient(options, devices=[DEVICE]) as client:
        _say("ask", "one at a time, over MQTT")
        for adapter, text in QUESTIONS:
            reply = await _ask(client, adapter, text)
            result, timing = reply["result"], reply["timing"]
            answer = f"{result['label']:<17} {result['score']:.2f}"
            print(f"    {adapter:<13} {text:<50} {answer}  {timing['total_ms']:6.1f} ms")
        _say("ask", "all at once: one batch, every row with its own adapter")
        started_s = time.monotonic()
        replies = await asyncio.gather(*(_ask(client, adapter, text) for adapter, text in QUESTIONS * 4))
        elapsed_s = time.monotonic() - started_s
        largest = max(reply["batch"] for reply in replies)
        print(f"    {len(replies)} answers in {duration_text(elapsed_s)}, largest batch {largest} rows")
        await _show_board(client, replies[-1])


async def _ask(client: RequestClient, adapter: str, text: str) -> dict[str, Any]:
    reply = await client.infer(DEVICE, "minilm", {"text": text, "adapter": adapter}, 20.0)
    if reply.status != 200:
        raise RequestError(reply.status, f"{adapter}: {reply.reason}")
    fields: dict[str, Any] = msgspec.to_builtins(reply)
    return fields


async def _show_board(client: RequestClient, reply: dict[str, Any]) -> None:
    found = (await client.command(DEVICE, "diag", {}))["result"]
    sensors = found["sensors"]
    _say("board", f"{found['board']}, agent {found['agent']}")
    for key in ("temperature", "power", "ram_available", "throttle"):
        reading = sensors[key]
        value = "null" if reading["value"] is None else f"{reading['value']:g} {reading['unit']}"
        print(f"    {key:<14} {value:<22} {reading['reason'] or reading['source']}")
    energy = reply["energy"]
    joules = "null" if energy["joules"] is None else f"{energy['joules']:.3f} J"
    print(f"    {'energy/request':<14} {joules:<22} {energy['method']}")


def _call(command: Sequence[str], capture: bool = False) -> bytes:
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise EdgeError(f"`{' '.join(command[1:5])} ...` failed, see above", "demo")
    return done.stdout or b""


def _say(step: str, text: str) -> None:
    print(f"[{step:>7}] {text}", flush=True)


def _next_steps(build: Path, config: Path, stay: bool) -> str:
    first = "" if stay else "  keep it running edge-agent demo --stay     (then ask it from another terminal)\n"
    return f"""
What next:
{first}  ask it          edge-agent infer --config {config} minilm "open the blinds" --adapter home-intents
  the report      {build}/reports (open the .html)
  your own data   edge-forge init my-task && edge-forge build my-task/recipe.toml
  a board         edge-agent service install; systemd/README.md"""
