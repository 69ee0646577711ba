"""Which variant answers while the chosen one is compiled: only the moves of the table, and what its rules promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.variant_fallback import (
    FALLBACK_ANSWERS,
    PAUSE_BASE_S,
    PAUSE_CAP_S,
    TRANSITIONS,
    FallbackEvent,
    FallbackState,
    VariantFallback,
)
from tests.support.fakes import a_model, a_variant

WANTED, OTHER = a_variant("engine", runtime="tensorrt"), a_variant("graph", runtime="onnx")
ACTS = {
    "missing": lambda one, now_s: one.engine_missing(WANTED, OTHER, "", now_s),
    "missing alone": lambda one, now_s: one.engine_missing(WANTED, None, "no memory", now_s),
    "loaded": lambda one, now_s: one.loaded(now_s),
    "passed": lambda one, now_s: one.passed(now_s),
    "failed": lambda one, now_s: one.failed(WANTED, OTHER, "it broke", now_s),
    "failed alone": lambda one, now_s: one.failed(WANTED, None, "it broke", now_s),
    "try again": lambda one, now_s: one.try_again(now_s),
    "lift": lambda one, now_s: one.lift(now_s),
    "replaced": lambda one, _now_s: one.replaced(),
}


def installed() -> InstalledModel:
    return replace(a_model("m", WANTED), variants=(WANTED, OTHER))


def walked(names: list[str]) -> VariantFallback:
    one = VariantFallback()
    for now_s, name in enumerate(names):
        before = (one.state, one.wanted, one.variant, one.failures)
        try:
            ACTS[name](one, float(now_s))
        except ValueError:
            assert (one.state, one.wanted, one.variant, one.failures) == before, "a refused move changes nothing"
    return one


@given(st.lists(st.sampled_from(list(ACTS)), max_size=30))
def test_the_chosen_variant_is_forgotten_or_waited_for(names: list[str]) -> None:
    one = walked(names)
    assert (one.wanted is None) == (one.state is FallbackState.CHOSEN)
    assert one.answers == (one.state in FALLBACK_ANSWERS and one.variant is not None)
    model = one.applied(installed())
    assert model.variant is (OTHER if one.answers else WANTED)
    assert one.left_s(1e9) == 0.0 and one.left_s(0.0) <= PAUSE_CAP_S + len(names)


@given(st.lists(st.sampled_from(list(ACTS)), max_size=30))
def test_another_version_ends_the_waiting(names: list[str]) -> None:
    one = walked(names)
    newer = a_variant("newer", runtime="tensorrt")
    assert one.applied(replace(installed(), variant=newer)).variant is newer
    assert one.wanted in (None, newer)


def test_it_takes_over_only_after_the_probes() -> None:
    to_chosen = {
        (before, event)
        for before, moves in TRANSITIONS.items()
        for event, after in moves.items()
        if after is FallbackState.CHOSEN and before is not FallbackState.CHOSEN
    }
    assert {event for _, event in to_chosen} == {FallbackEvent.PASSED, FallbackEvent.LIFTED, FallbackEvent.REPLACED}
    with pytest.raises(ValueError, match="'passed' cannot happen to a variant that is building beside"):
        walked(["missing"]).passed(1.0)


def test_each_failure_doubles_the_pause_up_to_a_day() -> None:
    one = walked(["missing", "failed"])
    pauses = [one.left_s(1.0)]
    for _ in range(10):
        one.try_again(2.0)
        one.failed(WANTED, OTHER, "again", 2.0)
        pauses.append(one.left_s(2.0))
    assert pauses[:3] == [PAUSE_BASE_S, 2 * PAUSE_BASE_S, 4 * PAUSE_BASE_S] and pauses[-1] == PAUSE_CAP_S


def test_a_lift_ends_the_pause_and_keeps_the_count() -> None:
    one = walked(["missing", "failed"])
    one.lift(5.0)
    assert one.state is FallbackState.CHOSEN and one.failures == 1
    one.failed(WANTED, OTHER, "again", 6.0)
    assert one.left_s(6.0) == 2 * PAUSE_BASE_S
    one.lift(7.0)
    one.passed(8.0)
    assert one.failures == 0
