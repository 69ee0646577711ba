"""Random histories of the desired state: none is stuck, none is half applied, what is reported is what the store holds.

A failing one is reproduced by `python -m tests.support.histories --only N`; 10,000 by `make histories HISTORIES=10000`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from edge_agent.core.desired_state import DesiredState
from edge_agent.store.disk import Blobs
from tests.support.histories import simulate

COUNT = 50


def test_every_version_ends_whatever_goes_wrong() -> None:
    counts: Counter[str] = Counter()
    for seed in range(COUNT):
        outcome = simulate(seed)
        assert not outcome.complaints, str(outcome)
        counts += outcome.counts
    assert counts["item applied"] > 2 * COUNT and counts["item refused"] > COUNT / 4, "they are not idle"
    assert counts["from a stick"] > COUNT / 10
    assert counts["cut in a change"] > COUNT / 10 and counts["kill"] > COUNT / 4 and counts["full"] > COUNT / 4


def test_a_seed_is_the_same_history_every_time() -> None:
    for seed in (3, 56):
        assert list(simulate(seed).trace) == list(simulate(seed).trace)


def test_a_state_that_never_ends_and_a_store_that_loses_a_file_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(DesiredState, "_time_is_up", lambda *_: None)
        assert any("is stuck" in text for seed in range(20) for text in simulate(seed).complaints)
    whole = Blobs.keep_only
    monkeypatch.setattr(Blobs, "keep_only", lambda blobs, digests: whole(blobs, sorted(digests)[1:]))
    assert any("half applied" in text for text in simulate(0).complaints)
