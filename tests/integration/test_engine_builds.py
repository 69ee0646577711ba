"""Another variant of the package answers while an engine is built: with a real broker and the stand-in for TensorRT."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import msgspec
import pytest

from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Event, ModelEntry, Models, Reply
from edge_agent.protocol.topics import Subscription
from tests.support import fake_gpu
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import NotedLink, linked
from tests.support.small_package import TEXTS, small_package

GIVE_UP_S = 60.0
TOPICS = [Subscription("edge/v1/dev1/models", 1), Subscription("edge/v1/dev1/event", 1)]


class Board:
    """A device with the stand-in, whose library can be another one after an upgrade of JetPack."""

    def __init__(self, folder: Path, port: int, extra: str = "") -> None:
        self.folder = folder
        self.port = port
        self.python = folder / "python"
        self.upgrade("8.6")
        # The stand-in is slower than ONNX Runtime, which computes for it.
        prefer = f'[models]\nprefer = ["fp16"]\n{extra}'
        self.agent = AgentProcess(folder / "device", port, backends=("tensorrt", "onnx"), extra=prefer)
        text = self.agent.config.read_text()
        self.agent.config.write_text(text.replace("[worker]\n", f'[worker]\ntensorrt_python = "{self.python}"\n'))

    def upgrade(self, generation: str, **settings: str) -> None:
        """Another TensorRT from the next start of an engine host on."""
        fake_gpu.write_python(self.python, generation, **settings)

    def files(self, ending: str) -> set[str]:
        """The files of that kind in the folder of engines, without their ending."""
        return {path.stem for path in (self.folder / "device/state/engines").glob(f"*.{ending}")}


def options(port: int, name: str) -> MqttOptions:
    return MqttOptions(host="127.0.0.1", port=port, client_id=name)


def told(link: NotedLink) -> list[ModelEntry]:
    """The model as each message `models` described it."""
    bodies = [one.payload for one in link.seen if one.topic.endswith("/models")]
    return [msgspec.json.decode(body, type=Models).models[0] for body in bodies]


def events(link: NotedLink, kind: str) -> list[Event]:
    found = [msgspec.json.decode(one.payload, type=Event) for one in link.seen if one.topic.endswith("/event")]
    return [one for one in found if one.kind == kind]


async def stream(port: int, enough: Callable[[list[Reply]], bool], pause_s: float = 0.02) -> list[Reply]:
    """Ask one text after the other, every second one with the adapter, until the replies are enough."""
    replies: list[Reply] = []
    until_s = time.monotonic() + GIVE_UP_S
    async with RequestClient(options(port, "me")) as client:
        while not enough(replies) and time.monotonic() < until_s:
            body = {"text": TEXTS[0], **({"adapter": "one"} if len(replies) % 2 else {})}
            replies.append(await client.infer("dev1", "small", body))
            await asyncio.sleep(pause_s)
    return replies


def variants(replies: list[Reply]) -> list[str]:
    """The variants in the order in which they answered."""
    return [name for name, _ in groupby(str(reply.variant) for reply in replies)]


def ten_of(variant: str) -> Callable[[list[Reply]], bool]:
    return lambda replies: sum(reply.variant == variant for reply in replies) >= 10


async def watched(port: int, enough: Callable[[list[Reply]], bool]) -> tuple[list[Reply], NotedLink]:
    async with linked(options(port, "watcher"), TOPICS) as link:
        return await stream(port, enough), link


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the package and the engine of its trial by TensorRT 8.6."""
    folder = tmp_path_factory.mktemp("installed")
    first = Board(folder, 1)
    first.agent.install(small_package(folder, "tensorrt/fp16", "onnx/fp32"))
    return folder / "device/state"


@pytest.fixture
def board(tmp_path: Path, installed: Path) -> Iterator[Board]:
    with Mosquitto(tmp_path) as broker:
        found = Board(tmp_path, broker.port)
        shutil.copytree(installed, tmp_path / "device/state")
        yield found


def test_while_an_engine_is_built_another_variant_answers_and_none_fails(board: Board) -> None:
    """After an upgrade of TensorRT: ONNX Runtime answers, then the new engine, which takes over between two batches.
    The old engine stays."""
    old = board.files("plan")
    board.upgrade("10.3", build_s="3")
    with running(board.agent):
        replies, link = asyncio.run(watched(board.port, ten_of("fp16")))
    assert {reply.status for reply in replies} == {200}, board.agent.log
    assert variants(replies) == ["fp32", "fp16"], board.agent.log
    assert len(old) == 1 and old < board.files("plan") and board.files("proven") == board.files("plan") - old
    building = [entry.building for entry in told(link) if entry.building is not None]
    assert building and {one.answered_by for one in building} == {"onnx/fp32"}
    assert [one.data["state"] for one in events(link, "engine-build")] == ["begun", "done"]
    assert [one.data["variant"] for one in events(link, "variant-changed")] == ["tensorrt/fp16"]


def kill_builds(pid: int) -> None:
    """End the engine hosts below this process that build, as the kernel does for lack of memory."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            here = Path("/proc") / child
            if (
                "engine_host" in (here / "cmdline").read_text()
                and (here / "oom_score_adj").read_text().strip() == "900"
            ):
                os.kill(int(child), signal.SIGKILL)
            kill_builds(int(child))


FAULTS = {
    "killed": ({"build_s": "60"}, r"ended by signal 9 during 'build'.*free memory"),
    "computes something else": ({"wrong": "0.5"}, r"computes something else than the package says: probe 1"),
    "no device": ({"cuda": "none"}, r"there is no CUDA device 0.*check that the driver is loaded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_befalls_an_engine_after_an_upgrade_another_variant_goes_on(board: Board, fault: str) -> None:
    """One sentence with the remedy and the time of the next try, and none before; the old engine stays."""
    settings, sentence = FAULTS[fault]
    old = board.files("plan")
    board.upgrade("10.3", **settings)

    async def until_it_is_told() -> tuple[list[Reply], NotedLink]:
        async with linked(options(board.port, "watcher"), TOPICS) as link:

            def enough(replies: list[Reply]) -> bool:
                building = told(link)[-1].building if told(link) else None
                if fault == "killed" and building is not None and building.stage == "build":
                    kill_builds(board.agent.pid)
                return bool(replies) and building is not None and building.stage == "put off"

            return await stream(board.port, enough), link

    with running(board.agent):
        replies, link = asyncio.run(until_it_is_told())
    assert {reply.status for reply in replies} == {200} and variants(replies) == ["fp32"], board.agent.log
    found = told(link)[-1].building
    assert found is not None and found.answered_by == "onnx/fp32" and 800.0 < (found.again_s or 0.0) <= 900.0
    assert re.search(sentence, str(found.reason)), found.reason
    assert board.agent.log.count("it is tried again in 15 min 00 s or with `edge-agent load small`") == 1
    assert board.files("plan") == old and not board.files("part")


def without(board: Board, *modules: str) -> None:
    """An interpreter whose module path has these, empty, and nothing else of the stand-in."""
    folder = board.folder / f"only-{'-'.join(modules)}"
    folder.mkdir()
    for name in modules:
        (folder / f"{name}.py").write_text("")
    board.python.write_text(f"#!/bin/sh\nexport PYTHONPATH='{folder}'\nexec '{sys.executable}' \"$@\"\n")
    board.python.chmod(0o755)


LACKS: dict[str, tuple[Callable[[Board], None], str]] = {
    "a wrong interpreter": (
        lambda board: board.python.unlink(missing_ok=True), r"cannot be started: .* \(name the interpreter that",
    ),
    "no TensorRT": (without, r"cannot import tensorrt: .* \(install JetPack's TensorRT \(python3-libnvinfer\)"),
    "no pycuda": (lambda board: without(board, "tensorrt"), r"cannot import pycuda.driver: .* \(install pycuda for"),
    "no GPU": (lambda board: board.upgrade("10.16", cuda="none"), r"there is no CUDA device 0 \(check that the driver"),
    "no driver": (lambda board: board.upgrade("10.16", cuda="absent"), r"CUDA cannot be started: .* \(check that the"),
    "a driver that does not match": (
        lambda board: board.upgrade("10.16", cuda="mismatch"), r"cannot be started: CUDA init.* 35.* driver fits its",
    ),
    "no memory for a build": (lambda board: board.upgrade("10.16", build="memory"), r"out of memory \(free memory"),
}  # fmt: skip


def test_whatever_a_board_lacks_is_said_with_the_remedy_and_onnx_runtime_goes_on(board: Board) -> None:
    """One after the other in one run of the daemon: an order to load tries again after each."""

    async def scenario() -> list[str]:
        silent = []
        async with (
            linked(options(board.port, "watcher"), TOPICS) as link,
            RequestClient(options(board.port, "me")) as client,
        ):
            for what, (happens, sentence) in LACKS.items():
                happens(board)
                await client.command("dev1", "load", {"model": "small"})  # ends the pause after the one before
                until_s = time.monotonic() + GIVE_UP_S
                while time.monotonic() < until_s:
                    building = told(link)[-1].building if told(link) else None
                    if building is not None and re.search(sentence, str(building.reason)):
                        break
                    await asyncio.sleep(0.05)
                else:
                    silent.append(f"{what}: {building}")
                reply = await client.infer("dev1", "small", {"text": TEXTS[0], "adapter": "one"})
                assert (reply.status, reply.variant) == (200, "fp32"), what
        return silent

    board.python.unlink()  # else it would begin with the engine that is there
    with running(board.agent):
        assert asyncio.run(scenario()) == [], board.agent.log
        assert len(board.files("plan")) == 1, "the engine of the library before stays"


def test_a_daemon_that_is_killed_in_a_build_builds_again(board: Board) -> None:
    board.upgrade("10.3", build_s="3")
    with running(board.agent):
        asyncio.run(stream(board.port, ten_of("fp32")))
        board.agent.stop(signal.SIGKILL)
    with running(board.agent):
        replies, _ = asyncio.run(watched(board.port, ten_of("fp16")))
    assert {reply.status for reply in replies} == {200} and variants(replies) == ["fp32", "fp16"], board.agent.log
