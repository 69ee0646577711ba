"""The judge of a version on trial: sure verdicts, unsure ends, and that it never decides on too little."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.version_trial import (
    LEVEL,
    MOST_DEATHS,
    MOST_PAIRS,
    MOST_RESTARTS,
    RESTART_S,
    Pair,
    TrialState,
    VersionTrial,
    looks,
    median_interval,
    quantile,
    wilson,
)
from edge_agent.protocol.messages import TrialOrder

TERMS = TrialOrder(least=25, most=400, within_s=3600.0)


def same(ms: float = 10.0, new_ms: float = 10.0, drop: float = 0.0, agrees: bool = True) -> Pair:
    return Pair(None, agrees, ms, new_ms, 0.9, 0.9 - drop, 1.0, 1.0)


def played(trial: VersionTrial, pairs: list[Pair]) -> VersionTrial:
    for pair in pairs:
        trial.add(pair)
    return trial


def test_an_equal_version_is_promoted_as_soon_as_that_is_sure() -> None:
    trial = played(VersionTrial(TERMS), [same()] * 400)
    assert trial.verdict is not None and trial.verdict.sure and trial.state is TrialState.PROMOTED
    # 25 and 50 equal answers do not show that 90 % agree and that at most 5 % fail.
    assert trial.seen == 200 and "after 200 requests" in trial.verdict.reason


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        (same(agrees=False), "agreement 0.000"),
        (same(new_ms=30.0), "latency 3.000"),
        (same(drop=0.4), "confidence drop 0.400"),
        (Pair("the worker refused it"), "failures 1.000"),
    ],
)
def test_a_bad_version_returns_at_the_first_look_with_the_figure_that_was_bad(pair: Pair, word: str) -> None:
    trial = played(VersionTrial(TERMS), [pair] * 400)
    assert trial.verdict is not None and trial.verdict.sure and trial.state is TrialState.RETURNED
    assert trial.seen == TERMS.least and word in trial.verdict.reason


def test_a_slow_tail_returns_a_version_whose_median_is_equal() -> None:
    pairs = [same(new_ms=100.0 if number % 3 == 0 else 10.0) for number in range(400)]
    trial = played(VersionTrial(TERMS), pairs)
    assert trial.state is TrialState.RETURNED and trial.verdict is not None
    assert "latency p95" in trial.verdict.reason and trial.figures()["new_p95_ms"] == 100.0


def test_joules_are_judged_only_where_the_terms_ask_for_it() -> None:
    costly = Pair(None, True, 10.0, 10.0, 0.9, 0.9, 1.0, 3.0)
    assert played(VersionTrial(TERMS), [costly] * 400).state is TrialState.PROMOTED
    asked = TrialOrder(least=25, most=400, within_s=3600.0, joules=1.5)
    trial = played(VersionTrial(asked), [costly] * 400)
    assert trial.state is TrialState.RETURNED and trial.figures()["joules_ratio"] == 3.0


@pytest.mark.parametrize("promote", [True, False])
def test_what_is_not_sure_by_the_end_is_decided_by_the_terms(promote: bool) -> None:
    expected = TrialState.PROMOTED if promote else TrialState.RETURNED
    terms = TrialOrder(least=25, most=60, within_s=3600.0, otherwise="promote" if promote else "return")
    by_count = played(VersionTrial(terms), [same()] * 60)
    by_time = VersionTrial(terms)
    by_time.spend(3599.0)
    assert by_time.verdict is None
    by_time.spend(1.0)
    for trial in (by_count, by_time):
        assert trial.state is expected and trial.verdict is not None and not trial.verdict.sure
    assert by_time.verdict is not None and "no request was compared" in by_time.verdict.reason


def test_deaths_and_restarts_return_a_version_without_statistics() -> None:
    trial = VersionTrial(TERMS)
    for _ in range(MOST_DEATHS - 1):
        trial.died("killed by signal 11")
    assert trial.verdict is None
    trial.died("killed by signal 11")
    assert trial.state is TrialState.RETURNED and "signal 11" in str(trial.verdict)
    again = VersionTrial(TERMS, spent_s=10.0, restarts=MOST_RESTARTS - 2)
    again.restarted()
    assert again.verdict is None and again.spent_s == 10.0 + RESTART_S
    again.restarted()
    assert again.state is TrialState.RETURNED


def test_a_daemon_that_is_stopped_by_order_says_nothing_against_the_version():
    trial = VersionTrial(TERMS)
    for count in range(1, MOST_RESTARTS * 2):
        trial.stopped()
        trial.restarted()
        assert trial.verdict is None and trial.spent_s == count * RESTART_S


PAIRS = st.builds(
    Pair,
    st.sampled_from([None, None, None, "failed"]),
    st.booleans(),
    st.none() | st.floats(0.0, 1e6),
    st.none() | st.floats(0.0, 1e6),
    st.none() | st.floats(0.0, 1.0),
    st.none() | st.floats(0.0, 1.0),
    st.none() | st.floats(0.0, 1e3),
    st.none() | st.floats(0.0, 1e3),
)
EVENTS = st.lists(PAIRS | st.floats(0.0, 500.0) | st.sampled_from(["died", "restarted"]), max_size=150)


@given(EVENTS, st.integers(1, 40), st.integers(0, 100), st.booleans())
def test_every_history_ends_at_most_once_and_within_its_bounds(
    events: list[Pair | float | str], least: int, more: int, promote: bool
) -> None:
    trial = VersionTrial(
        TrialOrder(least=least, most=least + more, within_s=5000.0, otherwise="promote" if promote else "return")
    )
    ended = None
    for event in events:
        if isinstance(event, Pair):
            trial.add(event)
        elif isinstance(event, float):
            trial.spend(event)
        else:
            getattr(trial, event)(*(["why"] if event == "died" else []))
        if ended is not None:
            assert trial.verdict is ended
        ended = trial.verdict
        trial.figures()
        trial.findings()
    assert trial.seen <= least + more and trial.agreed + trial.failed <= trial.seen
    if trial.seen == least + more or trial.spent_s >= 5000.0 or trial.deaths >= MOST_DEATHS:
        assert trial.verdict is not None
    if trial.state is TrialState.PROMOTED and trial.verdict is not None and trial.verdict.sure:
        assert trial.seen >= least and not any(one.bad for one in trial.findings())


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_looks_rise_from_the_least_to_the_most(least: int, most: int) -> None:
    found = looks(TrialOrder(least=least, most=max(least, most)))
    assert found[0] == least and found[-1] == max(least, most) and list(found) == sorted(set(found))


def test_a_version_exactly_at_the_threshold_is_rarely_decided_wrongly() -> None:
    """Of 300 trials of a version that agrees in exactly 90 %, about 1 % may end surely, over all looks together."""
    source, wrong = random.Random(7), 0
    for _ in range(300):
        trial = played(VersionTrial(TERMS), [same(agrees=source.random() < 0.9) for _ in range(400)])
        wrong += trial.verdict is not None and trial.verdict.sure
    assert wrong <= 9  # 3 expected; 10 or more have a chance below 0.1 %


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_contains_the_share_and_narrows_with_the_level(hits: int, of: int) -> None:
    hits = min(hits, of)
    wide, narrow = wilson(hits, of, LEVEL), wilson(hits, of, 0.5)
    assert 0.0 <= wide.low <= narrow.low <= hits / of + 1e-12 and hits / of - 1e-12 <= narrow.high <= wide.high <= 1.0


def test_wilson_is_the_published_one() -> None:
    """15 of 148 at 95 %: Newcombe 1998 (Statistics in Medicine 17), method 3, gives 0.0624 to 0.1605."""
    found = wilson(15, 148, 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)
    assert NormalDist().inv_cdf(0.975) == pytest.approx(1.96, abs=1e-3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_the_median_lies_in_its_interval(values: list[float]) -> None:
    found = median_interval(values, LEVEL)
    assert found.low <= found.value <= found.high
    assert len(values) >= 8 or found.high == float("inf")


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([], 0.95) is None and quantile([3.0], 0.95) == 3.0
    assert quantile(list(map(float, range(1, 101))), 0.95) == 95.0


def hot(old_c: float, new_c: float) -> Pair:
    return Pair(None, True, 10.0, 10.0, 0.9, 0.9, old_c=old_c, new_c=new_c)


@pytest.mark.parametrize(
    ("pair", "state"),
    [
        (hot(60.0, 61.0), TrialState.PROMOTED),
        (hot(60.0, 75.0), TrialState.RETURNED),
        (hot(75.0, 75.0), TrialState.PROMOTED),  # a hot room
    ],
)
def test_a_version_that_heats_the_board_goes_back_and_a_hot_room_is_not_its_doing(
    pair: Pair, state: TrialState
) -> None:
    trial = played(VersionTrial(TrialOrder(least=25, most=400, within_s=3600.0, temperature_c=70.0)), [pair] * 400)
    assert trial.verdict is not None and trial.verdict.sure and trial.state is state, trial.verdict
    assert ("heat: above 70 °C after 100.0%" in trial.verdict.reason) == (pair.new_c == 75.0)
    assert trial.figures()["new_p95_c"] == pair.new_c


def test_heat_is_not_judged_without_a_threshold_or_a_sensor() -> None:
    assert all(one.name != "heat" for one in played(VersionTrial(TERMS), [hot(60.0, 99.0)] * 30).findings())
    asked = TrialOrder(least=25, most=400, within_s=3600.0, temperature_c=70.0)
    assert all(one.name != "heat" for one in played(VersionTrial(asked), [same()] * 30).findings())


def test_a_trial_that_goes_on_from_its_samples_ends_as_one_that_was_not_interrupted() -> None:
    source = random.Random(11)
    pairs = [same(new_ms=source.uniform(8.0, 13.0), drop=source.uniform(0.0, 0.05)) for _ in range(400)]
    whole, first = played(VersionTrial(TERMS), pairs), played(VersionTrial(TERMS), pairs[:90])
    again = played(VersionTrial(TERMS, known=first.samples(2, "sha256:a")), pairs[90:])
    assert whole.verdict is not None and again.verdict is not None
    assert (again.state, again.seen, again.agreed) == (whole.state, whole.seen, whole.agreed)
    ratio = whole.figures()["latency_ratio"]
    assert again.figures()["latency_ratio"] == pytest.approx(ratio, rel=1e-3), "figures are kept with four digits"


@pytest.mark.parametrize(
    "changed",
    [
        {"seen": -1},
        {"agreed": 99},
        {"seen": MOST_PAIRS + 1},
        {"ratios": (1.0,)},
        {"drops": (math.nan,)},
        {"joules": (1.0,) * 99},
        {"new_c": (50.0,)},
    ],
)
def test_samples_that_cannot_be_are_counted_anew(changed: dict[str, Any]) -> None:
    found = replace(played(VersionTrial(TERMS), [same()] * 5).samples(2, "sha256:a"), **changed)
    assert VersionTrial(TERMS, known=found).seen == 0
