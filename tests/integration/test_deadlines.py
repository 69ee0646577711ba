"""Three times capacity with mixed deadlines at the real agent behind a real broker: what is in time, and what is late.

The point of `docs/deadlines.md` that is measured, not simulated; it prints its figures.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import Desk, desk
from tests.support.machine_lag import MachineLag
from tests.support.mosquitto import Mosquitto

STEP_S, MAX_ROWS = 0.05, 4
CAPACITY_PER_S = MAX_ROWS / STEP_S
LOAD, SECONDS = 3.0, 6.0
DEADLINES_S = (0.5, 1.0, 3.0)
CV = 1.5
WAKINGS = 8
"""Between two steps: the worker, its channel, the daemon's loop, the schedule, and back, each of which may be kept
waiting."""


def test_at_three_times_capacity_what_is_answered_is_in_time(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path, delay_s=STEP_S))
        with running(agent, EDGE_AGENT__WORKER__MAX_ROWS=str(MAX_ROWS)), MachineLag() as lag:
            asyncio.run(_offer(broker, lag))


async def _offer(broker: Mosquitto, lag: MachineLag) -> None:
    dice = random.Random(7)
    shape = 1.0 / CV**2
    sent: dict[str, tuple[float, float]] = {}
    async with desk(broker) as table:
        for number in range(8):  # so that costs are known
            await table.ask(f"warm{number}", {"text": "a"})
        loop = asyncio.get_running_loop()
        begin_s = next_s = loop.time()
        while next_s < begin_s + SECONDS:
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            name, wait_s = f"r{len(sent)}", dice.choice(DEADLINES_S)
            body = {"text": "flood", "deadline_s": wait_s, "priority": dice.choice((2, 5, 5, 8))}
            client = f"edge/v1/client/c{dice.randrange(4)}/reply"
            sent[name] = (time.monotonic(), wait_s)
            table.send("infer/echo", body, name, expiry_s=4.0, response_topic=client)
            next_s += dice.gammavariate(shape, 1.0 / (CAPACITY_PER_S * LOAD) / shape)
        await asyncio.sleep(max(DEADLINES_S) + 1.0)
        _judge(table, sent, lag)


def _judge(table: Desk, sent: dict[str, tuple[float, float]], lag: MachineLag) -> None:
    """An answer counts as late when the device says that it took longer than was left: two clocks are not compared.

    The machine's own delays are taken off: what a step took beyond its 50 ms, and the largest lag of a waiting program.
    """
    answers: dict[str, list[dict[str, object]]] = {name: [] for name in sent}
    heard_s: dict[str, float] = {}
    for message in table.heard:
        if message.topic.endswith("/reply"):
            body = json.loads(message.payload)
            if body["id"] in answers:
                answers[body["id"]].append(body)
                heard_s[body["id"]] = message.received_s or 0.0
    served = [name for name, found in answers.items() if found and found[0]["status"] == 200]
    refused = [name for name, found in answers.items() if found and found[0]["status"] in {429, 503}]
    timings: dict[str, dict[str, float]] = {name: answers[name][0]["timing"] for name in served}  # type: ignore[misc]
    steps_ms = [timing["compute_ms"] for timing in timings.values()]
    stall_ms = max(steps_ms) - 1000.0 * STEP_S + 1000.0 * lag.most_s
    late = [name for name in served if timings[name]["total_ms"] > 1000.0 * sent[name][1] + stall_ms]
    batches = sum(1.0 / answers[name][0]["batch"] for name in served)  # type: ignore[operator]
    computing_s = sum(timings[name]["compute_ms"] / answers[name][0]["batch"] for name in served) / 1000.0  # type: ignore[operator]
    busy = (computing_s + batches * WAKINGS * lag.mean_s) / SECONDS
    delays_ms = sorted(1000.0 * (heard_s[name] - sent[name][0]) for name in refused)
    ends_s = min(asked_s for asked_s, _ in sent.values()) + SECONDS
    goodput = sum(heard_s[name] < ends_s for name in served) / (CAPACITY_PER_S * SECONDS)
    print(f"\n{len(sent)} offered, {len(served)} served ({goodput:.0%} of capacity), {len(refused)} refused", end="")
    if delays_ms:
        p50, p99 = delays_ms[len(delays_ms) // 2], delays_ms[int(0.99 * len(delays_ms))]
        at_once = sum(delay < 20.0 for delay in delays_ms) / len(delays_ms)
        print(f" (p50 {p50:.1f} ms, {at_once:.0%} within 20 ms, p99 {p99:.0f} ms)", end="")
    print(f", {sum(not found for found in answers.values())} expired, {len(late)} late", end="")
    steps = f"{batches:.0f} steps of {1000.0 * computing_s / batches:.0f} ms, {len(served) / batches:.1f} rows each"
    print(f"; {steps}, busy {busy:.0%}, lag {1000.0 * lag.mean_s:.1f} ms, at most {1000.0 * lag.most_s:.0f} ms")
    assert not late
    assert all(len(found) <= 1 for found in answers.values())
    assert busy > 0.6, "the worker computes, or waits for the machine; 94 % on an idle one"
    assert len(served) / batches > 0.6 * MAX_ROWS, "and its steps are full"
    assert refused
