"""Recipes of generators: defaults, what is refused and where, the written template, the shipped ones."""

from pathlib import Path

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.kinds.generator import KIND
from edge_forge.kinds.preference import KIND as PREFERENCES
from edge_forge.recipe import schema as recipe_form
from edge_forge.recipe.generator_recipe import load, parse, with_method
from edge_forge.recipe.scaffold import recipe_text

MODELS = Path(__file__).resolve().parents[3] / "models"
MINIMAL = {
    "name": "toy",
    "base": {"name": "b", "source": "./b"},
    "task": {"kind": "generate"},
    "data": {"train": "t.jsonl"},
}


def changed(**sections):
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in MINIMAL.items()}
    for name, values in sections.items():
        raw[name] = {**raw.get(name, {}), **values}
    return raw


def test_the_least_recipe_and_its_settings():
    recipe = parse(MINIMAL, "r.toml", {})
    assert (recipe.training.method, recipe.training.learning_rate, recipe.training.max_tokens) == ("lora", 2e-4, 1024)
    assert parse(changed(method={"name": "full"}), "r", {}).training.learning_rate == 2e-5
    fresh = parse(changed(base={"source": "new:llama"}, method={"name": "full"}), "r", {})
    assert fresh.is_new and fresh.training.learning_rate == 2e-3


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"task": {"max_tokens": 4}}, "task.max_tokens"),
        ({"task": {"labels": ["a"]}}, "unknown key 'task.labels'"),
        ({"train": {"rank": 4}}, "belongs into"),
        ({"train": {"learning_rat": 1.0}}, "did you mean 'learning_rate'"),
        ({"train": {"rows_at_once": 0}}, "rows_at_once"),
        ({"method": {"name": "qlora"}}, "'qlora'"),
        ({"method": {"use_dora": True}}, 'method of its own: write name = "dora"'),
        ({"method": {"name": "bottleneck"}}, "not for generators: llama.cpp computes the base's own architecture"),
        ({"method": {"name": "head"}}, "not for generators: a generator has no head of its own"),
        ({"method": {"name": "half"}, "base": {"source": "new:llama"}}, "trained as a whole"),
        ({"gguf": {"merged": False}, "method": {"name": "dora"}}, "DoRA is shipped merged only"),
        ({"base": {"source": "new:llama"}}, "trained as a whole"),
        ({"new": {"hidden": 64}}, "belongs to base.source"),
        ({"base": {"source": "new:llama"}, "method": {"name": "full"}, "new": {"heads": 3}}, "new.heads"),
        ({"quantize": {"variants": ["q8_0"]}}, "f16 must be among them"),
        ({"quantize": {"variants": ["q3_k"]}}, "quantize.variants"),
        ({"gguf": {"merged": False}, "method": {"name": "full"}}, "gguf.merged"),
        ({"gguf": {"merged": False, "adapter": False}}, "nothing would be made"),
        ({"gguf": {"sequences": 65}}, "gguf.sequences"),
        ({"evaluate": {"answer_tokens": 2000}}, "no room for a prompt"),
        ({"train": {"beta": 0.2}}, "unknown key 'train.beta'"),
        ({"quantize": {"max_margin_loss": 0.1}}, "unknown key 'quantize.max_margin_loss'"),
        ({"task": {"kind": "prefer"}, "quantize": {"max_margin_loss": 1.5}}, "quantize.max_margin_loss"),
        ({"data": {"chosen": "better"}}, "unknown key 'data.chosen'"),
        ({"task": {"kind": "prefer"}, "train": {"beta": 0}}, "beta = 0.0 must be above 0"),
        ({"task": {"kind": "prefer"}, "train": {"chosen_weight": -1.0}}, "chosen_weight = -1.0 must be at least 0"),
        ({"task": {"kind": "prefer"}, "data": {"completion": "c"}}, "unknown key 'data.completion'"),
        ({"task": {"kind": "prefer"}, "method": {"name": "adalora"}}, "AdaLoRA is not for preferences: peft adds"),
        ({"task": {"kind": "prefer"}, "base": {"source": "new:llama"}}, "no answers to choose between"),
        ({"task": {"kind": "prefer"}, "train": {"processes": 2}}, "train.processes: preferences are trained in one"),
    ],
)
def test_what_is_wrong_is_named(sections, words):
    with pytest.raises(ConfigError) as caught:
        parse(changed(**sections), "r.toml", {})
    assert words in str(caught.value) and "r.toml" in str(caught.value)


def test_a_recipe_of_preferences_has_smaller_steps_and_keeps_their_ratio_with_another_method():
    recipe = parse(changed(task={"kind": "prefer"}), "r.toml", {})
    assert recipe.prefers and recipe.training.learning_rate == 1e-5 and recipe.training.beta == 0.1
    assert parse(changed(task={"kind": "prefer"}, method={"name": "full"}), "r", {}).training.learning_rate == 1e-6
    doubled = parse(changed(task={"kind": "prefer"}, train={"learning_rate": 2e-5}), "r", {})
    assert with_method(doubled, "full").training.learning_rate == 2e-6


@pytest.mark.parametrize("kind", [KIND, PREFERENCES], ids=["generate", "prefer"])
def test_the_written_recipe_is_valid_and_names_every_key(kind):
    text, schema = recipe_text(kind, "toy"), kind.recipe.schema
    parse(recipe_form.tomllib.loads(text), "toy", {})
    for section in schema.sections:
        for key in schema.keys(section):
            assert f"\n# {key} = " in text or f"\n{key} = " in text, f"{section}.{key}"


@pytest.mark.parametrize("name", ["tiny-llama", "home-commands", "tickets"])
def test_the_shipped_recipes_are_valid(name):
    assert load(MODELS / name / "recipe.toml", {}).name == name
