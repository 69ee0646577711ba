"""One identity for one function: every setting that changes what is computed changes the id, spellings do not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_agent.base.errors import ConfigError
from edge_forge.models import sentence_pooling
from edge_forge.models.base_identity import effective, encoder_id, language_id
from edge_forge.models.encoder import open_encoder
from tests.support import tiny_encoders as tiny

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "modernbert", "eurobert", "deberta-v3", "albert")


def identity(folder):
    return encoder_id(open_encoder(folder), sentence_pooling.read(folder))


def outcome(folder):
    """(id, features of one text) of a folder; None where it cannot be opened."""
    try:
        opened = open_encoder(folder)
    except ConfigError:
        return None
    ids = torch.tensor([[0, 5, 9, 1, 6, 12, 20, 7, 8, 33, 21, 22, 11, 10, 17, 14, 15, 16, 18, 19, 1, 2]])
    with torch.inference_mode():
        return encoder_id(opened, sentence_pooling.read(folder)), opened.features(ids, torch.ones_like(ids))


def others(value):
    """Values near `value` that a configuration might have in its place."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, max(1, value // 2), value + 1]
    if isinstance(value, float):
        return [value * 100 + 1e-3]
    if value in ("gelu", "gelu_new", "silu", "relu"):
        return ["tanh"]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return [value[:1], list(reversed(value))]
    if isinstance(value, dict) and "rope_theta" in value:
        return [{**value, "rope_theta": value["rope_theta"] * 9}]
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()) and value:
        return [{**value, key: {**inner, "rope_theta": 7.0}} for key, inner in value.items() if "rope_theta" in inner]
    return []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_changes_the_features_and_keeps_the_id(family, tmp_path):
    base = tiny.write(tmp_path, family)
    config = json.loads((base / "config.json").read_text())
    first, features = outcome(base)
    changed, same = set(), set()
    for key, value in config.items():
        for other in others(value):
            (base / "config.json").write_text(json.dumps({**config, key: other}))
            found = outcome(base)
            if found is None:
                continue
            equal = features.shape == found[1].shape and torch.allclose(features, found[1], atol=1e-6, rtol=1e-6)
            if not equal:
                changed.add(key)
                assert found[0] != first, f"{key} = {other!r} computes something else under the same id"
            elif found[0] != first:
                same.add(key)
    assert changed, "the settings that were tried have no effect, so that nothing was shown"
    # What the id tells apart although this text shows no difference: limits of length, and settings for other texts.
    allowed = {"max_position_embeddings", "position_buckets", "max_relative_positions", "relative_attention",
               "local_attention", "num_key_value_heads", "layer_types", "legacy", "pad_token_id", "pos_att_type",
               "sinusoidal_pos_embds", "pretraining_tp"}  # fmt: skip
    assert same <= allowed


def test_settings_without_effect_keep_the_id(tmp_path):
    base = tiny.write(tmp_path, "bert")
    first = identity(base)
    tiny.change_config(
        base, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, initializer_range=0.5, use_cache=False,
        transformers_version="4.30.0", architectures=["BertForMaskedLM"], _name_or_path="/home/someone/bert",
        id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}, torch_dtype="float16", dtype=None, pad_token_id=3,
        gradient_checkpointing=True, position_embedding_type="absolute", layer_norm_eps=None, classifier_dropout=0.5,
    )  # fmt: skip
    assert identity(base) == first


def test_old_and_new_spelling_of_rope_are_one_base(tmp_path):
    new = tiny.write(tmp_path / "new", "eurobert", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    old = tiny.write(tmp_path / "old", "eurobert", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    tiny.change_config(old, rope_parameters=None, rope_theta=500, rope_scaling=None)
    other = tiny.write(tmp_path / "other", "eurobert", rope_parameters={"rope_type": "default", "rope_theta": 600.0})
    assert identity(new) == identity(old) != identity(other)


def test_layer_types_and_the_interval_that_they_are_made_of_are_one_base(tmp_path):
    base = tiny.write(tmp_path, "modernbert")
    first = identity(base)
    assert identity(tiny.change_config(base, layer_types=None)) == first
    assert identity(tiny.change_config(base, global_attn_every_n_layers=1)) != first


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("mpnet", "relative_attention_num_buckets", 40), ("deberta-v3", "pos_att_type", ["c2p"]),
        ("distilbert", "n_heads", 2), ("modernbert", "local_attention", 8), ("bert", "hidden_act", "relu"),
        ("bert", "layer_norm_eps", 1e-3), ("roberta", "pad_token_id", 3), ("eurobert", "rms_norm_eps", 1e-2),
        ("modernbert", "global_attn_every_n_layers", 1),
    ],
)  # fmt: skip
def test_settings_of_families_change_the_id(tmp_path, family, key, value):
    first = effective(open_encoder(tiny.write(tmp_path / "a", family)).model.config)
    assert effective(open_encoder(tiny.write(tmp_path / "b", family, **{key: value})).model.config) != first


def test_files_prefixes_heads_and_number_formats_that_hold_the_same_are_one_base(tmp_path):
    base = tiny.write(tmp_path, "roberta")
    tensors = load_file(base / "model.safetensors")
    halves = {name: value.half() for name, value in tensors.items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    first = identity(base)
    floats = {f"roberta.{name}": value.float() for name, value in halves.items() if not name.startswith("pooler")}
    floats["lm_head.bias"] = torch.ones(3)
    save_file(floats, base / "model.safetensors", metadata={"format": "pt"})
    assert identity(base) == first
    (base / "model.safetensors").unlink()
    for number, names in enumerate((sorted(floats)[::2], sorted(floats)[1::2])):
        save_file(
            {name: floats[name] for name in names}, base / f"model-{number}.safetensors", metadata={"format": "pt"}
        )
    weight_map = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(sorted(floats))}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert identity(base) == first
    changed = load_file(base / "model-0.safetensors")
    name = next(name for name in changed if changed[name].ndim == 2)
    changed[name][0, 0] += 0.5
    save_file(changed, base / "model-0.safetensors", metadata={"format": "pt"})
    assert identity(base) != first


# Language models: over the files


def language(folder, tie=True, head=None, family="Llama", **settings):
    import transformers

    folder.mkdir()
    torch.manual_seed(1)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
             "num_key_value_heads": 1, "intermediate_size": 24, "tie_word_embeddings": tie}  # fmt: skip
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**{**shape, **settings})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(folder)
    if head is not None:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = head(tensors["model.embed_tokens.weight"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_head_that_is_the_table_of_tokens_is_no_other_base(tmp_path):
    tied = language_id(language(tmp_path / "tied"))
    written = language_id(language(tmp_path / "written", head=lambda table: table.clone()))
    flag = language_id(language(tmp_path / "flag", tie=False, head=lambda table: table.clone()))
    own = language_id(language(tmp_path / "own", head=lambda table: table + 0.1))
    untied = language_id(language(tmp_path / "untied", tie=False, head=lambda table: table + 0.1))
    assert tied == written == flag
    assert len({tied, own, untied}) == 3


def test_settings_of_language_models_change_the_id_and_spellings_do_not(tmp_path):
    first = language_id(language(tmp_path / "a", rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
    old = tiny.change_config(language(tmp_path / "b"), rope_parameters=None, rope_theta=10000)
    assert language_id(old) == first
    for number, more in enumerate(
        ({"rope_theta": 5e5, "rope_parameters": None}, {"rms_norm_eps": 1e-3}, {"hidden_act": "gelu"},
         {"attention_bias": True})
    ):  # fmt: skip
        assert language_id(tiny.change_config(language(tmp_path / f"c{number}"), **more)) != first, more
    tiny.change_config(old, transformers_version="4.1", torch_dtype="bfloat16", bos_token_id=7, eos_token_id=9)
    assert language_id(old) == first


@pytest.mark.parametrize(
    ("new", "others"),
    [
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            [
                {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 10000},
                {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
                {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}},
            ],
        ),
        (
            {"rope_type": "default", "rope_theta": 5e5},
            [{"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, {"rope_theta": 5e5, "partial_rotary_factor": 1}],
        ),
    ],
)  # fmt: skip
def test_every_spelling_of_a_rope_is_one_base(tmp_path, new, others):
    folder = language(tmp_path / "a", rope_parameters=new)
    first = language_id(folder)
    for other in others:
        spelling = {"rope_parameters": None, "rope_theta": None, "rope_scaling": None, **other}
        assert language_id(tiny.change_config(folder, **spelling)) == first, other
    changed = {"rope_parameters": {**new, "rope_theta": 7e3}, "rope_scaling": None, "rope_theta": None}
    assert language_id(tiny.change_config(folder, **changed)) != first


def test_number_formats_that_hold_the_same_and_stored_buffers_are_one_language_model(tmp_path):
    folder = language(tmp_path / "a")
    halves = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    made = []
    for more, cast in (({}, torch.bfloat16), ({}, torch.float32), ({}, torch.float64), ({"buffer": 1}, torch.bfloat16)):
        tensors = {name: value.to(cast) for name, value in halves.items()}
        if more:  # transformers wrote such tables until 4.30
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        made.append(language_id(folder))
    assert len(set(made)) == 1
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert language_id(folder) != made[0]


def test_what_other_programs_write_into_a_configuration_changes_no_id(tmp_path):
    folder = language(tmp_path / "a")
    first = language_id(folder)
    notes = {"transformers.js_config": {"dtype": "q4"}, "unsloth_fixed": True, "cache_implementation": "hybrid"}
    assert language_id(tiny.change_config(folder, **notes)) == first


def test_the_local_rope_and_the_window_of_gemma_3_change_the_id(tmp_path):
    def made(name, **settings):
        return language_id(language(tmp_path / name, family="Gemma3", query_pre_attn_scalar=8, **settings))

    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    local = {**rope, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}
    first = made("a", sliding_window=16, rope_parameters=rope)
    assert made("same", sliding_window=16, rope_parameters=rope) == first
    assert made("b", sliding_window=16, rope_parameters=local) != first
    assert made("c", sliding_window=32, rope_parameters=rope) != first
