"""The governor on the plants: never at the soft limit, nearly the best throughput, safe whatever the sensor does.

A part of the sweep of `bench.heat`, small enough for every run; the corners are the hardest cases of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sim.boards import BOARDS
from sim.closed_loop import Fault, Lane, Loop, ReversalDetector
from sim.policies import ConstantLimits, GovernorControl, OnOffControl
from sim.search import SearchCase, best_constant
from sim.several import ModelsOnBoard

PLACES = (
    ("pi-4", 25.0, 1.4), ("pi-4", 40.0, 1.0), ("pi-5-bare", 10.0, 1.0), ("pi-5-bare", 25.0, 1.4),
    ("pi-5-sink", 25.0, 1.4), ("pi-5-sink", 40.0, 1.0), ("jetson-nano", 50.0, 1.4),
)  # fmt: skip
"""Board, room, and factor on the sink's resistance; left alone, each passes its soft limit (asserted)."""
KEYS = ("pi-4", "pi-5-bare", "pi-5-sink")


def governed(key: str, ambient_c: float, cooling: float, generator: bool, clocks: bool) -> Lane:
    rows = 4 if generator else 16
    board = BOARDS[key]
    return Lane(board, ambient_c, cooling, generator, GovernorControl(board, rows, clocks, generator), rows)


def everywhere(places: Sequence[tuple[str, float, float]]) -> list[Lane]:
    """Both loads, with and without permission to set the clock."""
    return [
        governed(*place, generator, clocks)
        for place in places
        for generator in (False, True)
        for clocks in (False, True)
    ]


def left_alone(lane: Lane) -> Lane:
    return replace(lane, policy=ConstantLimits(lane.rows, lane.board.cores))


def named(lane: Lane) -> str:
    return f"{lane.board.key} {lane.ambient_c} x{lane.cooling} generator={lane.generator}"


def test_no_second_at_the_soft_limit_and_nearly_the_best_throughput() -> None:
    lanes = everywhere(PLACES)
    trace = Loop(lanes, 3).run(1000)
    alone = Loop([left_alone(lane) for lane in lanes], 3).run(1000)
    best = {}
    cases = [
        SearchCase(lane.board, lane.ambient_c, lane.cooling, lane.generator, lane.rows, lane.board.soft_c - 2.5)
        for lane in lanes
    ]
    for clocks in (False, True):
        best[clocks] = best_constant(cases, clocks).speed
    for index, lane in enumerate(lanes):
        clocks = bool(isinstance(lane.policy, GovernorControl) and lane.policy.config.clocks)
        reached = trace.served[600:, index].mean()
        where = f"{named(lane)} clocks={clocks}"
        assert alone.hottest_c[index] >= lane.board.soft_c, f"{where}: nothing to govern"
        assert not (trace.die_c[:, index] >= lane.board.soft_c).any(), where
        assert reached >= 0.95 * best[clocks][index], where
        assert trace.reversal_s[index] >= 10.0, where
        assert trace.turn_s[index] >= 10.0, where


SWINGING = (("pi-zero-2", 40.0, 1.4), ("pi-4", 40.0, 1.4), ("pi-5-sink", 40.0, 1.4))
"""Hot rooms and bad sinks: little power is left, so that a small correction of it is a large one of the pace."""


def test_the_pace_does_not_swing_within_the_dwell_where_little_power_is_left() -> None:
    lanes = everywhere(SWINGING)
    trace = Loop(lanes, 1).run(1500)
    assert trace.turns.sum() > 20, "nothing turned: the test proves nothing"
    for index, lane in enumerate(lanes):
        assert trace.turn_s[index] >= 10.0, named(lane)
        assert not (trace.die_c[:, index] >= lane.board.soft_c).any(), named(lane)


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
    hard_c = np.array([lane.board.hard_c for lane in lanes])
    alone = Loop([left_alone(lane) for lane in lanes], 4).run(700)
    assert (alone.hottest_c >= hard_c).all(), "left alone, every one of them passes it"
    over = trace.hottest_c - hard_c
    worst = int(over.argmax())
    assert over.max() < 0.0, f"{lanes[worst].board.key} {kinds[worst]} at {moments_s[worst]} s"


def test_two_thresholds_react_too_late_for_a_bare_board() -> None:
    board = BOARDS["pi-5-bare"]
    trace = Loop([Lane(board, 40.0, 1.0, False, OnOffControl(16, 4, 77.5, 74.5), 16)], 1).run(600)
    assert (trace.die_c >= board.soft_c).any()


def test_a_pace_that_turns_is_counted_and_its_noise_is_not() -> None:
    detector = ReversalDetector()
    shares = [0.5, 0.55, 0.5, 0.7, 0.65, 0.7, 0.59, 0.5, 0.62, 0.7]
    found = [detector.turned(float(second), share) for second, share in enumerate(shares)]
    assert [second for second, since_s in enumerate(found) if since_s is not None] == [6, 8]
    assert found[8] == 2.0
    detector.shift(0.2)
    assert detector.turned(10.0, 0.25) is None, "other threads or another clock"
    assert detector.turned(11.0, 0.14) == 3.0


ENCODERS = [("a", False, 1.0), ("b", False, 3.0)]
GENERATORS = [("g", True, 1.0), ("h", True, 1.37)]


@pytest.mark.parametrize("clocks", [False, True])
@pytest.mark.parametrize(
    "models", [ENCODERS, GENERATORS, [ENCODERS[0], GENERATORS[0]], [*ENCODERS, *GENERATORS]],
    ids=["encoders", "generators", "one of each", "two of each"],
)  # fmt: skip
def test_several_models_spend_together_what_one_may(models: list[tuple[str, bool, float]], clocks: bool) -> None:
    board = BOARDS["pi-5-bare"]
    found = ModelsOnBoard(board, models, clocks=clocks).run(900)
    assert found.die_c.max() < board.soft_c
    assert found.die_c[600:].mean() > board.soft_c - 4.5, "they leave no heat unused either"
    assert min(found.by_model.values()) > 0.2 * max(found.by_model.values()), "each has its turn"


@pytest.mark.parametrize("models", [ENCODERS, GENERATORS, [ENCODERS[0], GENERATORS[0]]])
def test_with_a_pace_of_its_own_each_they_pass_the_soft_limit(models: list[tuple[str, bool, float]]) -> None:
    """The test above could fail: so it was before models shared one duty cycle."""
    board = BOARDS["pi-5-bare"]
    assert (ModelsOnBoard(board, models, shared=False).run(600).die_c[300:] >= board.soft_c).sum() > 60


def test_a_stream_is_answered_in_time_while_the_governor_holds() -> None:
    board = BOARDS["pi-5-sink"]
    offered = 0.5
    lane = Lane(board, 25.0, 1.0, False, GovernorControl(board, 16, False, False), 16, offered, 5)
    trace = Loop([lane], 1).run(1200)
    assert trace.refused.sum() == 0
    assert float(np.quantile(trace.latencies[0], 0.99)) < 10.0
    assert trace.served.sum() == pytest.approx(offered * 1200, rel=0.15)
