"""The discrete-event simulation behind docs/deadlines.md: a bound that is one, runs that repeat, no late answer."""

from __future__ import annotations

import pytest

from bench.deadlines import ORDERS, figures, play
from bench.deadlines_load import ROW_S, STEP_S, Offer, offers
from bench.deadlines_orders import best_s

SECONDS = 20.0


def offer(number: int, arrival_s: float, deadline_s: float, rows: int = 1) -> Offer:
    return Offer(number, arrival_s, deadline_s, "c", "a", 5, rows, 0)


WORK_S = ROW_S + STEP_S / 16


def test_the_bound_counts_what_fits_between_arrival_and_deadline() -> None:
    assert best_s([offer(0, 0.0, 1.0)], 0.0, 9.0) == pytest.approx(WORK_S)
    assert best_s([offer(0, 0.0, WORK_S / 2)], 0.0, 9.0) == pytest.approx(WORK_S / 2), "a piece counts"
    two = [offer(0, 0.0, WORK_S), offer(1, 0.0, WORK_S)]
    assert best_s(two, 0.0, 9.0) == pytest.approx(WORK_S), "two that must end at once: one of them"
    urgent_later = [offer(0, 0.0, 1.0, rows=100), offer(1, 0.01, 0.01 + WORK_S)]
    assert best_s(urgent_later, 0.0, 9.0) == pytest.approx(101 * WORK_S), "the urgent one interrupts, the other goes on"


def test_no_order_does_more_than_the_bound_and_a_seed_repeats() -> None:
    offered = offers(3, 2.0, SECONDS)
    for name in ORDERS:
        run = figures(play(name, offered, 3), offered, SECONDS)
        # The queue that was there when counting began is served, too: at most its work over the time.
        assert run["of_best"] < 1.15
        assert run == figures(play(name, offered, 3), offered, SECONDS)


def test_the_core_sends_nothing_late_and_does_more_than_the_plain_queue() -> None:
    offered = offers(1, 3.0, SECONDS)
    core, fifo = (figures(play(name, offered, 1), offered, SECONDS) for name in ("edge-agent", "fifo"))
    assert core["late_sent"] == 0
    assert core["goodput"] > 0.85, "costs are still being learned in so short a run"
    assert core["answered"] > 2 * fifo["answered"]
    assert core["by_priority"]["2"]["p99"] < core["by_priority"]["8"]["p99"]


def test_below_capacity_almost_all_is_answered_in_time() -> None:
    offered = offers(1, 0.3, SECONDS)
    assert figures(play("edge-agent", offered, 1), offered, SECONDS)["answered"] > 0.97
