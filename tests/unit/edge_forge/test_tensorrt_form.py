import numpy as np
import onnx
import onnxruntime
import pytest

from edge_agent.base.errors import BackendError
from edge_forge.export.onnx.graph import opset
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.quantize import calibrate, quantize_static
from edge_forge.export.onnx.tensorrt_form import FP32_PREFIX, IR_VERSION, OPSET, for_tensorrt, lower
from tests.support import small_graph


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    return session.run(None, {name: value for name, value in feed.items() if name in names})


def banked(model=None):
    model = model or small_graph.encoder()
    inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS)
    return model


def feed_of(model, rank):
    random = np.random.default_rng(1)
    ids = random.integers(0, small_graph.VOCABULARY, (3, 7))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for given in model.graph.input:
        if given.name not in feed:
            lengths = [dim.dim_value or 3 for dim in given.type.tensor_type.shape.dim]
            feed[given.name] = random.standard_normal(lengths).astype(np.float32)
    return feed


@pytest.mark.parametrize("rank", [1, small_graph.RANK])
def test_the_form_computes_the_same_at_a_fixed_rank(rank):
    model = banked()
    form = for_tensorrt(model, rank)
    assert opset(form) == OPSET and form.ir_version == IR_VERSION
    free = {dim.dim_param for given in form.graph.input for dim in given.type.tensor_type.shape.dim if dim.dim_param}
    assert free == {"batch", "seq", "rows"}
    feed = feed_of(form, rank)
    for found, wanted in zip(run(form, feed), run(model, feed), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_what_must_stay_in_full_precision_is_named():
    kinds = [node.op_type for node in for_tensorrt(banked(), 2).graph.node if node.name.startswith(FP32_PREFIX)]
    assert kinds.count("ReduceMean") == 2 and "Sqrt" in kinds and "MatMul" not in kinds


def test_codes_of_weights_become_floats_and_a_quantisation():
    encoder = small_graph.encoder()
    ids = np.arange(20).reshape(2, 10)
    ranges = calibrate(encoder, [{"input_ids": ids, "attention_mask": np.ones_like(ids)}])
    model = banked(quantize_static(encoder, ranges))
    form = for_tensorrt(model, small_graph.RANK)
    constants = {tensor.name: tensor.data_type for tensor in form.graph.initializer}
    read = [node.input[0] for node in form.graph.node if node.op_type == "DequantizeLinear"]
    assert read and not set(read) & set(constants)
    feed = feed_of(form, small_graph.RANK)
    for found, wanted in zip(run(form, feed), run(model, feed), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_graph_without_a_bank_can_be_lowered_too():
    model = small_graph.encoder()
    feed = feed_of(model, 1)
    assert run(lower(model), feed)[0] == pytest.approx(run(model, feed)[0], abs=1e-5)
    with pytest.raises(BackendError, match="no adapter bank"):
        for_tensorrt(model, 1)


def test_what_has_no_form_is_refused_by_name():
    with pytest.raises(BackendError, match="rank 5 is not in the bank"):
        for_tensorrt(banked(), small_graph.RANK + 1)
    model = banked()
    made = onnx.helper.make_node("Mish", ["features"], ["mish"], name="mish")
    model.graph.node.append(made)
    model.graph.output.append(onnx.helper.make_tensor_value_info("mish", onnx.TensorProto.FLOAT, ["batch", 16]))
    with pytest.raises(BackendError, match="the operator Mish has no form in opset 13"):
        for_tensorrt(model, 1)
