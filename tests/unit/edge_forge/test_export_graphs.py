"""A random small BERT from PyTorch to the device's backend, with and without an adapter, in every number format."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.predict import predict_with_features
from edge_forge.export.onnx import export_graphs as export
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.graph import metadata, opset
from edge_forge.export.onnx.parity import Parity, choose_lengths, demand, edges_of, largest, rows_of
from edge_forge.train.lora import save_adapter
from tests.support import tiny_base as tiny

pytestmark = pytest.mark.slow  # PyTorch's exporter takes seconds even for a tiny model
BASE_ID = "sha256:" + "12" * 32
TEXTS = tuple(text for text, _ in tiny.ROWS)


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    bank = export.Bank(targets=("all",), first_layer=1, rank=4, max_labels=5)
    export.trace_base(base_dir=tiny_base, out_dir=folder / "traced", base_id=BASE_ID, tolerance=1e-4, max_tokens=16)
    record = export.export_base(
        base_dir=tiny_base, traced=folder / "traced" / "encoder.onnx", out_dir=folder, bank=bank, texts=TEXTS,
        tolerance=1e-4, max_tokens=16,
    )  # fmt: skip
    return folder, record, bank


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """An adapter in the device's form on the upper layers, as the train step leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in (2, 3):
        for module in ("attention.self.query", "attention.self.value", "output.dense"):
            d_in, d_out = (64, 32) if module == "output.dense" else (32, 32)
            tensors[f"encoder.layer.{layer}.{module}.A"] = torch.randn(d_in, 3, generator=generator)
            tensors[f"encoder.layer.{layer}.{module}.B"] = torch.randn(3, d_out, generator=generator) * 0.05
    tensors["head.weight"] = torch.randn(32, 3, generator=generator)
    tensors["head.bias"] = torch.randn(3, generator=generator)
    save_adapter(folder / "adapter.safetensors", tensors, {"base_id": BASE_ID, "rank": "3"})
    return folder


def subject(folder, name="model.onnx", **more):
    return measure.OnnxSubject(folder / name, folder / "tokenizer.json", 16, threads=1, max_rows=8, **more)


def test_the_base_is_exported_once_with_its_bank(base):
    folder, record, bank = base
    model = onnx.load(folder / "model.onnx")
    assert record.opset == opset(model) == export.OPSET
    assert metadata(model, "edge.base_id") == BASE_ID
    assert metadata(model, "edge.bank")["rank"] == bank.rank
    assert len(record.modules) == 3 * 6 and not any(".layer.0." in name for name in record.modules)
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim] != ["", ""]
    assert record.parity["base"]["features"] < 1e-4
    assert record.parity["adapter"]["effect"] > 0.01
    assert record.parity["adapter of tokens"]["logits"] < 1e-3
    assert metadata(model, "edge.bank")["tokens"]["hidden"] == 32
    assert not list(folder.glob("*.data")), "weights are inside the file"
    json.dumps(export.as_dict(record))


def test_an_adapter_on_the_device_is_pytorchs(base, trained, tiny_base):
    folder, _, _ = base
    adapted = subject(folder, adapter=trained / "adapter.safetensors", base_id=BASE_ID)
    found = measure.outputs(adapted, TEXTS)
    features, logits = predict_with_features(tiny_base, trained, TEXTS, max_tokens=16)
    assert found.features == pytest.approx(features, abs=1e-4)
    assert found.logits == pytest.approx(logits, abs=1e-3)
    golden = measure.golden(adapted, TEXTS[:4])
    assert golden.logits == pytest.approx(logits[:4], abs=1e-3)


def test_a_merged_model_is_the_base_with_its_adapter(tiny_base, trained, tmp_path):
    record = export.export_merged(
        base_dir=tiny_base, trained_dir=trained, out_dir=tmp_path, base_id=BASE_ID, texts=TEXTS, max_tokens=16
    )
    assert record.modules == ()
    assert record.parity["merged"]["logits"] < 1e-3
    logits = predict_with_features(tiny_base, trained, TEXTS, max_tokens=16)[1]
    formats = quantize.make(
        encoder_path=tmp_path / "encoder.onnx", out_dir=tmp_path, reading=quantize.TokenCut(16),
        tokenizer_path=tmp_path / "tokenizer.json",
    )  # fmt: skip
    for path in formats.paths.values():
        off = np.abs(measure.outputs(subject(tmp_path, path.name), TEXTS).logits - logits).max()
        assert 0 < off < 0.3, path.name


def test_pairs_are_pytorchs_with_an_adapter_and_merged(base, trained, tiny_base, tmp_path):
    pairs = [("lamp on", "switch off a light please"), ("the light now", "lamp off"), ("turn the lamp on", "lamp on")]
    export.export_merged(
        base_dir=tiny_base, trained_dir=trained, out_dir=tmp_path, base_id=BASE_ID, texts=pairs, max_tokens=16
    )
    logits = predict_with_features(tiny_base, trained, pairs, max_tokens=16)[1]
    adapted = subject(base[0], adapter=trained / "adapter.safetensors", base_id=BASE_ID)
    for found in (measure.outputs(adapted, pairs).logits, measure.outputs(subject(tmp_path), pairs).logits):
        assert found == pytest.approx(logits, abs=1e-3)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_merged_graph_finds_segments_only_where_its_task_takes_pairs(tiny_base, trained, tmp_path, pairs):
    export.export_merged(
        base_dir=tiny_base, trained_dir=trained, out_dir=tmp_path, base_id=BASE_ID, max_tokens=16,
        texts=export.PARITY_TEXTS if pairs else export.SINGLE_TEXTS,
    )  # fmt: skip
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert ("ReduceMin" in operators) == pairs


def test_int8_bases_take_the_same_adapter(base, trained, tiny_base, tmp_path):
    folder, record, bank = base
    formats = quantize.make(
        encoder_path=folder / "encoder.onnx", out_dir=tmp_path, formats=(quantize.INT8,),
        tokenizer_path=folder / "tokenizer.json", reading=quantize.TokenCut(16), bank=(bank, record.modules),
    )  # fmt: skip
    logits = predict_with_features(tiny_base, trained, TEXTS, max_tokens=16)[1]
    for path in formats.paths.values():
        adapted = measure.OnnxSubject(
            path, folder / "tokenizer.json", 16, trained / "adapter.safetensors", BASE_ID, threads=1
        )
        off = np.abs(measure.outputs(adapted, TEXTS).logits - logits).max()
        assert 0 < off < 0.3, path.name


def test_latency_and_memory_are_measured(base):
    folder, _, _ = base
    found = measure.latency(subject(folder), TEXTS, runs=6)
    assert 0 < found.p50_ms <= found.p95_ms
    assert found.texts_per_s > 0
    turns = measure.times_in_turns([subject(folder), subject(folder)], TEXTS, turns=4)
    assert [len(times) for times in turns] == [4, 4]
    assert all(time > 0 for times in turns for time in times)
    memory = measure.memory(subject(folder))
    assert 0 < memory.session_bytes < memory.peak_bytes


def test_the_bases_prompt_is_among_what_is_timed(base, monkeypatch):
    folder, _, _ = base
    told = []
    monkeypatch.setattr(measure, "_run", lambda session, subject, rows: told.append(len(rows[0])))
    for prompt in ("", "lamp lamp lamp "):
        measure.times_in_turns([dataclasses.replace(subject(folder), prompt=prompt)], TEXTS[:1], turns=1)
    assert told[-1] == told[0] + 3


def test_memory_of_a_model_that_cannot_be_loaded_is_an_error_with_its_reason(base, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"broken")
    with pytest.raises(BackendError, match="cannot load the graph"):
        measure.memory(measure.OnnxSubject(tmp_path / "model.onnx", base[0] / "tokenizer.json"))


def test_a_float16_bank_is_refused(base, tmp_path):
    folder, record, bank = base
    with pytest.raises(ConfigError, match="no float16 form"):
        quantize.make(
            encoder_path=folder / "encoder.onnx",
            out_dir=tmp_path,
            tokenizer_path=folder / "tokenizer.json",
            formats=("fp16",),
            bank=(bank, record.modules),
        )


def test_an_untrained_folder_is_refused(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="no trained result"):
        export.export_merged(base_dir=tiny_base, trained_dir=tmp_path, out_dir=tmp_path / "out", base_id=BASE_ID)


@pytest.mark.parametrize(
    ("parity", "reason"),
    [
        (Parity(2e-3), "features differ from PyTorch by 0.002"),
        (Parity(0.0, 2e-3), "logits differ"),
        (Parity(float("inf")), "differ from PyTorch by inf"),
        (Parity(float("nan")), "differ from PyTorch by nan"),
        (Parity(1e-4, 1e-4, 1e-4), "moves the features by only"),
        (Parity(0.0, 0.0, 0.0), "moves the features by only"),
    ],
)
def test_beyond_tolerance_or_without_effect_the_step_fails(parity, reason):
    with pytest.raises(BackendError, match=reason):
        demand(parity, 1e-3, "the graph")


def test_parity_of_other_shapes_or_of_nothing_finite_is_infinite():
    ones = np.ones((2, 3), np.float32)
    assert largest(ones, np.ones((2, 4), np.float32)) == float("inf")
    assert largest(ones * np.nan, ones) == float("inf")
    assert largest(ones, ones * 0.5) == 0.5


def test_all_lengths_are_compared_where_that_is_cheap():
    assert choose_lengths(128, 10_600_000, ()).chosen == tuple(range(1, 129))
    assert choose_lengths(128, 10_600_000, ()).said == "all of 1 to 128"


def test_beyond_the_budget_short_lengths_edges_and_a_spread_are_compared():
    found = choose_lengths(512, 300_000_000, (64, 128))
    assert set(range(1, 33)) | {62, 63, 64, 65, 66, 126, 127, 128, 129, 130, 510, 511, 512} <= set(found.chosen)
    assert max(found.chosen) == 512 and len(found.chosen) < 100
    assert found.said.startswith(f"{len(found.chosen)} of 1 to 512")
    wide = choose_lengths(512, 20_000_000, (64, 128))
    gaps = [later - earlier for earlier, later in zip(wide.chosen, wide.chosen[1:], strict=False)]
    assert len(wide.chosen) > len(found.chosen) and max(gaps) <= 64


def test_the_edges_of_windows_and_buckets_are_read_from_the_configuration():
    from transformers import ModernBertConfig, MPNetConfig

    assert {50, 100} <= set(edges_of(ModernBertConfig(local_attention=100)))
    assert {24, 48} <= set(edges_of(MPNetConfig(relative_attention_num_buckets=48)))


def test_rows_have_their_length_and_go_through_the_whole_table():
    rows = rows_of(50, range(1, 17), ([2], [3]))
    assert [len(row) for row in rows] == list(range(1, 17))
    assert {number for row in rows for number in row} == set(range(50))
    assert all(row[0] == 2 and row[-1] == 3 for row in rows[2:])
