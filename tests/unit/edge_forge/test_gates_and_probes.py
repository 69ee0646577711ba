"""Gates and golden probes: pure rules over figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import EdgeError
from edge_agent.bundle import jsonio
from edge_agent.bundle.probes import ProbeFile, ProbeOutputs, judge, problem_of
from edge_forge.data.classifier_rows import Row
from edge_forge.evaluate import gates, probes
from edge_forge.evaluate.probes import VariantOutputs
from edge_forge.plan.cache import canonical

LIMITS = gates.LossLimits(0.5, 0.95, 0.25)


def variant(dtype, form="merged", parity=1e-6, **paired):
    if dtype == "fp32":
        return {"form": form, "dtype": dtype, "parity": parity}
    known = {
        "rows": 387, "loss": 0.0026, "loss_low": -0.008, "loss_high": 0.011, "texts": 774, "agreement": 0.992,
        "agreement_high": 0.997, "logit_error": 0.05,
    }  # fmt: skip
    return {"form": form, "dtype": dtype, "paired": {**known, **paired}}


@pytest.mark.parametrize(
    ("paired", "holds", "said"),
    [
        ({}, True, "387 rows cannot tell a loss of 0.5 points from none"),
        ({"loss": 0.02, "loss_low": 0.004}, True, "show a loss, and not that it is more than 0.5 points"),
        ({"loss_high": 0.005}, True, "a loss of more than 0.5 points is ruled out"),
        ({"loss_low": 0.005}, True, "not that it is more than 0.5 points"),
        ({"loss": 0.03, "loss_low": 0.0051}, False, "; 0.5 points may be lost"),
        ({"agreement": 0.9, "agreement_high": 0.949}, False, "; 95.0 % of the answers must agree"),
        ({"logit_error": 0.3}, False, "; logits may be off by 25.0 %"),
        ({"logit_error": math.nan}, False, "; logits may be off by 25.0 %"),
    ],
)
def test_a_variant_is_left_out_only_where_its_rows_show_that_it_is_beyond_a_limit(paired, holds, said):
    found, beyond = gates.judge([variant("fp32"), variant("int8", **paired)], 1e-3, LIMITS)
    assert (found[1].holds, beyond) == (holds, [] if holds else [("merged", "int8")])
    assert said in found[1].sentence


def test_fp32_of_another_runtime_is_held_to_both_limits():
    other = variant("int8") | {"dtype": "litert fp32", "parity": 2e-3}
    found, beyond = gates.judge([variant("fp32"), other], 1e-3, LIMITS)
    assert [(gate.name, gate.holds) for gate in found] == [
        ("parity of merged FP32", True),
        ("parity of merged litert fp32", False),
        ("accuracy of merged litert fp32", True),
    ]
    assert beyond == []


def test_the_sentence_of_a_verdict_carries_its_figures():
    assert gates.accuracy("merged", "int8", variant("int8")["paired"], LIMITS).sentence == (
        "merged int8 loses 0.26 points against FP32 on 387 rows (95 % interval of the loss -0.80 to +1.10), answers "
        "99.2 % of 774 texts alike, logits off by 5.0 %; 387 rows cannot tell a loss of 0.5 points from none"
    )


@pytest.mark.parametrize(
    ("low", "high", "holds", "said"),
    [
        (1.02, 1.08, True, "more than 1.1 is ruled out"),
        (1.02, 1.18, True, "60 rows cannot tell whether it is more than 1.1"),
        (1.11, 1.18, False, "1.1 is allowed"),
    ],
)
def test_a_generator_is_left_out_only_where_its_rows_show_a_higher_perplexity(low, high, holds, said):
    gate = gates.perplexity("merged", "q4_0", {"rows": 60, "ratio": 1.12, "ratio_low": low, "ratio_high": high}, 1.1)
    assert gate.holds is holds
    assert f"1.120 times the perplexity of F16 on 60 rows (95 % interval {low:.3f} to {high:.3f}); {said}" in (
        gate.sentence
    )


PREFERENCES = {"rows": 50, "loss": 0.04, "loss_low": 0.0, "loss_high": 0.09, "fall": 0.4, "fall_low": 0.3,
               "fall_high": 0.5, "rise": 2.0}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "holds", "said"),
    [
        ({}, True, "50 pairs cannot tell whether more than 1 points are lost"),
        ({"loss_high": 0.01}, True, "a loss of more than 1 points is ruled out"),
        ({"loss_low": 0.02}, False, "1 points may be lost"),
        ({"fall_low": 0.51}, False, "25.0 % of what training added to the margin may be lost"),
        ({"fall_low": 0.5}, True, "to which training added +2.000"),
        ({"fall_low": None, "fall_high": None}, True, "50 pairs"),
        ({"rise": -1.0, "fall_low": 5.0}, True, "training added -1.000"),
    ],
)
def test_what_learned_preferences_is_left_out_where_a_format_takes_them_back(changed, holds, said):
    found = gates.preferences("merged", "q4_0", {**PREFERENCES, **changed}, gates.PreferenceLimits(1.0, 0.25))
    assert found.holds is holds and said in found.sentence and found.name == "preferences of merged q4_0"


@pytest.mark.parametrize("difference", [2e-3, math.inf, math.nan])
def test_parity_beyond_the_tolerance_stops_the_build(difference):
    found, _ = gates.judge([variant("fp32", parity=difference)], 1e-3, LIMITS)
    with pytest.raises(EdgeError, match=r"recipe: merged FP32 differs from PyTorch by .* 0.001 is allowed .look"):
        gates.require(found, "recipe", "look")
    gates.require([gates.parity("merged", 1e-3, 1e-3)], "recipe", "look")


def test_probe_texts_come_label_by_label():
    rows = [Row("a1", "a"), Row("a1", "a"), Row("a2", "a"), Row("b1", "b"), Row("a3", "a")]
    assert probes.choose_texts(rows, ("b", "a"), 4) == ("b1", "a1", "a2", "a3")
    assert probes.choose_texts(rows, ("a", "b"), 2) == ("a1", "b1")


FLOAT32 = VariantOutputs([[1.0, 0.0], [0.0, 2.0]], [[0.5, -0.5], [1.0, 0.0]])
INT8 = VariantOutputs([[1.0, 0.1], [0.0, 2.0]], [[0.9, -0.5], [1.0, 0.0]])
BARE = VariantOutputs([[0.5, 0.0], [0.0, 1.0]])


def checked(document):
    return jsonio.decode(canonical(document), ProbeFile, "probes")


def test_a_variant_may_be_off_by_its_own_quantisation_error():
    file = checked(probes.document(["x", "y"], {"onnx/fp32": FLOAT32, "onnx/int8": INT8}))
    assert problem_of(file, adapter=False) is None
    assert file.expected["onnx/fp32"].features_tolerance == 1e-3
    assert file.expected["onnx/int8"].features_tolerance == pytest.approx(0.1, rel=0.01)
    assert file.expected["onnx/int8"].logits_tolerance == pytest.approx(0.4, rel=0.01)
    assert judge(file, "onnx/int8", ProbeOutputs(FLOAT32.features, FLOAT32.logits)).code is None
    assert judge(file, "onnx/fp32", ProbeOutputs(INT8.features, INT8.logits)).code == "probe-mismatch"


def test_an_adapter_must_show_half_of_its_effect():
    both = {"onnx/fp32": FLOAT32}
    file = checked(probes.document(["x", "y"], both, {"onnx/fp32": BARE}))
    assert problem_of(file, adapter=True) is None
    assert file.expected["onnx/fp32"].min_effect == pytest.approx(0.5)
    base = ProbeOutputs(BARE.features)
    assert judge(file, "onnx/fp32", ProbeOutputs(FLOAT32.features, FLOAT32.logits), base).code is None
    assert judge(file, "onnx/fp32", ProbeOutputs(BARE.features, FLOAT32.logits), base).code == "adapter-ineffective"


VECTORS = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=2)


@given(VECTORS, VECTORS)
def test_what_the_host_measured_always_holds_against_its_own_probes(one, other):
    outputs = {"onnx/fp32": VariantOutputs(one, one), "onnx/int8": VariantOutputs(other, other)}
    file = checked(probes.document(["x", "y"], outputs))
    for name, found in outputs.items():
        assert judge(file, name, ProbeOutputs(found.features, found.logits)).code is None
