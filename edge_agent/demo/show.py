"""`edge-agent demo`: from training to answers on one machine, each step by the command that a user would type.

A head is fitted on a base that stays as it is, exported, quantised, signed and packaged (`edge-forge build`, cached); a
broker and the daemon are started, the packages are installed and asked over MQTT. Meanwhile two LoRA adapters on the
same base are trained, at the same time; they are installed while the daemon serves, and asked too. `--quick` fits a
head on a few texts of each label, on a base of its own for short texts, and ends there.

`edge-agent demo --llm` does the same with a language model (`run_llm`): a small Llama is trained from nothing, then two
adapters on it; all is converted to GGUF, and a wish becomes a JSON command, token by token.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendMissing, EdgeError
from edge_agent.base.units import bytes_text, duration_text
from edge_agent.client.request_client import RequestClient
from edge_agent.demo import stage
from edge_agent.demo.device import DEVICE, DemoDevice, build_command, build_packages, built_by, device
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Reply, StreamChunk, Usage


@dataclass(frozen=True, slots=True)
class Act:
    """A recipe that the demo builds, installs and asks; `adapter` is the name that it gets."""

    recipe: str
    adapter: str
    what: str
    settings: tuple[str, ...] = ()
    base: str = "minilm"


_BANKED = "export.merged=false"
# Another base than the others' by its name: devices refuse a version with other contents, and this one is for fewer
# tokens and in one number format, which spares most of what a build of a base proves and measures.
QUICK = Act(
    "home-intents", "home-intents-quick", "a head on ten texts of each label, on the frozen base in FP32",
    ("name=home-intents-quick", "base.name=minilm-quick", "method.name=head", _BANKED, "data.max_rows=210",
     "task.max_tokens=32", "export.bank_tokens=32", 'quantize.variants=["fp32"]', "package.probes=4"),
    "minilm-quick",
)  # fmt: skip
HEAD = Act(
    "home-intents", "home-intents-head", "a head on the frozen base, for answers before the base is tuned",
    ("name=home-intents-head", "method.name=head", _BANKED),
)  # fmt: skip
LORA = (
    Act("home-intents", "home-intents", "a LoRA adapter on the same texts"),
    Act("urgency", "urgency", "a LoRA adapter for another task on the same base"),
)
# Half of the recipe's passes (8) give home-intents the same score; urgency is worse by them (decision 0237).
LORA_EPOCHS = "home-intents:train.epochs=4"
TAKE_OVER_S, LOOK_AGAIN_S = 20.0, 0.2
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "home-intents": (
        "it's getting a bit chilly in here",
        "kill the lights in the hallway pls",
        "did i leave the front door unlocked?",
        "who won the match last night",
    ),
    "urgency": (
        "there is a strong smell of gas in the stairwell",
        "the bulb in the cellar flickers again",
        "thanks, the plumber came and all is well",
    ),
}


def run(build: Path, models: Path | None, port: int = 0, stay: bool = False, quick: bool = False) -> int:
    """The demo; returns the exit code. `quick` ends after the first answers, which need no training of the base.

    `stay` keeps broker and daemon until Ctrl-C, for other terminals.
    """
    started_s = time.monotonic()
    models, first = found_models(models), QUICK if quick else HEAD
    with device(build / "demo", port) as shown:
        _say_build(models, first)
        built = build_packages(build, _recipe(models, first), first.settings)
        with contextlib.ExitStack() as stack:
            later = None if quick else stack.enter_context(stage.beside(_lora_command(build, models)))
            shown.install(built)
            _ask_and_time(shown, first, started_s)
            if later is not None:
                for act in LORA:
                    _say_build(models, act)
                shown.install(built_by(later.result()))
                for act in LORA:
                    _ask_and_time(shown, act, started_s)
        asyncio.run(shown.watched(_ask_together(shown.broker, (first,) if quick else (first, *LORA))))
        stage.say("done", f"{duration_text(time.monotonic() - started_s)} in all")
        print(_next_steps(build, shown.config, stay, first))
        if stay:
            stage.stay(shown.broker, shown.check)
    return 0


def found_models(named: Path | None) -> Path:
    """The folder of the shipped recipes: the named one, else that of the clone, else the wheel's own."""
    packaged = Path(__file__).parent / "models"
    return named or (packaged if packaged.is_dir() and not Path("models").is_dir() else Path("models"))


def _recipe(models: Path, act: Act) -> Path:
    return models / act.recipe / "recipe.toml"


def _lora_command(build: Path, models: Path) -> list[str]:
    """Builds both adapters at the same time."""
    settings = [_BANKED, LORA_EPOCHS, _threads_each(len(LORA))]
    return build_command(build, [_recipe(models, act) for act in LORA], settings)


def _threads_each(trainings: int) -> str:
    """The setting that gives each of so many trainings its share of the cores."""
    return f"train.threads={max(1, len(os.sched_getaffinity(0)) // trainings)}"


def _say_build(models: Path, act: Act) -> None:
    stage.say("build", f"{models / act.recipe}: {act.what} (cached: the second time it takes seconds)")


def _ask_and_time(shown: DemoDevice, act: Act, started_s: float) -> None:
    asyncio.run(shown.watched(_ask_in_turn(shown.broker, act)))
    stage.say("time", f"{duration_text(time.monotonic() - started_s)} since the start")


def serve_recipes(build: Path, recipes: Sequence[Path], port: int = 0) -> int:
    """Build these recipes, install what they made and serve it until Ctrl-C; returns the exit code."""
    with device(build / "demo", port, "onnx", "llamacpp") as shown:
        for recipe in recipes:
            stage.say("build", f"{recipe}: train, evaluate, export, quantise, sign (cached: what is built is taken)")
            shown.install(build_packages(build, recipe, remedy="`edge-forge init NAME` writes one"))
        print(f"\n  what is served  edge-agent models --config {shown.config}")
        print(f"  ask it          edge-agent infer --config {shown.config} MODEL TEXT --adapter NAME")
        stage.stay(shown.broker, shown.check)
    return 0


def _client(broker: stage.Broker) -> RequestClient:
    options = MqttOptions(
        host="127.0.0.1",
        port=broker.port,
        client_id="demo-client",
        protocol=311 if broker.protocol == "3.1.1" else "auto",
    )
    return RequestClient(options, devices=[DEVICE])


async def _ask_in_turn(broker: stage.Broker, act: Act) -> None:
    """Ask an adapter its questions one by one, and show what came back."""
    async with _client(broker) as client:
        stage.say("ask", "one at a time, over MQTT")
        for text in QUESTIONS[act.recipe]:
            reply = await _ask(client, act.base, act.adapter, text)
            result, timing = reply["result"], reply["timing"]
            answer = f"{result['label']:<17} {result['score']:.2f}"
            print(f"    {act.adapter:<18} {text:<48} {answer}  {timing['total_ms']:6.1f} ms")


async def _ask_together(broker: stage.Broker, acts: Sequence[Act]) -> None:
    """Ask all adapters at the same moment, and show the board."""
    asked = [(act.base, act.adapter, text) for act in acts for text in QUESTIONS[act.recipe]] * 3
    async with _client(broker) as client:
        mixed = ": in one batch every row has its own adapter" if len(acts) > 1 else ""
        stage.say("ask", f"all at once{mixed}")
        started_s = time.monotonic()
        replies = await asyncio.gather(*(_ask(client, *one) for one in asked))
        elapsed_s = time.monotonic() - started_s
        largest = max(reply["batch"] for reply in replies)
        print(f"    {len(replies)} answers in {duration_text(elapsed_s)}, largest batch {largest} rows")
        await _show_board(client, replies[-1])


async def _ask(client: RequestClient, base: str, adapter: str, text: str) -> dict[str, Any]:
    until_s = time.monotonic() + TAKE_OVER_S
    reply = await client.infer(DEVICE, base, {"text": text, "adapter": adapter}, 20.0)
    while _not_taken_over(reply, until_s):
        await asyncio.sleep(LOOK_AGAIN_S)
        reply = await client.infer(DEVICE, base, {"text": text, "adapter": adapter}, 20.0)
    if reply.status != 200:
        raise EdgeError(f"{adapter}: {reply.reason}")
    fields: dict[str, Any] = msgspec.to_builtins(reply)
    return fields


def _not_taken_over(reply: Reply, until_s: float) -> bool:
    """Whether the daemon has not looked at its store since the install: it does once a second, later where it is
    busy."""
    return reply.cause == Cause.UNKNOWN_ADAPTER.value and time.monotonic() < until_s


async def _show_board(client: RequestClient, reply: dict[str, Any]) -> None:
    found = (await client.command(DEVICE, "diag", {}))["result"]
    sensors = found["sensors"]
    stage.say("board", f"{found['board']}, agent {found['agent']}")
    for key in ("temperature", "power", "ram_available", "throttle"):
        reading = sensors[key]
        value = _value(reading)
        print(f"    {key:<14} {value:<22} {reading['reason'] or reading['source']}")
    energy = reply["energy"]
    joules = "null" if energy["joules"] is None else f"{energy['joules']:.3f} J"
    print(f"    {'energy/request':<14} {joules:<22} {energy['method']}")


def _value(reading: dict[str, Any]) -> str:
    if reading["value"] is None:
        return "null"
    return bytes_text(reading["value"]) if reading["unit"] == "bytes" else f"{reading['value']:g} {reading['unit']}"


def _next_steps(build: Path, config: Path, stay: bool, first: Act) -> str:
    shown = first if first is QUICK else LORA[0]
    again = f"edge-agent demo{' --quick' if first is QUICK else ''} --stay"
    stays = "" if stay else f"  keep it running {again}     (then ask it from another terminal)\n"
    return f"""
What next:
{stays}  ask it          edge-agent infer --config {config} {shown.base} "open the blinds" --adapter {shown.adapter}
  the report      {build}/reports (open the .html)
  your own data   edge-forge init my-task && edge-forge build my-task/recipe.toml
  a board         edge-agent service install; systemd/README.md"""


LLM = "tiny-llama"
LLM_RECIPES = ("home-commands", "tickets")
LLM_QUESTIONS: tuple[tuple[str, str], ...] = (
    ("home-commands", "Could you turn the lamp in the hallway off, thanks"),
    ("home-commands", "blinds in the office to 40%"),
    ("home-commands", "set a timer for half an hour for the pizza"),
    ("home-commands", "is the window in the bedroom open"),
    ("tickets", "Hello, the heating in the stairwell is dead, flat 12"),
    ("tickets", "someone left an old sofa in the courtyard, many thanks"),
)
ANSWER_TOKENS = 96


def run_llm(build: Path, models: Path | None, port: int = 0, stay: bool = False) -> int:
    """The demo; returns the exit code."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendMissing(
            "llama-cpp-python is not installed", "demo", "`make demo-llm` compiles and installs it (3 to 10 minutes)"
        )
    started_s = time.monotonic()
    places = [found_models(models) / name for name in LLM_RECIPES]
    with device(build / "demo-llm", port, "llamacpp") as shown:
        for place in places:
            stage.say("build", f"{place}: train, convert, quantise, sign (cached: the second time it takes seconds)")
        command = build_command(build, [place / "recipe.toml" for place in places], [_threads_each(len(places))])
        shown.install(built_by(stage.call(command, capture=True)))
        asyncio.run(shown.watched(_converse_streamed(shown.broker)))
        stage.say("done", f"{duration_text(time.monotonic() - started_s)} in all")
        print(_llm_next_steps(build, shown.config, stay))
        if stay:
            stage.stay(shown.broker, shown.check)
    return 0


def _llm_next_steps(build: Path, config: Path, stay: bool) -> str:
    first = "" if stay else "  keep it running edge-agent demo --llm --stay     (then ask it from another terminal)\n"
    return f"""
What next:
{first}  talk to it      edge-agent chat --config {config} {LLM} --adapter home-commands
  the reports     {build}/reports (open the .html)
  your own data   edge-forge init my-task --task generate && edge-forge build my-task/recipe.toml"""


async def _converse_streamed(broker: stage.Broker) -> None:
    """Ask one by one, and show every part of an answer as it comes."""
    async with _client(broker) as client:
        stage.say("ask", "streamed over MQTT")
        until_s = time.monotonic() + TAKE_OVER_S
        for adapter, text in LLM_QUESTIONS:
            print(f"    {adapter}: {text}\n      ", end="", flush=True)
            await _stream(client, adapter, text, until_s)


async def _stream(client: RequestClient, adapter: str, text: str, until_s: float) -> None:
    body = {
        "messages": [{"role": "user", "content": text}],
        "adapter": adapter,
        "stream": True,
        "params": {"temperature": 0.0, "max_tokens": ANSWER_TOKENS},
    }
    started_s, first_s = time.monotonic(), None
    async for part in client.stream(DEVICE, LLM, body, 60.0):
        if isinstance(part, Reply) and _not_taken_over(part, until_s):
            await asyncio.sleep(LOOK_AGAIN_S)
            await _stream(client, adapter, text, until_s)
            return
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
