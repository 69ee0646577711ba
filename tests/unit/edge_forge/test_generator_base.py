"""A generator's base is the tensors that its class computes with, from the files of its index, and no others."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_agent.base.errors import ConfigError
from edge_forge.export.gguf.convert import check_form
from edge_forge.export.gguf.tensors import Tensors
from edge_forge.export.gguf.write_model import check_values
from edge_forge.models import bases
from edge_forge.models.base_identity import language_id
from edge_forge.models.causal_lm import check_tensors, open_model
from tests.support import tiny_generators
from tests.support.llama import needs_llama

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_generators.write(tmp_path_factory.mktemp("generator") / "base", "llama")


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made, tmp_path / "base")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder):
    """The weights in two files with an index; the names of the first one's tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: FIRST if name in names[:5] else SECOND for name in names}
    for file in (FIRST, SECOND):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return names[:5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(DOWN), rf"lacks 1 tensors, the first is {DOWN}"),
        (lambda t: t.pop("model.embed_tokens.weight"), r"lacks 1 tensors, the first is model\.embed_tokens\.weight"),
        (lambda t: t.pop("lm_head.weight"), r"lacks 1 tensors, the first is lm_head\.weight"),
        (lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name], r"lacks 9 tensors, the first is model\."),
        (lambda t: t.update({"model.layers.2.mlp.down_proj.weight": torch.ones(64, 96)}), "does not compute with"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
         r"1 tensors that LlamaForCausalLM does not compute with, the first is model\..*\.self_attn\.q_proj\.bias"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}), "does not compute"),
        (lambda t: t.update({DOWN: torch.ones(64, 90)}), rf"another shape .* {DOWN}: \[64, 90\], not \[64, 96\]"),
    ],
)  # fmt: skip
def test_other_tensors_than_the_class_computes_with_are_refused_by_name(base, change, words):
    """transformers would fill what is missing with random numbers; llama.cpp would compute with the rest."""
    edit(base, change)
    for refuses in (check_tensors, open_model):
        with pytest.raises(ConfigError, match=words):
            refuses(base)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (DOWN, float("nan"), f"tensor {DOWN} holds a value that is no finite number"),
        ("model.norm.weight", float("inf"), r"tensor model\.norm\.weight holds a value that is no finite number"),
        (DOWN, 1e5, f"tensor {DOWN} reaches 1e\\+05, beyond what float16 holds"),
    ],
)
def test_a_value_that_the_file_cannot_hold_is_refused_by_the_name_of_its_tensor(base, name, value, words):
    check_values(base)
    edit(base, lambda tensors: tensors[name][0].fill_(value))
    with pytest.raises(ConfigError, match=words):
        check_values(base)


def test_weights_of_integers_are_refused_by_the_name_of_their_tensor(base):
    edit(base, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(torch.int8)}))
    with pytest.raises(ConfigError, match=f"tensor {DOWN} is stored as I8"):
        check_form(base)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "the tokenizer cannot be read"),
        ('{"version": "1.0", "model": [1]}', "the tokenizer cannot be read"),
        ('{"version": "1.0", "mod', "the tokenizer cannot be read"),
        (None, r"a tokenizer of type 'Unigram' cannot be written as GGUF"),
    ],
)
def test_a_tokenizer_that_is_none_or_of_another_kind_is_refused_by_its_file(base, content, words):
    path = base / "tokenizer.json"
    if content is None:
        pieces = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
        found = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": pieces,
                 "post_processor": None, "decoder": None}  # fmt: skip
        content = json.dumps(found)
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        check_form(base)
    assert refusal.value.where == str(path)


def test_a_whole_base_and_buffers_of_old_versions_are_no_fault(base):
    check_tensors(base)
    edit(base, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    check_tensors(base)


def test_a_tied_head_may_be_missing(tmp_path):
    base = tiny_generators.write(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    check_tensors(base)


def test_weights_are_those_of_the_files_that_the_index_names(base):
    first = language_id(base)
    whole = open_model(base).state_dict()
    names = shard(base)
    save_file({names[0]: torch.zeros(3, 3)}, base / "model-00003-of-00003.safetensors")
    bases.check(base)
    assert language_id(base) == first
    check_tensors(base)
    torch.testing.assert_close(open_model(base).state_dict(), whole)
    with Tensors(bases.weight_files(base)) as tensors:
        assert sorted(tensors) == sorted(whole) and list(tensors.read(names[0]).shape) != [3, 3]


def test_a_tensor_in_two_files_is_refused(base):
    name = shard(base)[0]
    save_file({**load_file(base / SECOND), name: torch.ones(2)}, base / SECOND)
    with pytest.raises(ConfigError, match=rf"{SECOND} holds the tensor '{name}', which {FIRST} holds too"):
        bases.check(base)


def test_shards_without_their_index_are_named(base):
    shard(base)
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=rf"{FIRST} is there, and no model\.safetensors\.index\.json"):
        bases.check(base)


def test_what_lies_beside_the_listed_files_has_no_effect_and_is_named(base):
    first = language_id(base)
    whole = open_model(base).state_dict()
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (base / "adapter_config.json").write_text(json.dumps(adapter))
    (base / "modeling_llama.py").write_text("raise RuntimeError('imported')")
    assert language_id(base) == first
    torch.testing.assert_close(open_model(base).state_dict(), whole)
    assert bases.about_beside(base).endswith("the base's files: adapter_config.json, modeling_llama.py")


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("key", [*SIZES, "max_position_embeddings", "rms_norm_eps"])
def test_what_config_json_lacks_is_named_before_training(base, key):
    config = json.loads((base / "config.json").read_text())
    del config[key]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"config\.json: it has no {key}, which a GGUF file states"):
        check_form(base)


@pytest.mark.parametrize("value", [None, "448", -1, 0, 2.5, [1], True])
@pytest.mark.parametrize("key", [SIZES[0], SIZES[3]])
def test_a_size_that_is_none_is_named(base, key, value):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError, match=rf"config\.json: {key} = .* is no whole number above 0"):
        check_form(base)


def add_tokens(folder, texts_by_id):
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] += [{"id": place, "content": text, **plain} for place, text in texts_by_id.items()]
    path.write_text(json.dumps(document))


@needs_llama
def test_tokens_beyond_the_table_are_named(base):
    tokens = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"])
    add_tokens(base, {place: f"<extra {place}>" for place in range(tokens, 448)})
    check_form(base)
    add_tokens(base, {448: "<one too many>"})
    with pytest.raises(
        ConfigError, match=r"1 tokens have an id beyond the model's table of 448 rows: '<one too many>'"
    ):
        check_form(base)


@pytest.mark.parametrize("place", [440, 5000])
def test_an_added_token_that_the_library_numbers_otherwise_is_named(base, place):
    add_tokens(base, {place: "<far>"})
    with pytest.raises(
        ConfigError, match=rf"the added token '<far>' has the id {place} in the file, the library takes"
    ):
        check_form(base)
