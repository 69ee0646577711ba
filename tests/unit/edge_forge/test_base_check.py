"""Bases that cannot be used are refused before anything is trained, by name; what a folder says is obeyed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_agent.base.errors import ConfigError
from edge_forge.models import bases, sentence_pooling
from edge_forge.models.base_check import examine
from edge_forge.models.encoder import open_encoder
from tests.support import tiny_encoders as tiny

HIDDEN = 32


@pytest.fixture
def base(tmp_path):
    return tiny.write(tmp_path / "base", "bert")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add_token(folder, number, **more):
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    found["added_tokens"].append(
        {"id": number, "content": "smarthome", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": False, **more}
    )  # fmt: skip
    path.write_text(json.dumps(found))
    return folder


def test_facts_of_a_base(base):
    found = examine(base)
    assert found["positions"] == tiny.POSITIONS and found["width"] == HIDDEN and found["layers"] == 2
    assert found["pooling"] == {"pooling": ["mean"], "steps": [], "prompt": ""}


def test_a_causal_model_is_no_encoder(tmp_path):
    with pytest.raises(ConfigError, match="llama is a causal model"):
        examine(tiny.write(tmp_path, "llama"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder.layer.1.output.dense.weight", "lacks 1 tensors, the first is encoder.layer.1.output.dense.weight"),
        ("embeddings.word_embeddings.weight", "lacks 1 tensors, the first is embeddings.word_embeddings.weight"),
    ],
)
def test_a_base_that_lacks_a_tensor_is_refused_by_its_name(base, name, words):
    edit(base, lambda tensors: tensors.pop(name))
    with pytest.raises(ConfigError, match=words):
        examine(base)


def test_a_pooler_is_never_read_and_may_be_missing(base):
    first = examine(base)["base_id"]
    edit(base, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")])
    assert examine(base)["base_id"] == first


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.0.attention.self.distance_embedding.weight", "encoder.layer.2.output.dense.weight",
     "encoder.layer.0.attention.self.query.lora_A.weight", "embeddings.extra.weight"],
)  # fmt: skip
def test_a_tensor_that_the_class_does_not_compute_with_is_refused_by_its_name(base, name):
    edit(base, lambda tensors: tensors.update({name: torch.ones(4, 4)}))
    with pytest.raises(ConfigError, match="does not compute with, the first is " + name.replace(".", r"\.")):
        examine(base)


def test_a_head_of_another_task_is_no_fault(base):
    edit(base, lambda tensors: tensors.update({"classifier.weight": torch.ones(2, HIDDEN), "cls.bias": torch.ones(2)}))
    examine(base)


def test_a_tensor_of_another_shape_is_refused(base):
    edit(base, lambda tensors: tensors.update({"encoder.layer.0.output.dense.weight": torch.ones(3, 3)}))
    with pytest.raises(ConfigError, match=r"another shape .* encoder\.layer\.0\.output\.dense\.weight: \[3, 3\], not"):
        examine(base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_the_name_of_its_tensor(base, value):
    edit(base, lambda tensors: tensors["encoder.layer.0.output.dense.weight"][0].fill_(value))
    with pytest.raises(ConfigError, match=r"tensor encoder\.layer\.0\.output\.dense\.weight holds a value that is no"):
        examine(base)


def test_a_pooler_of_another_shape_is_no_fault(base):
    edit(base, lambda tensors: tensors.update({"pooler.dense.weight": torch.ones(3, 3)}))
    examine(base)


def test_a_sparse_attention_ends_where_it_would_begin_to_be_sparse(tmp_path):
    """transformers changes a BigBird that is given a short text for good: what comes after would depend on it."""
    import transformers

    folder = tiny.write(tmp_path / "base", "bert")
    config = transformers.BigBirdConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, attention_type="block_sparse", block_size=4, num_random_blocks=1,
    )  # fmt: skip
    transformers.BigBirdModel(config).save_pretrained(folder)
    assert examine(folder)["positions"] == (5 + 2 * 1) * 4
    assert examine(tiny.change_config(folder, attention_type="original_full"))["positions"] == 64


def test_an_encoder_without_a_table_of_tokens_is_refused(tmp_path):
    import transformers

    folder = tiny.write(tmp_path / "base", "bert")
    config = transformers.CanineConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64
    )
    transformers.CanineModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="the base is not an encoder: it looks token ids up in no single table"):
        examine(folder)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16, "short_factor": [1.0] * 4,
         "long_factor": [2.0] * 4},
    ],
    ids=["dynamic", "longrope"],
)  # fmt: skip
def test_a_rope_that_depends_on_the_longest_text_of_a_batch_is_refused(tmp_path, scaling):
    folder = tiny.write(tmp_path / "base", "eurobert", rope_parameters={**scaling, "rope_theta": 1e4})
    with pytest.raises(ConfigError, match=f"{scaling['rope_type']!r} depends on the longest text of a batch"):
        examine(folder)
    if scaling["rope_type"] == "longrope":  # within its first length it is one rope
        tiny.change_config(folder, max_position_embeddings=16)
        assert examine(folder)["positions"] == 16


def test_relative_positions_that_transformers_does_not_compute_are_refused(base):
    tiny.change_config(base, position_embedding_type="relative_key")
    with pytest.raises(ConfigError, match="position_embedding_type = 'relative_key'"):
        examine(base)
    tiny.change_config(base, position_embedding_type="absolute")
    examine(base)


def test_a_token_beyond_the_table_is_refused_by_its_name(base):
    rows = open_encoder(base).vocabulary
    add_token(base, rows)
    with pytest.raises(ConfigError, match=rf"beyond the model's table of {rows} rows: 'smarthome' \({rows}\)"):
        examine(base)


def test_a_token_beyond_the_table_that_only_the_template_adds_is_refused(base):
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    found["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [9999]
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"'id 9999' \(9999\)"):
        examine(base)


def test_a_tokenizer_whose_unknown_token_is_missing_is_refused(base):
    """Every text with a word that it does not know would fail on the device."""
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["unk_token"] = "[NOWHERE]"
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"cannot be read: the tokenizer cannot split the text: .*Missing \[UNK\]"):
        examine(base)


def test_a_tokenizer_on_which_the_library_panics_is_refused(base):
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    merges = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "NaN"}
    path.write_text(json.dumps({**found, "model": {"type": "BPE", **merges}}))
    with pytest.raises(ConfigError, match=r"the tokenizer cannot be read: .*out of range"):
        examine(base)


def test_what_lies_beside_the_listed_files_has_no_effect_and_is_named(base):
    first = examine(base)["base_id"]
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["query"]}))
    save_file({"x": torch.ones(1)}, base / "adapter_model.safetensors")
    (base / "modeling_bert.py").write_text("raise RuntimeError('imported')")
    (base / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    tiny.change_config(base, auto_map={"AutoModel": "modeling_bert.Other"}, _attn_implementation="flash_attention_2")
    assert examine(base)["base_id"] == first
    assert bases.beside(base) == (
        "adapter_config.json", "adapter_model.safetensors", "modeling_bert.py", "pytorch_model.bin"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("modernbert", {"layer_types": ["full_attention"]}),
        ("eurobert", {"head_dim": 9}),
        ("bert", {"hidden_size": "a"}),
        ("bert", {"pad_token_id": 99999}),
        ("bert", {"num_attention_heads": 0}),
        ("bert", {"hidden_act": "foo"}),
    ],
)
def test_a_configuration_that_transformers_refuses_is_a_sentence(tmp_path, family, settings):
    base = tiny.change_config(tiny.write(tmp_path, family), **settings)
    with pytest.raises(ConfigError, match="cannot be opened"):
        examine(base)


def test_a_quantised_base_is_refused(base):
    tiny.change_config(base, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ConfigError, match="float weights"):
        bases.check(base)


@pytest.mark.parametrize(("family", "positions"), [("roberta", 64), ("xlm-roberta", 64), ("mpnet", 64), ("bert", 64)])
def test_positions_are_those_that_a_text_can_have(tmp_path, family, positions):
    opened = open_encoder(tiny.write(tmp_path, family))
    assert opened.positions == positions
    ids = torch.full((1, positions), 7)
    with torch.inference_mode():
        opened.features(ids, torch.ones_like(ids))
        ids = torch.full((1, positions + 1), 7)
        with pytest.raises((IndexError, RuntimeError)):
            opened.features(ids, torch.ones_like(ids))


# Folders of sentence-transformers


def sentence_folder(base, pooling, *more, prompts=None):
    modules = ["Transformer", "Pooling", *(kind for kind, _ in more)]
    entries = []
    for place, kind in enumerate(modules):
        path = "" if place == 0 else f"{place}_{kind}"
        entries.append({"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"})
        if path:
            (base / path).mkdir()
    (base / "modules.json").write_text(json.dumps(entries))
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **pooling}))
    for place, (kind, given) in enumerate(more, 2):
        if kind == "Dense":
            config, tensors = given
            (base / f"{place}_Dense" / "config.json").write_text(json.dumps(config))
            save_file(tensors, base / f"{place}_Dense" / "model.safetensors")
    if prompts is not None:
        (base / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return base


def states_and_features(folder):
    opened = open_encoder(folder)
    ids = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 11, 3, 0, 0, 0]])
    mask = (torch.arange(6) < torch.tensor([[6], [3]])).long()
    with torch.inference_mode():
        states = opened.model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        return [states[0], states[1, :3]], opened.features(ids, mask).numpy(), opened


@pytest.mark.parametrize(
    ("pooling", "formula"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda h: h[0]),
        ({"pooling_mode_mean_tokens": True}, lambda h: h.mean(0)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, lambda h: h.max(0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False},
         lambda h: h.sum(0) / len(h) ** 0.5),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False},
         lambda h: (h * np.arange(1, len(h) + 1)[:, None]).sum(0) / np.arange(1, len(h) + 1).sum()),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda h: h[-1]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
         lambda h: np.concatenate([h[0], h.max(0), h.mean(0)])),
        ({"pooling_mode": "cls"}, lambda h: h[0]),
        # As sentence-transformers reads it: the mean is on where its flag is not written, and a name overrides flags.
        ({}, lambda h: h.mean(0)),
        ({"pooling_mode": ["mean", "cls", "lasttoken"]}, lambda h: np.concatenate([h.mean(0), h[0], h[-1]])),
        ({"pooling_mode_cls_token": False}, lambda h: h.mean(0)),
        ({"pooling_mode": "CLS", "pooling_mode_mean_tokens": True}, lambda h: h[0]),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, lambda h: h.sum(0) / len(h) ** 0.5),
    ],
)  # fmt: skip
def test_the_pooling_of_a_folder_is_obeyed(base, pooling, formula):
    rows, features, opened = states_and_features(sentence_folder(base, pooling, ("Normalize", None)))
    for row, found in zip(rows, features, strict=True):
        np.testing.assert_allclose(found, formula(row), atol=1e-5)
    assert opened.width == features.shape[1]


def test_embeddings_that_are_to_be_cut_are_cut(base):
    folder = sentence_folder(base, {"pooling_mode": "cls"}, ("Normalize", None), prompts={"truncate_dim": 5})
    rows, features, opened = states_and_features(folder)
    for row, found in zip(rows, features, strict=True):
        np.testing.assert_allclose(found, row[0][:5], atol=1e-5)
    assert opened.width == 5
    cut = examine(folder)["base_id"]
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": null}')
    assert examine(folder)["base_id"] != cut
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 0}')
    with pytest.raises(ConfigError, match="truncate_dim is 0"):
        examine(folder)


@pytest.mark.parametrize(
    ("file", "settings", "positions", "by"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 20}, 20, "max_seq_length of sentence_bert_config.json"),
        ("sentence_bert_config.json", {"max_seq_length": None}, 32, "model_max_length of tokenizer_config.json"),
        ("sentence_bert_config.json", {"max_seq_length": 4096}, tiny.POSITIONS, ""),
        ("tokenizer_config.json", {"model_max_length": 10**30}, tiny.POSITIONS, ""),
        ("tokenizer_config.json", {"model_max_length": float("inf")}, tiny.POSITIONS, ""),
        ("README.md", {}, 32, "model_max_length of tokenizer_config.json"),
    ],
)
def test_a_folder_reads_texts_no_longer_than_it_says(base, file, settings, positions, by):
    folder = sentence_folder(base, {"pooling_mode": "cls"})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}')
    (folder / file).write_text(json.dumps(settings))
    facts = examine(folder)
    assert (facts["positions"], facts["bounded_by"]) == (positions, by)
    assert folder / "tokenizer_config.json" in bases.listed(folder)
    (folder / "modules.json").unlink()
    assert examine(folder)["positions"] == tiny.POSITIONS, "without modules it is no folder of sentence-transformers"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name is 'sentence_embedding'"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "method is 'get_text_features'"),
        (
            {"modality_config": {"text": {"method_output_name": "pooler_output"}}},
            "method_output_name is 'pooler_output'",
        ),
        ({"config_args": {"num_hidden_layers": 1}}, "config_args sets 'num_hidden_layers' beside config.json"),
        ({"model_args": True}, "model_args is no object"),
    ],
)
def test_a_transformer_that_hands_on_something_else_is_refused(base, settings, words):
    folder = sentence_folder(base, {"pooling_mode": "cls"})
    usual = {"transformer_task": "feature-extraction", "config_args": {"trust_remote_code": True},
             "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}}  # fmt: skip
    (folder / "sentence_bert_config.json").write_text(json.dumps(usual))
    examine(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({**usual, **settings}))
    with pytest.raises(ConfigError, match=words):
        examine(folder)


def test_a_flag_that_versions_read_differently_is_to_be_written(base):
    with pytest.raises(ConfigError, match="pooling_mode_mean_tokens is not written beside pooling_mode_max_tokens"):
        examine(sentence_folder(base, {"pooling_mode_max_tokens": True}))


def test_dense_and_an_inner_normalize_are_obeyed(base):
    random = np.random.default_rng(1)
    weight = random.standard_normal((5, HIDDEN)).astype(np.float32)
    bias = random.standard_normal(5).astype(np.float32)
    dense = (
        {"in_features": HIDDEN, "out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"},
        {"linear.weight": torch.from_numpy(weight), "linear.bias": torch.from_numpy(bias)},
    )
    folder = sentence_folder(base, {"pooling_mode": "cls"}, ("Normalize", None), ("Dense", dense))
    rows, features, opened = states_and_features(folder)
    for row, found in zip(rows, features, strict=True):
        np.testing.assert_allclose(found, np.tanh(weight @ (row[0] / np.linalg.norm(row[0])) + bias), atol=1e-5)
    assert opened.width == 5


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"use_residual": True}, None, "use_residual"),
        ({"module_input_name": "token_embeddings"}, None, "module_input_name is 'token_embeddings'"),
        ({"module_output_name": "other"}, None, "module_output_name is 'other'"),
        ({"activation_function": "torch.nn.modules.activation.ELU"}, None, "ELU"),
        ({"activation_function": "own.code.Tanh"}, None, r"own\.code\.Tanh"),
        ({"bias": False}, None, r"linear\.bias is there"),
        ({}, lambda t: t.pop("linear.bias"), r"linear\.bias is missing"),
        ({}, lambda t: t.pop("linear.weight"), r"no matrix linear\.weight"),
        ({}, lambda t: t.update({"linear.weight": torch.ones(5, HIDDEN - 1)}), "takes 31 features, and 32 come in"),
        ({}, lambda t: t.update({"linear.bias": torch.ones(4)}), r"has the shape \[4\], not \[5\]"),
        ({}, lambda t: t.update({"residual.weight": torch.ones(5, HIDDEN)}), r"the tensor 'residual\.weight'"),
        ({}, lambda t: t["linear.weight"].fill_(float("nan")), "no finite number"),
    ],
)
def test_a_dense_that_computes_something_else_is_refused(base, settings, change, words):
    config = {"in_features": HIDDEN, "out_features": 5, "activation_function": "torch.nn.modules.linear.Identity"}
    tensors = {"linear.weight": torch.ones(5, HIDDEN), "linear.bias": torch.ones(5)}
    if change is not None:
        change(tensors)
    with pytest.raises(ConfigError, match=words):
        examine(sentence_folder(base, {"pooling_mode": "cls"}, ("Dense", ({**config, **settings}, tensors))))


def test_a_normalize_of_tokens_is_refused(base):
    sentence_folder(base, {"pooling_mode": "cls"}, ("Normalize", None))
    (base / "2_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    with pytest.raises(ConfigError, match="Normalize is known here for 'sentence_embedding' alone"):
        examine(base)


def test_a_default_prompt_stands_before_every_text(base):
    from edge_agent.tasks.tokens import open_tokenizer
    from edge_forge.train.frozen_states import encode

    plain = encode(base, ["please turn the lamp on"], 32)[0][0].tolist()
    sentence_folder(
        base, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        prompts={"prompts": {"query": "please ", "passage": "now "}, "default_prompt_name": "query"},
    )  # fmt: skip
    assert examine(base)["prompt"] == "please "
    assert encode(base, ["turn the lamp on"], 32)[0][0].tolist() == plain
    device = open_tokenizer(str(base / "tokenizer.json"), 32, "please ")
    assert device.encode(["turn the lamp on"])[0].ids == plain


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: (b / "modules.json").write_text("[]"), "lists no modules"),
        (lambda b: (b / "modules.json").write_text('[{"type": "own.Transformer", "path": ""}]'), "code of the folder"),
        (lambda b: (b / "modules.json").write_text(
            '[{"type": "sentence_transformers.models.Transformer", "path": "../x"}]'), "outside the base"),
        (lambda b: (b / "modules.json").write_text(
            (b / "modules.json").read_text().replace("Normalize", "LSTM")), "LSTM"),
        (lambda b: (b / "1_Pooling" / "config.json").write_text('{"pooling_mode_attention": true}'), "attention"),
        (lambda b: (b / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}'),
         "no pooling mode is on"),
        (lambda b: (b / "1_Pooling" / "config.json").unlink(), "missing"),
        (lambda b: (b / "config_sentence_transformers.json").write_text('{"default_prompt_name": "q"}'), "'q'"),
        (lambda b: (b / "config_sentence_transformers.json").write_text(
            json.dumps({"default_prompt_name": "q", "prompts": {"q": "x" * 1025}})), "1024 characters"),
        (lambda b: (b / "sentence_bert_config.json").write_text('{"do_lower_case": true}'), None),
    ],
)  # fmt: skip
def test_what_a_folder_asks_for_and_is_not_known_is_refused(base, spoil, words):
    sentence_folder(base, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("Normalize", None))
    spoil(base)
    if words is None:  # the tokenizer lowers the case itself
        examine(base)
    else:
        with pytest.raises(ConfigError, match=words):
            examine(base)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_lower_case_that_the_tokenizer_does_not_make_is_refused(tmp_path, name):
    base = sentence_folder(
        tiny.write(tmp_path, "roberta"), {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    (base / f"sentence_{name}_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(ConfigError, match="do_lower_case"):
        examine(base)


def test_a_prompt_whose_tokens_are_left_out_of_pooling_is_refused(base):
    sentence_folder(
        base, {"pooling_mode_mean_tokens": True, "include_prompt": False},
        prompts={"prompts": {"q": "please "}, "default_prompt_name": "q"},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="include_prompt"):
        examine(base)


def test_pooling_decides_the_identity_and_a_last_normalize_does_not(tmp_path):
    ids = {}
    for name, pooling, more in (
        ("plain", None, ()),
        ("mean", {"pooling_mode_mean_tokens": True}, ()),
        ("normal", {"pooling_mode_mean_tokens": True}, (("Normalize", None),)),
        ("cls", {"pooling_mode": "cls"}, ()),
        ("dropout", {"pooling_mode": "cls"}, (("Dropout", None),)),
    ):
        folder = tiny.write(tmp_path / name, "bert")
        if pooling is not None:
            sentence_folder(folder, pooling, *more)
        ids[name] = examine(folder)["base_id"]
    assert ids["plain"] == ids["mean"] == ids["normal"] != ids["cls"] == ids["dropout"]
    assert set(sentence_pooling.files(tmp_path / "cls")) == {"modules.json", "1_Pooling/config.json"}
