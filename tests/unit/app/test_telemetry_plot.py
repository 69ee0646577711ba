"""The picture of a recorded hour: what is missing is said, names do not overlap, the axis is the time of day."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.app.telemetry_plot import COLUMNS, NO_SENSOR, apart, draw

BEGIN_S = 1795867205  # 2026-11-28 12:00:05 UTC


def texts(tmp_path, rows):
    """What is written in the picture, and where: text to its height."""
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(rows, tmp_path / "out.svg")
    svg = (tmp_path / "out.svg").read_text()
    found = re.findall(r'<text [^>]*?(?:y="([0-9.]+)"|translate\([-0-9.]+ ([0-9.]+)\))[^>]*>([^<]+)</text>', svg)
    return {text: float(one or other) for one, other, text in found}


def row(at_s, **values):
    return {
        **dict.fromkeys(COLUMNS, ""), "time": str(at_s), "device": "pi", "interval_s": "10", "model": "minilm",
        "requests": "5", "p50_ms": "4.0", "p99_ms": "4.1", **values,
    }  # fmt: skip


def test_a_device_without_a_sensor_is_said_to_have_none(tmp_path):
    silent = [row(BEGIN_S + 10 * number) for number in range(60)]
    assert NO_SENSOR in texts(tmp_path, silent)
    warm = [row(BEGIN_S + 10 * number, temperature_c="51.2") for number in range(60)]
    found = texts(tmp_path, warm)
    assert NO_SENSOR not in found
    assert "temperature" in found


def test_panels_without_a_model_say_so(tmp_path):
    found = texts(tmp_path, [row(BEGIN_S, model="", requests="", p50_ms="", p99_ms="")])
    assert {"no model was asked", "no request was answered"} <= set(found)


def test_the_axis_is_the_time_of_day(tmp_path):
    found = texts(tmp_path, [row(BEGIN_S + 10 * number) for number in range(61)])
    assert "time of day, UTC: 2026-11-28 12:00:05 to 12:10:05" in found
    assert "12:05" in found
    over_midnight = texts(tmp_path, [row(BEGIN_S + 3600 * number) for number in range(20)])
    assert "time of day, UTC: 2026-11-28 12:00:05 to 2026-11-29 07:00:05" in over_midnight


def test_names_of_lines_that_end_together_do_not_lie_over_each_other(tmp_path):
    models = [f"m{number}" for number in range(4)]
    rows = [row(BEGIN_S + 10 * step, model=model) for step in range(30) for model in models]
    found = texts(tmp_path, rows)
    heights = sorted(found[f"{model}, {what}"] for model in models for what in ("half", "99 in 100"))
    assert all(upper - lower > 9.0 for lower, upper in itertools.pairwise(heights))  # of a font of nine points


@given(st.lists(st.floats(0, 500), max_size=12), st.floats(1, 20))
def test_heights_are_moved_apart_and_keep_their_order(heights, gap):
    placed = apart(heights, gap)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    assert all(placed[b] - placed[a] >= gap * (1 - 1e-9) - 1e-9 for a, b in itertools.pairwise(order))
    assert sum(placed) == pytest.approx(sum(heights), abs=1e-6)
    if all(heights[b] - heights[a] >= gap for a, b in itertools.pairwise(order)):
        assert placed == pytest.approx(heights)
