"""More than the device can do: every request is answered or expires, once; refusals come at once, with a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from edge_agent.base.errors import RequestError
from edge_agent.client.request_client import RequestClient
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import desk
from tests.support.machine_lag import MachineLag
from tests.support.mosquitto import Mosquitto

QUEUE_JOBS = 20
PLACES = 16
"""What one client may hold of them."""
ASKERS = 50
FLOOD_S = 3.0
DEADLINE_S = 10.0
REFUSED_MS = 250.0
"""Ten times what is measured on two idle cores (23 ms)."""
HOPS = 10
"""Programs that wait for a core between a question and its refusal, twice on the way: asker, broker, daemon."""


def test_a_queue_that_is_full_for_a_client_refuses_at_once_and_says_when_to_come_back(tmp_path: Path) -> None:
    """Fifty askers, twenty places, twenty answers a second; then one burst that nobody paces."""
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, extra=f"[limits]\nqueue_jobs = {QUEUE_JOBS}\n")
        agent.install(echo_package(tmp_path, delay_s=0.05))
        with running(agent, EDGE_AGENT__WORKER__MAX_ROWS="1"):
            with MachineLag() as lag:
                statuses, refused_ms = asyncio.run(_flood(broker))
            asyncio.run(_burst(broker))
    print(f"\n{sum(statuses.values())} requests: {dict(statuses)}")
    print(f"refused: p50 {_at(refused_ms, 0.5):.1f} ms, p99 {_at(refused_ms, 0.99):.1f} ms of {len(refused_ms)}")
    assert set(statuses) <= {200, 429}, "all were within their deadline, so none may be unanswered"
    assert statuses[200] >= PLACES
    assert refused_ms, "it never was full"
    assert _at(refused_ms, 0.99) < REFUSED_MS + 1000.0 * HOPS * lag.most_s, f"the machine's lag: {lag.most_s:.3f} s"


async def _flood(broker: Mosquitto) -> tuple[Counter[int], list[float]]:
    statuses: Counter[int] = Counter()
    refused_ms: list[float] = []

    async def ask(client: RequestClient, until_s: float) -> None:
        while time.monotonic() < until_s:
            asked_s = time.monotonic()
            try:
                reply = await client.infer("dev1", "echo", {"text": "flood"}, DEADLINE_S)
            except RequestError as error:
                statuses[error.status] += 1
                continue
            statuses[reply.status] += 1
            if reply.status == 429:
                refused_ms.append((time.monotonic() - asked_s) * 1000.0)
                assert f"of {QUEUE_JOBS} places are left to others" in str(reply.reason)
                assert isinstance(reply.retry_after_s, float)
                assert 0 < reply.retry_after_s < 60
                await asyncio.sleep(0.1)

    async with RequestClient(broker.options("flood"), devices=["dev1"]) as client:
        until_s = time.monotonic() + FLOOD_S
        await asyncio.gather(*(ask(client, until_s) for _ in range(ASKERS)))
    return statuses, refused_ms


async def _burst(broker: Mosquitto) -> None:
    """Two hundred at once with two seconds: each is answered once, or not at all because its time was over. What was
    queued and not answered expired: on a slow machine that may be more than on an idle one, where none does."""
    async with desk(broker) as table:
        for number in range(200):
            table.send("infer/echo", {"text": "burst"}, f"b{number}", expiry_s=2.0)
        await asyncio.sleep(4.0)
        replies = [table.replies(f"b{number}") for number in range(200)]
        counts = Counter(len(found) for found in replies)
        statuses = Counter(found[0]["status"] for found in replies if found)
        print(f"\na burst of 200: {dict(statuses)}, {counts[0]} expired")
        assert set(counts) <= {0, 1}
        assert set(statuses) <= {200, 429, 503}
        assert statuses[200] > 0
        assert statuses[200] + counts[0] >= PLACES, "what has a place is answered, or expires"
        assert counts[0] <= QUEUE_JOBS, "only what was queued may expire"


def _at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
