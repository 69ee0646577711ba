"""Texts run until the sensor has said enough; then nothing goes on."""

from __future__ import annotations

import asyncio

import pytest

from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import WorkerError
from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.energy import TextEnergy
from edge_agent.worker.one_shot import text_energy
from tests.support.virtual_time import run


class Bench:
    """A worker that takes `text_s` for a text, and a rail with a new value every `every_s` (0: never)."""

    def __init__(self, text_s: float, every_s: float) -> None:
        self.clock = ManualClock()
        self._started_s = self.clock.monotonic_s()
        self.text_s, self.every_s = text_s, every_s
        self.texts = 0
        self.dies_at: int | None = None

    @property
    def took_s(self) -> float:
        return self.clock.monotonic_s() - self._started_s

    async def compute(self) -> None:
        self.texts += 1
        if self.texts == self.dies_at:
            raise WorkerError("killed by SIGKILL", "worker")
        await asyncio.sleep(self.text_s)

    def power(self) -> Reading:
        now_s = self.clock.monotonic_s()
        step = int(now_s / self.every_s + 1e-9) if self.every_s else 0
        return Reading(6.0 + 0.1 * (step % 2), "watts", "rail", now_s)

    def energy(self) -> TextEnergy:
        async def whole() -> TextEnergy:
            found = await text_energy(self.compute, self.power)
            assert len(asyncio.all_tasks()) == 1, "the sampling has ended"
            return found

        return run(whole, self.clock)


def test_quick_texts_run_for_two_seconds() -> None:
    bench = Bench(0.01, 0.05)
    found = bench.energy()
    assert found.joules == pytest.approx(6.05 * 0.01, rel=0.01)
    assert 200 <= bench.texts <= 201


def test_a_slow_rail_is_waited_for() -> None:
    bench = Bench(0.01, 1.0)
    found = bench.energy()
    assert found.joules == pytest.approx(6.05 * 0.01, rel=0.02)
    assert 2.9 <= bench.took_s < 3.2


def test_a_rail_that_stands_still_ends_it_after_five_seconds_without_a_figure() -> None:
    bench = Bench(0.01, 0.0)
    found = bench.energy()
    assert found.joules is None
    assert found.method == "the trial was too short for the sensor: rail gave 0 new values in 5.0 s, 3 are needed"
    assert bench.took_s == pytest.approx(5.0, abs=0.02)


def test_one_long_text_is_enough_and_not_cut() -> None:
    bench = Bench(12.0, 0.5)
    assert bench.energy().joules == pytest.approx(6.05 * 12.0, rel=0.02)
    assert bench.texts == 1


def test_a_board_without_a_sensor_loses_no_time() -> None:
    bench = Bench(0.01, 0.05)
    none = unavailable("watts", "power", 0.0, "no power sensor was found")
    found = run(lambda: text_energy(bench.compute, lambda: none), bench.clock)
    assert found == TextEnergy(None, "no power sensor was found")
    assert (bench.texts, bench.took_s) == (0, 0.0)


def test_a_worker_that_dies_ends_it_as_everything_else() -> None:
    bench = Bench(0.01, 0.05)
    bench.dies_at = 7
    with pytest.raises(WorkerError, match="SIGKILL"):
        bench.energy()
