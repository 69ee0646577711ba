"""Simulated devices, each with a connection and a will of its own, that take desired states as a device does.

`python -m tests.support.fleet_devices --devices 200` rolls a good and a bad release out over them on one mosquitto,
with the command itself as a process, and prints how long it took.

A file of its own because a test, with a few of them, and a measurement, with 200, use it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol import messages
from edge_agent.protocol.envelope import LinkChange, LinkListener, Outbound
from edge_agent.protocol.topics import Topics
from tests.support import told_devices as told
from tests.support.mosquitto import Mosquitto

OLD, GOOD, BAD = (f"sha256:{digit * 64}" for digit in "123")
FLEET = (
    "import sys; from edge_agent.app import fleet_rollout; fleet_rollout.CLAIM_S = {claim}; "
    "from edge_agent.cli import main; "
)


class SimulatedDevice:
    """Holds the model 'm' from the package OLD; takes any package but BAD, `takes_s` after it was asked."""

    def __init__(self, broker: Mosquitto, name: str, takes_s: float, **login: str) -> None:
        topics = Topics("edge/v1", name)
        self.name = name
        self.package: str | None = OLD
        self.version: int | None = None
        self._topics = topics
        self._takes_s = takes_s
        self._seq = 0
        will = Outbound(topics.status, msgspec.json.encode(told.status("offline", "gone")), retain=True)
        self._link = MqttTransport(broker.options(name, **login), topics.subscriptions(), will)
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and say what it is."""
        await self._link.start(LinkListener(self._changed))
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Go, as by a power cut for those who look at its status."""
        await self._link.stop([])
        if self._reading is not None:
            await self._reading

    def _changed(self, change: LinkChange) -> None:
        if change.connected:
            self._say(self._topics.status, told.status())
            self._report("applied" if self.version is not None else None, None)

    async def _read(self) -> None:
        async for message in self._link.messages():
            self._link.ack(message)
            if message.topic == self._topics.desired and message.payload:
                body = msgspec.json.decode(message.payload, type=messages.Desired)
                if self.version is None or body.version > self.version:
                    await self._take(body)

    async def _take(self, body: messages.Desired) -> None:
        self.version = body.version
        wanted = next(one.package for one in body.models if one.model == "m")
        self._report("pending", wanted)  # type: ignore[arg-type]
        await asyncio.sleep(self._takes_s)
        if wanted == BAD:
            self._report("refused", wanted, "its golden probes fail")
        else:
            self.package = wanted  # type: ignore[assignment]
            self._report("applied", self.package)

    def _report(self, state: str | None, package: str | None, reason: str | None = None) -> None:
        self._seq += 1
        item = messages.ReportedItem(
            model="m", adapter=None, package=package, state=state, since=time.time(), reason=reason  # type: ignore[arg-type]
        )  # fmt: skip
        held = [messages.InstalledEntry(model="m", adapter=None, package=self.package)] if self.package else []
        body = messages.Reported(
            ts=time.time(), boot_id="b", seq=self._seq, version=self.version, state=state,  # type: ignore[arg-type]
            items=[] if state is None else [item], installed=held,
        )  # fmt: skip
        self._say(self._topics.reported, body)

    def _say(self, topic: str, body: object) -> None:
        self._link.publish(Outbound(topic, msgspec.json.encode(body), retain=True, keep="latest"))


@contextlib.asynccontextmanager
async def simulated(
    broker: Mosquitto, count: int, takes_s: float, **login: str
) -> AsyncIterator[list[SimulatedDevice]]:
    """So many devices, named pi-000 and so on."""
    devices = [SimulatedDevice(broker, f"pi-{number:03}", takes_s, **login) for number in range(count)]
    await asyncio.gather(*(device.start() for device in devices))
    await asyncio.sleep(0.5)
    try:
        yield devices
    finally:
        await asyncio.gather(*(device.stop() for device in devices))


class Command:
    """`edge-agent fleet rollout` as a process of its own; a claim ends after `claim_s` there."""

    def __init__(self, broker: Mosquitto, words: Sequence[str], claim_s: float = 2.0) -> None:
        self._words = [*words, "--host", "127.0.0.1", "--port", str(broker.port)]
        self._code = FLEET.format(claim=claim_s) + "sys.exit(main(['fleet', 'rollout', *sys.argv[1:]]))"
        self._process: asyncio.subprocess.Process | None = None
        self.lines: list[tuple[float, str]] = []

    async def run(self, until: str | None = None) -> int:
        """Start it, and wait for its end; or kill it (-9) as soon as it has said `until`."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self._code, *self._words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append((time.monotonic(), line.decode().rstrip()))
            if until is not None and until in self.text:
                self._process.send_signal(signal.SIGKILL)
                break
        return await self._process.wait()

    @property
    def text(self) -> str:
        """What it has said."""
        return "\n".join(line for _, line in self.lines)

    def at_s(self, part: str) -> float:
        """When it said the first line with this in it, monotonic."""
        return next(at for at, line in self.lines if part in line)


def plan_words(package: str, waves: str, watch_s: float = 0.0) -> list[str]:
    """Words of a rollout of the model 'm'."""
    return ["--give", f"m={package}", "--waves", waves, "--within", "60", "--watch", f"{watch_s:g}"]


async def measure(count: int, takes_s: float) -> dict[str, Any]:
    """A good release to all, then a bad one at 10 %; seconds of both."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Mosquitto(Path(folder), extra=["max_queued_messages 10000"]) as broker,
    ):
        async with simulated(broker, count, takes_s) as devices:
            good = Command(broker, plan_words(GOOD, "5%,25%,100%"), 30.0)
            assert await good.run() == 0, good.text
            assert all(device.package == GOOD for device in devices)
            begun_s = good.at_s("rollout ")
            bad = Command(broker, plan_words(BAD, "10%,100%"), 30.0)
            assert await bad.run() == 1, bad.text
            touched = sum(device.version != 1 for device in devices)
            assert all(device.package == GOOD for device in devices)
            return {
                "devices": count,
                "a device takes a package, s": takes_s,
                "good release to all, s": round(good.at_s("done:") - begun_s, 2),
                "bad release given": touched,
                "bad release, from its begin to the stop, s": round(bad.at_s("stopped") - bad.at_s("rollout "), 2),
                "bad release, from its begin until all are back, s": round(
                    bad.at_s("returned:") - bad.at_s("rollout "), 2
                ),
            }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Rollouts over simulated devices on one mosquitto.")
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--takes", type=float, default=2.0, metavar="S")
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(measure(arguments.devices, arguments.takes)), indent=1))


if __name__ == "__main__":
    main()
