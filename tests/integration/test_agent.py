"""A request's whole way: a real broker, the real daemon, a real worker process, a real client."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.client.request_client import RequestClient
from tests.support.agents import LABELS, AgentProcess, echo_adapter_package, echo_package, running
from tests.support.mosquitto import Mosquitto


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("agent")
    with Mosquitto(folder) as broker:
        found = AgentProcess(folder / "device", broker.port)
        base = echo_package(folder)
        found.install(base)
        found.install(echo_adapter_package(folder, base, "one"))
        found.install(echo_adapter_package(folder, base, "two"))
        found.broker = broker  # type: ignore[attr-defined]
        with running(found):
            yield found


def client(agent: AgentProcess, name: str = "tester", **more: object) -> RequestClient:
    return RequestClient(agent.broker.options(name, **more), devices=[agent.device])  # type: ignore[attr-defined]


def test_a_text_is_answered_with_everything_the_contract_names(agent: AgentProcess) -> None:
    async def run() -> None:
        async with client(agent) as asker:
            reply = await asker.infer(agent.device, "echo", {"text": "hello", "adapter": "one"}, 10)
        assert reply.status == 200
        assert reply.model == "echo"
        assert reply.adapter == "one"
        assert reply.result["label"] in LABELS
        assert reply.timing is not None
        assert reply.timing.total_ms >= reply.timing.compute_ms
        assert reply.energy is not None
        assert reply.energy.joules is None
        assert reply.energy.method == "no power sensor was found"

    asyncio.run(run())


@pytest.mark.parametrize("protocol", [5, 311])
def test_both_forms_of_the_protocol_are_answered(agent: AgentProcess, protocol: int) -> None:
    async def run() -> None:
        async with client(agent, protocol=protocol) as asker:
            reply = await asker.infer(agent.device, "echo", {"texts": ["a", "b", "c"]}, 10)
        assert reply.status == 200
        assert [result["tokens"] for result in reply.result] == [1, 1, 1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("model", "body", "status", "words"),
    [
        ("nobody", {"text": "x"}, 404, "no model 'nobody'"),
        ("echo", {"text": "x", "adapter": "nobody"}, 404, "no adapter 'nobody'; there are: one, two"),
        ("echo", {"text": " "}, 422, "empty"),
        ("echo", {"text": 7}, 422, "text"),
        ("echo", {"text": "x", "colour": "red"}, 422, "colour"),
        ("echo", {"text": "x", "params": {"top_k": 99}}, 422, "top_k"),
        ("echo", {"text": "x", "params": {"beam": 2}}, 422, "beam"),
        ("echo", {"text": "x" * 40_000}, 413, "KiB"),
        ("echo", {"texts": ["x"] * 65}, 413, "64"),
    ],
)
def test_bad_requests_get_a_status_and_a_sentence(
    agent: AgentProcess, model: str, body: dict[str, object], status: int, words: str
) -> None:
    async def run() -> None:
        async with client(agent) as asker:
            reply = await asker.infer(agent.device, model, body, 10)
            assert (reply.status, words in str(reply.reason)) == (status, True), reply
            assert (await asker.infer(agent.device, "echo", {"text": "still there"}, 10)).status == 200

    asyncio.run(run())


def test_a_batch_holds_rows_of_several_adapters(agent: AgentProcess) -> None:
    async def run() -> None:
        async with client(agent) as asker:
            alone = {
                adapter: (await asker.infer(agent.device, "echo", {"text": "same", "adapter": adapter}, 10)).result
                for adapter in ("one", "two", None)
            }
            bodies = [{"text": "same", "adapter": adapter} for adapter in ("one", "two", None) * 20]
            replies = await asyncio.gather(*(asker.infer(agent.device, "echo", body, 10) for body in bodies))
        assert {reply.status for reply in replies} == {200}
        assert max(reply.batch or 0 for reply in replies) > 1
        assert all(reply.result == alone[reply.adapter] for reply in replies)
        assert alone["one"] != alone["two"] != alone[None]

    asyncio.run(run())


def test_a_killed_worker_is_replaced_and_its_requests_are_answered(agent: AgentProcess) -> None:
    async def run() -> None:
        import os

        async with client(agent) as asker:
            asks = [asyncio.create_task(asker.infer(agent.device, "echo", {"text": f"t{i}"}, 20)) for i in range(100)]
            for pid in agent.workers():
                os.kill(pid, signal.SIGKILL)
            replies = await asyncio.gather(*asks)
        assert {reply.status for reply in replies} == {200}

    asyncio.run(run())


def test_an_orderly_stop_says_offline(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            assert agent.stop() == 0

        async def status() -> str:
            async with RequestClient(broker.options("late"), devices=[agent.device]) as asker:
                for _ in range(100):
                    if agent.device in asker.status:
                        break
                    await asyncio.sleep(0.02)
                return asker.status[agent.device].state

        assert asyncio.run(status()) == "offline"
