"""The bounds, and that the relations between them are asserted where they stand."""

from __future__ import annotations

import pathlib

import pytest

from edge_agent.base import limits

SOURCE = pathlib.Path(limits.__file__).read_text(encoding="utf-8")


def test_every_bound_is_a_positive_number_and_only_the_highest_priority_is_zero() -> None:
    bounds = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert bounds
    assert {name for name, value in bounds.items() if not value > 0} == {"PRIORITY_HIGHEST"}


@pytest.mark.parametrize(
    ("bound", "broken"),
    [
        ("TEXT_BYTES = 32 * KIB", "TEXT_BYTES = 256 * KIB"),
        ("RECEIVE_MAXIMUM = 64", "RECEIVE_MAXIMUM = 512"),
        ("FRAME_BYTES = 4 * MIB", "FRAME_BYTES = 128 * KIB"),
        ("QUEUE_JOBS = 256", "QUEUE_JOBS = 8192"),
        ("EVENT_BYTES = 16 * KIB", "EVENT_BYTES = 4 * MIB"),
        ("PRIORITY_DEFAULT = 5", "PRIORITY_DEFAULT = 10"),
    ],
)
def test_a_bound_that_breaks_a_relation_does_not_import(bound: str, broken: str) -> None:
    assert SOURCE.count(bound) == 1
    with pytest.raises(AssertionError):
        exec(compile(SOURCE.replace(bound, broken), "limits", "exec"), {})
    exec(compile(SOURCE, "limits", "exec"), {})
