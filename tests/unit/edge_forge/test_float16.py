import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_forge.export.onnx.float16 import LARGEST, MARGIN, emulated, measure_range, to_float16
from edge_forge.export.onnx.graph import run_session
from tests.support import small_graph as small

FEED = {
    "input_ids": np.asarray([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]]),
    "attention_mask": np.asarray([[1] * 5, [1, 1, 0, 0, 0]]),
}
# The additive mask is -1e4 for every text; values of these graphs stay far below it otherwise.
MASKED = 1e4


def scaled(factor):
    """The encoder with its values times `factor` and the layer that reads them divided by it: the same function."""
    model = small.encoder()
    width = small.HIDDEN
    out = next(node for node in model.graph.node if node.op_type == "MatMul" and "mixed" in node.input)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if value.shape[-1:] == (3 * width,):
            value[..., 2 * width :] *= np.float32(factor)
        elif tensor.name == out.input[1]:
            value /= np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def features(model):
    return run_session(model, ["features"]).run(None, FEED)[0]


def half_features(model):
    """By onnx's own evaluator, which computes float16 in numpy's float16."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return ReferenceEvaluator(model).run(["features"], FEED)[0]


def test_a_graph_in_the_range_is_converted_whole():
    found = measure_range(small.encoder(), [FEED])
    assert found.kept == () and found.largest == pytest.approx(MASKED, rel=0.01)
    assert "holds every tensor" in found.sentence


def test_what_overflows_stays_float32_and_computes_what_float32_does():
    model = scaled(1e7)
    found = measure_range(model, [FEED])
    assert found.largest > LARGEST
    assert found.tensor in {name for node in model.graph.node for name in node.output}
    assert 0 < len(found.kept) < found.nodes
    assert f"{len(found.kept)} of {found.nodes} nodes stay in float32" in found.sentence
    kept, blind = to_float16(model, found.kept), to_float16(model)
    assert not np.isfinite(half_features(blind)).all(), "the graph overflows where nothing is kept"
    assert not np.isfinite(features(emulated(blind))).all(), "and its emulation shows it"
    for computed in (half_features(kept), features(emulated(kept))):
        assert computed == pytest.approx(features(model), abs=0.01)


def test_what_is_infinite_in_float32_stays_there_and_is_said_in_figures_of_json():
    """MPNet takes the logarithm of distance 0 and throws the result away."""
    model = small.encoder()
    out = next(node for node in model.graph.node if "features" in node.output)
    held = out.input[0]
    extra = [
        helper.make_node("Log", ["zero"], ["log"], name="log"),
        helper.make_node("Where", ["never", "log", held], ["chosen"], name="where"),
    ]
    out.input[0] = "chosen"
    place = list(model.graph.node).index(out)
    nodes = [*model.graph.node[:place], *extra, *model.graph.node[place:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero"), numpy_helper.from_array(np.zeros(1, bool), "never")]
    )
    found = measure_range(model, [FEED])
    assert (found.infinite, set(found.kept)) == ("log", {"log", "where"})
    assert found.largest == pytest.approx(MASKED, rel=0.01)
    assert found.sentence.startswith("log is not finite in float32 either; 2 of ")
    json.dumps(found._asdict(), allow_nan=False)
    np.testing.assert_allclose(half_features(to_float16(model, found.kept)), features(small.encoder()), atol=0.01)


def test_the_margin_counts_texts_that_were_not_measured():
    """Values of half the largest float16 fit, and are kept in float32 all the same."""
    peak = measure_range(scaled(1e7), [FEED]).largest / 1e7
    near, far = LARGEST / peak / 2, LARGEST / peak / (MARGIN * 2)
    assert measure_range(scaled(near), [FEED]).kept
    assert not measure_range(scaled(far), [FEED]).kept


def test_weights_that_float16_cannot_hold_are_not_cut():
    model = small.encoder()
    beta = next(tensor for tensor in model.graph.initializer if tensor.name == "beta")
    value = numpy_helper.to_array(beta).copy()
    value[2] = 1e6
    beta.CopyFrom(numpy_helper.from_array(value, beta.name))
    found = measure_range(model, [FEED])
    assert found.largest >= 1e6
    converted = to_float16(model, found.kept)
    kept = next(tensor for tensor in converted.graph.initializer if tensor.name == beta.name)
    assert kept.data_type == TensorProto.FLOAT
    assert (numpy_helper.to_array(kept) == value).all()
    assert np.isfinite(half_features(converted)).all()


def test_the_emulation_rounds_what_the_graph_holds_in_float16():
    converted = to_float16(small.encoder())
    halves = [t.name for t in converted.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert halves
    model = emulated(converted)
    assert all(t.data_type != TensorProto.FLOAT16 for t in model.graph.initializer)
    shares = run_session(model, ["shares.rounded"]).run(None, FEED)[0]
    assert (shares == shares.astype(np.float16)).all()
    exact = run_session(small.encoder(), ["shares"]).run(None, FEED)[0]
    assert (exact != exact.astype(np.float16)).any()


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(1.0, 1e12))
def test_at_any_scale_the_converted_graph_stays_finite(factor):
    model = scaled(factor)
    converted = to_float16(model, measure_range(model, [FEED]).kept)
    onnx.checker.check_model(converted)
    assert half_features(converted) == pytest.approx(features(model), abs=0.05)
