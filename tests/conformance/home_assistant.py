"""A real Home Assistant discovers a real agent: `python -m tests.conformance.home_assistant HASS`.

HASS is the program of a Home Assistant that is installed in an environment of its own (`make home-assistant` makes
one). It runs with one entry for the MQTT integration, the automation of docs/examples, a light for that to switch, and
a component of this file that writes all states and registry entries to a file and calls services as it is told to.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent.app import packages
from edge_agent.client import Client
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package
from tests.support.mosquitto import Mosquitto

START_S = 120.0
"""The first start may install what the integration needs."""
WAIT_S = 30.0
DEVICE = "kitchen-pi"
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "home_assistant_intents.yaml"
LIGHT = "light.living_room"
STAND_INS = {"light_on": "alpha", "light_off": "beta"}
"""Labels of the example, and those of the model that stands in for the trained one."""
_YAML = """
homeassistant: {name: test, unit_system: metric, time_zone: UTC}
mqtt:
edge_watch:
conversation:
automation edge_agent: !include home_assistant_intents.yaml
light: [{platform: template, lights: {living_room: {turn_on: [], turn_off: []}}}]
"""
_MANIFEST = {
    "domain": "edge_watch", "name": "edge_watch", "version": "1.0.0", "documentation": "", "codeowners": [],
    "requirements": [], "dependencies": ["mqtt"], "iot_class": "local_push",
}  # fmt: skip
_COMPONENT = """
import asyncio, json
from pathlib import Path
from homeassistant.helpers import entity_registry

def write(path, found):
    path.with_suffix(".new").write_text(json.dumps(found))
    path.with_suffix(".new").replace(path)

async def watch(hass, folder):
    call = folder / "call"
    while True:
        await asyncio.sleep(0.5)
        known = entity_registry.async_get(hass).entities
        found = {}
        for state in hass.states.async_all():
            attributes = json.loads(json.dumps(dict(state.attributes), default=str))
            category = getattr(known.get(state.entity_id), "entity_category", None)
            found[state.entity_id] = {"state": state.state, "attributes": attributes, "category": category}
        await hass.async_add_executor_job(write, folder / "states.json", found)
        if await hass.async_add_executor_job(call.exists):
            domain, service, data, wanted = json.loads(await hass.async_add_executor_job(call.read_text))
            await hass.async_add_executor_job(call.unlink)
            answer = await hass.services.async_call(domain, service, data, blocking=True, return_response=wanted)
            await hass.async_add_executor_job(write, folder / "answer.json", answer)

async def async_setup(hass, config):
    hass.async_create_background_task(watch(hass, Path(hass.config.config_dir)), "edge_watch")
    return True
"""


def write_configuration(folder: Path, port: int) -> None:
    """An empty Home Assistant with one entry for the broker on `port`, and the component."""
    (folder / "configuration.yaml").write_text(_YAML)
    text = EXAMPLE.read_text(encoding="utf-8").replace("edge/v1/demo/", f"edge/v1/{DEVICE}/")
    for label, stand_in in STAND_INS.items():
        assert f"'{label}'" in text
        text = text.replace(f"'{label}'", f"'{stand_in}'")
    (folder / EXAMPLE.name).write_text(text, encoding="utf-8")
    component = folder / "custom_components" / "edge_watch"
    component.mkdir(parents=True)
    (component / "manifest.json").write_text(json.dumps(_MANIFEST))
    (component / "__init__.py").write_text(_COMPONENT)
    entry = {
        "entry_id": "0123456789abcdef0123456789abcdef", "domain": "mqtt", "title": "broker", "version": 1,
        "minor_version": 1, "source": "user", "unique_id": None, "disabled_by": None, "discovery_keys": {},
        "pref_disable_new_entities": False, "pref_disable_polling": False, "subentries": [],
        "created_at": "2026-01-01T00:00:00+00:00", "modified_at": "2026-01-01T00:00:00+00:00",
        "data": {"broker": "127.0.0.1", "port": port, "protocol": "5"}, "options": {},
    }  # fmt: skip
    storage = folder / ".storage"
    storage.mkdir()
    entries = {"version": 1, "minor_version": 5, "key": "core.config_entries", "data": {"entries": [entry]}}
    (storage / "core.config_entries").write_text(json.dumps(entries))


class HomeAssistant:
    """A running Home Assistant: its states, its log, and its buttons."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log

    def states(self) -> Mapping[str, Any]:
        """All entities by id."""
        with contextlib.suppress(FileNotFoundError):
            found: Mapping[str, Any] = json.loads((self._folder / "states.json").read_text())
            return found
        return {}

    def call(self, domain: str, service: str, data: Mapping[str, str], answers: bool = False) -> Any:
        """Call a service; returns its response where it has one."""
        file = self._folder / "answer.json"
        file.unlink(missing_ok=True)
        written = self._folder / "call.new"
        written.write_text(json.dumps([domain, service, data, answers]))
        written.replace(self._folder / "call")
        end_s = time.monotonic() + WAIT_S
        while not file.exists():
            assert time.monotonic() < end_s, f"{domain}.{service} did not return"
            time.sleep(0.1)
        return json.loads(file.read_text())

    def press(self, entity: str) -> None:
        """Press a button."""
        self.call("button", "press", {"entity_id": entity})

    def say(self, sentence: str) -> str:
        """What Assist answers to a sentence."""
        answer = self.call("conversation", "process", {"text": sentence, "language": "en"}, answers=True)
        speech: str = answer["response"]["speech"]["plain"]["speech"]
        return speech

    def complaints(self) -> list[str]:
        """Warnings and errors of its log that are about MQTT or the device; it also misses libraries for cameras."""
        return [
            line for line in self._log.read_text(errors="replace").splitlines()
            if (" WARNING " in line or " ERROR " in line)
            and any(word in line.lower() for word in ("mqtt", DEVICE, "automation", "template"))
        ]  # fmt: skip


@contextlib.contextmanager
def home_assistant(program: str, folder: Path, port: int) -> Iterator[HomeAssistant]:
    """Home Assistant in `folder` for the length of the block."""
    config = folder / "hass"
    config.mkdir()
    write_configuration(config, port)
    log = folder / "hass.log"
    environment = {**os.environ, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    with log.open("wb") as stream:
        process = subprocess.Popen([program, "--config", str(config)], stdout=stream, stderr=stream, env=environment)
    try:
        yield HomeAssistant(config, log)
    finally:
        process.terminate()
        process.wait(30)


def until(what: str, holds: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    """Wait until it holds. Raises AssertionError that says what did not come."""
    end_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end_s, f"within {limit_s:.0f} s it did not come: {what}"
        time.sleep(0.5)
    print(f"  {what}", flush=True)


def check(program: str, folder: Path) -> None:
    """All of it. Raises AssertionError."""
    prefix = DEVICE.replace("-", "_")
    sensors = {f"sensor.{prefix}_{key}" for key in
               ("temperature", "latency_p95", "requests", "governor", "ram_available", "power")}  # fmt: skip
    buttons = {f"button.{prefix}_{key}" for key in ("load_echo", "roll_back_echo")}
    summary = "classify by echo/fp32, home-intents 1"
    event, update = f"event.{prefix}_event", f"update.{prefix}_model_echo"
    spare = {f"button.{prefix}_load_spare", f"button.{prefix}_roll_back_spare", f"update.{prefix}_model_spare"}
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "agent", broker.port, DEVICE, "home_assistant = true\n")
        for version in (1, 2):
            agent.install(echo_package(folder, counter=version))
        agent.install(echo_package(folder, "spare"))
        base = echo_package(folder, "minilm")
        agent.install(base)
        agent.install(echo_adapter_package(folder, base, "home-intents"))
        agent.start()
        with home_assistant(program, folder, broker.port) as hass:
            wanted = {*sensors, *buttons, event, update}
            until(f"{len(wanted | spare)} entities are there, under the names that were asked for",
                  lambda: wanted | spare <= set(hass.states()), START_S)  # fmt: skip
            until("a model is an update entity with its version and what it is run by",
                  lambda: _update(hass, update) == ("off", "3", "3", summary))  # fmt: skip
            until("memory is a number of MB, and the temperature of a board without a sensor is unknown",
                  lambda: _shown(hass, f"sensor.{prefix}_ram_available").isdigit()
                  and _shown(hass, f"sensor.{prefix}_temperature") == "unknown")  # fmt: skip
            assert hass.states()[f"sensor.{prefix}_governor"]["category"] == "diagnostic"
            hass.press(f"button.{prefix}_roll_back_echo")
            until("a button is an order, and what it did is an event", lambda: _event(hass, event) == "rolled-back")
            until("its update entity shows the version before", lambda: _update(hass, update)[:2] == ("off", "2"))
            check_example(hass, broker.port)
            packages.remove(agent.config, "spare", None)
            until("the entities of a model that was removed go", lambda: not spare & set(hass.states()))
            assert wanted <= set(hass.states())
            agent.stop(signal.SIGKILL)
            until("a killed agent's entities are unavailable",
                  lambda: {hass.states()[one]["state"] for one in wanted} == {"unavailable"})  # fmt: skip
            assert not hass.complaints(), hass.complaints()
            print("  no warning in its log")


def _shown(hass: HomeAssistant, entity: str) -> str:
    return str(hass.states()[entity]["state"])


def check_example(hass: HomeAssistant, port: int) -> None:
    """Sentences of every label: a light that is switched, or what the sentence means. Raises AssertionError."""
    with Client(f"127.0.0.1:{port}", DEVICE) as edge:
        meant = {
            edge.ask("minilm", text, adapter="home-intents").label: text
            for text in (f"it is {word} in here" for word in ("dark", "warm", "cold", "late", "loud", "cosy", "stuffy"))
        }
    assert set(meant) == {*STAND_INS.values(), "gamma"}, meant
    hass.call("light", "turn_off", {"entity_id": LIGHT})
    for label, state in (("alpha", "on"), ("beta", "off")):
        said = hass.say(f"ask the house {meant[label]}")
        assert said == f"Light is {state}", said
        until(f"a sentence to Assist switches the light {state}", functools.partial(_shows, hass, LIGHT, state))
    said = hass.say(f"ask the house {meant['gamma']}")
    assert said == "That means gamma", said


def _update(hass: HomeAssistant, entity: str) -> tuple[str, ...]:
    """State ('off': nothing newer), the two versions, and the release note."""
    found = hass.states()[entity]
    keys = ("installed_version", "latest_version", "release_summary")
    return (str(found["state"]), *(str(found["attributes"].get(key)) for key in keys))


def _shows(hass: HomeAssistant, entity: str, state: str) -> bool:
    return _shown(hass, entity) == state


def _event(hass: HomeAssistant, entity: str) -> object:
    """The kind of the last event."""
    return hass.states()[entity]["attributes"].get("event_type")


def main(arguments: list[str]) -> int:
    """0: everything held."""
    with tempfile.TemporaryDirectory(prefix="edge-hass-") as folder:
        try:
            check(arguments[0], Path(folder))
        except AssertionError as error:
            print(f"home assistant: {error}", file=sys.stderr)
            for name in ("hass.log", "agent/log"):
                with contextlib.suppress(FileNotFoundError):
                    print(
                        "\n".join((Path(folder) / name).read_text(errors="replace").splitlines()[-25:]), file=sys.stderr
                    )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
