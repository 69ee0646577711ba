"""An event loop whose time is a ManualClock: it never waits, it moves the clock to the next timer.

run(lambda: scenario(clock), clock)

A scenario in which every task waits and no timer is set would wait for ever, and one in which tasks wake each other
would never let time pass: both end with `Stuck` instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from edge_agent.base.clock import ManualClock

T = TypeVar("T")
MOST_ROUNDS = 20_000


class Stuck(AssertionError):
    """Everybody waits and nothing will ever happen."""


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self._rounds = 0
        self.before: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            self._rounds += 1
            if self._rounds > MOST_ROUNDS:
                raise Stuck(f"{MOST_ROUNDS} rounds of the loop and the clock has not moved")
            return ready
        if timeout is None:
            raise Stuck("every task waits and no timer is set")
        self._rounds = 0
        self.before()
        self._clock.advance(max(0.0, timeout))
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio on a clock that stands still while anything can run. For code without child processes and sockets."""

    def __init__(self, clock: ManualClock) -> None:
        selector = _Selector(clock)
        super().__init__(selector)
        selector.before = self.time_passes
        self._clock = clock
        self._clock_resolution = 1e-6

    def time_passes(self) -> None:
        """Everything that can run has run, and the clock is about to move. For a subclass to look around."""

    def time(self) -> float:
        return self._clock.monotonic_s()


def run(scenario: Callable[[], Coroutine[Any, Any, T]], clock: ManualClock) -> T:
    """Run a scenario to its end on `clock`; tasks that are left over are cancelled, as `asyncio.run` does."""
    loop = VirtualLoop(clock)
    try:
        return loop.run_until_complete(scenario())
    finally:
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def settle() -> None:
    """Let everything run that can run now, without a moment passing."""
    for _ in range(50):
        await asyncio.sleep(0)


async def later(seconds: float) -> None:
    """Let `seconds` pass on the test's clock. Refuses a loop that would really wait."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop), "this would sleep"
    await asyncio.sleep(seconds)
