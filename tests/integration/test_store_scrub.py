"""A real daemon finds a flipped bit in its store by itself, heals it where the package lies, and says so."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from edge_agent.store.model_store import ModelStore
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until


def flip(store: ModelStore) -> Path:
    """One bit of the installed weights, as a card loses it."""
    weights = Path(store.active()[0].variant.files["model"])
    good = weights.read_bytes()
    weights.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    return weights


async def state(table: Desk, wanted: str) -> str:
    """The reason of the retained status once it is so."""
    await until(lambda: table.bodies("status") and table.bodies("status")[-1]["state"] == wanted, 60.0)
    return str(table.bodies("status")[-1]["reason"])


def test_a_flipped_bit_is_healed_from_the_incoming_folder_and_degrades_where_no_source_has_it(tmp_path: Path) -> None:
    package = echo_package(tmp_path)
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.config.write_text(agent.config.read_text().replace("[store]\n", "[store]\nscrub_s = 1\n"))
        agent.install(package)
        store = ModelStore(agent.folder / "state" / "store")

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    assert (await table.ask("q1", {"text": "x"}))["status"] == 200
                    flip(store)
                    lost = await table.event("store-damaged")
                    assert (lost["data"], lost["severity"]) == ({"models": ["echo"], "found": 1, "left": 1}, "error")
                    assert "install their packages again" in await state(table, "degraded")

                    workers = agent.workers()
                    shutil.copy(package, agent.folder / "state" / "inbox")
                    await until(lambda: any(not event["data"]["left"] for event in table.events("store-damaged")), 60.0)
                    await state(table, "online")
                    assert store.scrub() == ()
                    assert (await table.ask("q2", {"text": "x"}))["status"] == 200
                    assert set(agent.workers()).isdisjoint(workers), "the worker had loaded the damaged file"

        asyncio.run(run())
