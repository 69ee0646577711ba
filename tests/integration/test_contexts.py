"""A generator whose package wants more memory than there is: refused with the arithmetic, or shrunk and kept so.

Real llama.cpp and a real broker; the limit is the operator's `memory.models_bytes`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.errors import PackageError
from edge_agent.base.limits import MIB
from tests.support import generators, tiny_gguf
from tests.support.agents import AgentProcess, running
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until
from tests.support.needs import need

SHAPE = tiny_gguf.Shape(width=256, layers=16, heads=4, kv_heads=4, feed_forward=512, context=8192)
BUDGET_BYTES = 224 * MIB
PROMPT = {"prompt": "x", "params": {"max_tokens": 4}}


def limited(folder: Path, port: int, models: str = "") -> AgentProcess:
    extra = f"[memory]\nmodels_bytes = {BUDGET_BYTES}\n[models]\n{models}\n"
    return AgentProcess(folder, port, backends=("llamacpp",), extra=extra)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 sequences of 8192 tokens: a cache of 512 MiB beside weights of a few."""
    need("llama_cpp", "gguf")
    return generators.base_package(tmp_path_factory.mktemp("package"), shape=SHAPE, context=8192)


def test_with_the_policy_off_the_install_says_where_the_bytes_go_and_what_would_fit(
    package: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageError) as refused:
        limited(tmp_path / "device", 1883).install(package)
    text = str(refused.value)
    assert "224.0 MiB may be used: a context of 8192 tokens for 4 sequences takes weights " in text
    assert "cache 512.0 MiB (2 x 16 layers x 4 kv heads x 64 x 8192 tokens x 4 x 2 bytes, f16)" in text
    context = int(text.rpartition("(models.context = ")[2].partition(")")[0])
    assert 512 < context < 8192
    limited(tmp_path / "device", 1883, f"context = {context}").install(package)
    with pytest.raises(PackageError, match="tokens for 4 sequences would fit"):
        limited(tmp_path / "other", 1883, f"context = {context + 256}").install(package)


def test_with_the_policy_on_it_is_shrunk_at_the_install_and_at_every_load(package: Path, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = limited(tmp_path / "device", broker.port, 'shrink_context = true\nkv_type = "f16"')
        agent.install(package)
        for start in range(2):
            with running(agent):
                asyncio.run(_loads(broker, agent, start))
        assert agent.log.count("context-shrunk: model 'tiny' has a context of") == 4
        wide = AgentProcess(agent.folder, broker.port, backends=("llamacpp",), extra="[models]\nshrink_context = true")
        with running(wide):
            asyncio.run(_full(broker, wide))


async def _loads(broker: Mosquitto, agent: AgentProcess, start: int) -> None:
    async with desk(broker) as table:
        assert (await table.ask(f"a{start}", PROMPT, "tiny"))["status"] == 200
        await until(lambda: _resident(table))
        for name in (f"first{start}", f"again{start}"):
            entry = _resident(table)
            assert (entry["context"], entry["sequences"]) == (2048, 4), entry
            assert entry["footprint_bytes"] < BUDGET_BYTES
            await until(lambda: len(agent.workers()) == 1)  # the one that looked for runtimes has ended
            assert _held_bytes(agent) < BUDGET_BYTES
            if name.startswith("first"):
                assert (await table.order(f"u{name}", "unload", {"model": "tiny"}))["status"] == 200
                await until(lambda: not table.bodies("models")[-1]["models"][0]["resident"])
                assert (await table.order(f"l{name}", "load", {"model": "tiny"}))["status"] == 200
                await until(lambda: _resident(table))
        event = table.events("context-shrunk")[-1]["data"]
        assert event == {
            "model": "tiny", "context": 2048, "sequences": 4, "wanted_context": 8192, "wanted_sequences": 4,
        }  # fmt: skip


async def _full(broker: Mosquitto, agent: AgentProcess) -> None:
    async with desk(broker) as table:
        assert (await table.ask("b", PROMPT, "tiny"))["status"] == 200
        await until(lambda: _resident(table))
        assert _resident(table)["context"] == 8192, agent.log


def _resident(table: Desk) -> dict[str, Any]:
    """The model's last entry while it is in memory; empty while it is not."""
    found = table.bodies("models")
    entry: dict[str, Any] = found[-1]["models"][0] if found else {}
    return entry if entry.get("resident") and entry.get("context") else {}


def _held_bytes(agent: AgentProcess) -> int:
    """Resident bytes of the worker, shared pages in full: more than it holds by itself."""
    (pid,) = agent.workers()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_gpu_that_is_asked_for_and_is_not_there_is_said_in_models(package: Path, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = limited(tmp_path / "device", broker.port, "gpu_layers = 5\ncontext = 512\nsequences = 1")
        agent.install(package)
        with running(agent):
            asyncio.run(_without_gpu(broker))


async def _without_gpu(broker: Mosquitto) -> None:
    async with desk(broker) as table:
        assert (await table.ask("one", PROMPT, "tiny"))["status"] == 200
        await until(lambda: _resident(table))
        assert _resident(table)["computed_by"] == "CPU; this build of llama.cpp has no GPU"
