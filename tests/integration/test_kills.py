"""Kill things: workers under load, the broker, the daemon. No request is lost, no event, and all is served again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import msgspec
import pytest

from edge_agent.base.errors import RequestError
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.messages import Event
from edge_agent.protocol.topics import Subscription
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto

WORKER_KILLS = int(os.environ.get("EDGE_WORKER_KILLS", "200"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_is_unanswered_while_workers_are_killed(tmp_path: Path) -> None:
    """Killed as soon as it has answered something, or while it loads; a request without an answer raises in `infer`."""
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path, delay_s=0.005))
        with running(agent):
            statuses, kills = asyncio.run(_kill_under_load(agent, broker))
    served = statuses.count(200)
    died = statuses.count(500)
    print(f"\n{kills} workers killed, {len(statuses)} requests: {served} answered with 200, {died} with 500")
    assert kills == WORKER_KILLS
    assert set(statuses) <= {200, 500}, "served, or told that the worker died twice with it"
    assert statuses[-1] == 200
    assert served > kills // 2


async def _kill_under_load(agent: AgentProcess, broker: Mosquitto) -> tuple[list[int], int]:
    statuses: list[int] = []
    kills = 0
    dice = random.Random(7)
    done = asyncio.Event()

    async def ask(asker: RequestClient) -> None:
        while not done.is_set():
            reply = await asker.infer(agent.device, "echo", {"text": "under fire"}, 60)
            statuses.append(reply.status)

    async with RequestClient(broker.options("load"), devices=[agent.device]) as asker:
        asks = [asyncio.create_task(ask(asker)) for _ in range(8)]
        dead: set[int] = set()
        while kills < WORKER_KILLS:
            answered = len(statuses)
            at_load = dice.random() < 0.1
            while not at_load and len(statuses) == answered:
                await asyncio.sleep(0.01)
                for task in asks:
                    if task.done():
                        task.result()  # an unanswered request ends the test here, not in silence
            await asyncio.sleep(dice.uniform(0.0, 0.03))
            for pid in set(agent.workers()) - dead:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    dead.add(pid)
                    kills += 1
        done.set()
        await asyncio.gather(*asks)
        statuses.append((await asker.infer(agent.device, "echo", {"text": "after"}, 60)).status)
    return statuses, kills


@pytest.mark.slow
def test_the_broker_may_go_and_come_back(tmp_path: Path) -> None:
    """Requests after its return are answered, and events that happened meanwhile arrive late, not never."""
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            broker.kill()
            deadline_s = time.monotonic() + 10
            while "no broker" not in agent.log and time.monotonic() < deadline_s:
                time.sleep(0.05)
            os.kill(agent.workers()[0], signal.SIGKILL)
            time.sleep(0.5)
            events = asyncio.run(_after_return(agent, broker))
    kinds = [event.kind for event in events]
    assert "worker-died" in kinds
    assert len({(event.boot_id, event.seq) for event in events}) >= 2


async def _after_return(agent: AgentProcess, broker: Mosquitto) -> list[Event]:
    broker.start()
    heard: list[Event] = []
    listener = MqttTransport(broker.options("ear"), [Subscription(f"edge/v1/{agent.device}/event")])
    await listener.start()

    async def listen() -> None:
        async for message in listener.messages():
            listener.ack(message)
            heard.append(msgspec.json.decode(message.payload, type=Event))

    ear = asyncio.create_task(listen())
    async with RequestClient(broker.options("after"), devices=[agent.device]) as asker:
        for _ in range(100):
            with contextlib.suppress(RequestError):
                if (await asker.infer(agent.device, "echo", {"text": "back"}, 2)).status == 200:
                    break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("not served after the broker's return")
        for _ in range(50):
            if any(event.kind == "worker-died" for event in heard):
                break
            await asyncio.sleep(0.1)
    await listener.stop([])
    await ear
    return heard


@pytest.mark.slow
def test_a_request_in_flight_survives_the_daemon(tmp_path: Path) -> None:
    """Killed between taking a request and answering it, the next daemon answers: the broker delivers it again."""
    with Mosquitto(tmp_path, persistence=True) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path, delay_s=1.0))
        agent.start()

        async def run() -> int:
            async with RequestClient(broker.options("patient"), devices=[agent.device]) as asker:
                ask = asyncio.create_task(asker.infer(agent.device, "echo", {"text": "hold on"}, 60))
                await asyncio.sleep(0.5)
                await asyncio.to_thread(agent.stop, signal.SIGKILL)
                await asyncio.to_thread(agent.start)
                return (await ask).status

        try:
            assert asyncio.run(run()) == 200
        finally:
            agent.stop(signal.SIGKILL)


def test_two_daemons_never_share_a_state_folder(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            second = AgentProcess(tmp_path / "device", broker.port, device="dev2")
            with pytest.raises(AssertionError, match="did not get ready"):
                second.start()
            assert f"another edge-agent daemon (pid {agent.pid}) uses this state folder" in second.log
            assert second.process is not None
            assert second.process.returncode == 1
            second.process = None
