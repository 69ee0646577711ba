"""Figures as text: short, and true to the figure."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import GIB, KIB, MIB
from edge_agent.base.units import bytes_text, duration_text, energy_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB, "1.0 MiB"),
        (200 * MIB, "200.0 MiB"),
        (3.5 * GIB, "3.5 GiB"),
        (64 * GIB, "64.0 GiB"),
        (-2 * MIB, "-2.0 MiB"),
        (MIB - 1, "1.0 MiB"),
        (GIB - 1, "1.0 GiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 ms"),
        (0.0042, "4.2 ms"),
        (0.9, "900.0 ms"),
        (0.99999, "1.0 s"),
        (1, "1.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min 00 s"),
        (60, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3600, "60 min 00 s"),
        (-0.25, "-250.0 ms"),
        (-75, "-1 min 15 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


SIZES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


@given(st.integers(0, 2**45))
def test_bytes_read_back_within_the_last_digit(count: int) -> None:
    figure, unit = bytes_text(count).split()
    assert abs(float(figure) * SIZES[unit] - count) <= 0.051 * SIZES[unit]
    assert float(figure) < 1024 or unit == "GiB"


@given(st.floats(0, 1e6))
def test_durations_read_back_within_the_last_digit(seconds: float) -> None:
    text = duration_text(seconds)
    match = re.fullmatch(r"(?:(\d+) min )?([\d.]+) (ms|s)", text)
    assert match, text
    minutes, figure, unit = match.groups()
    scale = 0.001 if unit == "ms" else 1.0
    read_s = 60 * int(minutes or 0) + float(figure) * scale
    assert abs(read_s - seconds) <= (0.501 if minutes else 0.051 * scale)
    assert float(figure) < (1000 if unit == "ms" else 60)


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (0.0, "0 mJ"),
        (0.0123, "12.3 mJ"),
        (0.00000123, "0.00123 mJ"),
        (0.9994, "999 mJ"),
        (0.9996, "1 J"),
        (2.5, "2.5 J"),
    ],
)
def test_joules_change_their_unit_at_one(joules: float, text: str) -> None:
    assert energy_text(joules) == text
