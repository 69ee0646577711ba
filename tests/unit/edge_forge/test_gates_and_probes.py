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


def variant(dtype, accuracy, form="merged", parity=1e-6):
    return {"form": form, "dtype": dtype, "accuracy": accuracy, **({"parity": parity} if dtype == "fp32" else {})}


def test_a_variant_that_loses_the_limit_holds_and_one_that_loses_more_does_not():
    found, beyond = gates.judge([variant("fp32", 0.93), variant("fp16", 0.925), variant("int8", 0.9249)], 1e-3, 0.5)
    assert [gate.holds for gate in found] == [True, True, False]
    assert beyond == [("merged", "int8")]
    assert "merged int8 loses 0.51 points against FP32, 0.5 may be lost" in found[2].sentence


def test_each_form_is_held_against_its_own_fp32():
    figures = [
        variant("fp32", 0.9),
        variant("int8", 0.9),
        variant("fp32", 0.8, "banked"),
        variant("int8", 0.9, "banked"),
    ]
    found, beyond = gates.judge(figures, 1e-3, 0.0)
    assert not beyond
    assert "banked int8 gains 10.00 points" in found[3].sentence
    assert "merged int8 loses nothing" in found[1].sentence


@pytest.mark.parametrize("difference", [2e-3, math.inf, math.nan])
def test_parity_beyond_the_tolerance_stops_the_build(difference):
    found, _ = gates.judge([variant("fp32", 0.9, parity=difference)], 1e-3, 0.5)
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
