"""Models that together need three times what there is, under a limit that the kernel enforces by killing.

Every request is answered, the daemon lives, and what the ledger said the models held comes back when they leave.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edge_agent.base.errors import RequestError
from edge_agent.base.limits import MIB
from edge_agent.client.request_client import RequestClient
from edge_agent.sensors.memory import read_pss
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import Desk, cli, desk, said
from tests.support.memory_limit import MemoryLimit, memory_limit
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

NAMES = tuple(f"m{index}" for index in range(6))
HOLD_MIB = 60
WORKER_MIB = HOLD_MIB + 16
"""Measured: an echo worker's interpreter holds about 16 MiB when several share it."""
BUDGET_MIB = len(NAMES) * WORKER_MIB // 3
RESERVE_MIB, DAEMON_MIB = 64, 45
LIMIT_MIB = BUDGET_MIB + RESERVE_MIB + DAEMON_MIB
CHURN_S = 15.0
DEADLINE_S = 8.0
ANSWERED_LEAST = 60
"""Four answers a second; a machine that computes nothing else gives about three hundred."""
KILLS_MOST = 3
"""The ballast takes its memory at once, faster than anybody looks: the kernel may then end each of the two or three
workers in memory. It never may end the daemon: its workers offer themselves first (oom_score_adj)."""
PROBE_MOST_S = 2.0
SEED = 7
PROBE = "import sys\nfor line in sys.stdin: sys.stdout.write(line); sys.stdout.flush()"
STEPS = (
    "import sys, time; held = []\n"
    "for _ in range(int(sys.argv[1])): held.append(bytearray(b'1') * (1 << 20)); time.sleep(0.05)\n"
    "time.sleep(60)"
)
BALLAST = (
    "import sys, time; held = bytearray(b'1') * (int(sys.argv[1]) << 20); print('holds', flush=True); time.sleep(60)"
)


def test_churn_over_three_times_the_budget_under_a_real_limit(tmp_path: Path) -> None:
    """Twelve clients ask six models at random, of which two or three fit; a ballast comes and goes meanwhile."""
    with Mosquitto(tmp_path) as broker, memory_limit(LIMIT_MIB * MIB) as limit:
        agent = AgentProcess(
            tmp_path / "device",
            broker.port,
            extra=f"[models]\nresident = []\n[memory]\nreserve_bytes = {RESERVE_MIB * MIB}\n",
        )
        for name in NAMES:
            agent.install(echo_package(tmp_path / name, name, peak_bytes=WORKER_MIB * MIB, hold_mib=HOLD_MIB))
        with running(agent):
            limit.add(agent.pid)
            daemon_pid = agent.pid
            outcome, highest, longest_s = asyncio.run(_churn(broker, agent, limit))
            print(f"\na program in the group answered within {1000 * longest_s:.0f} ms at most")
            assert longest_s < PROBE_MOST_S, "the host could not be reached"
            print(f"\n{sum(outcome.values())} requests: {dict(outcome)}, workers held {highest} MiB at most")
            assert set(outcome) <= {200, 429, 503}, "a request was not answered"
            assert outcome[200] >= ANSWERED_LEAST
            assert agent.process is not None
            assert agent.process.poll() is None, agent.log
            assert agent.pid == daemon_pid
            asyncio.run(_everything_comes_back(broker, agent))
            loaded = cli("load", NAMES[0], "--config", agent.config)
            assert said(loaded).startswith(f"load {NAMES[0]}: done, it holds "), said(loaded)
            assert "no model 'none'" in said(cli("unload", "none", "--config", agent.config))
            print(f"kernel kills in the group: {limit.kills()}")
            assert limit.kills() <= KILLS_MOST
        events = [line for line in agent.log.splitlines() if "evicted" in line]
        assert len(events) > len(NAMES), "nothing had to leave: the limit was none"
        assert len(_figures(agent)) == len(NAMES)


def test_a_neighbour_that_grows_is_noticed_before_the_kernel_acts(tmp_path: Path) -> None:
    """Two idle models and a program that takes what is left: they leave, nobody is killed, all is well after."""
    with Mosquitto(tmp_path) as broker, memory_limit(300 * MIB) as limit:
        agent = AgentProcess(tmp_path / "device", broker.port, extra=f"[memory]\nreserve_bytes = {RESERVE_MIB * MIB}\n")
        for name in NAMES[:2]:
            agent.install(echo_package(tmp_path / name, name, peak_bytes=WORKER_MIB * MIB, hold_mib=HOLD_MIB))
        with running(agent, EDGE_AGENT__MODELS__RESIDENT=""):
            limit.add(agent.pid)
            asyncio.run(_squeeze(broker, agent, limit))
            print(f"\nkernel kills in the group: {limit.kills()}")
            assert limit.kills() == 0
        stages = [line.split("memory-pressure: ")[1] for line in agent.log.splitlines() if "memory-pressure: " in line]
        print("\n".join(stages))
        assert "calm" in stages[-1]


async def _squeeze(broker: Mosquitto, agent: AgentProcess, limit: MemoryLimit) -> None:
    async with desk(broker) as table:
        for name in NAMES[:2]:
            assert (await table.order(f"load-{name}", "load", {"model": name}))["status"] == 200
        left_mib = 300 - limit.used_bytes() // MIB
        ballast = subprocess.Popen([sys.executable, "-c", STEPS, str(left_mib - 10)], stdout=subprocess.PIPE)
        limit.add(ballast.pid)
        try:
            await until(lambda: agent.workers() == [], 20.0)
            assert ballast.poll() is None
            refused = await table.ask("short", {"text": "now?"}, NAMES[0])
            assert refused["status"] in {200, 503}
        finally:
            ballast.kill()
            ballast.communicate()
        await until(lambda: len(table.events("memory-pressure")) >= 2 and _calm(table), 20.0)
        assert (await table.ask("after", {"text": "and now?"}, NAMES[0]))["status"] == 200


def _calm(table: Desk) -> bool:
    return bool(table.events("memory-pressure")[-1]["data"]["stage"] == "calm")


async def _churn(broker: Mosquitto, agent: AgentProcess, limit: MemoryLimit) -> tuple[Counter[int], int, float]:
    """Answers by status, MiB that workers held at most, and the longest round trip to a program in the group."""
    outcome: Counter[int] = Counter()
    draw = random.Random(SEED)
    until_s = time.monotonic() + CHURN_S
    highest, longest_s = 0, 0.0

    async def ask(client: RequestClient) -> None:
        while time.monotonic() < until_s:
            try:
                reply = await client.infer("dev1", draw.choice(NAMES), {"text": "churn"}, DEADLINE_S)
            except RequestError as error:
                outcome[error.status] += 1
                continue
            outcome[reply.status] += 1
            await asyncio.sleep(draw.uniform(0.0, 0.2))

    async def watch() -> None:
        nonlocal highest
        while time.monotonic() < until_s:
            highest = max(highest, _held_mib(agent))
            await asyncio.sleep(0.1)

    async def ballast() -> None:
        await asyncio.sleep(CHURN_S / 3)
        process = subprocess.Popen([sys.executable, "-c", BALLAST, str(RESERVE_MIB - 16)], stdout=subprocess.PIPE)
        limit.add(process.pid)
        await asyncio.sleep(CHURN_S / 3)
        process.kill()
        process.communicate()

    async def probe() -> None:
        """What somebody who logs in would find: a small program in the same group that answers a line."""
        nonlocal longest_s
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROBE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        limit.add(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        while time.monotonic() < until_s:
            asked_s = time.monotonic()
            process.stdin.write(b"?\n")
            assert await process.stdout.readline() == b"?\n", "the kernel has ended it"
            longest_s = max(longest_s, time.monotonic() - asked_s)
            await asyncio.sleep(0.05)
        process.kill()
        await process.wait()

    async with RequestClient(broker.options("churn"), devices=["dev1"]) as client:
        await asyncio.gather(watch(), ballast(), probe(), *(ask(client) for _ in range(12)))
    return outcome, highest, longest_s


async def _everything_comes_back(broker: Mosquitto, agent: AgentProcess) -> None:
    """Unload all: the bytes that come free are those that the models were said to hold."""
    async with desk(broker) as table:
        predicted = _figures(agent)
        answers: dict[str, dict[str, Any]] = {}
        for name in NAMES[:2]:
            answers[name] = await table.order(f"load-{name}", "load", {"model": name})
            assert answers[name]["status"] == 200, answers[name]
        diagnosis = await table.order("diag", "diag", {})
        resident = [model for model in diagnosis["result"]["models"] if model["resident"]]
        off = [abs(predicted[model["variant"]] / model["footprint_bytes"] - 1.0) for model in resident]
        print(f"predictions after the first load are off by {100 * max(off):.1f} % at most")
        assert max(off) <= 0.1
        said_mib = sum(model["footprint_bytes"] for model in resident) / MIB
        before_mib = _held_mib(agent)
        for name in NAMES:
            assert (await table.order(f"unload-{name}", "unload", {"model": name}))["status"] == 200
        freed_mib = before_mib - _held_mib(agent)
        print(f"{len(resident)} models were said to hold {said_mib:.0f} MiB, {freed_mib} MiB came back")
        assert agent.workers() == []
        assert abs(freed_mib - said_mib) <= 0.1 * said_mib


def _figures(agent: AgentProcess) -> dict[str, int]:
    """What the daemon has kept on disk: bytes by variant."""
    book = json.loads((agent.folder / "state/footprints.json").read_text())
    return {digest: entry["held_bytes"] for digest, entry in book["figures"].items()}


def _held_mib(agent: AgentProcess) -> int:
    held = (read_pss(Path("/"), pid, 0.0).value or 0.0 for pid in agent.workers())
    return round(sum(held) / MIB)
