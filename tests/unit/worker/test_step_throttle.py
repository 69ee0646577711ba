"""The pause of a generator's worker between its steps: its length, its slices, its early end. On a fake clock."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.base.limits import PACED_STEP_S, WORKER_SILENCE_S
from edge_agent.protocol.worker_messages import (
    AnyAnswer,
    AnyEvent,
    AnyRequest,
    CancelJob,
    CloseWorker,
    Heartbeat,
    JobCancelled,
    SetStepLimits,
    StepLimits,
)
from edge_agent.worker import child
from edge_agent.worker.child import Child, Pending
from edge_agent.worker.step_pacing import STEP_GROWTH, ChunkCoalescer, StepThrottle

STEP_S = 0.9
"""A token of a 1 B model on a Pi Zero 2 W."""


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Daemon:
    """The other end: says what it has to say when its time comes, and hangs up at the end of the story."""

    def __init__(self, clock: Clock, ends_s: float) -> None:
        self.clock, self.ends_s = clock, ends_s
        self.said: deque[tuple[float, AnyRequest]] = deque()
        self.heard: list[tuple[float, AnyAnswer | AnyEvent]] = []

    def receive(self, timeout_s: float | None) -> AnyRequest | None:
        until_s = math.inf if timeout_s is None else self.clock.now_s + timeout_s
        if self.said and self.said[0][0] <= until_s:
            at_s, message = self.said.popleft()
            self.clock.now_s = max(self.clock.now_s, at_s)
            return message
        self.clock.now_s = until_s
        return CloseWorker() if until_s >= self.ends_s else None

    def send(self, message: AnyAnswer | AnyEvent) -> None:
        self.heard.append((self.clock.now_s, message))


class Generator:
    """A session of one sequence whose steps take `STEP_S`."""

    sequences = 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps_s: list[float] = []
        self.finished: list[float] = []

    def step(self, limits: object) -> list[object]:
        del limits
        self.steps_s.append(self.clock.now_s)
        self.clock.now_s += STEP_S
        return []

    def finish(self, job_id: str) -> None:
        del job_id
        self.finished.append(self.clock.now_s)

    def cancel(self, job_id: str) -> bool:
        return job_id == "1"

    def close(self) -> None:
        pass


class Story(Daemon):
    """A child with one endless answer under way."""

    def __init__(self, clock: Clock, seconds: float, permille: int, deadline_s: float | None = None) -> None:
        super().__init__(clock, clock.now_s + seconds)
        self.session = Generator(clock)
        channel: Any = self
        inside: Any = Child(channel)
        self.child: Child = inside
        inside._session = self.session
        inside._throttle.enabled = True
        nothing: Any = None
        inside._pending["1"] = Pending(nothing, nothing, {}, 0.0, None, ChunkCoalescer(False, 0.0, deadline_s))
        self.limit(clock.now_s, permille)

    def limit(self, at_s: float, permille: int) -> None:
        self.said.append((at_s, SetStepLimits(limits=StepLimits(1, 1, busy_permille=permille))))


Tell = Callable[..., Story]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    clock = Clock()
    monkeypatch.setattr(child, "time", clock)
    return lambda *arguments, **more: Story(clock, *arguments, **more)


@pytest.mark.parametrize("permille", [1000, 500, 100, 50])
def test_steps_take_the_part_of_the_time_that_is_granted(tell: Tell, permille: int) -> None:
    story = tell(900.0, permille)
    story.child.run()
    assert len(story.session.steps_s) * STEP_S / 900.0 == pytest.approx(permille / 1000, rel=0.03)


def test_at_nothing_no_step_is_made_until_more_is_granted_and_the_daemon_hears_that_it_lives(tell: Tell) -> None:
    story = tell(200.0, 0)
    story.limit(220.0, 1000)
    story.child.run()
    assert min(story.session.steps_s) == 220.0
    beats_s = [100.0, *(at_s for at_s, message in story.heard if message == Heartbeat())]
    silences_s = [after - before for before, after in itertools.pairwise(beats_s)]
    assert max(silences_s) < 2.5 < WORKER_SILENCE_S


def test_a_pause_ends_early_when_more_is_granted(tell: Tell) -> None:
    story = tell(60.0, 20)
    story.limit(110.0, 500)
    story.child.run()
    assert story.session.steps_s[:3] == pytest.approx([100.0, 110.0, 110.0 + 2 * STEP_S])


def test_a_cancel_is_heard_during_a_pause(tell: Tell) -> None:
    story = tell(60.0, 20)
    story.said.append((112.5, CancelJob(id="1", call=7)))
    story.child.run()
    assert (112.5, JobCancelled(call=7, cancelled=True)) in story.heard
    assert len(story.session.steps_s) == 1, "nothing is left to do"


def test_a_deadline_is_kept_during_a_pause(tell: Tell) -> None:
    story = tell(60.0, 20, deadline_s=113.4)
    story.child.run()
    assert story.session.finished[0] == pytest.approx(113.37 - STEP_GROWTH * STEP_S), "before a step that outlasts it"


def test_an_encoders_worker_never_pauses_by_itself() -> None:
    throttle = StepThrottle()
    throttle.share = 0.0
    assert (throttle.left_s(5.0), throttle.wait_s(5.0, 6.0)) == (0.0, 0.0)


def test_from_a_step_that_a_stopped_process_made_long_it_pauses_for_seconds() -> None:
    throttle = StepThrottle()
    throttle.enabled, throttle.share = True, 0.5
    throttle.begin(1000.0, 0.0)
    assert throttle.left_s(1000.0) == PACED_STEP_S
