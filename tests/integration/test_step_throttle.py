"""A real generator's child that may not compute: it waits, beats, hears a cancel, and goes on when it may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.protocol.worker_messages import AnyEvent, Heartbeat, JobDone, JobWork, NoListener, StepLimits
from edge_agent.worker.supervisor import SpawnOptions, spawn
from tests.support import tiny_gguf
from tests.support.llama import needs_llama

pytestmark = [pytest.mark.slow, needs_llama]
TASK = TaskSpec("generate", max_tokens=512)


def limits(permille: int) -> StepLimits:
    return StepLimits(2, 1, busy_permille=permille)


def asked(name: str) -> JobWork:
    return JobWork(name, None, {"max_tokens": 40, "seed": 1}, ["Once upon a time"], stream=True)


def test_nothing_is_generated_while_nothing_may_and_all_of_it_afterwards(tmp_path: Path) -> None:
    heard: list[AnyEvent] = []

    class Heard(NoListener):
        def on_event(self, event: AnyEvent) -> None:
            heard.append(event)

    weights = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.TINY)

    async def until(found: Any) -> None:
        while not found():
            await asyncio.sleep(0.02)

    async def body() -> None:
        worker = await spawn(SpawnOptions(), Heard())
        try:
            variant = Variant("sha256:0", "llamacpp", "f16", {"model": str(weights)}, 0, 0)
            await worker.load(variant, TASK, limits(0))
            worker.submit([asked("1"), asked("2")])
            await until(lambda: sum(isinstance(event, Heartbeat) for event in heard) >= 2)
            assert {type(event) for event in heard} == {Heartbeat}, "a second and more, and not one token"
            assert await worker.cancel("2") is True
            worker.set_limits(limits(1000))
            await until(lambda: any(isinstance(event, JobDone) for event in heard))
            assert {event.id for event in heard if not isinstance(event, Heartbeat)} == {"1"}
        finally:
            await worker.close()

    asyncio.run(asyncio.wait_for(body(), 60.0))
