"""Training in INT8's arithmetic: it computes what the exported INT8 graph does, and learns through the rounding."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx import export_graphs as export
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.graph import metadata
from edge_forge.export.onnx.inject import KEY
from edge_forge.models.encoder import open_encoder
from edge_forge.models.sentence_pooling import prompt_of
from edge_forge.train import generator_settings, int8_aware
from edge_forge.train.frozen_states import encode, padded
from edge_forge.train.lora import apply_adapter, save_adapter
from edge_forge.train.methods import METHODS
from edge_forge.train.settings import settings
from tests.support import tiny_base as tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
BASE_ID = "sha256:" + "34" * 32
TEXTS = [text for text, _ in tiny.ROWS]
BANK = export.Bank(rank=4, max_labels=2)
WIDE = 3


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    """A base whose normalised states have one channel far wider than the others."""
    folder = tiny.write(tmp_path_factory.mktemp("wide"))
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("LayerNorm.weight"):
            value[WIDE] = 12.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_in_this_arithmetic_computes_the_banked_int8_graph_with_an_adapter(wide_base, tmp_path, monkeypatch):
    for module in (quantize, int8_aware):
        monkeypatch.setattr(module, "EMBEDDING_BYTES_MIN", 1)
    generator = torch.Generator().manual_seed(3)
    adapter = {
        "encoder.layer.1.intermediate.dense.A": torch.randn(32, 2, generator=generator) / 8,
        "encoder.layer.1.intermediate.dense.B": torch.randn(2, 64, generator=generator) / 8,
        "head.weight": torch.randn(32, 2, generator=generator), "head.bias": torch.zeros(2),
    }  # fmt: skip
    save_adapter(tmp_path / "adapter.safetensors", adapter, {"base_id": BASE_ID, "rank": "2"})
    export.trace_base(base_dir=wide_base, out_dir=tmp_path / "traced", base_id=BASE_ID, max_tokens=16)
    banked = export.export_base(
        base_dir=wide_base, traced=tmp_path / "traced" / "encoder.onnx", out_dir=tmp_path, bank=BANK, texts=TEXTS,
        max_tokens=16,
    )  # fmt: skip
    made = quantize.make(
        encoder_path=tmp_path / "traced" / "encoder.onnx", out_dir=tmp_path / "int8", formats=[quantize.INT8],
        tokenizer_path=wide_base / "tokenizer.json", reading=quantize.TokenCut(16), bank=(BANK, banked.modules),
    )  # fmt: skip
    subject = measure.OnnxSubject(
        made.paths["int8"], wide_base / "tokenizer.json", 16, tmp_path / "adapter.safetensors", BASE_ID, threads=1,
        max_rows=8,
    )  # fmt: skip
    wanted = measure.outputs(subject, TEXTS).features
    sites = len({site["module"] for site in metadata(onnx.load(tmp_path / "model.onnx"), KEY)["sites"]})
    float32, trained = open_encoder(wide_base), open_encoder(wide_base)
    assert int8_aware.compute_in_int8(trained, wide_base, 16) == sites == 24
    ids, mask = padded(encode(wide_base, TEXTS, 16)[0])
    found = []
    for encoder in (trained, float32):
        apply_adapter(encoder, adapter, merged=False)
        with torch.inference_mode():
            found.append(encoder.features(ids, mask).numpy())
    off = [float(np.linalg.norm(one - wanted) / np.linalg.norm(wanted)) for one in found]
    assert off[0] < off[1] / 20, "nearer to the INT8 graph than FP32 is"
    assert off[0] < 1e-3


def test_every_large_table_is_read_in_int8_rows_as_in_the_graph(wide_base, monkeypatch):
    monkeypatch.setattr(int8_aware, "EMBEDDING_BYTES_MIN", 32 * 32 * 4)  # positions, not tokens or types
    encoder = open_encoder(wide_base)
    int8_aware.compute_in_int8(encoder, wide_base, 16)
    for name, in_rows in (("position_embeddings", True), ("token_type_embeddings", False)):
        table = encoder.model.get_submodule(f"embeddings.{name}")
        found, weight = table(torch.arange(2)), table.weight[:2]
        assert torch.equal(found, int8_aware.by_row(weight)) == in_rows and torch.equal(found, weight) != in_rows


def test_the_same_channels_are_apart_as_in_the_graph(wide_base, tmp_path):
    export.trace_base(base_dir=wide_base, out_dir=tmp_path, base_id=BASE_ID, max_tokens=16)
    model = onnx.load(tmp_path / "encoder.onnx")
    graph = quantize.wide_channels(model, quantize.feeds(BASE_TEXTS, wide_base / "tokenizer.json", 16))
    encoder = open_encoder(wide_base)
    own = {int8_aware.wide(magnitudes) for magnitudes in int8_aware._magnitudes(encoder, wide_base, 16).values()}
    assert set(graph.values()) == own
    assert (WIDE,) in own


def test_general_texts_are_read_with_the_bases_prompt_and_cut_as_in_the_graph(wide_base, tmp_path):
    folder = shutil.copytree(wide_base, tmp_path / "prompted")
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(json.dumps(
        [{"idx": at, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
         for at, (name, path, kind) in enumerate(modules)]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "please turn it on "}, "default_prompt_name": "query"})
    )
    read = sorted(encode(folder, BASE_TEXTS, 12)[0], key=len)
    prompt = prompt_of(folder)
    found = [row[mask == 1] for feed in quantize.feeds(BASE_TEXTS, folder / "tokenizer.json", 12, prompt)
             for row, mask in zip(feed["input_ids"], feed["attention_mask"], strict=True)]  # fmt: skip
    assert prompt and max(map(len, found)) == 12
    assert [row.tolist() for row in found] == [row.tolist() for row in read]
    assert min(map(len, read)) > min(map(len, encode(wide_base, BASE_TEXTS, 12)[0]))


def test_codes_are_those_of_a_tokens_largest_value_and_gradients_pass():
    x = torch.tensor([[[2.0, -1.0, 0.3, 50.0], [0.0, 0.0, 0.0, 9.0]]], requires_grad=True)
    stays = torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = int8_aware.by_token(x, stays)
    wanted = torch.tensor([2.0, -64 * 2 / 127, 19 * 2 / 127, 0.0])
    assert torch.allclose(found[0, 0], wanted, atol=1e-6)
    assert torch.equal(found[0, 1], torch.zeros(4))
    found.sum().backward()
    assert torch.allclose(x.grad[0, 0], stays)
    weight = torch.tensor([[1.0, 0.5, -0.004], [0.0, 0.0, 0.0]], requires_grad=True)
    codes = int8_aware.by_row(weight)
    assert torch.allclose(codes, torch.tensor([[1.0, 64 / 127, -1 / 127], [0.0, 0.0, 0.0]]), atol=1e-6)
    codes.sum().backward()
    assert torch.allclose(weight.grad, torch.ones_like(weight))


def test_a_weight_that_is_trained_has_new_codes_in_every_step(wide_base):
    encoder = open_encoder(wide_base)
    int8_aware.compute_in_int8(encoder, wide_base, 16)
    linear = encoder.model.get_submodule("encoder.layer.0.output.dense")
    x = torch.randn(1, 2, linear.in_features, generator=torch.Generator().manual_seed(1))
    before = linear(x).detach()
    with torch.no_grad():
        linear.weight.mul_(2.0)
    assert torch.allclose(linear(x) - linear.bias, 2 * (before - linear.bias), atol=1e-4)
    assert isinstance(linear, nn.Linear)


def test_codes_of_a_weight_that_is_not_trained_are_made_once(wide_base, monkeypatch):
    encoder = open_encoder(wide_base)
    int8_aware.compute_in_int8(encoder, wide_base, 16)
    linear = encoder.model.get_submodule("encoder.layer.0.output.dense")
    made, by_row = [], int8_aware.by_row
    monkeypatch.setattr(int8_aware, "by_row", lambda weight: made.append(1) or by_row(weight))
    x = torch.randn(1, 2, linear.in_features, generator=torch.Generator().manual_seed(1))
    for trained, wanted in ((True, 2), (False, 1)):
        linear.requires_grad_(trained)
        made.clear()
        first, second = linear(x), linear(x)
        assert torch.equal(first, second) and len(made) == wanted


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_trained_in_int8_or_says_why_not(name):
    if name in ("pissa", "dora", "bottleneck"):
        with pytest.raises(ConfigError, match=f"cannot train {METHODS[name].title}: it") as refused:
            settings(name, values={"precision": "int8"}, where="r: train")
        assert refused.value.where == "r: train.precision"
    else:
        assert settings(name, values={"precision": "int8"}).precision == "int8"


def test_generators_refuse_it():
    with pytest.raises(ConfigError, match="is of classifiers: llama"):
        generator_settings.settings("lora", False, {"precision": "int8"}, "r: train")
