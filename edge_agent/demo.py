"""`edge-agent demo`: the whole way on one machine, each step done by the command that a user would type.

Two adapters are trained on one base, exported, quantised, signed and packaged (`edge-forge build`, cached), a broker is
started, the packages are installed, the daemon is started, and questions are asked over MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.base.errors import EdgeError, RequestError
from edge_agent.base.units import duration_text
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


def run(build: Path, models: Path) -> int:
    """The demo; returns the exit code."""
    started_s = time.monotonic()
    packages, root = _build_packages(build, models)
    folder = (build / "demo").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_broker(folder))
        config = _write_config(folder, port, root)
        _say("install", "verify signatures, run the golden probes on this machine, activate")
        for package in packages:
            _call([sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)])
        stack.enter_context(_daemon(config, folder))
        asyncio.run(_converse(port))
        _say("done", f"{duration_text(time.monotonic() - started_s)} in all")
        print(_next_steps(build, config))
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


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[int]:
    """A broker of our own on a free port: mosquitto where it is installed, else amqtt in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if mosquitto:
        settings = folder / "mosquitto.conf"
        settings.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n"
        )
        command = [mosquitto, "-c", str(settings)]
    else:
        settings = folder / "amqtt.yaml"
        settings.write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
        )
        command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(settings)]
    _say("broker", f"{'mosquitto' if mosquitto else 'amqtt (MQTT 3.1.1)'} on port {port}")
    with _process(command, folder / "broker.log") as process:
        _wait_for_port(port, process, folder / "broker.log")
        yield port


@contextlib.contextmanager
def _daemon(config: Path, folder: Path) -> Iterator[None]:
    """`edge-agent run`, ready: it tells so over the same socket that systemd would give it."""
    address = folder / "notify.sock"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.settimeout(READY_S)
        started_s = time.monotonic()
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(config)]
        with _process(command, folder / "agent.log", NOTIFY_SOCKET=str(address)) as process:
            while b"READY=1" not in _next_word(channel, process, folder / "agent.log"):
                pass
            _say("daemon", f"pid {process.pid}, ready after {duration_text(time.monotonic() - started_s)}")
            yield


def _next_word(channel: socket.socket, process: subprocess.Popen[bytes], log: Path) -> bytes:
    try:
        return channel.recv(4096)
    except TimeoutError:
        code = process.poll()
        state = f"ended with exit code {code}" if code is not None else "does not get ready"
        raise EdgeError(f"the daemon {state}: {_tail(log)}", "demo") from None


async def _converse(port: int) -> None:
    """Ask, one by one and then all at once, and show what came back."""
    options = MqttOptions(host="127.0.0.1", port=port, client_id="demo-client")
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


def _write_config(folder: Path, port: int, root: Path) -> Path:
    config = folder / "edge-agent.toml"
    config.write_text(
        f'[device]\nid = "{DEVICE}"\n\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\n\n'
        f'[store]\nstate_dir = "{folder / "state"}"\ntrust_root = "{root.absolute()}"\n\n'
        '[worker]\nbackends = ["onnx"]\n\n[telemetry]\ninterval_s = 2.0\n'
    )
    return config


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise EdgeError(f"the broker does not start: {_tail(log)}", "demo", "install mosquitto, or amqtt for this Python")


def _call(command: Sequence[str], capture: bool = False) -> bytes:
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise EdgeError(f"`{' '.join(command[1:5])} ...` failed, see above", "demo")
    return done.stdout or b""


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) or "it said nothing"


def _say(step: str, text: str) -> None:
    print(f"[{step:>7}] {text}", flush=True)


def _next_steps(build: Path, config: Path) -> str:
    return f"""
What next:
  the report      {build}/reports (open the .html)
  serve it        edge-agent run --config {config}     (needs a broker at the port it names)
  ask it          edge-agent infer --config {config} minilm "open the blinds" --adapter home-intents
  your own data   edge-forge init my-task && edge-forge build my-task/recipe.toml
  a board         edge-agent service install; systemd/README.md"""
