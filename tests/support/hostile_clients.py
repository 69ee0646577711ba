"""Four kinds of hostile clients beside two good ones, on a real broker: what the good ones notice of them.

flood     2,900 requests a second at QoS 0 to a model that does not exist
hog       the longest generations, and bodies of 100 KiB, as many as are taken
grammar   grammars and schemas of 330 optional letters, each of which is open at every token
repeater  one request again and again, cancels of what is not open, and reply topics where no answer may go

The hostile ones run in a process of their own each (`python -m tests.support.hostile_clients KIND PORT DEVICE SECONDS`)
and speak MQTT 5 by hand, so that they are as fast as a client can be. `storm` runs all of it and returns a table;
`make storm` does so for ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.base.errors import RequestError
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.packets import _varint, pack
from edge_agent.protocol.envelope import Outbound
from tests.support import generators
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto
from tests.support.storms import StormClient

KINDS = ("flood", "hog", "grammar", "repeater")
FLOOD_PER_S = 2900.0
TICK_S = 0.01
GOOD_PER_S = 10.0
GOOD_DEADLINE_S = 30.0
SEQUENCES = 4
OPTIONAL = 330


class RawClient:
    """A client that writes packets as they are made and reads whatever comes, without a look at it. With `keeps` it
    gathers in `received` what comes, as it stands on the wire."""

    def __init__(self, port: int, name: str, device: str, keeps: bool = False) -> None:
        self._keeps = keeps
        self.received = bytearray()
        self._port = port
        self._name = name
        self._own = f"edge/v1/{device}"
        self._reply = f"edge/v1/client/{name}/reply"
        self.sent = 0

    async def __aenter__(self) -> RawClient:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        name = self._name.encode()
        connect = b"\0\4MQTT\5\2\0\0" + b"\3\x21\xff\xff" + struct.pack("!H", len(name)) + name
        reply = self._reply.encode()
        subscribe = b"\0\1\0" + struct.pack("!H", len(reply)) + reply + b"\0"
        self._writer.write(_packet(0x10, connect) + _packet(0x82, subscribe))
        self._reading = asyncio.create_task(self._read())
        await asyncio.sleep(0.2)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self._writer.close()

    def publish(self, tail: str, body: bytes, request_id: str = "", expiry_s: float = 5.0, reply: str = "") -> None:
        """One message at QoS 0."""
        topic = f"{self._own}/{tail}"
        message = Outbound(
            topic,
            body,
            correlation=request_id.encode() or None,
            expiry_s=expiry_s,
            response_topic=reply or self._reply,
        )
        head = struct.pack("!H", len(topic)) + topic.encode()
        self._writer.write(_packet(0x30, head + pack(message) + body))
        self.sent += 1

    async def drain(self) -> None:
        """Wait until the broker has read what was written."""
        await self._writer.drain()

    async def _read(self) -> None:
        while data := await self._reader.read(1 << 18):
            if self._keeps:
                self.received += data


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _varint(len(body)) + body


def flood(client: RawClient, number: int) -> None:
    """The next of 2,900 requests a second."""
    client.publish("infer/nobody", b'{"text":"x"}', str(number))


def hog(client: RawClient, number: int) -> None:
    """A generation as long as can be asked for, beside it a body as large as is taken."""
    prompt = {"prompt": "Once upon a time", "stream": True, "params": {"max_tokens": 450, "temperature": 1.0}}
    client.publish("infer/tiny", json.dumps(prompt).encode(), f"long-{number}", expiry_s=60.0)
    client.publish("infer/echo", json.dumps({"texts": ["x" * 25_000] * 4}).encode(), f"large-{number}")


def grammar(client: RawClient, number: int) -> None:
    """A small grammar that is costly at every token, and the same as a schema's pattern."""
    form: dict[str, Any] = {"grammar": 'root ::= "qxqxqxqx" ' + OPTIONAL * '"a"? ' + '"b"'}
    if number % 2:
        form = {"json_schema": {"type": "string", "pattern": f"^qxqxqxqx{OPTIONAL * 'a?'}b$"}}
    body = {"prompt": "Once upon a time", "params": {"max_tokens": 400, **form}}
    client.publish("infer/tiny", json.dumps(body).encode(), f"form-{number}", expiry_s=60.0)


def repeater(client: RawClient, number: int) -> None:
    """A request that is answered already, a cancel of nothing, and a topic that is not answered on."""
    client.publish("infer/echo", json.dumps({"texts": ["again"] * 60}).encode(), "one")
    client.publish("cancel", b'{"id":"nothing"}')
    client.publish("infer/echo", b'{"text":"x"}', str(number), reply="edge/v1/dev1/status")


PER_S = {"flood": FLOOD_PER_S, "hog": 10.0, "grammar": 5.0, "repeater": 300.0}
ACTS = {"flood": flood, "hog": hog, "grammar": grammar, "repeater": repeater}


async def attack(kind: str, port: int, device: str, seconds: float) -> int:
    """One hostile client for so long; how many messages it sent."""
    async with RawClient(port, kind, device) as client:
        began_s, number = time.monotonic(), 0
        while (passed_s := time.monotonic() - began_s) < seconds:
            while number < passed_s * PER_S[kind]:
                ACTS[kind](client, number)
                number += 1
            await client.drain()
            await asyncio.sleep(TICK_S)
        return client.sent


@dataclass
class Good:
    """What a good client got: milliseconds of its answers, how many of each were the device's own (from the arrival to
    the reply's encoding), and what it got instead of some."""

    ms: list[float] = field(default_factory=list)
    own_ms: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Answered of asked."""
        asked = len(self.ms) + self.other.total()
        return len(self.ms) / asked if asked else float("nan")

    def at(self, share: float, own: bool = False) -> float:
        """A quantile in milliseconds."""
        ms = sorted(self.own_ms if own else self.ms)
        return ms[min(len(ms) - 1, int(share * len(ms)))] if ms else float("nan")


BODIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("echo", {"text": "turn on the light"}),
    "generator": ("tiny", {"prompt": "turn on the light", "params": {"max_tokens": 4}}),
}


async def ask(client: RequestClient, kind: str, seconds: float, device: str) -> Good:
    """A good client: ten requests a second, each of which waits for its answer."""
    found, (model, body) = Good(), BODIES[kind]
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        asked_s = time.monotonic()
        try:
            reply = await client.infer(device, model, body, GOOD_DEADLINE_S)
        except RequestError as error:
            found.other[str(error.status)] += 1
        else:
            if reply.status == 200:
                found.ms.append((time.monotonic() - asked_s) * 1000.0)
                found.own_ms.append(reply.timing.total_ms if reply.timing is not None else float("nan"))
            else:
                found.other[f"{reply.status} {reply.reason}"] += 1
        await asyncio.sleep(max(0.0, asked_s + 1.0 / GOOD_PER_S - time.monotonic()))
    return found


@dataclass
class Storm:
    """The good clients' figures on an idle board and in the storm, and what the device told of the storm."""

    idle: dict[str, Good]
    stormy: dict[str, Good]
    dropped: Counter[str]
    refusals: Counter[str]
    cpu_share: float
    sent: dict[str, int]

    def table(self) -> str:
        """Markdown."""
        lines = [
            "| good client | asked | answered | p50, p99 idle | p50, p99 in the storm | p99 ratio "
            "| device's own p99 idle, in the storm, ratio |",
            "|---" * 7 + "|",
        ]
        for name, good in self.stormy.items():
            idle = self.idle[name]
            asked = len(good.ms) + good.other.total()
            lines.append(
                f"| {name} | {asked} | {good.share:.4f} | {idle.at(0.5):.1f}, {idle.at(0.99):.1f} ms "
                f"| {good.at(0.5):.1f}, {good.at(0.99):.1f} ms | {good.at(0.99) / idle.at(0.99):.2f} "
                f"| {idle.at(0.99, own=True):.1f}, {good.at(0.99, own=True):.1f} ms, "
                f"{good.at(0.99, own=True) / idle.at(0.99, own=True):.2f} |"
            )
        others = {name: dict(good.other) for name, good in self.stormy.items() if good.other}
        lines.append(f"\nsent by hostile clients: {self.sent}; refused: {dict(self.refusals)}")
        lines.append(
            f"dropped: {dict(self.dropped)}; daemon's share of a core: {self.cpu_share:.2f}; not answered: {others}"
        )
        return "\n".join(lines)


@contextlib.contextmanager
def hostile(port: int, device: str, seconds: float) -> Iterator[dict[str, int]]:
    """The hostile clients, each in its process; the messages that each sent, once this has ended."""
    command = [sys.executable, "-m", "tests.support.hostile_clients"]
    own = [str(port), device, str(seconds)]
    # They would not compute on the board: what runs on it goes first.
    processes = {
        kind: subprocess.Popen(["nice", "-n", "10", *command, kind, *own], stdout=subprocess.PIPE) for kind in KINDS
    }
    sent: dict[str, int] = {}
    try:
        yield sent
        for kind, process in processes.items():
            out, _ = process.communicate(timeout=30)
            sent[kind] = int(out or 0)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def good_clients(broker: Mosquitto) -> AsyncIterator[dict[str, RequestClient]]:
    """One per kind of model, each with a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        options = {kind: broker.options(f"good-{kind}") for kind in BODIES}
        yield {kind: await stack.enter_async_context(RequestClient(options[kind])) for kind in BODIES}


def _cpu_s(agent: AgentProcess) -> float:
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


async def measure(broker: Mosquitto, agent: AgentProcess, idle_s: float, storm_s: float) -> Storm:
    """The good clients alone, then beside the hostile ones."""
    async with (
        good_clients(broker) as clients,
        StormClient(broker.options("watch"), agent.device) as watch,
    ):

        async def all_ask(seconds: float) -> dict[str, Good]:
            found = await asyncio.gather(*(ask(one, kind, seconds, agent.device) for kind, one in clients.items()))
            return dict(zip(clients, found, strict=True))

        await all_ask(1.0)
        idle = await all_ask(idle_s)
        since, began_s, cpu_s = len(watch.telemetry), time.monotonic(), _cpu_s(agent)
        with hostile(broker.port, agent.device, storm_s + 1.0) as sent:
            await asyncio.sleep(0.5)
            stormy = await all_ask(storm_s)
            share = (_cpu_s(agent) - cpu_s) / (time.monotonic() - began_s)
        await asyncio.sleep(1.5)
        reports = watch.telemetry[since:]
        dropped = sum((Counter(report.dropped) for report in reports), Counter[str]())
        refusals = sum((Counter(report.refusals) for report in reports), Counter[str]())
        return Storm(idle, stormy, dropped, refusals, share, sent)


def storm(folder: Path, idle_s: float, storm_s: float) -> Storm:
    """A broker, a device with an encoder and a generator, and everything above."""
    with Mosquitto(folder, extra=["max_queued_messages 10000", "max_inflight_messages 64"]) as broker:
        agent = AgentProcess(folder / "device", broker.port, backends=("echo", "llamacpp"))
        agent.install(echo_package(folder))
        agent.install(generators.base_package(folder, sequences=SEQUENCES))
        with running(agent):
            return asyncio.run(measure(broker, agent, idle_s, storm_s))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=(*KINDS, "storm"))
    parser.add_argument("port", type=int, nargs="?")
    parser.add_argument("device", nargs="?")
    parser.add_argument("seconds", type=float, nargs="?")
    parser.add_argument("--seconds", dest="long_s", type=float, default=600.0)
    given = parser.parse_args()
    if given.kind != "storm":
        print(asyncio.run(attack(given.kind, given.port, given.device, given.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(storm(Path(folder), given.long_s / 10.0, given.long_s).table())


if __name__ == "__main__":
    _main()
