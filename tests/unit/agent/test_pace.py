"""Books on steps: how busy, how slow a row, how long to rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge_agent.agent.context import full_grant
from edge_agent.agent.pace import Pace
from edge_agent.agent.report import governor_entry
from edge_agent.core.governor import Grant, Level
from tests.support.fakes import Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def paced(busy_share: float) -> Grant:
    return Grant(Level.REDUCED, 8, 4, None, "", busy_share=busy_share)


def test_the_busy_share_counts_each_second_once() -> None:
    pace = Pace()
    assert pace.busy_share(0.0) is None
    pace.begin("a", 4, 0.25)
    pace.end("a", 0.5)
    assert pace.busy_share(1.0) == pytest.approx(0.25)
    pace.begin("a", 4, 1.5)
    assert pace.busy_share(2.0) == pytest.approx(0.5)
    assert pace.busy_share(3.0) == pytest.approx(1.0)
    pace.end("a", 3.25)
    assert pace.busy_share(4.0) == pytest.approx(0.25)
    assert pace.busy_share(5.0) == 0.0


def test_two_busy_models_are_not_more_than_a_board() -> None:
    pace = Pace()
    pace.busy_share(0.0)
    for model in ("a", "b"):
        pace.begin(model, 1, 0.0)
        pace.end(model, 0.8)
    assert pace.busy_share(1.0) == 1.0


def test_the_rest_follows_the_step_and_runs_from_its_end() -> None:
    pace = Pace()
    assert pace.rest_s("a", paced(0.25), 5.0) == 0.0
    pace.begin("a", 4, 10.0)
    pace.end("a", 10.1)
    assert pace.rest_s("a", full_grant(8, 4), 10.1) == 0.0
    assert pace.rest_s("a", paced(0.25), 10.1) == pytest.approx(0.3)
    assert pace.rest_s("a", paced(0.25), 10.2) == pytest.approx(0.2)
    assert pace.rest_s("a", paced(0.0), 10.2) == math.inf


def test_the_slowest_models_row_counts() -> None:
    pace = Pace()
    assert pace.row_s() is None
    pace.begin("a", 4, 0.0)
    pace.end("a", 1.0)
    pace.begin("b", 1, 1.0)
    pace.end("b", 2.0)
    assert pace.row_s() == pytest.approx(1.0)
    pace.forget("b")
    assert pace.row_s() == pytest.approx(0.25)


def test_telemetry_says_what_heat_allows() -> None:
    entry = governor_entry(Grant(Level.REDUCED, 4, 2, None, "77.4 °C", 0.5, 0.75, 1, 0.4, 77.4, 77.96, 2.04, "gone"))
    assert entry == {
        "level": "reduced", "max_rows": 4, "threads": 2, "busy_share": 0.5, "clock": 0.75, "tier": 1,
        "forecast_c": 78.0, "headroom_c": 2.0, "derated": "gone", "why": "77.4 °C",
    }  # fmt: skip
    assert governor_entry(full_grant(8, 4))["headroom_c"] is None


def test_the_dispatcher_rests_after_a_step_and_goes_on_at_once_when_the_grant_allows() -> None:
    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(1, 4), level=Level.REDUCED, busy_share=0.25)
        for name in ("1", "2", "3"):
            await device.ask(name)
        await later(1.1)
        assert set(device.transport.statuses()) == {"1"}
        await later(2.0)
        assert set(device.transport.statuses()) == {"1"}, "a step of 1 s is followed by a rest of 3 s"
        await later(2.0)
        assert set(device.transport.statuses()) == {"1", "2"}
        device.context.grant = full_grant(1, 4)
        await later(1.6)
        assert set(device.transport.statuses()) == {"1", "2", "3"}

    Device.run(scenario, a_model(), plan=Plan(compute_s=1.0))


def test_nothing_starts_while_nothing_may() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.5)
        device.context.grant = replace(full_grant(8, 4), level=Level.EMERGENCY, busy_share=0.0)
        await device.ask("2")
        await later(20.0)
        assert set(device.transport.statuses()) == {"1"}
        device.context.grant = full_grant(8, 4)
        await later(1.0)
        assert device.status("2") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=0.1))
