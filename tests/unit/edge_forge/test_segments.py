"""Segments of pairs: the rule that finds them is the tokenizer's, and the graph computes what PyTorch computes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from edge_forge.evaluate import measure_onnx as measure
from edge_forge.export.onnx.export_graphs import trace_base
from edge_forge.models.encoder import open_encoder
from edge_forge.models.segments import PairForm, Segments, pair_form, separator_in_texts
from tests.support import tiny_base as tiny

TOKENS = 24
WORDS = st.lists(
    st.sampled_from(["turn", "the", "lamp", "on", "off", "please", "unknown"]), min_size=1, max_size=7
).map(" ".join)
TEXTS = (
    ("turn the lamp on", "light off please"),
    "lamp on",
    ("lamp on", "switch off a light please the light now"),
    "please switch the light on",
)


def template(pair, single="[CLS] $A [SEP]"):
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])


@pytest.mark.parametrize(
    ("processor", "form"),
    [
        (template("[CLS] $A [SEP] $B:1 [SEP]:1"), PairForm(3, True)),
        (template("[CLS] $A [SEP] $B [SEP]"), PairForm(3, False)),
        (template("[CLS] $A [SEP]:1 $B:1 [SEP]:1"), PairForm(3, False)),
        (template("[CLS] $A $B:1 [SEP]:1"), PairForm(None, False)),
        (template("[CLS] $A [SEP] $B:1 [SEP]:1", single="[SEP] $A [CLS]"), PairForm(3, False)),
        (processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), PairForm(3, True)),
        (processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)), PairForm(3, False)),
        (processors.Sequence([processors.ByteLevel(), template("[CLS] $A [SEP] $B:1 [SEP]:1")]), PairForm(3, True)),
        (processors.ByteLevel(), PairForm(None, False)),
    ],
)
def test_the_form_is_the_templates(tiny_base, tmp_path, processor, form):
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    tokenizer.post_processor = processor
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert pair_form(tmp_path) == form


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"post_processor": {"type": "TemplateProcessing"}}'])
def test_a_file_that_says_nothing_of_pairs_has_no_form(tmp_path, text):
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    assert pair_form(tmp_path) == PairForm(None, False)


@pytest.mark.parametrize(
    ("splitter", "written"),
    [(pre_tokenizers.WhitespaceSplit(), "a [SEP] b"), (pre_tokenizers.BertPreTokenizer(), None)],
)
def test_a_separator_that_a_text_can_write_is_found(tiny_base, tmp_path, splitter, written):
    """A vocabulary of whole words has it as a word; where punctuation is split first, no text can write it."""
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    tokenizer.post_processor = template("[CLS] $A [SEP] $B:1 [SEP]:1")
    tokenizer.pre_tokenizer = splitter
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert separator_in_texts(tmp_path) == written


@given(texts=st.one_of(WORDS, st.tuples(WORDS, WORDS)))
def test_the_rule_gives_the_tokenizers_own_segments(tiny_base, texts):
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    encoded = tokenizer.encode(*texts) if isinstance(texts, tuple) else tokenizer.encode(texts)
    assert Segments(3).of(torch.tensor([encoded.ids])).tolist() == [encoded.type_ids]


@pytest.fixture(scope="module")
def graph(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    trace_base(base_dir=tiny_base, out_dir=folder, base_id="sha256:" + "0" * 64, max_tokens=TOKENS)
    return folder / "encoder.onnx"


def by_transformers(base, text, segments=True):
    """Mean-pooled features by the upstream model with the tokenizer's own segments."""
    from transformers import AutoModel

    tokenizer, model = Tokenizer.from_file(str(base / "tokenizer.json")), AutoModel.from_pretrained(base).eval()
    found = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
    types = torch.tensor([found.type_ids]) * int(segments)
    with torch.inference_mode():
        states = model(torch.tensor([found.ids]), torch.ones_like(types), token_type_ids=types).last_hidden_state
    return states.mean(1)[0].numpy()


def test_a_batch_of_pairs_and_single_texts_gives_what_transformers_gives(tiny_base, graph):
    subject = measure.OnnxSubject(graph, tiny_base / "tokenizer.json", TOKENS)
    found = measure.outputs(subject, TEXTS).features
    for text, features in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(features, by_transformers(tiny_base, text), atol=1e-5)
        if isinstance(text, tuple):
            other = by_transformers(tiny_base, text, segments=False)
            assert np.abs(features - other).max() > 0.1, "the segments make a difference here"


def test_a_model_without_segments_is_left_alone(tiny_base, tmp_path):
    folder = tiny.write(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    assert open_encoder(folder).model._forward_pre_hooks
    assert not open_encoder(folder, segmented=False).model._forward_pre_hooks
    (folder / "tokenizer.json").unlink()
    assert settings["type_vocab_size"] == 2
    assert not open_encoder(folder).model._forward_pre_hooks
