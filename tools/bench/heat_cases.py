"""The sweep of `bench.heat`: boards, rooms and loads, the policies, and the figures of each run.

A case is a board with its cooling (sink-to-air resistance times 0.7, 1 or 1.4), a room (10, 25 or 40 °C) and a load.
Each case runs twice per policy: saturated, and with a stream of jobs at 85 % of the throughput of the best constant
limit without clock control. All policies of a case get the same jobs. The temperature cap is the governor's set point,
2.5 °C below the board's soft limit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.boards import BOARDS, BoardModel
from sim.closed_loop import Lane, Loop, Trace
from sim.policies import SET_POINT_BELOW_SOFT_C, ConstantLimits, DutyCycleControl, GovernorControl, OnOffControl, Policy
from sim.search import Best, SearchCase, best_constant

AMBIENTS_C = (10.0, 25.0, 40.0)
COOLINGS = (0.7, 1.0, 1.4)
ENCODER_ROWS, GENERATOR_SEQUENCES = 16, 4
SECONDS, SETTLED_S = 3000, 1500
OFFERED = 0.85
ON_OFF_BAND_C = 3.0
JUST_UNDER_SOFT_C = 0.01

CONTROLS = ("firmware", "on-off", "duty", "constant", "governor", "constant+clock", "governor+clock")
"""'firmware': full limits. 'constant': the best constant limit. '+clock': the policy may set the clock."""


class CaseRow(NamedTuple):
    """The figures of one case under one policy. Throughput: 1 is full speed; see docs/governor.md."""

    board: str
    load: str
    ambient_c: float
    cooling: float
    control: str
    throughput: float
    of_best: float
    of_best_at_soft: float
    mean_c: float
    hottest_c: float
    overshoot_c: float
    over_soft_s: float
    over_soft_settled_s: float
    idle_c: float
    joules_per_work: float
    changes_per_h: float
    fastest_reversal_s: float | None
    turns_per_h: float
    fastest_turn_s: float | None
    p50_s: float | None
    p99_s: float | None
    refused: int
    limited: bool


class SweptBoard(NamedTuple):
    """A board's rows, and the traces of its saturated lanes by (load, ambient, cooling, policy), for the plots."""

    rows: list[CaseRow]
    traces: dict[tuple[str, float, float, str], dict[str, list[float]]]


def cases_of(board: BoardModel) -> list[SearchCase]:
    """All rooms, coolings and loads of a board."""
    return [
        SearchCase(
            board, ambient_c, cooling, generator, GENERATOR_SEQUENCES if generator else ENCODER_ROWS, _cap_c(board)
        )
        for generator in (False, True)
        for ambient_c in AMBIENTS_C
        for cooling in COOLINGS
    ]


def _cap_c(board: BoardModel) -> float:
    return board.soft_c - SET_POINT_BELOW_SOFT_C


def sweep(key: str, seconds: int, settled_s: int, seed: int) -> SweptBoard:
    """Run one board's cases under all policies."""
    cases = cases_of(BOARDS[key])
    best = {clocks: best_constant(cases, clocks) for clocks in (False, True)}
    at_soft = [case._replace(cap_c=case.board.soft_c - JUST_UNDER_SOFT_C) for case in cases]
    best_soft = {clocks: best_constant(at_soft, clocks) for clocks in (False, True)}
    lanes = [
        _lane(case, index, control, best, streamed)
        for streamed in (False, True)
        for index, case in enumerate(cases)
        for control in CONTROLS
    ]
    loop = Loop(lanes, seed)
    idle_c = loop.plants.t1.copy()
    trace = loop.run(seconds)
    half = len(lanes) // 2
    rows = []
    for place in range(half):
        index, control = divmod(place, len(CONTROLS))
        clocks = CONTROLS[control].endswith("clock") or CONTROLS[control] == "firmware"
        speeds = float(best[clocks].speed[index]), float(best_soft[clocks].speed[index])
        row = _row(lanes[place], trace, (place, place + half), speeds, settled_s)
        rows.append(row._replace(idle_c=float(idle_c[place])))
    kept = {_key(lane): _kept(trace, place) for place, lane in enumerate(lanes[:half])}
    return SweptBoard(rows, kept)


def _key(lane: Lane) -> tuple[str, float, float, str]:
    return ("generator" if lane.generator else "encoder", lane.ambient_c, lane.cooling, str(lane.labels["control"]))


def _kept(trace: Trace, place: int) -> dict[str, list[float]]:
    return {
        "die_c": [round(float(value), 2) for value in trace.die_c[:, place]],
        "served": [round(float(value), 4) for value in trace.served[:, place]],
        "clock": [round(float(value), 3) for value in trace.clock[:, place]],
    }


def _lane(case: SearchCase, index: int, control: str, best: dict[bool, Best], streamed: bool) -> Lane:
    offered = max(1e-3, OFFERED * float(best[False].speed[index])) if streamed else None
    labels: dict[str, object] = {"control": control, "limited": bool(best[False].speed[index] < 0.999)}
    policy = _policy(case, index, control, best)
    return Lane(
        case.board, case.ambient_c, case.cooling, case.generator, policy, case.rows, offered, 1000 + index, labels
    )


def _policy(case: SearchCase, index: int, control: str, best: dict[bool, Best]) -> Policy:
    board, rows = case.board, case.rows
    if control == "firmware":
        return ConstantLimits(rows, board.cores)
    if control == "on-off":
        return OnOffControl(rows, board.cores, case.cap_c, case.cap_c - ON_OFF_BAND_C)
    if control == "duty":
        return DutyCycleControl(rows, board.cores, case.cap_c)
    clocks = control.endswith("clock")
    if control.startswith("constant"):
        found = best[clocks]
        return ConstantLimits(
            rows, int(found.threads[index]), float(found.clock[index]), float(found.duty_share[index])
        )
    return GovernorControl(board, rows, clocks, case.generator)


def _row(lane: Lane, trace: Trace, places: tuple[int, int], speeds: tuple[float, float], settled_s: int) -> CaseRow:
    full, stream = places
    board = lane.board
    seconds = trace.die_c.shape[0]
    die_c, served = trace.die_c[:, full], trace.served[:, full]
    throughput = float(served[settled_s:].mean())
    joules, work = float(trace.joules[settled_s:, full].sum()), float(served[settled_s:].sum())
    hot = die_c >= board.soft_c
    late = trace.latencies[stream]
    reversal, turn_s = float(trace.reversal_s[full]), float(trace.turn_s[full])
    return CaseRow(
        board=board.key,
        load="generator" if lane.generator else "encoder",
        ambient_c=lane.ambient_c,
        cooling=lane.cooling,
        control=str(lane.labels["control"]),
        throughput=throughput,
        of_best=throughput / max(speeds[0], 1e-9),
        of_best_at_soft=throughput / max(speeds[1], 1e-9),
        mean_c=float(die_c[settled_s:].mean()),
        hottest_c=float(trace.hottest_c[full]),
        overshoot_c=max(0.0, float(trace.hottest_c[full]) - _cap_c(board)),
        over_soft_s=float(hot.sum()),
        over_soft_settled_s=float(hot[settled_s:].sum()),
        idle_c=float("nan"),
        joules_per_work=joules / work if work > 0 else float("nan"),
        changes_per_h=float(trace.changes[:, full].sum()) * 3600.0 / seconds,
        fastest_reversal_s=reversal if np.isfinite(reversal) else None,
        turns_per_h=float(trace.turns[settled_s:, full].sum()) * 3600.0 / (seconds - settled_s),
        fastest_turn_s=turn_s if np.isfinite(turn_s) else None,
        p50_s=float(np.quantile(late, 0.5)) if late.size else None,
        p99_s=float(np.quantile(late, 0.99)) if late.size else None,
        refused=int(trace.refused[:, stream].sum()),
        limited=bool(lane.labels["limited"]),
    )
