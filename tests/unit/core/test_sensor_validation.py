"""Believing a temperature: late is bridged, lost and frozen are not, the hotter of two counts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.sensor_validation import (
    DISAGREE_C,
    FROZEN_AFTER_S,
    RECOVERY_S,
    STALE_S,
    DieConditions,
    SensorState,
    ValidatedTemperature,
    validate,
)

COLD = DieConditions(3.2, 2.2)


def at(value_c: float, taken_s: float) -> Reading:
    return Reading(value_c, "celsius", "cpu", taken_s)


def lost(now_s: float) -> Reading:
    return unavailable("celsius", "cpu", now_s, "the file is gone")


def flickering(
    state: SensorState, seconds: int, start_s: float = 0.0, die: DieConditions = COLD
) -> tuple[ValidatedTemperature, SensorState]:
    validated = ValidatedTemperature(None)
    for second in range(seconds):
        now_s = start_s + second
        validated, state = validate(at(50.0 + 0.55 * (second % 2), now_s), None, state, die, now_s)
    return validated, state


def test_a_fresh_number_is_believed() -> None:
    validated, _ = validate(at(50.0, 0.0), None, SensorState(), COLD, 1.0)
    assert validated == ValidatedTemperature(50.0)


def test_a_machine_that_never_had_one_is_not_lost() -> None:
    validated, state = validate(lost(0.0), None, SensorState(), COLD, 100.0)
    assert (validated.value_c, validated.lost, state.seen) == (None, None, False)


def test_a_late_sample_is_neither_believed_nor_lost_until_it_is_stale() -> None:
    _, state = flickering(SensorState(), 10)
    validated, state = validate(lost(10.0), None, state, COLD, 9.0 + STALE_S - 0.1)
    assert validated == ValidatedTemperature(None)
    validated, state = validate(lost(10.0), None, state, COLD, 9.0 + STALE_S)
    assert validated.lost == "the file is gone"


def test_an_old_sample_is_not_fresh() -> None:
    _, state = flickering(SensorState(), 10)
    validated, _ = validate(at(50.0, 9.0), None, state, COLD, 9.0 + STALE_S + 0.1)
    assert validated.lost == "the last sample is too old (5 s)"


def test_one_that_comes_back_must_behave_first() -> None:
    _, state = flickering(SensorState(), 10)
    _, state = validate(lost(20.0), None, state, COLD, 20.0)
    for after_s in range(int(RECOVERY_S)):
        validated, state = validate(at(51.0 + after_s, 21.0 + after_s), None, state, COLD, 21.0 + after_s)
        assert validated.value_c is None
    validated, _ = validate(at(54.0, 24.0), None, state, COLD, 24.0)
    assert validated.value_c == 54.0


def test_unchanged_while_the_load_moved_the_die_is_frozen() -> None:
    validated, state = validate(at(50.0, 0.0), None, SensorState(), COLD, 0.0)
    hot = DieConditions(3.2 + 1.0, 2.2)
    for second in range(1, int(FROZEN_AFTER_S)):
        validated, state = validate(at(50.0, second), None, state, hot, float(second))
        assert validated.value_c == 50.0
    validated, state = validate(at(50.0, 10.0), None, state, hot, 10.0)
    assert validated.lost == "it has said 50.0 °C for 10 s while the load must have moved it"
    validated, state = validate(at(50.0, 11.0), None, state, hot, 11.0)
    assert validated.lost is not None
    for second in range(12, 40):
        validated, state = validate(at(50.0, second), None, state, COLD, float(second))
        assert validated.lost is not None, "the load went back, the reading did not: still frozen"
    validated, state = flickering(state, 10, 50.0)
    assert validated.value_c is not None


def test_how_long_it_has_not_moved_is_told() -> None:
    state = SensorState()
    for second in range(301):
        validated, state = validate(at(50.0, second), None, state, COLD, float(second))
    assert (validated.value_c, validated.unchanged_s, validated.lost) == (50.0, 300.0, None), (
        "a calm sensor is no frozen one"
    )


def test_the_second_source_stands_in_and_the_hotter_counts() -> None:
    second = Reading(55.0, "celsius", "jtop", 0.0)
    assert validate(lost(0.0), second, SensorState(), COLD, 0.0)[0].value_c == 55.0
    assert validate(at(50.0, 0.0), second, SensorState(), COLD, 0.0)[0] == ValidatedTemperature(55.0)
    assert validate(at(70.0, 0.0), second, SensorState(), COLD, 0.0)[0] == ValidatedTemperature(
        70.0, None, "cpu says 70.0 °C, jtop 55.0 °C"
    )
    assert validate(at(40.0, 0.0), second, SensorState(), COLD, 0.0)[0] == ValidatedTemperature(
        55.0, None, "cpu says 40.0 °C, jtop 55.0 °C"
    )


def test_a_disagreement_at_the_edge_does_not_flicker() -> None:
    state, said = SensorState(), []
    for second, off_c in enumerate((9.9, 10.1, 9.9, 10.1, 8.1, 7.9, 9.9)):
        now_s = float(second)
        other = Reading(50.0 + off_c, "celsius", "jtop", now_s)
        validated, state = validate(at(50.0, now_s), other, state, COLD, now_s)
        said.append(validated.disagree is not None)
    assert said == [False, True, True, True, True, False, False]


temperatures = st.none() | st.floats(-30.0, 120.0) | st.just(math.nan)


@given(st.lists(st.tuples(temperatures, temperatures), max_size=40))
def test_what_is_believed_is_never_below_either_source(pairs: list[tuple[float | None, float | None]]) -> None:
    """Whatever the two say: a value that is believed is the hotter of those that are numbers, and a gap of more than
    ten degrees between two numbers is said, whichever is the hotter one."""
    state = SensorState()
    for second, values in enumerate(pairs):
        now_s = float(second)
        first, other = (lost(now_s) if value is None else at(value, now_s) for value in values)
        validated, state = validate(first, other, state, COLD, now_s)
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if validated.value_c is not None:
            assert validated.value_c == max(numbers)
        if len(numbers) == 2 and abs(numbers[0] - numbers[1]) > DISAGREE_C:
            assert validated.disagree is not None


def test_a_broken_second_source_changes_nothing() -> None:
    second = unavailable("celsius", "jtop", 0.0, "no service")
    assert validate(at(50.0, 0.0), second, SensorState(), COLD, 0.0)[0].value_c == 50.0
