"""Boards under load with one policy each: throughput, latency, temperature and energy.

Work is counted in seconds of full speed. A lane is saturated (there is always work) or is fed a stream of jobs: one a
second on average, with Gamma-distributed gaps (coefficient of variation 1.5); the size of a job is the offered rate
times a factor uniform in 0.5 to 1.5. Steps longer than half a second run and pause explicitly, and new limits apply
from the next step; shorter steps are averaged. The queue is first come, first served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim import load
from sim.boards import FLAGGED, BoardModel
from sim.plant import Plants
from sim.policies import Policy, PolicyInput, PolicyLimits

Floats = npt.NDArray[np.float64]
DT_S = 0.25
PER_SECOND = 4
FLUID_BELOW_S = 0.5
CV2 = 1.5**2
REVERSAL_SHARE = 0.1
"""A movement of the duty share by this much against its last direction counts as a reversal."""


@dataclass
class Lane:
    """One board with one load and one policy. `offered`: work per second of the stream; None: saturated."""

    board: BoardModel
    ambient_c: float
    cooling: float
    generator: bool
    policy: Policy
    rows: int
    offered: float | None = None
    job_seed: int = 0
    labels: dict[str, object] = field(default_factory=dict)


@dataclass
class Trace:
    """The run second by second, in arrays [seconds, lanes]. `served` and `joules` are those of one second.

    `changes`: changes of level, threads or clock. `reversal_s`: shortest time after which one was reversed, per lane.
    `turns`: seconds in which the duty share had reversed by `REVERSAL_SHARE` or more. `turn_s`: shortest time between
    two of these.
    """

    die_c: Floats
    sensor_c: Floats
    served: Floats
    joules: Floats
    clock: Floats
    busy: Floats
    threads: Floats
    changes: npt.NDArray[np.int64]
    reversal_s: Floats
    refused: npt.NDArray[np.int64]
    latencies: list[Floats]
    off: npt.NDArray[np.bool_]
    turns: npt.NDArray[np.int64]
    turn_s: Floats
    hottest_c: Floats


class ReversalDetector:
    """Detects reversals of the duty share by `REVERSAL_SHARE` or more."""

    def __init__(self) -> None:
        self._rising = 0
        self._extreme = math.nan
        self._turn_s = -math.inf

    def shift(self, value: float) -> None:
        """Threads or clock changed: the duty share that compensates for them is not a reversal."""
        self._extreme = value

    def turned(self, now_s: float, value: float) -> float | None:
        """Seconds since the previous reversal when `value` completes a reversal, else None."""
        if math.isnan(self._extreme):
            self._extreme = value
        elif not self._rising:
            self._rising = 0 if abs(value - self._extreme) < REVERSAL_SHARE else 1 if value > self._extreme else -1
            self._extreme = value if self._rising else self._extreme
        elif self._rising * (value - self._extreme) >= 0.0:
            self._extreme = value
        elif abs(value - self._extreme) >= REVERSAL_SHARE:
            since_s, self._turn_s = now_s - self._turn_s, now_s
            self._rising, self._extreme = -self._rising, value
            return since_s
        return None


Fault = Callable[[int, int, float], float | None]
"""(second, lane, °C that the sensor shows) -> °C that the policy is told; None: the sensor is lost."""


class Loop:
    """Runs lanes for a number of simulated seconds."""

    def __init__(self, lanes: Sequence[Lane], seed: int, fault: Fault | None = None) -> None:
        self.lanes = list(lanes)
        self._fault = fault
        boards = [lane.board for lane in lanes]
        self.plants = Plants(
            boards, np.array([lane.ambient_c for lane in lanes]), np.array([lane.cooling for lane in lanes]), seed
        )
        count = len(self.lanes)
        self._generator = np.array([lane.generator for lane in lanes])
        self._cores = np.array([board.cores for board in boards], dtype=float)
        self._full_rows = np.array([lane.rows for lane in lanes], dtype=float)
        self._row_s = np.array([board.row_s for board in boards])
        self._token_s = np.array([board.token_s for board in boards])
        self._saturated = np.array([lane.offered is None for lane in lanes])
        self._power_noise = np.random.default_rng(seed + 1)
        self._rows, self._threads = self._full_rows.copy(), self._cores.copy()
        self._rows_now, self._threads_now = self._rows.copy(), self._threads.copy()
        self._cap, self._allowed = np.ones(count), np.ones(count)
        self._on_s, self._off_s = np.zeros(count), np.zeros(count)
        self._backlog = np.zeros(count)
        self._busy = np.zeros(count)
        self._step_s = np.zeros(count)
        self._turns: dict[tuple[int, int], tuple[float, bool]] = {}
        self._reversals = [ReversalDetector() for _ in self.lanes]
        self._flags = self.plants.flags
        self._flagged = [board.law in FLAGGED for board in boards]

    def run(self, seconds: int) -> Trace:
        """Simulate. The lanes keep their state, so a run can be continued."""
        count = len(self.lanes)
        trace = _empty(seconds, count)
        arrivals = [_arrivals(lane, seconds) for lane in self.lanes]
        done = np.zeros((seconds * PER_SECOND, count), dtype=np.float32)
        accepted: list[list[float]] = [[] for _ in self.lanes]
        marks: list[tuple[int, ...] | None] = [None] * count
        for second in range(seconds):
            self.plants.second()
            closed = self._decide(second, trace, marks)
            taken = self._admit(second, arrivals, closed, accepted, trace)
            self._live(second, taken, trace, done)
        trace.latencies = [
            _latencies(accepted[i], done[:, i]) if not self._saturated[i] else np.zeros(0) for i in range(count)
        ]
        trace.off = self.plants.off
        return trace

    def _decide(self, second: int, trace: Trace, marks: list[tuple[int, ...] | None]) -> npt.NDArray[np.bool_]:
        closed = np.zeros(len(self.lanes), dtype=bool)
        self._flags = self.plants.flags
        row_s = self._step_s / np.maximum(1.0, self._rows_now)
        for index, lane in enumerate(self.lanes):
            limits = lane.policy.limits(self._look(second, index, lane, float(row_s[index])))
            if (limits.threads, limits.clock) != (self._threads[index], self._cap[index]):
                self._reversals[index].shift(limits.duty_share)
            self._rows[index], self._threads[index] = limits.rows, limits.threads
            self._cap[index], self._allowed[index] = limits.clock, limits.duty_share
            closed[index] = limits.closed
            self._note(second, index, limits, trace, marks)
        return closed

    def _look(self, second: int, index: int, lane: Lane, row_s: float) -> PolicyInput:
        sensor_c: float | None = float(self.plants.sensor_c[index])
        if self._fault is not None:
            sensor_c = self._fault(second, index, float(self.plants.sensor_c[index]))
        power_w = None
        if lane.board.powered is not None:
            power_w = float(self.plants.power_w[index]) * (
                1.0 + lane.board.powered * self._power_noise.standard_normal()
            )
        return PolicyInput(
            float(second),
            sensor_c,
            power_w,
            float(self._busy[index]),
            None if lane.generator else row_s,
            int(self._flags[index]),
            float(self.plants.second_c[index]) if self._fault is None and self._flagged[index] else None,
        )

    def _note(
        self, second: int, index: int, limits: PolicyLimits, trace: Trace, marks: list[tuple[int, ...] | None]
    ) -> None:
        since_s = self._reversals[index].turned(second, limits.duty_share)
        if since_s is not None:
            trace.turns[second, index] = 1
            trace.turn_s[index] = min(trace.turn_s[index], since_s)
        before = marks[index]
        marks[index] = limits.mark
        if before is None or before == limits.mark:
            return
        trace.changes[second, index] = 1
        for part, (old, new) in enumerate(zip(before, limits.mark, strict=True)):
            if old == new:
                continue
            last_s, last_up = self._turns.get((index, part), (-np.inf, new > old))
            if last_up != (new > old):
                trace.reversal_s[index] = min(trace.reversal_s[index], second - last_s)
            self._turns[index, part] = (second, new > old)

    def _admit(
        self,
        second: int,
        arrivals: list[list[list[tuple[float, float]]]],
        closed: npt.NDArray[np.bool_],
        accepted: list[list[float]],
        trace: Trace,
    ) -> Floats:
        taken = np.zeros((PER_SECOND, len(self.lanes)))
        for index, lane_arrivals in enumerate(arrivals):
            if not lane_arrivals:
                continue
            for at_s, work in lane_arrivals[second]:
                if closed[index]:
                    trace.refused[second, index] += 1
                else:
                    accepted[index].append(at_s)
                    accepted[index].append(work)
                    taken[int((at_s - second) * PER_SECOND), index] += work
        return taken

    def _live(self, second: int, taken: Floats, trace: Trace, done: npt.NDArray[np.float32]) -> None:
        busy = np.zeros(len(self.lanes))
        for quarter in range(PER_SECOND):
            self._backlog += taken[quarter]
            on, speed = self._on()
            possible = speed * DT_S * on
            served = np.where(self._saturated, possible, np.minimum(possible, self._backlog))
            used = np.where(possible > 0.0, on * served / np.maximum(possible, 1e-12), 0.0)
            self._backlog = np.where(self._saturated, 0.0, self._backlog - served)
            share = used * load.power_share(self._generator, self._cores, self._rows_now, self._threads_now)
            self.plants.step(share, self._cap, DT_S)
            served = np.where(self.plants.off, 0.0, served)
            done[second * PER_SECOND + quarter] = served
            trace.served[second] += served
            trace.joules[second] += self.plants.power_w * DT_S
            trace.hottest_c = np.maximum(trace.hottest_c, self.plants.t1)
            busy += used / PER_SECOND
        self._busy = busy
        trace.die_c[second], trace.sensor_c[second] = self.plants.t1, self.plants.sensor_c
        trace.clock[second], trace.busy[second], trace.threads[second] = self.plants.clock, busy, self._threads_now

    def _on(self) -> tuple[Floats, Floats]:
        """(share of this quarter of a second that each lane computes, its speed)."""
        fluid = self._step_s <= FLUID_BELOW_S
        starts = ~fluid & (self._on_s <= 0.0) & (self._off_s <= 0.0) & (self._allowed > 0.0)
        latch = fluid | starts
        self._rows_now = np.where(latch, self._rows, self._rows_now)
        self._threads_now = np.where(latch, self._threads, self._threads_now)
        speed = load.speed(
            self._generator, self._cores, self._rows_now, self._full_rows, self._threads_now, self.plants.clock
        )
        rows_speed = speed * (self._full_rows / self._rows_now)
        self._step_s = load.step_s(
            self._generator, self._row_s, self._token_s, self._rows_now, _step_speed(speed, rows_speed, self)
        )
        self._on_s = np.where(starts, self._step_s, self._on_s)
        running = ~fluid & (self._on_s > 0.0)
        self._on_s = np.where(running, self._on_s - DT_S, self._on_s)
        pause_s = np.where(self._allowed > 0.0, self._step_s * (1.0 / np.maximum(self._allowed, 1e-6) - 1.0), np.inf)
        ended = running & (self._on_s <= 0.0)
        self._off_s = np.where(ended, pause_s, np.where(running, 0.0, np.minimum(self._off_s - DT_S, pause_s)))
        on = np.where(fluid, self._allowed, running.astype(float))
        return on, speed


def _step_speed(speed: Floats, rows_speed: Floats, loop: Loop) -> Floats:
    """Relative speed of a step: an encoder's step gets longer with its rows, a decode step does not."""
    return np.where(loop._generator, rows_speed, speed)


def _empty(seconds: int, count: int) -> Trace:
    def zeros() -> Floats:
        return np.zeros((seconds, count))

    whole = np.zeros((seconds, count), dtype=np.int64)
    return Trace(
        zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), whole, np.full(count, np.inf), whole.copy(), [],
        np.zeros(count, dtype=bool), whole.copy(), np.full(count, np.inf), np.full(count, -np.inf),
    )  # fmt: skip


def _arrivals(lane: Lane, seconds: int) -> list[list[tuple[float, float]]]:
    """Per second, (time, work) of the jobs; empty for a saturated lane."""
    if lane.offered is None:
        return []
    random = np.random.default_rng(lane.job_seed)
    gaps = random.gamma(1.0 / CV2, CV2, size=int(seconds * 1.3) + 100)
    factors = random.uniform(0.5, 1.5, size=gaps.size)
    found: list[list[tuple[float, float]]] = [[] for _ in range(seconds)]
    for at_s, factor in zip(np.cumsum(gaps), factors, strict=True):
        if at_s < seconds:
            found[int(at_s)].append((float(at_s), lane.offered * float(factor)))
    return found


def _latencies(accepted: list[float], done: npt.NDArray[np.float32]) -> Floats:
    """Completion minus arrival of each job, from the cumulative work; unfinished jobs count to the end of the run."""
    at_s, work = np.array(accepted[0::2]), np.array(accepted[1::2])
    if at_s.size == 0:
        return np.zeros(0)
    total = np.concatenate(([0.0], np.cumsum(done, dtype=np.float64)))
    upto = np.cumsum(work) - 1e-6 * work
    finished = np.interp(upto, total, np.arange(total.size) * DT_S, right=(total.size - 1) * DT_S)
    latencies: Floats = np.maximum(finished - at_s, 0.0)
    return latencies
