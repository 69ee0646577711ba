"""What to expect of a variant, and which one is cheaper when it is hot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.bundle.catalog import TrialFigures
from edge_agent.core.variants import USUAL_TEXT_BYTES, cheaper, expected_row
from tests.support.fakes import a_model, a_variant

HERE = TrialFigures(latency_ms=20.0, peak_bytes=1, load_s=1.0, text_bytes=17)
KEPT = {"model": "/blobs/x"}
FP32 = replace(a_variant("fp32"), files=KEPT, accuracy=0.92, metrics={"latency_ms": 5.0}, measured=HERE)
INT8 = replace(a_variant("int8"), files=KEPT, accuracy=0.915, metrics={"latency_ms": 2.0})
MODEL = replace(a_model(variant=FP32), variants=(FP32, INT8))


def measured(latency_ms: float) -> TrialFigures:
    return replace(HERE, latency_ms=latency_ms)


def test_a_variant_that_was_tried_here_is_expected_to_take_what_it_took() -> None:
    assert expected_row(MODEL, FP32) == (17, pytest.approx(0.020))


def test_one_that_was_not_is_scaled_from_the_host_by_the_one_that_was() -> None:
    assert expected_row(MODEL, INT8) == (17, pytest.approx(0.008))


def test_without_a_trial_the_host_s_figure_stands_alone_and_without_either_there_is_none() -> None:
    alone = replace(MODEL, variants=(INT8,))
    assert expected_row(alone, INT8) == (USUAL_TEXT_BYTES, pytest.approx(0.002))
    assert expected_row(alone, replace(INT8, metrics={})) is None


def test_the_cheaper_one_is_kept_tried_and_clearly_faster_within_the_loss() -> None:
    fast = replace(INT8, measured=measured(8.0))
    model = replace(MODEL, variants=(FP32, fast))
    assert cheaper(model, 0.01) == fast
    assert cheaper(model, 0.004) is None, "it loses too much"
    unclear = replace(fast, metrics={"accuracy_loss_low": -0.002})
    assert cheaper(replace(MODEL, variants=(FP32, unclear)), 0.004) == unclear, "its rows do not show a loss"
    assert cheaper(MODEL, 0.01) is None, "it was not tried here"
    assert cheaper(replace(MODEL, variants=(FP32, replace(fast, files={}))), 0.01) is None, "it is not on the disk"
    assert cheaper(replace(MODEL, variants=(FP32, replace(INT8, measured=measured(17.0)))), 0.01) is None
    assert cheaper(replace(MODEL, variant=INT8), 0.01) is None, "nothing to compare with"
