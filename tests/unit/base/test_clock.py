"""The two clocks: one that never goes back, one that people read and that may jump."""

from __future__ import annotations

import pytest

from edge_agent.base.clock import Clock, ManualClock, SystemClock


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(10.0, 500.0)
    assert (clock.monotonic_s(), clock.wall_s()) == (10.0, 500.0)
    clock.advance(2.5)
    assert (clock.monotonic_s(), clock.wall_s()) == (12.5, 502.5)


def test_a_jump_of_the_wall_clock_leaves_durations_alone() -> None:
    clock = ManualClock(10.0, 0.0)
    clock.set_wall(1.7e9)
    assert (clock.monotonic_s(), clock.wall_s()) == (10.0, 1.7e9)
    clock.set_wall(5.0)
    assert clock.wall_s() == 5.0


def test_time_does_not_go_back() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(-0.001)
    clock.advance(0.0)


def test_the_hosts_clock_is_monotonic_and_knows_the_century() -> None:
    clock: Clock = SystemClock()
    assert clock.monotonic_s() <= clock.monotonic_s()
    assert clock.wall_s() > 1.6e9
