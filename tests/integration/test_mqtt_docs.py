"""docs/mqtt.md: its Python with the tweak and with a refusal, its broker settings, and the names of what it asks; the
commands are in test_docs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from edge_agent.demo import show
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Subscription
from tests.integration.test_mqtt_roundtrip import device
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import linked, until

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")
DEMO, HERE = "edge/v1/demo/infer/minilm", "edge/v1/pi/infer/home"
"""What the examples ask, as the demo serves it, and the small device of these tests in its place."""


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


def test_the_python_works_as_printed(tmp_path: Path) -> None:
    async def run() -> None:
        program, tweak = blocks("python")
        with Mosquitto(tmp_path) as broker:
            assert DEMO in program
            here = program.replace("1883", str(broker.port)).replace("client.connect(", tweak + "client.connect(")
            here = here.replace(DEMO, HERE)

            async def printed(source: str) -> str:
                done = await asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, "-c", source],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=True,
                )
                return done.stdout

            async with device(broker):
                assert await printed(here) == "200 ['it is dark in here']\n"
                # What the device refuses is printed with its reason.
                assert (await printed(here.replace('"text"', '"txet"'))).startswith("422 ")

    asyncio.run(run())


def test_the_examples_ask_what_the_demos_serve() -> None:
    asked = set(re.findall(r"edge/v1/(\w+)/infer/([\w-]+)", TEXT))
    assert asked == {(show.DEVICE, "minilm"), (show.DEVICE, show.LLM)}


def test_the_broker_settings_start_a_broker(tmp_path: Path) -> None:
    async def run() -> None:
        settings = next(block for block in blocks("") if block.startswith("listener"))
        lines = [
            line
            for line in settings.splitlines()
            if not line.startswith(("listener", "set_tcp", "persistence", "allow", "password", "acl"))
        ]
        acl = next(block for block in blocks("") if block.startswith("pattern"))
        with Mosquitto(tmp_path, users={"pi": "x", "me": "y"}, acl=acl, persistence=True, extra=lines) as broker:
            async with device(broker, username="pi", password="x"):
                options = broker.options("me", username="me", password="y")
                async with linked(options, [Subscription("edge/v1/client/me/reply/#")]) as me:
                    body = b'{"text":"x","id":"1","reply_to":"edge/v1/client/me/reply"}'
                    me.link.publish(Outbound("edge/v1/pi/infer/home", body))
                    await until(lambda: len(me.seen) == 1)
                    me.link.publish(Outbound("edge/v1/pi/cmd/rollback", b"{}"))
                    await until(lambda: me.link.publish_failures == 1)

    asyncio.run(run())
