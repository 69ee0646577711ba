"""What telemetry says of drift: each figure where it can be said, else null with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.stats import ModelStats
from edge_agent.agent.status_builder import model_telemetry
from edge_agent.bundle.drift_reference import UNKNOWN_SHARE, to_metrics
from edge_agent.core.drift import LEAST_TEXTS
from edge_agent.protocol.telemetry_parts import Drift
from tests.support.fakes import a_model

SURE = to_metrics([0.0] * 9 + [1.0])
WHOLE = to_metrics([0.0] * 4 + [1.0] + [0.0] * 5, "fragmentation")
PACKAGE = {**SURE, **WHOLE, UNKNOWN_SHARE: 0.01}


def told(metrics: Mapping[str, float], wording: tuple[int, int, int | None] | None, count: int = LEAST_TEXTS) -> Drift:
    """The drift of adapter `a`, whose package has these metrics, after `count` texts that were all taken so."""
    model = a_model(adapters=["a"])
    model = replace(model, adapters=(replace(model.adapters[0], metrics=metrics),))
    share = ModelStats()
    for _ in range(count):
        share.note_adapter("a", 1.0, [{"score": 0.95}], [] if wording is None else [wording])
    return model_telemetry(share, ServedModel(model)).drift["a"]


def test_texts_like_the_test_set_are_not_far_from_it() -> None:
    assert told(PACKAGE, (20, 4, 0)) == Drift(
        confidence_psi=0.0, texts=LEAST_TEXTS, fragmentation_psi=0.0, out_of_vocabulary=0.0,
        out_of_vocabulary_expected=0.01, reason=None,
    )  # fmt: skip


def test_texts_that_fall_apart_or_are_not_known_show() -> None:
    found = told(PACKAGE, (20, 12, 6))
    assert found.fragmentation_psi is not None
    assert found.fragmentation_psi > 1.0
    assert found.out_of_vocabulary == 0.5
    assert found.confidence_psi == 0.0, "the model is as sure as ever, and wrong"


@pytest.mark.parametrize(
    ("metrics", "wording", "count", "nulls", "reason"),
    [
        (PACKAGE, (20, 4, 0), 49, "cfu", "49 texts in this interval, 50 are needed"),
        ({}, (20, 4, 0), 50, "cfu", "the package carries no share of unknown tokens of its test set; the package "
         "carries no confidence of its test set; the package carries no fragmentation of its test set"),
        (SURE, (20, 4, 0), 50, "fu", "the package carries no share of unknown tokens of its test set; the package "
         "carries no fragmentation of its test set"),
        ({**SURE, **WHOLE}, (20, 4, None), 50, "u", "this tokenizer has no unknown token"),
        (PACKAGE, None, 50, "fu", "the worker does not tell how texts fall apart"),
    ],
)  # fmt: skip
def test_whatever_is_null_has_its_reason(
    metrics: Mapping[str, float], wording: tuple[int, int, int | None] | None, count: int, nulls: str, reason: str
) -> None:
    """The second and third are packages from before there was such a reference."""
    found = told(metrics, wording, count)
    values = {"c": found.confidence_psi, "f": found.fragmentation_psi, "u": found.out_of_vocabulary}
    assert "".join(key for key, value in values.items() if value is None) == nulls
    assert found.reason == reason


def test_embeddings_have_texts_and_no_score() -> None:
    share = ModelStats()
    share.note_adapter(None, 1.0, [{"embedding": [1.0]}], [(20, 4, 0)])
    found = model_telemetry(share, ServedModel(a_model())).drift[""]
    assert (found.texts, found.confidence_psi) == (1, None)
    assert found.reason is not None
    assert "the answers carry no score" in found.reason
