"""amqtt, the broker of the demo where no mosquitto is installed: it speaks 3.1.1 only."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.envelope import LinkListener
from tests.support.mosquitto import free_port
from tests.support.mqtt import until

pytest.importorskip("amqtt")

BROKER = """
import asyncio, sys
from amqtt.broker import Broker

async def run():
    config = {
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    print("up", flush=True)
    await asyncio.sleep(300)

asyncio.run(run())
"""


def test_a_broker_without_mqtt_5_is_found_out_and_served(tmp_path: Path) -> None:
    from tests.integration.test_mqtt_roundtrip import TOPICS, decode, echo  # the device of the round trips
    from tests.support.mqtt import NotedLink

    async def run() -> None:
        port = free_port()
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", BROKER, str(port)], stdout=log, stderr=log)
        try:
            await until(lambda: b"up" in (tmp_path / "log").read_bytes())
            options = MqttOptions(host="127.0.0.1", port=port, client_id="pi", reconnect_base_s=0.05)
            pi = NotedLink(options, TOPICS.subscriptions())
            await pi.link.start(LinkListener(pi.changes.append))
            await until(lambda: pi.link.connected)
            assert pi.changes[-1].version == 4

            async def serve() -> None:
                async for message in pi.link.messages():
                    pi.link.ack(message)
                    request = decode.decode(message, topics=TOPICS, now_s=asyncio.get_running_loop().time())
                    assert isinstance(request, decode.Request)
                    for answer in echo(request):
                        pi.link.publish(answer)

            task = asyncio.create_task(serve())
            async with RequestClient(MqttOptions(host="127.0.0.1", port=port, client_id="")) as client:
                for text in ("one", "two"):
                    assert (await client.infer("pi", "m", {"text": text}, deadline_s=10.0)).result == [text]
            await pi.link.stop([])
            await task
        finally:
            process.kill()
            process.wait()

    asyncio.run(run())
