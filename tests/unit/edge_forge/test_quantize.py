import numpy as np
import onnx
import onnxruntime
import pytest

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.export.onnx import quantize as quantise
from edge_forge.export.onnx import quantize as step
from edge_forge.export.onnx.graph import GraphEditor
from edge_forge.export.onnx.quantize import (
    Int8Candidate,
    ValueRange,
    calibrate,
    choose,
    product_inputs,
    quantize_dynamic,
    quantize_embeddings,
    quantize_static,
    to_float16,
)
from edge_forge.export.onnx.sites import read_sites
from tests.support import small_graph as small

ROWS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9])


def feed(rows=ROWS):
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["features"], feed())[0]


def ranges():
    return calibrate(small.encoder(), [feed()])


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (quantize_dynamic, 0.05),
        (lambda model: quantize_static(model, ranges()), 0.05),
        (lambda model: quantize_static(model, ranges(), symmetric=True), 0.05),
        (to_float16, 0.005),
    ],
)
def test_a_format_is_near_the_float_graph_and_is_not_it(convert, tolerance):
    off = np.abs(run(convert(small.encoder())) - small.reference(ROWS)[0]).max()
    assert 1e-7 < off < tolerance


def test_int8_weights_are_a_quarter_of_the_bytes():
    model = quantize_dynamic(small.encoder())
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [site.weight for site in read_sites(model)]
    assert not set(weights) & set(kinds)
    assert all(kinds[f"{name}.int8"] == onnx.TensorProto.INT8 for name in weights)


def test_each_output_channel_has_its_own_scale():
    weight = np.asarray([[1.0, 100.0], [-0.5, 0.0]], np.float32)
    codes, scale = quantise._weight_codes(weight)
    assert codes.tolist() == [[127, 127], [-64, 0]]
    assert scale == pytest.approx([1 / 127, 100 / 127])


def test_a_column_of_zeros_stays_zero():
    codes, scale = quantise._weight_codes(np.zeros((2, 3), np.float32))
    assert not codes.any() and np.isfinite(scale).all() and (scale > 0).all()


def test_sites_can_be_kept_in_float():
    model = quantize_dynamic(small.encoder(), keep_float=["layer.0.out"])
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 1


def test_symmetric_codes_have_no_zero_point_as_tensorrt_demands():
    model = quantize_static(small.encoder(), ranges(), symmetric=True)
    editor = GraphEditor(model)
    zeros = [editor.constant(node.input[2]) for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_padding_does_not_count_in_a_range():
    padded = {name: np.pad(value, ((0, 0), (0, 9))) for name, value in feed().items()}
    wide, narrow = calibrate(small.encoder(), [padded]), ranges()
    for name in narrow:
        assert wide[name][:2] == pytest.approx(narrow[name][:2], abs=1e-5)
        assert wide[name].outliers == narrow[name].outliers
    assert all(found.low <= 0.0 <= found.high for found in narrow.values())
    assert set(narrow) == set(product_inputs(small.encoder()))


def test_one_odd_feed_does_not_widen_a_range():
    usual = [feed(ROWS[:2])] * 4
    odd = calibrate(small.encoder(), [*usual, feed([[0] * 3])], outliers=0.0)
    assert odd == calibrate(small.encoder(), usual, outliers=0.0)


def test_outlier_channels_are_found_and_computed_in_float():
    """One channel twenty times the others: alone in float it costs nothing, inside the range it ruins the rest."""
    model = small.encoder()
    for tensor in model.graph.initializer:
        if tensor.name == "gamma":
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[5] *= 20.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, "gamma"))
    wanted, x = run(model), read_sites(model)[0].x
    apart, within = calibrate(model, [feed()]), calibrate(model, [feed()], outliers=0.0)
    assert apart[x].outliers == (5,) and apart[x].high < within[x].high / 5
    off = [np.abs(run(quantize_static(model, found)) - wanted).mean() for found in (apart, within)]
    assert off[0] < off[1] / 2


def test_what_static_int8_gives_a_row_does_not_depend_on_its_batch():
    session = onnxruntime.InferenceSession(
        quantize_static(small.encoder(), ranges()).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    together = session.run(["features"], feed())[0]
    for place, row in enumerate(ROWS):
        assert session.run(["features"], feed([row]))[0][0] == pytest.approx(together[place], abs=1e-5)


def test_calibration_needs_feeds_and_covers_every_site():
    with pytest.raises(BackendError, match="calibration rows"):
        calibrate(small.encoder(), [])
    with pytest.raises(BackendError, match="no calibrated range"):
        quantize_static(small.encoder(), {"elsewhere": ValueRange(-1, 1)})


def test_large_tables_become_int8_rows(monkeypatch):
    monkeypatch.setattr(quantise, "EMBEDDING_BYTES_MIN", 100)
    model = quantize_embeddings(small.encoder())
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert "embedding" not in kinds and kinds["embedding.int8"] == onnx.TensorProto.INT8
    off = np.abs(run(model) - small.reference(ROWS)[0]).max()
    assert 0 < off < 0.03


def test_small_tables_stay_as_they_are():
    assert "embedding" in {tensor.name for tensor in quantize_embeddings(small.encoder()).graph.initializer}


def test_a_graph_that_lost_a_product_is_refused():
    with pytest.raises(BackendError, match="not in the graph any more"):
        quantize_dynamic(quantize_dynamic(small.encoder()))


@pytest.mark.parametrize(
    ("candidates", "name"),
    [
        ({"int8-dynamic": Int8Candidate(0.90, 2.0), "int8-static": Int8Candidate(0.88, 1.0)}, "int8-dynamic"),
        ({"int8-dynamic": Int8Candidate(0.90, 2.0), "int8-static": Int8Candidate(0.8995, 1.0)}, "int8-static"),
        ({"int8-dynamic": Int8Candidate(0.90, 1.0), "int8-static": Int8Candidate(0.90, 1.0)}, "int8-dynamic"),
        ({"int8-static": Int8Candidate(0.5, 1.0)}, "int8-static"),
    ],
)
def test_the_least_loss_wins_and_among_equals_the_fastest(candidates, name):
    choice = choose(Int8Candidate(0.91, 4.0), candidates)
    assert choice.name == name
    assert choice.loss == pytest.approx(0.91 - candidates[name].accuracy)
    assert all(word in choice.reason for word in candidates)


def test_choosing_from_nothing_is_an_error():
    with pytest.raises(BackendError, match="no INT8 candidate"):
        choose(Int8Candidate(0.9, 1.0), {})


def test_an_unknown_format_and_static_without_texts_are_refused(tmp_path):
    path = tmp_path / "encoder.onnx"
    onnx.save(small.encoder(), path)
    with pytest.raises(ConfigError, match="no format 'int3'"):
        step.make(encoder_path=path, out_dir=tmp_path / "out", formats=("int3",))
    with pytest.raises(ConfigError, match="calibration texts"):
        step.make(encoder_path=path, out_dir=tmp_path / "out", formats=(step.STATIC,))
