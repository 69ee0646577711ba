"""Books on steps: how busy, how slow a row, how long to rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge_agent.agent.context import full_grant
from edge_agent.agent.report import governor_entry
from edge_agent.base.limits import PACED_STEP_S
from edge_agent.bundle.catalog import TaskSpec
from edge_agent.core.duty_cycle import DutyCycle
from edge_agent.core.governor import Grant, Level
from tests.support.fakes import Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def paced(busy_share: float) -> Grant:
    return Grant(Level.REDUCED, 8, 4, None, "", busy_share=busy_share)


def test_the_busy_share_counts_each_second_once() -> None:
    pace = DutyCycle()
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
    pace = DutyCycle()
    pace.busy_share(0.0)
    for model in ("a", "b"):
        pace.begin(model, 1, 0.0)
        pace.end(model, 0.8)
    assert pace.busy_share(1.0) == 1.0


def test_the_rest_follows_the_step_and_runs_from_its_end() -> None:
    pace = DutyCycle()
    assert pace.rest_s("a", paced(0.25), 5.0) == 0.0
    pace.begin("a", 4, 10.0)
    pace.end("a", 10.1)
    assert pace.rest_s("a", full_grant(8, 4), 10.1) == 0.0
    assert pace.rest_s("a", paced(0.25), 10.1) == pytest.approx(0.3)
    assert pace.rest_s("a", paced(0.25), 10.2) == pytest.approx(0.2)
    assert pace.rest_s("a", paced(0.0), 10.2) == math.inf


def test_a_model_that_stepped_long_ago_limits_nobody() -> None:
    pace = DutyCycle()
    pace.begin("slow", 1, 0.0)
    pace.end("slow", 9.0)
    pace.begin("quick", 4, 20.0)
    pace.end("quick", 20.4)
    assert pace.row_s() == pytest.approx(9.0)
    pace.begin("quick", 4, 80.0)
    pace.end("quick", 80.4)
    assert pace.row_s() == pytest.approx(0.1)


def test_a_model_can_count_on_its_part_beside_those_that_step_or_wait() -> None:
    pace = DutyCycle()
    assert pace.part_of("a", paced(0.5)) == 0.5
    pace.begin("b", 1, 0.0)
    pace.wait("a")
    shared = pace.part_of("a", paced(0.5))
    assert shared < 0.5, "it shares the board's budget"
    pace.wait("c")
    assert pace.part_of("a", paced(0.5)) < shared
    assert pace.part_of("a", full_grant(8, 4)) == 1.0, "without a limit nobody takes turns"


def test_the_slowest_models_row_counts() -> None:
    pace = DutyCycle()
    assert pace.row_s() is None
    pace.begin("a", 4, 0.0)
    pace.end("a", 1.0)
    pace.begin("b", 1, 1.0)
    pace.end("b", 2.0)
    assert pace.row_s() == pytest.approx(1.0)
    pace.forget("b")
    assert pace.row_s() == pytest.approx(0.25)


def test_encoders_take_turns_and_rest_together() -> None:
    pace = DutyCycle()
    pace.begin("a", 4, 10.0)
    assert pace.rest_s("b", paced(0.5), 10.5) == math.inf, "one at a time"
    assert pace.rest_s("b", full_grant(8, 4), 10.5) == 0.0, "where heat does not limit, the system shares the cores out"
    pace.end("a", 11.0)
    assert pace.rest_s("b", paced(0.5), 11.0) == pytest.approx(1.0), "what one has spent all have to earn"
    assert pace.rest_s("b", paced(0.5), 12.0) == 0.0


def test_fewer_threads_are_for_one_model_at_a_time_too() -> None:
    pace = DutyCycle()
    pace.begin("a", 4, 10.0)
    fewer = Grant(Level.REDUCED, 8, 2, None, "", of_threads=4)
    assert fewer.takes_turns
    assert pace.rest_s("b", fewer, 10.5) == math.inf
    pace.end("a", 11.0)
    assert pace.rest_s("b", fewer, 11.0) == 0.0


def test_whose_last_step_is_longest_ago_goes_first() -> None:
    pace = DutyCycle()
    for name, ended_s in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        pace.begin(name, 1, ended_s - 0.1)
        pace.end(name, ended_s)
    for name in ("a", "b"):
        pace.wait(name)
    assert pace.rest_s("a", paced(0.5), 9.0) == math.inf
    assert pace.rest_s("b", paced(0.5), 9.0) == 0.0
    pace.wait("new")
    assert pace.rest_s("b", paced(0.5), 9.0) == math.inf, "who never had a turn is before both"
    pace.leave("new")
    pace.leave("b")
    assert pace.rest_s("a", paced(0.5), 9.0) == 0.0


def test_a_worker_that_hangs_holds_nobody_up_for_long() -> None:
    pace = DutyCycle()
    pace.begin("a", 1, 0.0)
    assert pace.rest_s("b", paced(0.5), PACED_STEP_S - 0.1) == math.inf
    assert pace.rest_s("b", paced(0.5), PACED_STEP_S) == 0.0


def test_generators_share_the_time_and_encoders_have_a_part_while_they_step_or_rest() -> None:
    pace = DutyCycle()
    assert pace.share_out(paced(0.5), 0.0) == 0.5
    pace.begin("g", 1, 0.0, streams=True)
    assert pace.share_out(paced(0.5), 0.0) == 0.5
    pace.begin("h", 1, 0.0, streams=True)
    two = pace.share_out(paced(0.5), 0.0)
    assert two == pytest.approx(1.0 - math.sqrt(0.5), abs=1e-3), "together half of the time, with all cores or none"
    pace.begin("a", 8, 1.0)
    three = pace.share_out(paced(0.5), 1.0)
    assert 0.5 / 3 < three < two
    pace.end("a", 2.0)
    rest_s = 1.0 / three - 1.0
    assert pace.rest_s("a", paced(0.5), 2.0) == pytest.approx(rest_s, rel=1e-3)
    assert pace.share_out(paced(0.5), 2.0 + 0.9 * rest_s) == three
    assert pace.share_out(paced(0.5), 2.1 + rest_s) == two, "it used its part and takes none of the next"
    assert pace.share_out(paced(0.0), 9.0) == 0.0
    assert pace.share_out(full_grant(8, 4), 9.0) == 1.0


def test_what_generators_and_encoders_spend_together_is_what_was_granted() -> None:
    pace = DutyCycle()
    pace.busy_share(0.0)
    for name in ("g", "h"):
        pace.begin(name, 1, 0.0, streams=True)
    pace.share_out(paced(0.4), 0.0)
    assert pace.busy_share(10.0) == pytest.approx(0.4)


def test_two_models_compute_in_turns_and_spend_together_what_is_granted() -> None:
    """Two models with work for ever at a quarter of the time: their steps do not overlap, and have it together."""

    async def scenario(device: Device) -> None:
        device.context.grant = replace(full_grant(1, 4), level=Level.REDUCED, busy_share=0.25)
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
        device.context.grant = replace(full_grant(8, 4), level=Level.REDUCED, busy_share=0.5)
        for name in ("g", "h"):
            await device.ask(name, {"prompt": "once"}, model=name)
            await later(0.1)
        parts = {worker.limits["busy_permille"] for worker in device.spawner.workers}
        assert parts == {293}

    generators = [replace(a_model(name), task=TaskSpec("generate", max_tokens=64)) for name in ("g", "h")]
    Device.run(scenario, *generators, plan=Plan(compute_s=None, sequences=2, mixed=False))


def test_telemetry_says_what_heat_allows() -> None:
    entry = governor_entry(Grant(Level.REDUCED, 4, 2, None, "77.4 °C", 0.5, 0.75, 1, 0.4, 77.4, 77.96, 2.04, "gone"))
    assert entry == {
        "level": "reduced", "max_rows": 4, "threads": 2, "busy_share": 0.5, "clock": 0.75, "tier": 1,
        "forecast_c": 78.0, "headroom_c": 2.0, "derated": "gone", "disagree": None, "why": "77.4 °C",
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
