"""The duty cycle: how busy the steps were, how slow a row was, how long the pause after a step is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge_agent.agent.context import full_grant
from edge_agent.agent.status_builder import governor_entry
from edge_agent.base.limits import PACED_STEP_S
from edge_agent.bundle.catalog import TaskSpec
from edge_agent.core.duty_cycle import DutyCycle
from edge_agent.core.governor import ComputeGrant, GovernorLevel
from tests.support.fakes import Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def limited(duty_share: float) -> ComputeGrant:
    return ComputeGrant(GovernorLevel.REDUCED, 8, 4, None, "", duty_share=duty_share)


def test_the_busy_share_counts_each_second_once() -> None:
    cycle = DutyCycle()
    assert cycle.take_busy_share(0.0) is None
    cycle.begin("a", 4, 0.25)
    cycle.end("a", 0.5)
    assert cycle.take_busy_share(1.0) == pytest.approx(0.25)
    cycle.begin("a", 4, 1.5)
    assert cycle.take_busy_share(2.0) == pytest.approx(0.5)
    assert cycle.take_busy_share(3.0) == pytest.approx(1.0)
    cycle.end("a", 3.25)
    assert cycle.take_busy_share(4.0) == pytest.approx(0.25)
    assert cycle.take_busy_share(5.0) == 0.0


def test_two_busy_models_are_not_more_than_a_board() -> None:
    cycle = DutyCycle()
    cycle.take_busy_share(0.0)
    for model in ("a", "b"):
        cycle.begin(model, 1, 0.0)
        cycle.end(model, 0.8)
    assert cycle.take_busy_share(1.0) == 1.0


def test_the_rest_follows_the_step_and_runs_from_its_end() -> None:
    cycle = DutyCycle()
    assert cycle.pause_s("a", limited(0.25), 5.0) == 0.0
    cycle.begin("a", 4, 10.0)
    cycle.end("a", 10.1)
    assert cycle.pause_s("a", full_grant(8, 4), 10.1) == 0.0
    assert cycle.pause_s("a", limited(0.25), 10.1) == pytest.approx(0.3)
    assert cycle.pause_s("a", limited(0.25), 10.2) == pytest.approx(0.2)
    assert cycle.pause_s("a", limited(0.0), 10.2) == math.inf


def test_a_model_that_stepped_long_ago_limits_nobody() -> None:
    cycle = DutyCycle()
    cycle.begin("slow", 1, 0.0)
    cycle.end("slow", 9.0)
    cycle.begin("quick", 4, 20.0)
    cycle.end("quick", 20.4)
    assert cycle.row_s() == pytest.approx(9.0)
    cycle.begin("quick", 4, 80.0)
    cycle.end("quick", 80.4)
    assert cycle.row_s() == pytest.approx(0.1)


def test_a_model_can_count_on_its_part_beside_those_that_step_or_wait() -> None:
    cycle = DutyCycle()
    assert cycle.share_of("a", limited(0.5)) == 0.5
    cycle.begin("b", 1, 0.0)
    cycle.wait("a")
    shared = cycle.share_of("a", limited(0.5))
    assert shared < 0.5, "it shares the board's budget"
    cycle.wait("c")
    assert cycle.share_of("a", limited(0.5)) < shared
    assert cycle.share_of("a", full_grant(8, 4)) == 1.0, "without a limit nobody takes turns"


def test_the_slowest_models_row_counts() -> None:
    cycle = DutyCycle()
    assert cycle.row_s() is None
    cycle.begin("a", 4, 0.0)
    cycle.end("a", 1.0)
    cycle.begin("b", 1, 1.0)
    cycle.end("b", 2.0)
    assert cycle.row_s() == pytest.approx(1.0)
    cycle.forget("b")
    assert cycle.row_s() == pytest.approx(0.25)


def test_encoders_take_turns_and_rest_together() -> None:
    cycle = DutyCycle()
    cycle.begin("a", 4, 10.0)
    assert cycle.pause_s("b", limited(0.5), 10.5) == math.inf, "one at a time"
    assert cycle.pause_s("b", full_grant(8, 4), 10.5) == 0.0, (
        "where heat does not limit, the system shares the cores out"
    )
    cycle.end("a", 11.0)
    assert cycle.pause_s("b", limited(0.5), 11.0) == pytest.approx(1.0), "what one has spent all have to earn"
    assert cycle.pause_s("b", limited(0.5), 12.0) == 0.0


def test_fewer_threads_are_for_one_model_at_a_time_too() -> None:
    cycle = DutyCycle()
    cycle.begin("a", 4, 10.0)
    fewer = ComputeGrant(GovernorLevel.REDUCED, 8, 2, None, "", unlimited_threads=4)
    assert fewer.one_at_a_time
    assert cycle.pause_s("b", fewer, 10.5) == math.inf
    cycle.end("a", 11.0)
    assert cycle.pause_s("b", fewer, 11.0) == 0.0


def test_whose_last_step_is_longest_ago_goes_first() -> None:
    cycle = DutyCycle()
    for name, ended_s in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        cycle.begin(name, 1, ended_s - 0.1)
        cycle.end(name, ended_s)
    for name in ("a", "b"):
        cycle.wait(name)
    assert cycle.pause_s("a", limited(0.5), 9.0) == math.inf
    assert cycle.pause_s("b", limited(0.5), 9.0) == 0.0
    cycle.wait("new")
    assert cycle.pause_s("b", limited(0.5), 9.0) == math.inf, "who never had a turn is before both"
    cycle.leave("new")
    cycle.leave("b")
    assert cycle.pause_s("a", limited(0.5), 9.0) == 0.0


def test_a_worker_that_hangs_holds_nobody_up_for_long() -> None:
    cycle = DutyCycle()
    cycle.begin("a", 1, 0.0)
    assert cycle.pause_s("b", limited(0.5), PACED_STEP_S - 0.1) == math.inf
    assert cycle.pause_s("b", limited(0.5), PACED_STEP_S) == 0.0


def test_generators_share_the_time_and_encoders_have_a_part_while_they_step_or_rest() -> None:
    cycle = DutyCycle()
    assert cycle.set_generator_share(limited(0.5), 0.0) == 0.5
    cycle.begin("g", 1, 0.0, generates=True)
    assert cycle.set_generator_share(limited(0.5), 0.0) == 0.5
    cycle.begin("h", 1, 0.0, generates=True)
    two = cycle.set_generator_share(limited(0.5), 0.0)
    assert two == pytest.approx(1.0 - math.sqrt(0.5), abs=1e-3), "together half of the time, with all cores or none"
    cycle.begin("a", 8, 1.0)
    three = cycle.set_generator_share(limited(0.5), 1.0)
    assert 0.5 / 3 < three < two
    cycle.end("a", 2.0)
    pause_s = 1.0 / three - 1.0
    assert cycle.pause_s("a", limited(0.5), 2.0) == pytest.approx(pause_s, rel=1e-3)
    assert cycle.set_generator_share(limited(0.5), 2.0 + 0.9 * pause_s) == three
    assert cycle.set_generator_share(limited(0.5), 2.1 + pause_s) == two, "it used its part and takes none of the next"
    assert cycle.set_generator_share(limited(0.0), 9.0) == 0.0
    assert cycle.set_generator_share(full_grant(8, 4), 9.0) == 1.0


def test_what_generators_and_encoders_spend_together_is_what_was_granted() -> None:
    cycle = DutyCycle()
    cycle.take_busy_share(0.0)
    for name in ("g", "h"):
        cycle.begin(name, 1, 0.0, generates=True)
    cycle.set_generator_share(limited(0.4), 0.0)
    assert cycle.take_busy_share(10.0) == pytest.approx(0.4)


def test_two_models_compute_in_turns_and_spend_together_what_is_granted() -> None:
    """Two models with work for ever at a quarter of the time: their steps do not overlap, and have it together."""

    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(1, 4), level=GovernorLevel.REDUCED, duty_share=0.25)
        for number in range(30):
            for model in ("a", "b"):
                await device.ask(f"{model}{number}", model=model, deadline_s=1000.0)
        busy = []
        for _ in range(400):
            await later(0.1)
            busy.append(sum(len(served.running) for served in device.manager.served_models.values()))
        assert max(busy) == 1, "one at a time"
        assert sum(busy) / len(busy) == pytest.approx(0.25, abs=0.03)
        done = [name[0] for name in device.transport.statuses()]
        assert abs(done.count("a") - done.count("b")) <= 1, "in turns"

    Device.run(scenario, a_model("a"), a_model("b"), plan=Plan(compute_s=1.0))


def test_a_generator_is_told_its_part_as_soon_as_another_model_computes() -> None:
    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(8, 4), level=GovernorLevel.REDUCED, duty_share=0.5)
        for name in ("g", "h"):
            await device.ask(name, {"prompt": "once"}, model=name)
            await later(0.1)
        parts = {worker.limits.busy_permille for worker in device.spawner.workers if worker.limits is not None}
        assert parts == {293}

    generators = [replace(a_model(name), task=TaskSpec("generate", max_tokens=64)) for name in ("g", "h")]
    Device.run(scenario, *generators, plan=Plan(compute_s=None, sequences=2, mixed=False))


def test_telemetry_says_what_heat_allows() -> None:
    entry = governor_entry(
        ComputeGrant(GovernorLevel.REDUCED, 4, 2, None, "77.4 °C", 0.5, 0.75, 1, 0.4, 77.4, 77.96, 2.04, "gone")
    )
    assert entry == {
        "level": "reduced", "max_rows": 4, "threads": 2, "busy_share": 0.5, "clock": 0.75, "tier": 1,
        "forecast_c": 78.0, "headroom_c": 2.0, "derated": "gone", "disagree": None, "why": "77.4 °C",
    }  # fmt: skip
    assert governor_entry(full_grant(8, 4))["headroom_c"] is None


def test_the_dispatcher_rests_after_a_step_and_goes_on_at_once_when_the_grant_allows() -> None:
    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(1, 4), level=GovernorLevel.REDUCED, duty_share=0.25)
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
        device.context.grant = replace(full_grant(8, 4), level=GovernorLevel.EMERGENCY, duty_share=0.0)
        await device.ask("2")
        await later(20.0)
        assert set(device.transport.statuses()) == {"1"}
        device.context.grant = full_grant(8, 4)
        await later(1.0)
        assert device.status("2") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=0.1))


HALF = ComputeGrant(GovernorLevel.REDUCED, 8, 4, None, "warm", duty_share=0.5)


def test_a_step_that_a_stopped_process_made_long_is_rested_from_for_seconds() -> None:
    """Seed 1613: a daemon that stood still for 40 s left a model unserved for minutes."""
    cycle = DutyCycle()
    cycle.begin("m", 1, 0.0)
    cycle.end("m", 40.0)
    assert cycle.pause_s("m", HALF, 40.0) == PACED_STEP_S
