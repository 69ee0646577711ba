"""`docs/architecture.md` names every module that one request's way goes through, and no other.

The daemon and its worker run under a profiler while one classify request with an adapter is answered, by ONNX Runtime
and over a real broker. What runs in every one of several requests belongs to the way; what runs in some of them only
(the governor's tick, telemetry) does not.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from tests.support import ways
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.small_package import TEXTS, small_package

CALL_TRACE = Path(__file__).resolve().parents[1] / "support" / "call_trace"
REQUESTS = 12
"""So many that what a timer runs does not fall into every one, not even on a slow machine."""


async def ask(agent: AgentProcess, port: int) -> None:
    """Requests one at a time, each between the two signals; the daemon's other work falls into few of them."""
    async with RequestClient(MqttOptions(host="127.0.0.1", port=port, client_id="me")) as client:
        for number in range(REQUESTS + 1):
            # A child that lists the runtimes ends shortly after the start.
            while len(pids := [agent.pid, *agent.workers()]) > 2:
                await asyncio.sleep(0.05)
            if number:
                signals(pids, signal.SIGUSR1)
                await asyncio.sleep(0.05)
            reply = await client.infer(agent.device, "small", {"text": TEXTS[0], "adapter": "one"})
            assert (reply.status, len(pids)) == (200, 2), (reply, agent.log)
            await asyncio.sleep(0.05)
            if number:
                signals(pids, signal.SIGUSR2)
                await asyncio.sleep(0.23)


def signals(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to each process."""
    for pid in pids:
        os.kill(pid, number)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules in which a function ran during every request, in the daemon or its worker."""
    folder = tmp_path_factory.mktemp("way")
    path = os.pathsep.join([str(CALL_TRACE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "device", broker.port, backends=("onnx",))
        agent.install(small_package(folder))
        with running(agent, PYTHONPATH=path, CALL_TRACE=str(folder / "trace")):
            asyncio.run(ask(agent, broker.port))
            pids = [agent.pid, *agent.workers()]
    found: set[str] = set()
    for pid in pids:
        files = sorted(folder.glob(f"trace.{pid}.*"))
        assert len(files) == REQUESTS
        found |= set.intersection(*({line.split("\t")[0] for line in file.read_text().splitlines()} for file in files))
    return found


def test_the_page_names_the_modules_of_a_request(traced: set[str]) -> None:
    hops = {hop.module for hop in ways.hops()["A request"]}
    asked = ways.asked_modules()
    print(f"{len(traced)} modules run for one request, {len(hops)} of them as hops")
    assert hops & asked == set()
    assert (hops | asked) - traced == set(), "named on the page and not run"
    assert traced - hops - asked == set(), "run and not named on the page"
