"""`edge-agent fleet rollout` over real daemons on one real mosquitto; the whole way of a release, good and bad."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.mosquitto import Mosquitto
from tests.support.rollout_daemons import Releases, bad_release, daemons, good_release, release_with_a_kill


def test_releases_arrive_return_and_outlive_a_kill(tmp_path: Path) -> None:
    async def run(broker: Mosquitto, releases: Releases) -> None:
        async with daemons(tmp_path, broker, 3) as fleet:
            await good_release(broker, fleet, releases.make(1))
            await bad_release(broker, fleet, releases.make(2, off=5.0))
            await release_with_a_kill(broker, fleet, releases.make(3), "pi-1")

    with Mosquitto(tmp_path) as broker, Releases(tmp_path / "released") as releases:
        asyncio.run(run(broker, releases))
