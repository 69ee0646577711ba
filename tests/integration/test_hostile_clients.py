"""Four kinds of hostile clients take nothing from two good ones (ten minutes of it: `make storm`)."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

from edge_agent.client.request_client import RequestClient
from tests.support import hostile_clients
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.hostile_clients import RawClient
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need
from tests.support.storms import StormClient

IDLE_S, STORM_S = 3.0, 8.0
AT_ONCE = 5000
PATIENCE_S = 240


def test_good_clients_are_answered_in_a_storm(tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    found = hostile_clients.storm(tmp_path, IDLE_S, STORM_S)
    print(f"\n{found.table()}")
    for name, good in found.stormy.items():
        assert good.ms, name
        assert good.share >= 0.99, f"{name}: {good.other}"
    assert found.sent["flood"] > 0.5 * STORM_S * hostile_clients.FLOOD_PER_S, "the flood was one"
    assert found.refusals["404"] > 0
    assert found.sent["grammar"] > 0.5 * STORM_S * hostile_clients.PER_S["grammar"]
    assert not found.dropped["outbox-full"], "no computed answer was thrown away"


def test_five_thousand_requests_at_once_are_all_answered_and_another_client_beside_them(tmp_path: Path) -> None:
    """Answered, with 200 or 429: none expires, none is lost on the way in or out."""
    with Mosquitto(tmp_path, extra=["max_queued_messages 0"]) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            answered, dropped, beside = asyncio.run(_all_at_once(broker, agent.device))
    assert answered == {b"burst-%05d" % number for number in range(AT_ONCE)}
    assert not dropped
    assert beside == 200


async def _all_at_once(broker: Mosquitto, device: str) -> tuple[set[bytes], Counter[str], int]:
    async with (
        RequestClient(broker.options("good")) as good,
        StormClient(broker.options("watch"), device) as watch,
        RawClient(broker.port, "many", device, keeps=True) as many,
    ):
        for number in range(AT_ONCE):
            many.publish("infer/echo", b'{"text":"turn on the light"}', f"burst-{number:05d}", expiry_s=PATIENCE_S)
        await many.drain()
        beside = await good.infer(device, "echo", {"text": "x"}, PATIENCE_S)
        answered: set[bytes] = set()
        until_s = asyncio.get_running_loop().time() + PATIENCE_S
        while len(answered) < AT_ONCE and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.5)
            answered = set(re.findall(rb"burst-\d{5}", bytes(many.received)))
        await asyncio.sleep(1.5)
        return answered, sum((Counter(report.dropped) for report in watch.telemetry), Counter[str]()), beside.status
