"""Every family of encoders: the graph equals PyTorch at every length, with adapters, and above a frozen part."""

import json

import numpy as np
import onnx
import pytest
import torch

from edge_agent.base.errors import BackendError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx import export_graphs as export
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.graph import metadata
from edge_forge.export.onnx.inject import KEY
from edge_forge.export.onnx.scored import scored
from edge_forge.export.onnx.trace import takes_additive
from edge_forge.models import encoder as encoders
from tests.support import tiny_encoders as tiny

pytestmark = pytest.mark.slow  # PyTorch's exporter takes seconds even for a tiny model
TOKENS = 40
BASE_ID = "sha256:" + "34" * 32
BANK = export.Bank(rank=4, max_labels=3)


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_the_graph_of_a_family_is_pytorchs_at_every_length_with_any_adapter(family, tmp_path):
    base = tiny.write(tmp_path / "base", family)
    record = export.trace_base(
        base_dir=base, out_dir=tmp_path / "traced", base_id=BASE_ID, tolerance=1e-4, max_tokens=TOKENS
    )
    assert record["lengths"] == f"all of 1 to {TOKENS}"
    banked = export.export_base(
        base_dir=base, traced=tmp_path / "traced" / "encoder.onnx", out_dir=tmp_path / "banked", bank=BANK,
        tolerance=1e-4, max_tokens=TOKENS,
    )  # fmt: skip
    assert banked.parity["adapter"]["effect"] > 0.01
    sites = metadata(onnx.load(tmp_path / "banked" / "model.onnx"), KEY)["sites"]
    assert sorted(site["module"] for site in sites) == sorted(banked.modules)
    check_formats(tmp_path)


def check_formats(folder):
    """INT8 (with and without a bank) and FP16 of the traced graph are near it, and all that is said of them is JSON."""
    encoder, tokenizer = folder / "traced" / "encoder.onnx", folder / "base" / "tokenizer.json"
    reading = quantize.TokenCut(TOKENS)
    merged = quantize.make(encoder_path=encoder, out_dir=folder / "merged", tokenizer_path=tokenizer, reading=reading)
    record = metadata(onnx.load(folder / "banked" / "model.onnx"), KEY)
    modules = [site["module"] for site in record["sites"]]
    int8 = quantize.make(
        encoder_path=encoder, out_dir=folder / "int8", tokenizer_path=tokenizer, formats=[quantize.INT8],
        reading=reading, bank=(BANK, modules),
    )  # fmt: skip
    json.dumps(merged.half._asdict(), allow_nan=False)
    wanted = features(encoder, tokenizer)
    for path, tolerance in ((merged.paths["fp16"], 0.02), (merged.paths["int8"], 0.3), (int8.paths["int8"], 0.3)):
        off = np.linalg.norm(features(path, tokenizer) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert off.max() < tolerance, path


def features(path, tokenizer):
    with scored(measure.OnnxSubject(path, tokenizer, TOKENS), path.stem) as subject:
        return measure.outputs(subject, BASE_TEXTS).features


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_the_lower_part_of_a_family_can_be_kept_where_layers_have_weights_of_their_own(family, tmp_path):
    opened = encoders.open_encoder(tiny.write(tmp_path, family))
    assert opened.positions == tiny.POSITIONS
    if family == "albert":
        assert opened.layers == 1 and len(opened.survey.linears) == 2 * len(list(opened.linears()))
        return
    assert opened.layers == 2
    ids = list(range(5, 25))
    names = [name for name, _ in opened.model.named_parameters()]
    assert encoders.can_be_cut(opened, 1, ids)
    assert names == [name for name, _ in opened.model.named_parameters()], "the trial leaves the encoder as it was"
    rows = torch.tensor([ids])
    mask = torch.ones_like(rows)
    with torch.inference_mode():
        whole = opened.features(rows, mask)
        states = encoders.run_below(opened, 1, rows, mask)
        encoders.cut_below(opened, 1)
        above = opened.pooling(opened.model(inputs_embeds=states, attention_mask=mask).last_hidden_state, mask)
    torch.testing.assert_close(above, whole, atol=1e-4, rtol=1e-4)


def test_a_mask_of_one_form_for_all_layers_is_not_given_to_layers_with_a_window(tmp_path):
    windowed = encoders.open_encoder(tiny.write(tmp_path / "a", "modernbert"))
    assert not takes_additive(windowed, TOKENS)
    assert takes_additive(windowed, 8), "texts shorter than the window do not show it"
    assert takes_additive(encoders.open_encoder(tiny.write(tmp_path / "b", "bert")), TOKENS)
    assert not takes_additive(encoders.open_encoder(tiny.write(tmp_path / "c", "deberta-v3")), TOKENS)


def test_a_graph_that_differs_beyond_some_length_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "takes_additive", lambda *_: True)
    base = tiny.write(tmp_path / "base", "modernbert")
    with pytest.raises(BackendError, match=rf"all of 1 to {TOKENS} tokens\): features differ from PyTorch"):
        export.trace_base(base_dir=base, out_dir=tmp_path / "t", base_id=BASE_ID, tolerance=1e-4, max_tokens=TOKENS)


def test_an_encoder_that_pytorch_cannot_export_is_refused_in_a_line(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Failed.\n\x1b[96mThis is step 1/3\x1b[0m\n- Create an issue") from ValueError(
            "no graph\n\nat x"
        )

    monkeypatch.setattr(torch.onnx, "export", fails)
    base = tiny.write(tmp_path / "base", "bert")
    with pytest.raises(BackendError, match=r"^ONNX export: PyTorch cannot export this encoder: no graph \(choose"):
        export.trace_base(base_dir=base, out_dir=tmp_path / "t", base_id=BASE_ID, tolerance=1e-4, max_tokens=TOKENS)


def test_a_lower_part_that_cannot_be_replaced_is_not_kept(tmp_path, monkeypatch):
    opened = encoders.open_encoder(tiny.write(tmp_path, "bert"))
    wrong = encoders.run_below
    monkeypatch.setattr(encoders, "run_below", lambda *given: wrong(*given) * 1.01)
    assert not encoders.can_be_cut(opened, 1, list(range(5, 25)))
