"""Rollouts over real daemons: `edge-agent run` with the echo backend, packages from one HTTP server, one mosquitto.

    python -m tests.support.rollout_daemons --daemons 3 --rounds 10

Each round: a good release arrives at all, a bad one stops and returns by itself, and a daemon that is killed in the
middle of the next good one comes back and ends at the right version. `fleet_devices` has devices that are messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.server
import itertools
import json
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge_agent.protocol.topics import Subscription
from edge_agent.store.inbox_packages import package_digest
from edge_agent.store.model_store import ModelStore
from tests.support.agents import AgentProcess, echo_package
from tests.support.fleet_devices import Command
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import NotedLink, linked, until

WITHIN_S = 600.0
"""Of a wave: bounds the test, on a machine that has other work, and is never used up."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_: Any) -> None:
        """See `BaseHTTPRequestHandler`."""


class Releases:
    """Packages of the model 'echo' on an HTTP server, by counter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        handler = functools.partial(Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Releases:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def make(self, counter: int, off: float = 0.0) -> tuple[str, str]:
        """(digest, URL) of a new release; with `off` its golden probes fail on every device."""
        path = echo_package(self._folder, counter=counter, probes_off=off)
        return package_digest(path), f"http://127.0.0.1:{self._server.server_port}/{path.name}"


class Daemons:
    """So many daemons, named pi-0 and so on, and what they report."""

    def __init__(self, folder: Path, broker: Mosquitto, count: int, heard: NotedLink) -> None:
        self.agents = {
            name: AgentProcess(folder / name, broker.port, name) for name in map("pi-{}".format, range(count))
        }
        self._heard = heard

    def start(self) -> None:
        """All at once; returns when each is ready."""
        with ThreadPoolExecutor(len(self.agents)) as pool:
            list(pool.map(AgentProcess.start, self.agents.values()))

    def stop(self) -> None:
        """Kill those that run."""
        for agent in self.agents.values():
            if agent.process is not None:
                agent.stop(signal.SIGKILL)

    def kill(self, name: str) -> None:
        """As a power cut does, but for its children, which end by themselves."""
        self.agents[name].stop(signal.SIGKILL)

    def held(self) -> dict[str, str | None]:
        """The package of the model 'echo' in each store."""
        stores = {name: ModelStore(agent.folder / "state" / "store") for name, agent in self.agents.items()}
        return {name: store.packages().current.get(("echo", None)) for name, store in stores.items()}

    def reported(self, name: str) -> dict[str, Any]:
        """The newest `reported` of a device."""
        topic = f"edge/v1/{name}/reported"
        bodies = [one.payload for one in self._heard.seen if one.topic == topic and one.payload]
        found: dict[str, Any] = json.loads(bodies[-1]) if bodies else {"version": None, "state": None, "items": []}
        return found

    def reports(self) -> dict[str, tuple[Any, Any, Any]]:
        """Of each device the version, its state, and what its first item says."""
        newest = {name: self.reported(name) for name in self.agents}
        return {name: (one["version"], one["state"], one["items"][:1]) for name, one in newest.items()}


@contextlib.asynccontextmanager
async def daemons(folder: Path, broker: Mosquitto, count: int) -> AsyncIterator[Daemons]:
    """Running, and heard by the broker; killed at the end."""
    async with linked(broker.options("watch"), [Subscription("edge/v1/+/reported", replay=True)]) as heard:
        found = Daemons(folder, broker, count, heard)
        try:
            await asyncio.to_thread(found.start)
            await until(lambda: all("installed" in found.reported(name) for name in found.agents))
            yield found
        finally:
            found.stop()


def words(digest: str, url: str, waves: str) -> list[str]:
    """Of `fleet rollout` for a release."""
    return [
        *("--give", f"echo={digest}", "--source", f"{digest}={url}", "--waves", waves),
        *("--within", f"{WITHIN_S:g}", "--watch", "0"),
    ]


async def roll(broker: Mosquitto, *said: str) -> tuple[int, Command]:
    """Carry a rollout out; its exit code and what it said."""
    command = Command(broker, said, 30.0)
    return await command.run(), command


async def good_release(broker: Mosquitto, fleet: Daemons, release: tuple[str, str]) -> None:
    """It arrives at all."""
    code, command = await roll(broker, *words(*release, "100%"))
    assert code == 0, (command.text, fleet.reports())
    assert set(fleet.held().values()) == {release[0]}, fleet.held()


async def bad_release(broker: Mosquitto, fleet: Daemons, release: tuple[str, str]) -> None:
    """It stops in its first wave, and everybody holds what they had."""
    before = fleet.held()
    code, command = await roll(broker, *words(*release, "30%,100%"))
    assert code == 1, (command.text, fleet.reports())
    assert "stopped: 1 of 1 devices failed" in command.text and "returned: 1 hold what they had" in command.text
    assert fleet.held() == before


async def release_with_a_kill(broker: Mosquitto, fleet: Daemons, release: tuple[str, str], victim: str) -> None:
    """The victim is killed while it installs, comes back, and all end at the release."""
    command = Command(broker, words(*release, "100%"), 30.0)
    work = asyncio.create_task(command.run())

    def installing() -> bool:
        return any("is being installed" in (item["next"] or "") for item in fleet.reported(victim)["items"])

    try:
        await until(lambda: installing() or work.done(), WITHIN_S)
        assert installing(), (command.text, fleet.reports())
        fleet.kill(victim)
        await asyncio.to_thread(fleet.agents[victim].start)
        code = await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert code == 0, (command.text, fleet.reports())
    assert set(fleet.held().values()) == {release[0]}, fleet.held()


async def rounds(folder: Path, broker: Mosquitto, releases: Releases, count: int, times: int) -> None:
    """Play so many rounds, and print how long each part took."""
    async with daemons(folder, broker, count) as fleet:
        for number in range(times):
            began_s = [time.monotonic()]
            await good_release(broker, fleet, releases.make(3 * number + 1))
            began_s.append(time.monotonic())
            await bad_release(broker, fleet, releases.make(3 * number + 2, off=5.0))
            began_s.append(time.monotonic())
            await release_with_a_kill(broker, fleet, releases.make(3 * number + 3), f"pi-{number % count}")
            began_s.append(time.monotonic())
            took = [round(after - before, 1) for before, after in itertools.pairwise(began_s)]
            print(f"round {number + 1}: good, bad and back, with a kill: {took} s", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Rollouts over real daemons.")
    parser.add_argument("--daemons", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Mosquitto(folder) as broker, Releases(folder / "released") as releases:
            asyncio.run(rounds(folder, broker, releases, arguments.daemons, arguments.rounds))


if __name__ == "__main__":
    main()
