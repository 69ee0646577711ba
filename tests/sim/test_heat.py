"""The governor on the plants: never at the soft limit, nearly the best throughput, safe whatever the sensor does.

A part of the sweep of `bench.heat`, small enough for every run; the corners are the hardest cases of it.
"""

from __future__ import annotations

import numpy as np
import pytest

from sim.boards import BOARDS
from sim.closed_loop import Fault, Lane, Loop
from sim.policies import Constant, Governed, OnOff
from sim.search import Case, best_constant

CORNERS = ((10.0, 1.0), (40.0, 1.4))
KEYS = ("pi-4", "pi-5-bare", "orin-nano")


def governed(key: str, ambient_c: float, cooling: float, generator: bool, clocks: bool) -> Lane:
    rows = 4 if generator else 16
    board = BOARDS[key]
    return Lane(board, ambient_c, cooling, generator, Governed(board, rows, clocks, generator), rows)


def lanes_of(keys: tuple[str, ...]) -> list[Lane]:
    return [
        governed(key, ambient_c, cooling, generator, clocks)
        for key in keys
        for ambient_c, cooling in CORNERS
        for generator in (False, True)
        for clocks in (False, True)
    ]


def test_no_second_at_the_soft_limit_and_nearly_the_best_throughput() -> None:
    lanes = lanes_of(KEYS)
    trace = Loop(lanes, 3).run(1000)
    best = {}
    cases = [
        Case(lane.board, lane.ambient_c, lane.cooling, lane.generator, lane.rows, lane.board.soft_c - 2.5)
        for lane in lanes
    ]
    for clocks in (False, True):
        best[clocks] = best_constant(cases, clocks).speed
    for index, lane in enumerate(lanes):
        clocks = bool(isinstance(lane.policy, Governed) and lane.policy.plan.clocks)
        reached = trace.served[600:, index].mean()
        where = f"{lane.board.key} {lane.ambient_c} x{lane.cooling} generator={lane.generator} clocks={clocks}"
        assert not (trace.die_c[:, index] >= lane.board.soft_c).any(), where
        assert reached >= 0.95 * best[clocks][index] or best[clocks][index] < 0.05, where
        assert trace.reversal_s[index] >= 10.0, where


MOMENTS_S = (1, 5, 20, 45, 90, 200, 400)


def hurt(kinds: list[str], moments_s: list[int]) -> Fault:
    """Each lane's sensor fails in its own way at its own moment."""
    frozen: dict[int, float] = {}

    def fault(second: int, lane: int, shown_c: float) -> float | None:
        if second < moments_s[lane]:
            frozen[lane] = shown_c
            return shown_c
        return None if kinds[lane] == "lost" else frozen.setdefault(lane, shown_c)

    return fault


def test_a_sensor_that_fails_at_any_moment_never_leads_above_the_hard_limit() -> None:
    lanes, kinds, moments_s = [], [], []
    for kind in ("lost", "frozen"):
        for number, at_s in enumerate(MOMENTS_S):
            for lane in (governed(key, 40.0, 1.4, number % 2 == 0, clocks) for key in KEYS for clocks in (False, True)):
                lanes.append(lane)
                kinds.append(kind)
                moments_s.append(at_s)
    trace = Loop(lanes, 4, hurt(kinds, moments_s)).run(700)
    over = trace.hottest_c - np.array([lane.board.hard_c for lane in lanes])
    worst = int(over.argmax())
    assert over.max() < 0.0, f"{lanes[worst].board.key} {kinds[worst]} at {moments_s[worst]} s"


def test_without_control_the_same_board_gets_hotter_than_its_hard_limit() -> None:
    """The test above could fail: the board itself does not prevent it."""
    board = BOARDS["pi-5-bare"]
    lanes = [
        Lane(board, 40.0, 1.0, False, Constant(16, 4), 16),
        Lane(board, 40.0, 1.0, False, OnOff(16, 4, 77.5, 74.5), 16),
    ]
    trace = Loop(lanes, 1).run(600)
    assert trace.hottest_c[0] > board.hard_c
    assert (trace.die_c[:, 1] >= board.soft_c).any(), "two thresholds react too late for a bare Pi 5"


def test_a_stream_is_answered_in_time_while_the_governor_holds() -> None:
    board = BOARDS["pi-5-sink"]
    offered = 0.5
    lane = Lane(board, 25.0, 1.0, False, Governed(board, 16, False, False), 16, offered, 5)
    trace = Loop([lane], 1).run(1200)
    assert trace.refused.sum() == 0
    assert float(np.quantile(trace.latencies[0], 0.99)) < 10.0
    assert trace.served.sum() == pytest.approx(offered * 1200, rel=0.15)
