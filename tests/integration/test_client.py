"""The client library against a real broker and a real agent; docs/client.md is executed as printed."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.base.causes import Cause
from edge_agent.client import (
    AsyncClient,
    BrokerError,
    Client,
    DeadlineMissed,
    DeviceUnavailable,
    InvalidRequest,
    RequestCancelled,
    UnknownName,
    UsageError,
)
from tests.support import pages
from tests.support.agents import LABELS, AgentProcess, demo_device, echo_package, running
from tests.support.desk import cli
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.needs import need

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "client.md").read_text(encoding="utf-8")
MODELS = ["home", "minilm", "minilm-quick", "slow"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker"), persistence=True) as found:
        yield found


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[AgentProcess]:
    """The demo's device with what the pages ask; the quick model `home`, one of a second and a half, `slow`."""
    folder = tmp_path_factory.mktemp("device")
    found = demo_device(folder, broker.port, quick=True)
    found.install(echo_package(folder / "home", "home"))
    found.install(echo_package(folder / "slow", "slow", delay_s=1.5))
    with running(found):
        yield found


def address(broker: Mosquitto) -> str:
    return f"127.0.0.1:{broker.port}"


def test_the_page_works_as_printed(agent: AgentProcess, broker: Mosquitto) -> None:
    need("opentelemetry.propagate")
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    here = f'"{address(broker)}"'
    # The one that streams runs in test_gateway, where there is a generator.
    waiting, together, _, followed = (program.replace('"localhost"', here) for program in programs)
    for program, several in ((waiting, False), (together, True), (followed, False)):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        shown = ast.literal_eval(done.stdout) if several else [done.stdout.strip()]
        assert len(shown) == (3 if several else 1) and set(shown) <= set(LABELS)


def test_the_readmes_example_works_as_printed(agent: AgentProcess, broker: Mosquitto) -> None:
    page = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    here = program.replace('"localhost"', f'"{address(broker)}"')
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS


def test_the_first_page_works_as_printed(agent: AgentProcess, broker: Mosquitto) -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    here = program.replace('"localhost"', f'"{address(broker)}"')
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    models, label = done.stdout.splitlines()
    assert (ast.literal_eval(models), label in LABELS) == (MODELS, True)


def test_the_first_pages_command_asks_as_printed(agent: AgentProcess, broker: Mosquitto) -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    serve, ask = (command.words for command in pages.commands(page.partition("## Who asks\n")[2].partition("\n## ")[0]))
    assert serve[:2] == ("edge-agent", "demo") and {"--quick", "--stay"} <= set(serve)
    done = cli(*ask[1:], "--port", broker.port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in LABELS


def test_a_request_is_answered_with_everything_that_the_message_says(agent: AgentProcess, broker: Mosquitto) -> None:
    with Client(address(broker), "demo") as edge:
        answer = edge.ask("minilm", "lights", adapter="home-intents", top_k=2, request_id="mine")
        assert (answer.id, answer.reply.adapter, answer.variant) == ("mine", "home-intents", "fp32")
        assert (len(answer.classification.labels), answer.label in LABELS) == (2, True)
        assert answer.timing is not None and answer.timing.total_ms > 0
        assert [one.label in LABELS for one in edge.ask("home", ["a", "b", "c"]).classifications] == [True] * 3
        assert edge.status().state == "online"
        assert sorted(model.name for model in edge.models().models) == MODELS
        assert edge.order("load", model="home")["footprint_bytes"] > 0
        assert "sensors" in edge.order("diag")


def test_refusals_are_exceptions_with_a_cause(agent: AgentProcess, broker: Mosquitto) -> None:
    with Client(address(broker), "demo") as edge:
        with pytest.raises(UnknownName, match="no model 'typo'") as unknown:
            edge.ask("typo", "x")
        assert unknown.value.cause is Cause.UNKNOWN_MODEL
        with pytest.raises(UnknownName) as adapter:
            edge.ask("home", "x", adapter="typo")
        assert adapter.value.cause is Cause.UNKNOWN_ADAPTER
        with pytest.raises(InvalidRequest, match="takes text or texts") as form:
            edge.ask("home", [{"role": "user", "content": "x"}])
        assert form.value.cause is Cause.WRONG_FORM
        with pytest.raises(InvalidRequest, match="top_k"):
            edge.ask("home", "x", top_k=99)
        with pytest.raises(UnknownName, match="no such command") as order:
            edge.order("explode")
        assert order.value.cause is Cause.UNKNOWN_COMMAND
        with pytest.raises(DeviceUnavailable, match="nobody listens"):
            edge.ask("nobody/home", "x")
        # A first request asks for more than half a second: the model must be timed before that is known.
        edge.ask("slow", "x")
        with pytest.raises((DeadlineMissed, DeviceUnavailable)):
            edge.ask("slow", "x", deadline_s=0.3)


def test_many_threads_share_a_client(agent: AgentProcess, broker: Mosquitto) -> None:
    with Client(address(broker), "demo") as edge, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: edge.ask("home", f"text {number}"), range(64)))
    assert len({answer.id for answer in answers}) == 64


def test_a_request_is_cancelled_from_another_thread(agent: AgentProcess, broker: Mosquitto) -> None:
    with Client(address(broker), "demo") as edge, ThreadPoolExecutor(1) as threads:
        blocking = [threads.submit(edge.ask, "slow", "x", request_id="doomed")]
        deadline_s = time.monotonic() + 1.0
        while time.monotonic() < deadline_s and not blocking[0].running():
            time.sleep(0.01)
        time.sleep(0.3)
        edge.cancel("slow", "doomed")
        with pytest.raises(RequestCancelled):
            blocking[0].result(20)


class CutProxy:
    """A way to the broker that can be cut, for one client alone."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._streams: list[asyncio.StreamWriter] = []
        self._open = True
        self.port = free_port()

    async def __aenter__(self) -> CutProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._open = False
        for stream in self._streams:
            stream.transport.abort()
        self._streams.clear()

    def mend(self) -> None:
        """Let connections pass again."""
        self._open = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._streams += [writer, there_writer]
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("version", [5, 311])
def test_an_answer_that_went_while_the_client_was_cut_off_is_given_again(
    agent: AgentProcess, broker: Mosquitto, version: int
) -> None:
    """The device stays connected: its answer goes to nobody. Asked again by the same id, it has it still."""

    async def run() -> None:
        async with CutProxy(broker.port) as proxy:
            options = replace(broker.options("", protocol=version), port=proxy.port)
            async with AsyncClient(options, "demo") as edge:
                asked = asyncio.create_task(edge.ask("slow", "cut off", deadline_s=60.0))
                await asyncio.sleep(0.5)
                proxy.cut()
                await asyncio.sleep(3.0)
                assert not edge.connected
                proxy.mend()
                answer = await asked
                assert answer.timing is not None
                answered_s = answer.timing.total_ms / 1000
                assert answered_s < 3.0, "the answer is the one that was given while nobody listened"

    asyncio.run(run())


def test_a_broker_that_is_killed_in_between_costs_no_answer(agent: AgentProcess, broker: Mosquitto) -> None:
    async def run() -> None:
        async with AsyncClient(broker.options(""), "demo") as edge:
            asked = [asyncio.create_task(edge.ask("slow", f"{number}", deadline_s=60.0)) for number in range(3)]
            await asyncio.sleep(0.5)
            broker.kill()
            await asyncio.sleep(1.0)
            broker.start()
            assert [(await one).label in LABELS for one in asked] == [True] * 3
            assert len({(await one).id for one in asked}) == 3

    asyncio.run(run())


def test_a_daemon_that_is_killed_in_between_costs_no_answer(agent: AgentProcess, broker: Mosquitto) -> None:
    async def run() -> None:
        async with AsyncClient(broker.options(""), "demo") as edge:
            await edge.status()
            asked = [asyncio.create_task(edge.ask("slow", f"{number}", deadline_s=90.0)) for number in range(3)]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(agent.stop, signal.SIGKILL)
            await asyncio.to_thread(agent.start)
            assert [(await one).label in LABELS for one in asked] == [True] * 3

    asyncio.run(run())


def test_no_broker_is_a_sentence_at_once(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        Client("127.0.0.1:1").connect(timeout_s=1.0)
    assert [one.name for one in threading.enumerate() if one.name == "edge-agent-client"] == []
    with pytest.raises(UsageError, match="not connected"):
        Client("127.0.0.1:1").ask("demo/home", "x")
    with Mosquitto(tmp_path, users={"me": "right"}) as guarded, pytest.raises(BrokerError, match="password"):
        Client(f"mqtt://me:wrong@127.0.0.1:{guarded.port}").connect()
