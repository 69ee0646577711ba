"""Several models on one board, with the agent's duty cycle, the workers' step throttle and the governor.

`closed_loop` averages one load. Here every step of every model is simulated in slices of 50 ms, to see whether steps of
different models coincide and whether their sum keeps to the grant. All models always have work. Models that compute at
the same time share the cores and are slowed down in proportion. With `shared=False` every model has a duty cycle of its
own, as if it were alone, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.base.reading import Reading
from edge_agent.core import governor
from edge_agent.core.duty_cycle import LEAST_PAUSE_S, DutyCycle
from edge_agent.core.governor import ComputeGrant
from edge_agent.worker.step_pacing import StepThrottle
from sim import load
from sim.boards import BoardModel
from sim.plant import Plants
from sim.policies import GovernorControl

Floats = npt.NDArray[np.float64]
SLICE_S = 0.05
SLICES = 20


@dataclass
class SimulatedModel:
    """One model. `size`: length of its steps relative to the board model; `left_s`: rest of the step at full speed."""

    name: str
    generator: bool
    size: float = 1.0
    cycle: DutyCycle = field(default_factory=DutyCycle)
    throttle: StepThrottle = field(default_factory=StepThrottle)
    stepping: bool = False
    began_s: float = 0.0
    left_s: float = 0.0
    threads: int = 1
    served: float = 0.0


class SimulatedRun(NamedTuple):
    """Per second: highest die temperature in °C, work of all models (1: full speed), and the granted duty share."""

    die_c: Floats
    served: Floats
    busy: Floats
    by_model: dict[str, float]


class ModelsOnBoard:
    """A board and its models."""

    def __init__(
        self,
        board: BoardModel,
        models: Sequence[tuple[str, bool, float]],
        shared: bool = True,
        clocks: bool = False,
    ) -> None:
        """`models`: (name, whether it generates, length of its steps relative to the board model's)."""
        self.board, self._shared = board, shared
        self.plants = Plants([board], np.array([25.0]), np.array([1.0]), 1)
        generates = any(generator for _, generator, _ in models)
        self.policy = GovernorControl(board, 16, clocks, generates)
        self.state = governor.GovernorState()
        self.grant = ComputeGrant(governor.GovernorLevel.NORMAL, 16, board.cores, None, "")
        common = DutyCycle()
        self.models = [SimulatedModel(name, gen, size, common if shared else DutyCycle()) for name, gen, size in models]
        for model in self.models:
            model.throttle.enabled = model.generator
            if model.generator:
                model.cycle.begin(model.name, 1, 0.0, generates=True)

    def run(self, seconds: int) -> SimulatedRun:
        """Simulate this many seconds from the start."""
        die_c, served, busy = np.zeros(seconds), np.zeros(seconds), np.zeros(seconds)
        for second in range(seconds):
            self.plants.second()
            self._decide(float(second))
            busy[second] = self.grant.duty_share
            before = sum(model.served for model in self.models)
            for part in range(SLICES):
                self._slice(second + part * SLICE_S)
                die_c[second] = max(die_c[second], float(self.plants.t1[0]))
            served[second] = sum(model.served for model in self.models) - before
        return SimulatedRun(die_c, served, busy, {model.name: model.served for model in self.models})

    def _decide(self, now_s: float) -> None:
        cycles = {id(model.cycle): model.cycle for model in self.models}.values()
        shares = [share for cycle in cycles if (share := cycle.take_busy_share(now_s)) is not None]
        row_s = max((found for cycle in cycles if (found := cycle.row_s()) is not None), default=None)
        reading = Reading(float(self.plants.sensor_c[0]), "celsius", "sim", now_s - 1.0)
        bound = any(model.generator for model in self.models)
        flags = int(self.plants.flags[0])
        busy = min(1.0, sum(shares)) if shares else None
        observed = governor.Observation(busy, row_s, None, None, flags, bound)
        self.grant, self.state = governor.decide(self.policy.config, reading, self.state, now_s, observed)
        self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        for model in self.models:
            model.throttle.share = model.cycle.set_generator_share(self.grant, now_s)

    def _slice(self, now_s: float) -> None:
        for model in self.models:
            if not model.stepping and self._may(model, now_s):
                self._begin(model, now_s)
        running = [model for model in self.models if model.stepping]
        asked = sum(model.threads for model in running)
        slowed = min(1.0, self.board.cores / asked) if asked else 1.0
        share = 0.0
        if running:
            cores, threads = float(self.board.cores), min(float(asked), float(self.board.cores))
            share = float(load.power_share(all(model.generator for model in running), cores, 16.0, threads))
        self.plants.step(np.array([share]), np.array([self.grant.clock]), SLICE_S)
        for model in running:
            speed = float(load.speed(model.generator, self.board.cores, 1.0, 1.0, model.threads, self.plants.clock[0]))
            model.left_s -= SLICE_S * speed * slowed
            model.served += SLICE_S * speed * slowed
            if model.left_s <= 0.0:
                self._end(model, now_s + SLICE_S)

    def _may(self, model: SimulatedModel, now_s: float) -> bool:
        if model.generator:
            return model.throttle.left_s(now_s) <= 0.0
        model.cycle.wait(model.name)
        return model.cycle.pause_s(model.name, self.grant, now_s) <= LEAST_PAUSE_S

    def _begin(self, model: SimulatedModel, now_s: float) -> None:
        model.stepping, model.began_s, model.threads = True, now_s, self.grant.threads
        rows = self.grant.max_rows
        model.left_s = model.size * (self.board.token_s if model.generator else self.board.row_s * rows)
        if not model.generator:
            model.cycle.leave(model.name)
            model.cycle.begin(model.name, rows, now_s)
            self._tell(now_s)

    def _end(self, model: SimulatedModel, now_s: float) -> None:
        model.stepping = False
        if model.generator:
            model.throttle.begin(now_s, model.began_s)
        else:
            model.cycle.end(model.name, now_s)
