"""A real Home Assistant discovers a real agent: `python -m tests.conformance.home_assistant HASS`.

HASS is the program of a Home Assistant that is installed in an environment of its own (`make home-assistant` makes
one). It runs with an empty configuration, one entry for the MQTT integration, and a component of this file that
writes all states and registry entries to a file and presses a button where it is told to.
"""

from __future__ import annotations

import contextlib
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
from tests.support.agents import AgentProcess, echo_package
from tests.support.mosquitto import Mosquitto

START_S = 120.0
"""The first start may install what the integration needs."""
WAIT_S = 30.0
DEVICE = "kitchen-pi"
_YAML = "homeassistant:\n  name: test\n  unit_system: metric\n  time_zone: UTC\nmqtt:\nedge_watch:\n"
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
    press = folder / "press"
    while True:
        await asyncio.sleep(0.5)
        known = entity_registry.async_get(hass).entities
        found = {}
        for state in hass.states.async_all():
            attributes = json.loads(json.dumps(dict(state.attributes), default=str))
            category = getattr(known.get(state.entity_id), "entity_category", None)
            found[state.entity_id] = {"state": state.state, "attributes": attributes, "category": category}
        await hass.async_add_executor_job(write, folder / "states.json", found)
        if await hass.async_add_executor_job(press.exists):
            entity = await hass.async_add_executor_job(press.read_text)
            await hass.async_add_executor_job(press.unlink)
            await hass.services.async_call("button", "press", {"entity_id": entity}, blocking=True)

async def async_setup(hass, config):
    hass.async_create_background_task(watch(hass, Path(hass.config.config_dir)), "edge_watch")
    return True
"""


def write_configuration(folder: Path, port: int) -> None:
    """An empty Home Assistant with one entry for the broker on `port`, and the component."""
    (folder / "configuration.yaml").write_text(_YAML)
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

    def press(self, entity: str) -> None:
        """Press a button."""
        (self._folder / "press").write_text(entity)

    def complaints(self) -> list[str]:
        """Warnings and errors of its log that are about MQTT or the device; it also misses libraries for cameras."""
        return [
            line for line in self._log.read_text(errors="replace").splitlines()
            if (" WARNING " in line or " ERROR " in line) and ("mqtt" in line.lower() or DEVICE in line)
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
    event, update = f"event.{prefix}_event", f"update.{prefix}_model_echo"
    spare = {f"button.{prefix}_load_spare", f"button.{prefix}_roll_back_spare", f"update.{prefix}_model_spare"}
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "agent", broker.port, DEVICE, "home_assistant = true\n")
        for version in (1, 2):
            agent.install(echo_package(folder, counter=version))
        agent.install(echo_package(folder, "spare"))
        agent.start()
        with home_assistant(program, folder, broker.port) as hass:
            wanted = {*sensors, *buttons, event, update}
            until(f"{len(wanted | spare)} entities are there, under the names that were asked for",
                  lambda: wanted | spare <= set(hass.states()), START_S)  # fmt: skip
            until("a model is an update entity with its version and what it is run by",
                  lambda: _update(hass, update) == ("off", "2", "2", "classify by echo/fp32"))  # fmt: skip
            until("memory is a number of MB, and the temperature of a board without a sensor is unknown",
                  lambda: _shown(hass, f"sensor.{prefix}_ram_available").isdigit()
                  and _shown(hass, f"sensor.{prefix}_temperature") == "unknown")  # fmt: skip
            assert hass.states()[f"sensor.{prefix}_governor"]["category"] == "diagnostic"
            hass.press(f"button.{prefix}_roll_back_echo")
            until("a button is an order, and what it did is an event", lambda: _event(hass, event) == "rolled-back")
            until("its update entity shows the version before", lambda: _update(hass, update)[:2] == ("off", "1"))
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


def _update(hass: HomeAssistant, entity: str) -> tuple[str, ...]:
    """State ('off': nothing newer), the two versions, and the release note."""
    found = hass.states()[entity]
    keys = ("installed_version", "latest_version", "release_summary")
    return (str(found["state"]), *(str(found["attributes"].get(key)) for key in keys))


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
