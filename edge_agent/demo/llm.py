"""`edge-agent demo --llm`: a language model that is trained on this machine and streams its answers.

A small Llama is trained from nothing, then two adapters on it; all is converted to GGUF, quantised, signed and
installed (`edge-forge build`, cached), and a wish becomes a JSON command, token by token over MQTT.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path

from edge_agent.base.errors import BackendMissing, EdgeError
from edge_agent.base.units import duration_text
from edge_agent.demo import stage
from edge_agent.demo.stage import DEVICE
from edge_agent.mqtt.client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Reply, StreamChunk, Usage

MODEL = "tiny-llama"
RECIPES = ("home-commands", "tickets")
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("home-commands", "Could you turn the lamp in the hallway off, thanks"),
    ("home-commands", "blinds in the office to 40%"),
    ("home-commands", "set a timer for half an hour for the pizza"),
    ("home-commands", "is the window in the bedroom open"),
    ("tickets", "Hello, the heating in the stairwell is dead, flat 12"),
    ("tickets", "someone left an old sofa in the courtyard, many thanks"),
)
ANSWER_TOKENS = 96


def run(build: Path, models: Path, port: int = 0, stay: bool = False) -> int:
    """The demo; returns the exit code."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendMissing(
            "llama-cpp-python is not installed", "demo", "`make demo-llm` compiles and installs it (3 to 10 minutes)"
        )
    started_s = time.monotonic()
    built = stage.build_packages(build, models, RECIPES)
    with stage.serving(build / "demo-llm", built, port, "llamacpp") as served:
        asyncio.run(_converse(served.broker))
        stage.say("done", f"{duration_text(time.monotonic() - started_s)} in all")
        print(_next_steps(build, served.config, stay))
        if stay:
            stage.stay(served.broker)
    return 0


def _next_steps(build: Path, config: Path, stay: bool) -> str:
    first = "" if stay else "  keep it running edge-agent demo --llm --stay     (then ask it from another terminal)\n"
    return f"""
What next:
{first}  talk to it      edge-agent chat --config {config} {MODEL} --adapter home-commands
  the reports     {build}/reports (open the .html)
  your own data   edge-forge init my-task --task generate && edge-forge build my-task/recipe.toml"""


async def _converse(broker: stage.Broker) -> None:
    """Ask one by one, and show every part of an answer as it comes."""
    options = MqttOptions(
        host="127.0.0.1",
        port=broker.port,
        client_id="demo-client",
        protocol=311 if broker.protocol == "3.1.1" else "auto",
    )
    async with RequestClient(options, devices=[DEVICE]) as client:
        stage.say("ask", "streamed over MQTT")
        for adapter, text in QUESTIONS:
            print(f"    {adapter}: {text}\n      ", end="", flush=True)
            await _stream(client, adapter, text)


async def _stream(client: RequestClient, adapter: str, text: str) -> None:
    body = {
        "messages": [{"role": "user", "content": text}],
        "adapter": adapter,
        "stream": True,
        "params": {"temperature": 0.0, "max_tokens": ANSWER_TOKENS},
    }
    started_s, first_s = time.monotonic(), None
    async for part in client.stream(DEVICE, MODEL, body, 60.0):
        if isinstance(part, Reply):
            raise EdgeError(f"{adapter}: {part.reason}")
        if first_s is None and part.text:
            first_s = time.monotonic() - started_s
        print(part.text, end="", flush=True)
        if part.done:
            print(f"\n      {_figures(part, first_s or 0.0, time.monotonic() - started_s)}")


def _figures(last: StreamChunk, first_s: float, total_s: float) -> str:
    tokens = last.usage.completion_tokens if isinstance(last.usage, Usage) else 0
    return f"({tokens} tokens in {duration_text(total_s)}, the first after {duration_text(first_s)})"
