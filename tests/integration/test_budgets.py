"""Budgets on a simulated board, with the real daemon: energy that says it is estimated, a clock that is given back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from sim.boards import BOARDS
from sim.sysfs import BoardTree, Shown
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import desk
from tests.support.mosquitto import Mosquitto

HIGHEST_KHZ = 1_800_000
STEPS_KHZ = range(600_000, HIGHEST_KHZ + 1, 100_000)
PATIENCE_S = 45.0


def pi_4(root: Path) -> tuple[BoardTree, Path]:
    """A Raspberry Pi 4 as files, and the file of its clock cap."""
    model = next(model for model in BOARDS.values() if model.board == "pi-4")
    return BoardTree(root, model), root / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"


def test_a_hot_board_is_slowed_by_its_clock_and_energy_is_an_estimate(tmp_path: Path) -> None:
    tree, cap = pi_4(tmp_path / "board")
    with tree, Mosquitto(tmp_path) as broker:
        extra = f'[thermal]\nset_clock = true\n[sensors]\nsysroot = "{tree.root}"\n'
        agent = AgentProcess(tmp_path / "device", broker.port, extra=extra)
        agent.install(echo_package(tmp_path, delay_s=0.2))
        with running(agent):
            asyncio.run(_ask(broker))
            assert int(cap.read_text()) == HIGHEST_KHZ, "cool: nothing is capped"
            until_s, hot_c = time.monotonic() + PATIENCE_S, 78.0
            while int(cap.read_text()) == HIGHEST_KHZ and time.monotonic() < until_s:
                hot_c = 78.0 if hot_c == 78.5 else 78.5
                tree.update(Shown(hot_c, 6.0, 1.0, 1.0))
                time.sleep(0.5)
            assert int(cap.read_text()) in STEPS_KHZ[:-1]
            assert agent.stop() == 0
            assert int(cap.read_text()) == HIGHEST_KHZ, "given back at the end"


async def _ask(broker: Mosquitto) -> None:
    async with desk(broker) as table:
        reply = await table.ask("1", {"text": "how much?"})
        assert reply["status"] == 200
        energy = reply["energy"]
        print(f"\n{energy}")
        assert energy["method"].startswith("estimated: 2.7 W idle + 4 W at full load of a Raspberry Pi 4")
        assert 0.2 * 2.7 < energy["joules"] < 2.0 * 6.7
