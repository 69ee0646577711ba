"""The sweep of `bench.heat`: boards, rooms and loads; who controls them; and what is measured of each.

A case is a board with its cooling (sink-to-air resistance times 0.7, 1 or 1.4), a room (10, 25 or 40 °C) and a load.
Every case runs twice per control: saturated, and fed a stream at 85 % of what the best constant limit without clock
control could serve. All controls of a case see the same jobs. The cap is the governor's set point: 2.5 °C under the
board's soft limit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.boards import BOARDS, BoardModel
from sim.closed_loop import Lane, Loop, Trace
from sim.policies import SET_POINT_BELOW_SOFT_C, Constant, DutyCycle, Governed, OnOff, Policy
from sim.search import Best, Case, best_constant

AMBIENTS_C = (10.0, 25.0, 40.0)
COOLINGS = (0.7, 1.0, 1.4)
ENCODER_ROWS, GENERATOR_SEQUENCES = 16, 4
SECONDS, SETTLED_S = 3000, 1500
OFFERED = 0.85
ON_OFF_BAND_C = 3.0
JUST_UNDER_SOFT_C = 0.01

CONTROLS = ("firmware", "on-off", "duty", "constant", "governor", "constant+clock", "governor+clock")
"""'firmware': full limits. 'constant': the best constant limit. '+clock': the operator lets the agent set the clock."""


class Row(NamedTuple):
    """One case under one control, measured. Throughput: 1 is full speed; see docs/governor.md."""

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


class Swept(NamedTuple):
    """A board's rows, and the traces of its saturated lanes for plots, keyed by (load, ambient, cooling, control)."""

    rows: list[Row]
    traces: dict[tuple[str, float, float, str], dict[str, list[float]]]


def cases_of(board: BoardModel) -> list[Case]:
    """All rooms, coolings and loads of a board."""
    return [
        Case(board, ambient_c, cooling, generator, GENERATOR_SEQUENCES if generator else ENCODER_ROWS, _cap_c(board))
        for generator in (False, True)
        for ambient_c in AMBIENTS_C
        for cooling in COOLINGS
    ]


def _cap_c(board: BoardModel) -> float:
    return board.soft_c - SET_POINT_BELOW_SOFT_C


def sweep(key: str, seconds: int, settled_s: int, seed: int) -> Swept:
    """Run one board's cases under all controls."""
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
    return Swept(rows, kept)


def _key(lane: Lane) -> tuple[str, float, float, str]:
    return ("generator" if lane.generator else "encoder", lane.ambient_c, lane.cooling, str(lane.labels["control"]))


def _kept(trace: Trace, place: int) -> dict[str, list[float]]:
    return {
        "die_c": [round(float(value), 2) for value in trace.die_c[:, place]],
        "served": [round(float(value), 4) for value in trace.served[:, place]],
        "clock": [round(float(value), 3) for value in trace.clock[:, place]],
    }


def _lane(case: Case, index: int, control: str, best: dict[bool, Best], streamed: bool) -> Lane:
    offered = max(1e-3, OFFERED * float(best[False].speed[index])) if streamed else None
    labels: dict[str, object] = {"control": control, "limited": bool(best[False].speed[index] < 0.999)}
    policy = _policy(case, index, control, best)
    return Lane(
        case.board, case.ambient_c, case.cooling, case.generator, policy, case.rows, offered, 1000 + index, labels
    )


def _policy(case: Case, index: int, control: str, best: dict[bool, Best]) -> Policy:
    board, rows = case.board, case.rows
    if control == "firmware":
        return Constant(rows, board.cores)
    if control == "on-off":
        return OnOff(rows, board.cores, case.cap_c, case.cap_c - ON_OFF_BAND_C)
    if control == "duty":
        return DutyCycle(rows, board.cores, case.cap_c)
    clocks = control.endswith("clock")
    if control.startswith("constant"):
        found = best[clocks]
        return Constant(rows, int(found.threads[index]), float(found.clock[index]), float(found.busy[index]))
    return Governed(board, rows, clocks, case.generator)


def _row(lane: Lane, trace: Trace, places: tuple[int, int], speeds: tuple[float, float], settled_s: int) -> Row:
    full, stream = places
    board = lane.board
    seconds = trace.die_c.shape[0]
    die_c, served = trace.die_c[:, full], trace.served[:, full]
    throughput = float(served[settled_s:].mean())
    joules, work = float(trace.joules[settled_s:, full].sum()), float(served[settled_s:].sum())
    hot = die_c >= board.soft_c
    late = trace.latencies[stream]
    reversal, turn_s = float(trace.reversal_s[full]), float(trace.turn_s[full])
    return Row(
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
