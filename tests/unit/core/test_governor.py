"""Heat: limits that hold a set point, act before the soft limit, and fail towards cool."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.reading import Reading, unavailable
from edge_agent.core import governor
from edge_agent.core.governor import (
    DWELL_S,
    NO_SENSOR_SHARE,
    REVERSAL_SHARE,
    ComputeGrant,
    GovernorConfig,
    GovernorLevel,
    GovernorState,
    Observation,
    ReversalState,
    decide,
)
from edge_agent.core.sensor_validation import STALE_S
from edge_agent.core.thermal_model import prior_for

CLOCKS = tuple(clock / 24 for clock in range(15, 25))
CONFIG = GovernorConfig(80.0, max_rows=16, threads=4, hard_limit_c=85.0, prior=prior_for("pi-5"))
SET_POINT_C = 77.5


class Board:
    """A two-node board (a Pi 5 with a passive sink) that obeys the grant; each call of `second` is one second."""

    def __init__(self, config: GovernorConfig = CONFIG, ambient_c: float = 25.0, sink_k_per_w: float = 6.2) -> None:
        self.config, self.state, self.now_s = config, GovernorState(), 1000.0
        self.ambient_c, self.sink = ambient_c, sink_k_per_w
        self.t2 = ambient_c + 3.2 * sink_k_per_w
        self.t1 = self.t2 + 3.2 * 2.2
        self.work = 0.0
        self.grant = ComputeGrant(GovernorLevel.NORMAL, config.max_rows, config.threads, None, "")
        self.demand = 1.0

    def second(self, reading: Reading | None = None, observed: Observation | None = None) -> ComputeGrant:
        self.now_s += 1.0
        reading = reading or Reading(round(self.t1 / 0.55) * 0.55, "celsius", "cpu", self.now_s)
        busy = self.grant.duty_share * self.demand
        self.grant, self.state = decide(self.config, reading, self.state, self.now_s, observed or Observation(busy))
        busy = self.grant.duty_share * self.demand
        power = (0.15 + 0.85 * self.grant.threads / self.config.threads) * self.grant.clock**2
        watts = 3.2 + 7.5 * power * busy
        for _ in range(4):
            flow = (self.t1 - self.t2) / 2.2
            self.t1 += 0.25 * (watts - flow) / 3.5
            self.t2 += 0.25 * (flow - (self.t2 - self.ambient_c) / self.sink) / 30.0
        self.work += busy * self.grant.clock
        return self.grant

    def run(self, seconds: int) -> list[float]:
        temperatures = []
        for _ in range(seconds):
            self.second()
            temperatures.append(self.t1)
        return temperatures


def at(value_c: float, taken_s: float = 0.0) -> Reading:
    return Reading(value_c, "celsius", "test", taken_s)


def lost(taken_s: float = 0.0) -> Reading:
    return unavailable("celsius", "test", taken_s, "the file is gone")


def test_cool_gives_everything() -> None:
    grant = Board(sink_k_per_w=1.5).second()
    assert (grant.level, grant.max_rows, grant.threads, grant.closed) == (GovernorLevel.NORMAL, 16, 4, None)
    assert (grant.duty_share, grant.clock, grant.tier, grant.derated) == (1.0, 1.0, 0, None)
    assert "set point 77.5 °C, soft limit 80.0 °C" in grant.why


def test_a_board_that_has_cooled_down_opens_again_although_its_sensor_repeats_itself() -> None:
    """With nothing spent nothing moves: a calm sensor must not keep a cold board closed for ever."""
    board = Board()
    for second in range(30):
        board.second(at(82.0 + 0.5 * (second % 2), board.now_s + 1.0))
    assert board.grant.level >= GovernorLevel.CLOSED
    opened = next((n for n in range(240) if board.second(at(25.0, board.now_s + 1.0)).closed is None), None)
    assert opened is not None
    assert 0.0 < board.grant.power_share <= NO_SENSOR_SHARE, "no more than what is allowed without a temperature"


@pytest.mark.parametrize("ambient_c", [10.0, 25.0, 40.0])
@pytest.mark.parametrize("clocks", [(), CLOCKS])
def test_it_settles_at_the_set_point_and_never_reaches_the_soft_limit(
    ambient_c: float, clocks: tuple[float, ...]
) -> None:
    board = Board(GovernorConfig(80.0, 16, 4, 85.0, prior_for("pi-5"), clocks), ambient_c)
    temperatures = board.run(1500)
    assert max(temperatures) < 80.0
    settled = temperatures[900:]
    assert abs(sum(settled) / len(settled) - SET_POINT_C) < 0.8
    assert board.grant.level is GovernorLevel.REDUCED


def test_where_the_clock_may_be_set_more_work_is_done_at_the_same_temperature() -> None:
    pausing, clocked = Board(), Board(GovernorConfig(80.0, 16, 4, 85.0, prior_for("pi-5"), CLOCKS))
    pausing.run(1200)
    clocked.run(1200)
    assert clocked.grant.clock < 1.0 == pausing.grant.clock
    assert clocked.work > 1.2 * pausing.work


def test_a_load_that_waits_for_memory_loses_threads_before_time() -> None:
    board = Board()
    for _ in range(900):
        board.second(observed=Observation(board.grant.duty_share, bandwidth_bound=True))
    assert board.grant.threads in (2, 3)
    assert board.grant.duty_share > 0.5


def test_it_follows_a_room_that_gets_warmer() -> None:
    board = Board()
    board.run(900)
    before = board.grant.power_share
    board.ambient_c = 35.0
    assert max(board.run(900)) < 80.0
    assert board.grant.power_share < before - 0.1


def test_a_cooled_board_gets_everything_back() -> None:
    board = Board()
    board.run(600)
    assert board.grant.power_share < 1.0
    board.sink = 1.0
    board.run(600)
    grant = board.grant
    assert (grant.level, grant.power_share, grant.duty_share, grant.threads) == (GovernorLevel.NORMAL, 1.0, 1.0, 4)


def test_at_the_soft_limit_it_closes_with_the_numbers() -> None:
    grant, _ = decide(CONFIG, at(80.0), GovernorState(), 0.0)
    assert grant.level is GovernorLevel.CLOSED
    assert grant.closed == Closure(Cause.HEAT, "too hot: 80.0 °C, set point 77.5 °C, soft limit 80.0 °C")


def test_near_the_hard_limit_nothing_starts() -> None:
    grant, state = decide(CONFIG, at(84.2), GovernorState(), 0.0)
    assert (grant.level, grant.duty_share) == (GovernorLevel.EMERGENCY, 0.0)
    grant, _ = decide(CONFIG, at(84.2, 1.0), state, 1.0)
    assert grant.level is GovernorLevel.EMERGENCY


def test_a_board_whose_idle_is_too_hot_refuses_and_says_why() -> None:
    board = Board(ambient_c=40.0, sink_k_per_w=10.0)
    board.run(60)
    assert board.grant.duty_share == 0.0
    assert board.grant.level >= GovernorLevel.CLOSED
    assert board.grant.closed is not None


def test_long_steps_get_fewer_rows_while_they_are_paced_and_only_then() -> None:
    board = Board()
    assert board.second(observed=Observation(1.0, row_s=0.5)).max_rows == 16
    board.run(600)
    grant = board.second(observed=Observation(board.grant.duty_share, row_s=0.5))
    assert grant.duty_share < 1.0
    assert 1 <= grant.max_rows < 8
    assert board.second(observed=Observation(board.grant.duty_share, row_s=0.001)).max_rows == 16


def test_a_cheaper_variant_is_asked_for_when_power_stays_short() -> None:
    board = Board(ambient_c=35.0)
    tiers = []
    for _ in range(600):
        board.second()
        tiers.append(board.grant.tier)
    assert tiers[0] == 0
    assert tiers[-1] == 1
    assert tiers.index(1) > governor.CHEAPER_AFTER_S


def test_throttle_flags_count_as_the_soft_limit() -> None:
    board = Board(sink_k_per_w=2.0)

    def flagged(word: int, seconds: int) -> float:
        for _ in range(seconds):
            noisy = at(board.t1 + 0.5 * (board.now_s % 2), board.now_s + 1.0)  # one that moves is not probed
            board.second(noisy, Observation(board.grant.duty_share, throttle_word=word))
        return board.grant.power_share

    assert flagged(0, 300) == 1.0
    assert flagged(0x8, 60) < 0.8
    assert flagged(0, 300) == 1.0
    assert flagged(0x50005, 30) == 1.0, "under-voltage is not heat"


def test_a_raised_soft_limit_holds_although_the_firmware_says_that_its_own_was_reached() -> None:
    """A Pi's flag means 80 °C; whoever sets 83 wants to be above."""
    means = {}
    for firmware_soft_c in (80.0, None):
        board = Board(replace(CONFIG, soft_limit_c=83.0, firmware_soft_c=firmware_soft_c))
        for second in range(1500):
            board.second(observed=Observation(board.grant.duty_share, throttle_word=0x8 if board.t1 >= 80.0 else 0))
            assert board.t1 < 83.0
            means[firmware_soft_c] = means.get(firmware_soft_c, 0.0) + (board.t1 / 600 if second >= 900 else 0.0)
    assert means[80.0] == pytest.approx(80.5, abs=0.8)
    assert means[None] < 80.0, "taken for the soft limit, the flag would hold the board under 80"


def test_where_the_firmware_ignores_a_clock_no_cap_counts_also_under_a_raised_soft_limit() -> None:
    board = Board(replace(CONFIG, soft_limit_c=83.0, firmware_soft_c=80.0, clocks=CLOCKS))
    board.run(1500)
    assert board.grant.clock < 1.0
    assert board.state.step_power_share == 1.0, "its 80.5 °C are in the zone where a Pi runs as fast as it likes"


def test_a_clock_that_is_refused_later_leaves_the_governor_able_to_go_on() -> None:
    """A point_index among points with clocks is not valid among points without clocks."""
    board = Board(replace(CONFIG, clocks=CLOCKS))
    board.run(600)
    assert board.state.point_index >= 4, "more points than there are without clocks"
    board.config = replace(CONFIG, clocks=())
    grant = board.second()
    assert (grant.clock, grant.threads) == (1.0, 4)
    assert max(board.run(600)) < 80.0


def test_the_forecast_is_what_happens() -> None:
    board = Board(sink_k_per_w=3.0)
    board.run(400)
    ahead_c = board.grant.forecast_c
    assert ahead_c is not None
    assert board.grant.headroom_c == pytest.approx(80.0 - ahead_c)
    assert board.run(10)[-1] == pytest.approx(ahead_c, abs=0.8)


def test_measured_power_corrects_the_assumed() -> None:
    board = Board()
    for _ in range(200):
        watts = Reading(3.2 + 0.5 * 7.5 * board.grant.duty_share, "watts", "pmic", board.now_s + 1.0)
        board.second(observed=Observation(board.grant.duty_share, power=watts))
    assert board.state.full_power_scale == pytest.approx(0.5, abs=0.05)


def test_a_late_sample_is_bridged_and_a_lost_sensor_derates() -> None:
    board = Board()
    board.run(600)
    share = board.grant.power_share
    for _ in range(int(STALE_S) - 1):
        grant = board.second(lost(board.now_s))
        assert grant.derated is None
    for _ in range(20):
        grant = board.second(lost(board.now_s))
    assert grant.derated == "the file is gone"
    assert grant.why == "temperature lost: the file is gone"
    assert grant.level is GovernorLevel.REDUCED
    assert grant.power_share < share


def test_a_sensor_lost_before_the_board_was_learned_leaves_little() -> None:
    board = Board(sink_k_per_w=1.5)
    board.second()
    for _ in range(20):
        grant = board.second(lost(board.now_s))
    assert grant.power_share == governor.NO_SENSOR_SHARE


def test_a_frozen_sensor_is_found_out_and_never_leads_above_the_hard_limit() -> None:
    board = Board()
    stuck_c = board.t1
    for _ in range(600):
        board.second(at(stuck_c, board.now_s + 1.0))
        assert board.t1 < 80.0
    assert board.grant.derated is not None
    assert "has said" in board.grant.derated


def test_a_calm_sensor_is_probed_and_not_taken_for_frozen() -> None:
    board = Board(sink_k_per_w=2.0)
    derated, shares = 0, []
    for _ in range(900):
        board.second()
        derated += board.grant.derated is not None
        shares.append(board.grant.power_share)
    assert derated == 0
    assert sum(shares) / len(shares) > 0.97


def test_a_sensor_that_comes_back_is_believed_again() -> None:
    board = Board(sink_k_per_w=1.5)
    board.run(200)
    for _ in range(20):
        board.second(lost(board.now_s))
    board.run(120)
    assert (board.grant.level, board.grant.power_share, board.grant.derated) == (GovernorLevel.NORMAL, 1.0, None)


def test_two_sources_the_hotter_counts_and_disagreement_is_said() -> None:
    grant, _ = decide(CONFIG, at(50.0), GovernorState(), 0.0, Observation(second=Reading(81.0, "celsius", "jtop", 0.0)))
    assert grant.level is GovernorLevel.CLOSED
    assert grant.disagree == "test says 50.0 °C, jtop 81.0 °C"


@pytest.mark.parametrize("value_c", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_temperature(value_c: float) -> None:
    board = Board()
    board.run(10)
    for _ in range(10):
        grant = board.second(at(value_c, board.now_s + 1.0))
    assert grant.derated is not None


def test_a_machine_without_a_sensor_is_not_held_back_and_says_so() -> None:
    board = Board()
    for _ in range(30):
        grant = board.second(lost(board.now_s))
    assert (grant.level, grant.max_rows, grant.power_share) == (GovernorLevel.NORMAL, 16, 1.0)
    assert grant.why == "no temperature sensor: the file is gone"


def test_an_unknown_board_is_not_held_back_and_says_so() -> None:
    grant, _ = decide(GovernorConfig(None, 8, 4), at(95.0), GovernorState(), 0.0)
    assert (grant.level, grant.why) == (GovernorLevel.NORMAL, "the board's soft limit is unknown")


READINGS = st.one_of(
    st.floats(-40, 130),
    st.sampled_from([math.nan, math.inf, -math.inf, 77.5, 74.5, 80.0, 77.0, 84.0]),
    st.none(),
)
STEPS = st.lists(st.tuples(READINGS, st.floats(0.0, 15.0), st.floats(0.0, 8.0)), min_size=1, max_size=60)
OTHERS = st.builds(
    Observation,
    busy_share=st.none() | st.floats(0, 1),
    row_s=st.none() | st.floats(0, 10),
    power=st.none() | st.builds(at, READINGS.filter(lambda value: value is not None)),
    second=st.none() | st.builds(at, st.floats(-40, 130)),
    throttle_word=st.integers(0, 0xFFFFF),
    bandwidth_bound=st.booleans(),
)


@settings(deadline=None)
@given(STEPS, OTHERS, st.none() | st.floats(40, 110), st.integers(1, 64), st.integers(1, 8), st.booleans())
def test_any_history_gives_sound_limits(
    steps: list[tuple[float | None, float, float]],
    observed: Observation,
    soft_limit_c: float | None,
    max_rows: int,
    threads: int,
    clocks: bool,
) -> None:
    config, state, now_s = (
        GovernorConfig(soft_limit_c, max_rows, threads, clocks=CLOCKS if clocks else ()),
        GovernorState(),
        0.0,
    )
    fell_s, point_s, point_index = -math.inf, -math.inf, 0
    for value_c, after_s, age_s in steps:
        now_s += after_s
        reading = lost(now_s - age_s) if value_c is None else at(value_c, now_s - age_s)
        before = state.level
        grant, state = decide(config, reading, state, now_s, observed)
        assert 1 <= grant.max_rows <= max_rows
        assert 1 <= grant.threads <= threads
        assert 0.0 <= grant.duty_share <= 1.0
        assert 0.0 <= grant.power_share <= 1.0
        assert grant.clock in (*CLOCKS, 1.0) if clocks else grant.clock == 1.0
        assert (grant.closed is not None) == (grant.level >= GovernorLevel.CLOSED)
        assert grant.why
        if grant.level is GovernorLevel.NORMAL:
            assert (grant.duty_share, grant.threads, grant.max_rows) == (1.0, threads, max_rows)
        if state.level != before:
            assert state.level > before or now_s - fell_s >= DWELL_S, "came down before the dwell time"
            fell_s = now_s
        if state.point_index != point_index:
            assert now_s - point_s >= DWELL_S, "threads or clock changed before the dwell time"
            point_index, point_s = state.point_index, now_s
        if state.model is not None:
            model = state.model
            assert 0.5 <= model.fast_k_per_w / config.prior.fast_k_per_w <= 2.0
            assert 0.2 <= model.slow_k_per_w / config.prior.slow_k_per_w <= 2.5


@given(st.floats(70, 84), st.integers(1, 40))
def test_the_same_arguments_give_the_same_answer(value_c: float, seconds: int) -> None:
    def history() -> list[ComputeGrant]:
        state, grants = GovernorState(), []
        for second in range(seconds):
            grant, state = decide(CONFIG, at(value_c, float(second)), state, float(second))
            grants.append(grant)
        return grants

    assert history() == history()


def turned_up(board: Board, high: float) -> None:
    """As if its duty share had come up to `high` in this second."""
    board.state = board.state._replace(
        reversal=ReversalState(1, high, board.now_s, board.state.point_index), duty_share=high
    )


@pytest.mark.parametrize("near", [False, True])
def test_a_pace_that_just_turned_up_is_taken_back_at_once_only_near_the_soft_limit(near: bool) -> None:
    board = Board()
    board.run(900)
    before = board.grant.duty_share
    turned_up(board, before + 0.15)
    for shift_c in (0.0, 0.05):
        board.second(at((79.9 if near else 77.5) + shift_c, board.now_s + 1.0))
    if near:
        assert board.grant.duty_share < before + 0.03
    else:
        kept = before + 0.15 - REVERSAL_SHARE
        assert board.grant.duty_share == pytest.approx(kept, abs=1e-3), "a tenth at most for ten seconds"


def test_a_pace_that_just_turned_up_is_taken_back_at_once_when_the_sensor_is_lost() -> None:
    board = Board()
    board.run(900)
    before = board.grant.duty_share
    for second in range(int(STALE_S) + 3):
        if second == int(STALE_S):
            turned_up(board, before + 0.15)
        board.second(lost(board.now_s + 1.0))
    assert board.grant.derated
    assert board.grant.duty_share < before


def steady(board: Board, celsius: float, seconds: int) -> None:
    """So many seconds of a sensor that shows this, and moves a little."""
    for second in range(seconds):
        board.second(at(celsius + 0.05 * (second % 2), board.now_s + 1.0))


def test_a_closed_board_opens_only_three_degrees_lower() -> None:
    board = Board()
    board.run(300)
    steady(board, 81.0, 30)
    assert board.grant.level is GovernorLevel.CLOSED
    steady(board, 78.0, 60)
    assert board.grant.level is GovernorLevel.CLOSED, "two degrees under the soft limit are not enough"
    steady(board, 76.0, 60)
    assert board.grant.level is GovernorLevel.REDUCED


def test_an_emergency_lasts_until_the_soft_limit_and_not_only_until_its_own() -> None:
    board = Board()
    board.run(300)
    steady(board, 85.5, 30)
    assert board.grant.level is GovernorLevel.EMERGENCY
    steady(board, 81.5, 40)
    assert (board.grant.level, board.grant.duty_share) == (GovernorLevel.EMERGENCY, 0.0)
    steady(board, 79.0, 40)
    assert board.grant.level is GovernorLevel.CLOSED


def test_the_dearer_variant_comes_back_after_five_minutes_and_not_after_one() -> None:
    state = GovernorState(tier=1, mean_power_share=1.0, tier_since_s=0.0)
    assert governor._with_tier(state, 299.0).tier == 1
    assert governor._with_tier(state, 300.0).tier == 0
    cheaper = GovernorState(tier=0, mean_power_share=0.4, tier_since_s=0.0)
    assert (governor._with_tier(cheaper, 59.0).tier, governor._with_tier(cheaper, 60.0).tier) == (0, 1)


def test_without_a_temperature_the_room_is_taken_to_be_warmer_than_it_was() -> None:
    board = Board()
    board.run(900)
    model = board.state.model
    assert model is not None
    share = governor._share_without_sensor(board.config, board.state, model, SET_POINT_C)
    warmer = model._replace(ambient_c=model.ambient_c + 5.0)
    known = governor.settled_w(
        warmer._replace(fast_k_per_w=1.2 * model.fast_k_per_w, slow_k_per_w=1.2 * model.slow_k_per_w),
        SET_POINT_C - 5.0,
    )
    assert share == pytest.approx(
        (known - board.config.prior.idle_w) / governor._full_dynamic_w(board.config, board.state)
    )


def test_an_old_power_sample_corrects_nothing() -> None:
    watts = Reading(30.0, "watts", "rail", 1000.0)
    state = GovernorState(duty_share=1.0, step_power_share=1.0)
    assert governor._full_power_scale(CONFIG, state, Observation(1.0, power=watts), 1004.0) > 1.0
    assert governor._full_power_scale(CONFIG, state, Observation(1.0, power=watts), 1006.0) == 1.0


def test_long_steps_lower_the_set_point_by_a_part_of_what_they_heat() -> None:
    smooth, rippled = Board(), Board()
    for _ in range(900):
        smooth.second()
        rippled.second(observed=Observation(rippled.grant.duty_share, row_s=0.3))
    assert rippled.state.temperature_c < smooth.state.temperature_c - 0.1
