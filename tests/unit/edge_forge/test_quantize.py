import numpy as np
import onnx
import onnxruntime
import pytest

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.export.onnx import quantize as quantise
from edge_forge.export.onnx import quantize as step
from edge_forge.export.onnx.float16 import to_float16
from edge_forge.export.onnx.graph import GraphEditor
from edge_forge.export.onnx.quantize import (
    ValueRange,
    calibrate,
    product_inputs,
    quantize_embeddings,
    quantize_per_token,
    quantize_static,
    wide_channels,
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


def run(model, rows=ROWS):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["features"], feed(rows))[0]


def outlying(factor=20.0):
    """The encoder with one channel of its normalised states so many times the others'."""
    model = small.encoder()
    for tensor in model.graph.initializer:
        if tensor.name == "gamma":
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[5] *= factor
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, "gamma"))
    return model


def ranges():
    return calibrate(small.encoder(), [feed()])


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (quantize_per_token, 0.03),
        (lambda model: quantize_per_token(model, {site.x: (2, 9) for site in read_sites(model)}), 0.03),
        (lambda model: quantize_static(model, ranges()), 0.05),
        (to_float16, 0.005),
    ],
)
def test_a_format_is_near_the_float_graph_and_is_not_it(convert, tolerance):
    off = np.abs(run(convert(small.encoder())) - small.reference(ROWS)[0]).max()
    assert 1e-7 < off < tolerance


def test_int8_weights_are_a_quarter_of_the_bytes():
    model = quantize_per_token(small.encoder())
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [site.weight for site in read_sites(model)]
    assert not set(weights) & set(kinds)
    assert all(kinds[f"{name}.int8"] == onnx.TensorProto.INT8 for name in weights)


def test_a_constant_is_stored_once_and_never_under_a_name_of_another():
    """Sites that share a weight, as all depths of ALBERT do, store its codes, scales and zero again."""
    editor = GraphEditor(small.encoder())
    count = len(editor.graph.initializer)
    for value in (np.asarray(0, np.int8), np.ones((2, 3), np.float32)):
        name = f"new.{value.ndim}"
        assert editor.add_constant(name, value) == editor.add_constant(name, value.copy()) == name
    assert len(editor.graph.initializer) == count + 2
    for other in (np.asarray(1, np.int8), np.asarray(0, np.uint8)):
        with pytest.raises(BackendError, match=r"two constants would be named new\.0"):
            editor.add_constant("new.0", other)


def test_each_output_channel_has_its_own_scale():
    weight = np.asarray([[1.0, 100.0], [-0.5, 0.0]], np.float32)
    codes, scale = quantise._weight_codes(weight)
    assert codes.tolist() == [[127, 127], [-64, 0]]
    assert scale == pytest.approx([1 / 127, 100 / 127])


def test_a_column_of_zeros_stays_zero():
    codes, scale = quantise._weight_codes(np.zeros((2, 3), np.float32))
    assert not codes.any() and np.isfinite(scale).all() and (scale > 0).all()


def test_sites_can_be_kept_in_float():
    model = quantize_per_token(small.encoder(), keep_float=["layer.0.out"])
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in model.graph.node) == 1


def test_symmetric_codes_have_no_zero_point_as_tensorrt_demands():
    model = quantize_static(small.encoder(), ranges())
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
    model = outlying()
    wanted, x = run(model), read_sites(model)[0].x
    apart, within = calibrate(model, [feed()]), calibrate(model, [feed()], outliers=0.0)
    assert apart[x].outliers == (5,) and apart[x].high < within[x].high / 5
    off = [np.abs(run(quantize_static(model, found)) - wanted).mean() for found in (apart, within)]
    assert off[0] < off[1] / 2


def test_a_wide_channel_is_set_apart_from_the_scales_of_tokens():
    model = outlying()
    wanted, x = run(model), read_sites(model)[0].x
    apart = wide_channels(model, [feed()])
    assert apart[x] == (5,)
    off = [np.abs(run(quantize_per_token(model, found)) - wanted).mean() for found in (apart, {})]
    assert off[0] < off[1] / 2


def test_channels_of_like_size_stay_together():
    assert set(wide_channels(small.encoder(), [feed()]).values()) == {()}


def test_a_channel_set_apart_is_never_clipped():
    """The graph that was made for one channel twenty times the others meets it at two thousand times."""
    apart = wide_channels(outlying(), [feed()])
    wide = outlying(2000.0)
    wanted = run(wide)
    assert np.abs(run(quantize_per_token(wide, apart)) - wanted).max() < 0.01 * np.abs(wanted).max()


def test_what_static_int8_gives_a_row_does_not_depend_on_its_batch():
    session = onnxruntime.InferenceSession(
        quantize_static(small.encoder(), ranges()).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    together = session.run(["features"], feed())[0]
    for place, row in enumerate(ROWS):
        assert session.run(["features"], feed([row]))[0][0] == pytest.approx(together[place], abs=1e-5)


def test_calibration_needs_feeds_and_covers_every_site():
    for measure in (calibrate, wide_channels):
        with pytest.raises(BackendError, match="calibration rows"):
            measure(small.encoder(), [])
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
        quantize_per_token(quantize_per_token(small.encoder()))


def test_an_unknown_format_is_refused(tmp_path):
    path = tmp_path / "encoder.onnx"
    onnx.save(small.encoder(), path)
    with pytest.raises(ConfigError, match="no format 'int3'"):
        step.make(encoder_path=path, out_dir=tmp_path / "out", tokenizer_path=path, formats=("int3",))
