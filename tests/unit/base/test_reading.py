"""A reading is a value or a reason, never both, never neither."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable


def test_a_value_needs_no_reason_and_takes_none() -> None:
    assert Reading(41.5, "celsius", "thermal_zone0", 0.0).reason is None
    with pytest.raises(ValueError, match="either a value or a reason"):
        Reading(41.5, "celsius", "thermal_zone0", 0.0, "but why")


def test_no_value_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="either a value or a reason"):
        Reading(None, "celsius", "thermal_zone0", 0.0)


def test_zero_is_a_value() -> None:
    assert Reading(0.0, "flags", "throttled", 0.0).fresh(0.0, 1.0)


def test_unavailable_is_never_fresh_and_keeps_its_reason() -> None:
    reading = unavailable("watts", "hwmon", 5.0, "this board has no power sensor")
    assert (reading.value, reading.reason) == (None, "this board has no power sensor")
    assert not reading.fresh(5.0, 1e9)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_freshness_is_age(taken_s: float, later_s: float, max_age_s: float) -> None:
    reading = Reading(1.0, "count", "test", taken_s)
    now_s = taken_s + later_s
    assert reading.age_s(now_s) == max(0.0, now_s - taken_s)
    assert reading.fresh(now_s, max_age_s) == (reading.age_s(now_s) <= max_age_s)


def test_a_sample_from_ahead_has_no_negative_age() -> None:
    assert Reading(1.0, "count", "test", 10.0).age_s(9.0) == 0.0


def test_a_reading_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Reading(1.0, "count", "test", 0.0).value = 2.0  # type: ignore[misc]
