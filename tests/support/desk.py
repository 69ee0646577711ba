"""A client's desk in the tests: it hears everything that the broker carries, and sends whatever a test wants sent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Subscription
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import NotedLink, linked, until

PREFIX = "edge/v1"
REPLIES = f"{PREFIX}/client/desk/reply"
WAIT_S = 20.0


class Desk:
    """Every message since it sat down, by topic; requests and orders with all their properties."""

    def __init__(self, noted: NotedLink, device: str) -> None:
        self._noted = noted
        self.device = device

    @property
    def heard(self) -> list[Inbound]:
        """All messages, in order."""
        return self._noted.seen

    def bodies(self, tail: str) -> list[dict[str, Any]]:
        """The bodies on this device's topic of that name."""
        topic = f"{PREFIX}/{self.device}/{tail}"
        return [json.loads(message.payload) for message in self.heard if message.topic == topic and message.payload]

    def replies(self, request_id: str, topic: str = REPLIES) -> list[dict[str, Any]]:
        """The answers to a request, by its correlation data or id."""
        bodies = [json.loads(message.payload) for message in self.heard if message.topic == topic]
        return [body for body in bodies if body["id"] == request_id]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [body for body in self.bodies("event") if body["kind"] == kind]

    def send(self, tail: str, body: Mapping[str, Any] | bytes, request_id: str | None, **more: Any) -> None:
        """Publish on one of the device's topics; `more` are fields of `Outbound`."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields: dict[str, Any] = {"expiry_s": 30.0, "response_topic": REPLIES} | more
        if request_id is not None:
            fields["correlation"] = request_id.encode()
        assert self._noted.link.publish(Outbound(f"{PREFIX}/{self.device}/{tail}", payload, **fields))

    async def answer(self, request_id: str, within_s: float = WAIT_S) -> dict[str, Any]:
        """The answer to a request."""
        await until(lambda: self.replies(request_id), within_s)
        return self.replies(request_id)[0]

    async def ask(
        self, request_id: str, body: Mapping[str, Any] | bytes, model: str = "echo", **more: Any
    ) -> dict[str, Any]:
        """One request and its answer."""
        self.send(f"infer/{model}", body, request_id, **more)
        return await self.answer(request_id)

    async def order(self, request_id: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One command and its answer."""
        self.send(f"cmd/{name}", body, request_id)
        return await self.answer(request_id)

    async def event(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The newest event of a kind, once there are `count`."""
        await until(lambda: len(self.events(kind)) >= count, WAIT_S)
        return self.events(kind)[-1]


@contextlib.asynccontextmanager
async def desk(broker: Mosquitto, device: str = "dev1", **more: object) -> AsyncIterator[Desk]:
    """A desk on this broker, retained messages included."""
    async with linked(broker.options("desk", **more), [Subscription("#", replay=True)]) as noted:
        yield Desk(noted, device)


def cli(*arguments: object, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edge-agent` as a person calls it."""
    command = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env, check=False)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """What a person reads, checked for what nobody wants to read."""
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    return text


def write_config(folder: Path, port: int, extra: str = "") -> Path:
    """A settings file for commands that need no daemon."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "edge-agent.toml"
    path.write_text(
        f'[device]\nid = "dev1"\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'
        f'[store]\nstate_dir = "{folder / "state"}"\n{extra}\n'
    )
    return path
