import numpy as np
import onnx
import onnxruntime
import pytest

from edge_agent.base.errors import BackendError
from edge_forge.evaluate import measure_onnx
from edge_forge.export.onnx.export_graphs import Bank
from edge_forge.export.onnx.graph import opset, save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.quantize import TokenCut, calibrate, quantize_static
from edge_forge.export.onnx.tensorrt_form import FP32_PREFIX, IR_VERSION, OPSET, for_tensorrt, lower, make, on_cpu
from tests.support import small_graph, small_package


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    return session.run(None, {name: value for name, value in feed.items() if name in names})


def banked(model=None):
    model = model or small_graph.encoder()
    inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS, of_tokens=False)
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


def test_a_bank_with_heads_for_tokens_has_no_form():
    model = small_graph.encoder()
    inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS)
    with pytest.raises(BackendError, match="heads for tokens has no form for TensorRT"):
        for_tensorrt(model, 1)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The small encoder in every format of TensorRT, with its bank."""
    folder = tmp_path_factory.mktemp("tensorrt")
    save(small_graph.encoder(), folder / "encoder.onnx")
    small_graph.banked(folder / "reference.onnx")
    small_package.tokenizer(folder / "tokenizer.json")
    small_graph.write_adapter(folder / "one.safetensors", small_graph.adapter(1, rank=2))
    bank = (Bank(rank=small_graph.RANK, max_labels=small_graph.MAX_LABELS), small_graph.MODULES)
    found = make(
        encoder_path=folder / "encoder.onnx", out_dir=folder, tokenizer_path=folder / "tokenizer.json",
        formats=["fp32", "fp16", "int8"], reading=TokenCut(16), bank=bank,
    )  # fmt: skip
    return folder, found


@pytest.mark.parametrize(("name", "limit"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.2)])
@pytest.mark.parametrize("adapter", [None, "one.safetensors"])
def test_what_is_packed_computes_what_the_graph_for_a_cpu_does(made, tmp_path, name, limit, adapter):
    folder, _ = made
    save(on_cpu(onnx.load(folder / f"{name}.onnx")), tmp_path / "cpu.onnx")
    weights = None if adapter is None else folder / adapter

    def outputs(model):
        subject = measure_onnx.OnnxSubject(model, folder / "tokenizer.json", 16, weights, small_graph.BASE_ID)
        return measure_onnx.outputs(subject, small_package.TEXTS)

    found, wanted = outputs(tmp_path / "cpu.onnx"), outputs(folder / "reference.onnx")
    assert found.features == pytest.approx(wanted.features, abs=limit)
    if adapter is not None:
        assert found.logits == pytest.approx(wanted.logits, abs=5 * limit)


def test_float16_is_declared_where_it_is_computed_and_its_bank_is_handed_over_in_it(made):
    folder, found = made
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "fp16.onnx"))
    assert opset(model) == OPSET and found.half.kept == ()
    inputs = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
    bank = {kind for name, kind in inputs.items() if name not in ("input_ids", "attention_mask")}
    assert bank == {onnx.TensorProto.FLOAT16}
    assert {one.type.tensor_type.elem_type for one in model.graph.output} == {onnx.TensorProto.FLOAT}
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.output)}
    full = {node.op_type for node in model.graph.node if node.name.startswith(FP32_PREFIX)}
    assert {"Softmax", "ReduceSum", "ReduceMean", "Sqrt"} <= full and "MatMul" not in full
    # TensorRT 8 goes by the names, TensorRT 10 by the types: both must say the same.
    for node in model.graph.node:
        if node.op_type not in ("Cast", "Identity") and node.output[0] in kinds:
            is_full = kinds[node.output[0]] == onnx.TensorProto.FLOAT
            assert node.name.startswith(FP32_PREFIX) == is_full, node.name


def test_int8_codes_are_symmetric_and_signed(made):
    model = onnx.load(made[0] / "int8.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    codes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in codes} == {"QuantizeLinear", "DequantizeLinear"}
    for node in codes:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()


def test_what_passes_float16_stays_float32_by_type_and_by_name(tmp_path):
    """A layer whose values pass 65,504, in a graph that a range check without it would call safe."""
    model = small_graph.encoder()
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "masked")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.asarray(1e6, np.float32), "masked"))
    save(model, tmp_path / "encoder.onnx")
    tokenizer = small_package.tokenizer(tmp_path / "tokenizer.json")
    found = make(
        encoder_path=tmp_path / "encoder.onnx", out_dir=tmp_path, tokenizer_path=tokenizer,
        formats=["fp16", "int8"], texts=["turn on", "the light"], reading=TokenCut(16),
    )  # fmt: skip
    assert "Mul:mask_low" in found.half.kept
    for name in ("fp16", "int8"):
        named = {node.name for node in onnx.load(tmp_path / f"{name}.onnx").graph.node}
        assert f"{FP32_PREFIX}Mul:mask_low" in named
    feed = feed_of(model, 1)
    assert run(on_cpu(onnx.load(tmp_path / "fp16.onnx")), feed)[0] == pytest.approx(run(model, feed)[0], abs=1e-2)
