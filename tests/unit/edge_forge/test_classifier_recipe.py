"""Recipes: what is accepted, and the sentence for each way one can be wrong."""

import copy
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError, UsageError
from edge_agent.bundle.manifest import Name
from edge_forge.kinds.classifier import KIND
from edge_forge.plan.compression import teacher_recipe
from edge_forge.recipe import classifier_recipe as recipes
from edge_forge.recipe import generator_recipe as generators
from edge_forge.recipe import schema as recipe_form
from edge_forge.recipe.classifier_recipe import load, parse
from edge_forge.recipe.scaffold import recipe_text
from edge_forge.recipe.schema import overlaid, read, with_line

GOOD = {
    "name": "toy",
    "base": {"name": "minilm", "source": ["python:weights", "${BASES:-/models}/minilm"]},
    "data": {"train": "${DATA:-data}/train.tsv"},
}
MODELS = Path(__file__).parents[3] / "models"


def changed(**tables):
    raw = copy.deepcopy(GOOD)
    for table, keys in tables.items():
        if isinstance(keys, dict):
            raw[table] = {**raw.get(table, {}), **keys}
        else:
            raw[table] = keys
    return raw


def refused(environment=None, **tables):
    with pytest.raises(ConfigError) as caught:
        parse(changed(**tables), "toy/recipe.toml", environment or {})
    assert str(caught.value).startswith("toy/recipe.toml")
    return str(caught.value)


def test_a_minimal_recipe_takes_its_defaults():
    found = parse(GOOD, "r", {})
    assert found.training.method == "lora"
    assert found.quantize.variants == ("fp32", "fp16", "int8")
    assert found.base.sources == ("python:weights", "/models/minilm")
    assert found.package.keys == ""


def test_variables_are_filled_in_where_places_are_named():
    found = parse(GOOD, "r", {"BASES": "/b", "DATA": "/d", "EDGE_FORGE_KEYS": "/k"})
    assert (found.base.sources[1], found.data.train, found.package.keys) == ("/b/minilm", "/d/train.tsv", "/k")


def test_a_relative_path_from_the_environment_is_meant_from_here():
    assert parse(GOOD, "r", {"DATA": "here"}).data.train == str(Path("here").absolute() / "train.tsv")


def test_a_variable_without_value_and_default_is_named():
    message = refused(data={"train": "${NOWHERE}/x.tsv"})
    assert "data.train" in message
    assert "NOWHERE is not set" in message


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"trian": {}}, ["unknown key 'trian'", "did you mean 'train'?"]),
        ({"train": {"epoch": 3}}, ["unknown key 'train.epoch'", "did you mean 'epochs'?"]),
        ({"train": {"rank": 8}}, ["unknown key 'train.rank'", "belongs into [method]"]),
        ({"quantize": {"int8": "best-of-all"}}, ["unknown key 'quantize.int8'", "one form", "delete the line"]),
        ({"package": {"zzz": 1}}, ["unknown key 'package.zzz'", "known keys of [package]: version"]),
        ({"task": {"max_tokens": "many"}}, ["task.max_tokens", "expected 'int', got 'str'"]),
        ({"task": {"max_tokens": 4}}, ["task.max_tokens", ">= 8, not 4"]),
        ({"method": {"name": ["lora"]}}, ["method.name: ", "['lora'] must be a string"]),
        ({"data": {"format": "xlsx"}}, ["data.format", "use 'tsv' or 'csv' or 'jsonl'"]),
        ({"package": {"failed_training": "stop"}}, ["package.failed_training", "use 'refuse' or 'warn'"]),
        ({"train": {"epochs": "3"}}, ["train.epochs: ", "epochs = '3'", "int"]),
        ({"train": {"learning_rate": -1.0}}, ["train.learning_rate: "]),
        ({"method": {"name": "magic"}}, ["method.name: ", "'magic'", "lora, full"]),
        ({"method": {"preset": "Z"}}, ["method.preset: ", "'Z'", "A, B"]),
        ({"base": "minilm"}, ["'base' must be a table"]),
        ({"name": "Not A Name"}, ["name"]),
        ({"data": {"train": "", "hub": ""}}, ["data.train", "exactly one of"]),
        ({"data": {"hub": "some/set"}}, ["data.train", "exactly one of"]),
        ({"data": {"columns": ["words", "label"]}}, ["data.columns", "'text'"]),
        ({"task": {"labels": ["a", "a"]}}, ["task.labels", "twice"]),
        ({"task": {"labels": ["a"]}}, ["task.labels", "at least two"]),
        ({"task": {"labels": ["a", "b"], "out_of_scope": "c"}}, ["task.out_of_scope", "'c'"]),
        ({"task": {"threshold": 0.5}}, ["task.threshold", "out_of_scope"]),
        ({"method": {"name": "full"}, "export": {"merged": False}}, ["export.merged"]),
        ({"export": {"merged": False, "banked": False}}, ["export", "nothing would be made"]),
        ({"export": {"merged": False}, "quantize": {"litert": ["int8"]}}, ["quantize.litert", "export.merged = true"]),
        ({"quantize": {"litert": ["fp16"]}}, ["quantize.litert", "fp16"]),
        ({"method": {"rank": 32}}, ["export.bank_rank", "16", "32"]),
        ({"method": {"name": "pissa", "rank": 16}}, ["export.bank_rank", "16, the method's is 32", "bank_rank = 32"]),
        ({"method": {"name": "pissa", "rank": 64}}, ["export.bank_rank", "128", "set rank = 32 at most"]),
        ({"method": {"name": "dora"}, "export": {"merged": False}}, ["export.merged", "DoRA is shipped merged only"]),
        ({"method": {"name": "bottleneck"}, "export": {"merged": False}}, ["export.merged", "in a graph of its own"]),
        ({"method": {"use_rslora": True}}, ["unknown key 'method.use_rslora'", 'write name = "rslora"']),
        ({"method": {"use_dora": True}}, ["unknown key 'method.use_dora'", 'write name = "dora"']),
        ({"task": {"max_tokens": 256}}, ["export.bank_tokens", "128", "256"]),
        ({"quantize": {"variants": ["int8"]}}, ["quantize.variants", "fp32"]),
        ({"compress": {"layer": 3}}, ["unknown key 'compress.layer'", "did you mean 'layers'?"]),
        ({"compress": {"layers": -1}}, ["compress.layers", ">= 0, not -1"]),
        ({"compress": {"layers": 3, "temperature": 0.0}}, ["compress.temperature", "> 0"]),
        ({"compress": {"layers": 3, "epochs": 0}}, ["compress.epochs", ">= 1, not 0"]),
        ({"compress": {"layers": 3, "teacher": "magic"}}, ["compress.teacher", "'magic' is not known", "lora, full"]),
        ({"compress": {"layers": 3, "teacher": "bottleneck"}}, ["compress.teacher", "cannot be folded", '"full"']),
        ({"quantize": {"variants": ["fp32", "int3"]}}, ["quantize.variants", "int3", "use 'fp32' or 'fp16' or 'int8'"]),
    ],
)
def test_each_mistake_is_named(tables, words):
    message = refused(**tables)
    for word in words:
        assert word in message


def test_a_key_without_effect_any_more_is_a_warning_where_nothing_else_was_asked_for():
    tables = {"quantize": {"int8": "dynamic", "calibration_rows": 64}, "method": {"use_dora": False}}
    assert parse({**GOOD, **tables}, "r", {}) == parse(GOOD, "r", {})
    found = dict(recipe_form.idle_keys(tables))
    assert list(found) == ["quantize.int8", "quantize.calibration_rows", "method.use_dora"]
    assert "delete the line" in found["quantize.int8"]
    assert recipe_form.idle_keys({"quantize": [], "method": {"use_dora": True}, "name": "x"}) == []


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, [float("-inf")]])
@pytest.mark.parametrize(
    ("section", "key"), [("quantize", "max_logit_error"), ("export", "parity_tolerance"), ("train", "weight_decay"),
                         ("method", "alpha"), ("task", "threshold"), ("data", "seed")],
)  # fmt: skip
def test_numbers_that_are_not_finite_or_too_large_name_the_key(section, key, value):
    message = refused(**{section: {key: value}})
    assert f": {section}.{key}: " in message
    assert "finite" in message or "64 bits" in message


def test_a_missing_key_is_named():
    raw = copy.deepcopy(GOOD)
    del raw["base"]["source"]
    with pytest.raises(ConfigError, match="r: base: the key 'source' is missing"):
        parse(raw, "r", {})


def test_broken_files_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such recipe .edge-forge init"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(ConfigError, match=r"no valid TOML.*line 1"):
        load(tmp_path / "bad.toml")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="nest too deep"):
        load(tmp_path / "deep.toml")
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "bytes.toml")


@given(st.dictionaries(st.text(max_size=12), st.one_of(st.integers(), st.text(max_size=5), st.dictionaries(
    st.text(max_size=8), st.one_of(st.none(), st.integers(), st.booleans(), st.lists(st.integers(), max_size=2)),
    max_size=3)), max_size=4))  # fmt: skip
def test_whatever_a_file_holds_the_answer_is_a_recipe_or_a_sentence(raw):
    try:
        parse({**GOOD, **raw}, "r", {})
    except ConfigError as error:
        assert str(error)


def test_the_written_recipe_is_valid_and_names_every_key():
    text = recipe_text(KIND, "toy")
    parse(recipe_form.tomllib.loads(text), "toy", {})
    for section in recipes.SCHEMA.sections:
        for key in recipes.SCHEMA.keys(section):
            assert f"\n# {key} = " in text or f"\n{key} = " in text, f"{section}.{key}"
    shown = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    parse({**recipe_form.tomllib.loads(shown), "data": {"train": "t"}, "task": {}}, "toy", {})


@pytest.mark.parametrize("name", ["home-intents", "urgency", "sst2", "banking77"])
def test_the_shipped_recipes_are_valid(name):
    assert load(MODELS / name / "recipe.toml", {}).name == name


def test_every_key_is_documented():
    page = (MODELS.parent / "docs" / "recipe.md").read_text(encoding="utf-8")
    for form in (recipes.SCHEMA, generators.SCHEMA, generators.PREFERENCE_SCHEMA):
        for section in form.sections:
            for key in form.keys(section):
                assert f"`{key}`" in page, f"{section}.{key}"


def test_every_documented_key_exists():
    page = (MODELS.parent / "docs" / "recipe.md").read_text(encoding="utf-8")
    forms = (recipes.SCHEMA, generators.SCHEMA, generators.PREFERENCE_SCHEMA)
    known = {key for form in forms for name in ("", *form.sections) for key in form.keys(name)}
    for line in page.splitlines():
        if line.startswith("| `"):
            for key in line.split("|")[1].replace("`", "").split(","):
                assert key.strip() in known, line


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"name": "my-task2-"}, ["name: 'my-task2-' cannot be a name: it must begin and end with a letter or a digit"]),
        ({"name": "dot."}, ["must begin and end"]),
        ({"name": "_low"}, ["must begin and end"]),
        ({"name": "Not A Name"}, ["name: 'Not A Name' cannot be a name: lower-case letters"]),
        ({"name": "x" * 58}, ["has 58 characters; devices take 64 (57 and '-merged')"]),
        ({"base": {"name": "x" * 65}}, ["base.name", "has 65 characters; devices take 64"]),
        ({"package": {"channel": "beta-"}}, ["package.channel", "must begin and end"]),
    ],
)
def test_names_that_a_device_would_refuse_are_refused_with_their_suffix(tables, words):
    message = refused(**tables)
    assert all(word in message for word in words), message


def test_the_longest_name_is_one_of_the_device_with_its_suffix():
    recipe = parse(changed(name="x" * 57), "r", {})
    assert len(recipe.merged_name) == 64
    assert msgspec.convert(recipe.merged_name, Name) == recipe.merged_name


def test_a_bank_that_is_not_made_sets_no_bounds():
    recipe = parse(changed(method={"name": "full"}, task={"max_tokens": 256}), "r", {})
    assert recipe.export.bank_tokens < recipe.task.max_tokens
    assert "set bank_tokens = 256, or banked = false" in refused(task={"max_tokens": 256})


def test_a_threshold_says_how_to_name_the_label_below_it():
    assert 'set out_of_scope = "unsure"; no row needs to have that label' in refused(task={"threshold": 0.5})
    assert "set task.threshold" in refused(task={"labels": ["a", "b"], "out_of_scope": "c"})
    assert parse(changed(task={"labels": ["a", "b"], "out_of_scope": "c", "threshold": 0.5}), "r", {})


RECIPE_TEXT = """name = "toy"
[base]
name = "minilm"
source = "x"
[data]
train = "t.tsv"
[task]
# threshold = 0.1
max_tokens = 64
"threshold" = 0.5
"""


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("task.threshold", 10),
        ("{file}: task.threshold", 10),
        ("{file}: task.labels", 7),
        ("{file}: task.threshhold", 7),
        ("{file}: name", 1),
        ("{file}: base.name", 3),
        ("export.bank_labels", None),
    ],
)
def test_an_error_about_a_key_names_file_and_line(tmp_path, where, line):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE_TEXT)
    named = with_line(ConfigError("wrong", where.format(file=file)), file)
    key = where.rpartition(" ")[2]
    assert named.where == (f"{file}:{line}: {key}" if line else f"{file}: {key}")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[train]\nseed = 1\nepochs = 0\n", 3, "train.epochs"),
        ("[method]\nname = 'lora'\nalpha = -1\n", 3, "method.alpha"),
        ("[method]\nname = 'magic'\n", 2, "method.name"),
        ("[train]\nseed = 1\nepoch = 3\n", 3, "train.epoch"),
        ("nmae = 'x'\n", 1, "nmae"),
        ("[quantize]\nvariants = ['int3']\n", 2, "quantize.variants[0]"),
    ],
)
@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_a_wrong_key_of_any_table_names_its_line(tmp_path, kind, text, line, key):
    file = tmp_path / "recipe.toml"
    rest = f"[base]\nname = 'm'\nsource = 'x'\n[data]\ntrain = 't.tsv'\n[task]\nkind = '{kind}'\n"
    file.write_text(("" if text.startswith("nmae") else "name = 'toy'\n") + text + rest)
    with pytest.raises(ConfigError) as caught:
        {"classify": recipes, "generate": generators}[kind].load(file, {})
    found = with_line(caught.value, file)
    assert found.where == f"{file}:{line + (not text.startswith('nmae'))}: {key}"


def test_the_file_itself_is_no_key_of_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("bad.toml")
    file.write_text("name = 'toy'\n")
    with pytest.raises(ConfigError, match=r"^bad.toml: the key 'base' is missing$"):
        try:
            load(file, {})
        except ConfigError as error:
            raise with_line(error, file) from None


def test_a_recipe_with_a_byte_order_mark_is_read_and_utf_16_is_named(tmp_path):
    file = tmp_path / "recipe.toml"
    text = "name = 'toy'\n[base]\nname = 'm'\nsource = 'x'\n[data]\ntrain = 't.tsv'\n"
    file.write_bytes(text.encode("utf-8-sig"))
    assert load(file, {}).name == "toy"
    assert with_line(ConfigError("wrong", f"{file}: name"), file).where == f"{file}:1: name"
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"written in UTF-16.*save the file as UTF-8"):
        load(file, {})


@pytest.mark.parametrize("where", ["data/train.tsv:3", "keys", None, "/models/base"])
def test_an_error_about_another_place_keeps_it(tmp_path, where):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE_TEXT)
    assert with_line(ConfigError("wrong", where), file).where == where


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.epoch=3", "--set train.epoch"),
        ("train . epochs = 0", "--set train.epochs"),
        ("nope.key=1", "--set nope.key"),
        ("nmae=x", "--set nmae"),
        ("method={name='magic'}", "--set method"),
        ("train.seed=2", "{file}:3: train.learning_rate"),
    ],
)
def test_a_key_that_was_set_for_one_run_is_named_by_its_option(tmp_path, setting, named):
    file = tmp_path / "recipe.toml"
    rate = "-1.0" if "{file}" in named else "1e-3"
    file.write_text(f"name = 'toy'\n[train]\nlearning_rate = {rate}\n[base]\nname = 'm'\nsource = 'x'\n"
                    "[data]\ntrain = 't.tsv'\n")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parse(overlaid(read(file), [setting]), str(file), {})
    assert with_line(caught.value, file, ["train.threads=1", setting]).where == named.format(file=file)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 100_000) + " = 1",
        "x = {" + " . ".join(["'a'"] * 100_000) + " = 1}",
        "[" + '"a".' * 100_000 + "b]",
    ],
    ids=["key", "inline table", "table"],
)
def test_a_key_of_very_many_parts_is_refused_before_it_is_parsed(tmp_path, text, monkeypatch):
    """The parser's time grows with the square of the parts: these would take it minutes."""
    monkeypatch.setattr(recipe_form.tomllib, "loads", None)
    (tmp_path / "recipe.toml").write_text(f'name = "x"\n{text}\n')
    with pytest.raises(ConfigError, match=r"recipe.toml:2: a key or a text in dots has more than 64 parts"):
        recipe_form.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize("text", ["a" * 500_000, '"' * 400_000, "- " * 250_000, "a." * 60 + "b"])
def test_looking_for_such_keys_costs_little(tmp_path, text):
    """Whatever these are to the parser, the look before it passes them at once."""
    assert recipe_form._LONG_KEY.search(text) is None


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("train.epochs=3", "train", "epochs", 3),
        ("train.learning_rate = 1e-4", "train", "learning_rate", 1e-4),
        ("export.merged=false", "export", "merged", False),
        ('quantize.variants=["fp32", "int8"]', "quantize", "variants", ["fp32", "int8"]),
        ("method.name=full", "method", "name", "full"),
        ('base.name="mini"', "base", "name", "mini"),
        ("data.test=a=b.tsv", "data", "test", "a=b.tsv"),
        ("data.test=", "data", "test", ""),
        ("package.licence=1\nx = 2", "package", "licence", "1\nx = 2"),
    ],
)
def test_a_key_is_set_for_one_run(setting: str, section: str, key: str, value: object) -> None:
    before = {"name": "a", "train": {"epochs": 8, "seed": 1}}
    found = overlaid(before, [setting])
    assert found[section][key] == value
    assert found["name"] == "a"
    assert before == {"name": "a", "train": {"epochs": 8, "seed": 1}}
    assert found["train"]["seed"] == 1


def test_the_last_setting_of_a_key_counts() -> None:
    assert overlaid({}, ["train.epochs=3", "train.epochs=4"]) == {"train": {"epochs": 4}}


@pytest.mark.parametrize("setting", ["epochs", "=3", "train.=3", "a.b.c=3", ".=", "name.x=1", "a b=1", "train.\n=1"])
def test_what_sets_no_key_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"--set"):
        overlaid({"name": "a"}, [setting])


@pytest.mark.parametrize("teacher", ["full", "lora"])
def test_a_teacher_is_the_same_whatever_values_are_tried(teacher):
    """A comparison and a sweep change step size, passes, rank and method: none of it is the teacher's."""
    cut = {"layers": 3, "teacher": teacher, "teacher_epochs": 2, "teacher_learning_rate": 3e-4}
    held = [
        parse(changed(compress=cut, train={"seed": 5, **train}, method=method), "r", {})
        for train, method in (
            ({}, {}), ({"learning_rate": 2e-3, "epochs": 9, "batch_size": 4}, {"name": "full"}),
            ({"learning_rate": 5e-4}, {"name": "lora", "rank": 4}), ({"warmup_fraction": 0.2}, {"preset": "A"}),
        )
    ]  # fmt: skip
    tuned = [teacher_recipe(recipe).training for recipe in held]
    assert len(set(tuned)) == 1 and not teacher_recipe(held[0]).compress.wanted
    assert (tuned[0].method, tuned[0].epochs, tuned[0].learning_rate, tuned[0].seed) == (teacher, 2, 3e-4, 5)
    usual = teacher_recipe(parse(changed(compress={"layers": 3}, train={"epochs": 1}), "r", {})).training
    assert (usual.epochs, usual.learning_rate) == (8, 1e-4), "the preset's of full fine-tuning"
    other = teacher_recipe(parse(changed(compress=cut, train={"seed": 6}), "r", {})).training
    assert other.seed == 6, "a seed is of the whole way"
