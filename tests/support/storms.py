"""A client that hears everything, and what a process holds: for tests that count final messages and leaks."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Reply, StreamChunk, Telemetry
from edge_agent.protocol.topics import Subscription, Topics

Part = StreamChunk | Reply
PATIENCE_S = 60.0


class StormClient:
    """Asks and cancels, and keeps whatever comes to its reply topic, also after a final message.

    `RequestClient` stops to listen at the first final message and would never see a second one. The device's telemetry
    is gathered beside it.
    """

    def __init__(self, options: MqttOptions, device: str) -> None:
        topics = Topics("edge/v1", device)
        self._topics = topics
        self._reply = f"edge/v1/client/{options.client_id}/reply"
        wanted = [Subscription(f"{self._reply}/#"), Subscription(topics.telemetry)]
        self._link = MqttTransport(options, wanted)
        self._reading: asyncio.Task[None] | None = None
        self._name = options.client_id
        self._asked = 0
        self._heard = asyncio.Event()
        self.parts: dict[str, list[Part]] = {}
        self.telemetry: list[Telemetry] = []

    async def __aenter__(self) -> StormClient:
        await self._link.start()
        self._reading = asyncio.create_task(self._read())
        await self._until(lambda: self._link.connected)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.stop([])
        if self._reading is not None:
            await self._reading

    def ask(self, body: Mapping[str, Any], deadline_s: int = 60, model: str = "tiny") -> str:
        """Publish a request; its id."""
        self._asked += 1
        request_id = f"{self._name}-{self._asked}"
        self.ask_as(request_id, body, deadline_s, model)
        return request_id

    def ask_as(self, request_id: str, body: Mapping[str, Any], deadline_s: int = 60, model: str = "tiny") -> None:
        """Publish a request under an id of one's own choice."""
        self.parts.setdefault(request_id, [])
        message = Outbound(
            self._topics.infer(model),
            msgspec.json.encode(body),
            correlation=request_id.encode(),
            expiry_s=deadline_s,
            response_topic=self._reply,
        )
        assert self._link.publish(message), "the client's own outbox is full"

    def cancel(self, request_id: str) -> None:
        """Withdraw a request, under this client's name."""
        body = msgspec.json.encode({"id": request_id, "reply_to": self._reply})
        assert self._link.publish(Outbound(self._topics.cancel, body))

    def finals(self, request_id: str) -> list[Part]:
        """The final messages that came for a request: it should be one."""
        return [part for part in self.parts[request_id] if isinstance(part, Reply) or part.done]

    async def begun(self, request_id: str) -> None:
        """Wait for the first part of an answer."""
        await self._until(lambda: bool(self.parts[request_id]))

    async def ended(self, request_ids: Iterable[str]) -> None:
        """Wait until each of these has a final message."""
        wanted = list(request_ids)
        await self._until(lambda: all(self.finals(one) for one in wanted))

    async def counted(self, condition: Callable[[], bool]) -> None:
        """Wait for telemetry that makes this true."""
        await self._until(condition)

    def told(self, since: int = 0) -> tuple[int, int, Counter[str]]:
        """(answered, not answered, refusals by status) of the model over all reports from the one numbered `since`."""
        reports = self.telemetry[since:]
        models = [report.models["tiny"] for report in reports if "tiny" in report.models]
        refusals = sum((Counter(report.refusals) for report in reports), Counter[str]())
        return sum(one.requests for one in models), sum(one.failed for one in models), refusals

    async def _until(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not condition():
            self._heard.clear()
            try:
                await asyncio.wait_for(self._heard.wait(), 0.5)
            except asyncio.TimeoutError:
                waiting = {one: len(parts) for one, parts in self.parts.items() if not self.finals(one)}
                assert time.monotonic() < until_s, f"it did not come about; without an end (parts): {waiting}"

    async def _read(self) -> None:
        async for message in self._link.messages():
            self._link.ack(message)
            if message.topic == self._topics.telemetry:
                self.telemetry.append(msgspec.json.decode(message.payload, type=Telemetry))
            else:
                self.parts.setdefault((message.correlation or b"?").decode(), []).append(part_of(message.payload))
            self._heard.set()


def part_of(payload: bytes) -> Part:
    """A message of a reply topic."""
    fields = msgspec.json.decode(payload, type=dict[str, Any])
    return msgspec.convert(fields, type=StreamChunk if "seq" in fields else Reply)


class Held(NamedTuple):
    """What a process holds: memory, open files, children, threads, and mappings that it shares with others."""

    pss_bytes: int
    files: int
    children: int
    zombies: int
    threads: int
    shared_mappings: int


def held(pid: int) -> Held:
    """A process as it is now."""
    place = Path(f"/proc/{pid}")
    rollup = dict(
        line.split(":", 1) for line in (place / "smaps_rollup").read_text().splitlines()[1:] if line.count(":") == 1
    )
    children = [int(child) for child in (place / "task" / str(pid) / "children").read_text().split()]
    states = [_state(child) for child in children]
    names = [line.split(maxsplit=5)[5:] for line in (place / "maps").read_text().splitlines()]
    shared = [name for name in names if name and name[0].startswith(("/dev/shm", "/memfd:", "/SYSV"))]
    return Held(
        int(rollup["Pss"].split()[0]) * 1024,
        _files(place / "fd"),
        len(children),
        states.count("Z"),
        len(os.listdir(place / "task")),  # noqa: PTH208
        len(shared),
    )


def _files(place: Path) -> int:
    """Open files: the least of some counts, as a sensor's file is open while it is read; a leak is in every count."""
    counts = []
    for _ in range(5):
        counts.append(len(os.listdir(place)))  # noqa: PTH208
        time.sleep(0.02)
    return min(counts)


def _state(pid: int) -> str:
    """'R', 'S', 'Z' ... of a process, '' when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
