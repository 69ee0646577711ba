"""Every bound of a package that data, recipe or base can break is named before training.

The two tables below name each bound of the format and of `base.limits`: with an input that breaks it and the place that
is named, or with the reason why no recipe can. A bound that is in neither fails the first tests.
"""

import io
import re
from pathlib import Path

import msgspec.inspect
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from edge_agent.base import limits
from edge_agent.base.errors import ConfigError
from edge_agent.bundle.manifest import AdapterConfig, ModelDoc, TaskDoc, VariantInfo
from edge_agent.bundle.probes import Expected, ProbeFile
from edge_agent.bundle.statement import Release
from edge_forge.data.classifier_rows import Row
from edge_forge.evaluate.probes import choose_texts
from edge_forge.package import preflight
from edge_forge.plan.cache import Cache
from edge_forge.plan.classifier_plan import ClassifierPlan
from edge_forge.plan.generator_plan import GeneratorPlan
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe, generator_recipe
from tests.support import known_base


def rows(labels):
    return "text\tlabel\n" + "".join(f"{place} {n}\t{label}\n" for place, label in enumerate(labels) for n in range(4))


def prepare(folder, monkeypatch, labels=("a", "b", "c"), known=None, files=None, **tables):
    """Prepare a recipe whose base is not opened; what is wrong with it is raised, nothing is trained."""
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    (folder / "train.tsv").write_text(rows(labels))
    (folder / "base").mkdir(exist_ok=True)
    if not (folder / "base" / "tokenizer.json").exists():
        Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "base" / "tokenizer.json"))
    known_base.put(monkeypatch, folder / "base", **(known or {}))
    raw = {"name": "toy", "base": {"name": "m", "source": "./base"}, "data": {"train": "train.tsv"}}
    raw = {**raw, **{name: {**raw.get(name, {}), **keys} if isinstance(keys, dict) else keys
                     for name, keys in tables.items()}}  # fmt: skip
    shown = io.StringIO()
    progress = Progress(shown)
    recipe = classifier_recipe.parse(raw, "recipe.toml", {})
    ClassifierPlan(recipe, folder, Cache(folder / "build", progress), progress).prepare()
    return shown.getvalue()


def large_file(name, size):
    def make(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)

    return make


# name of the case: (tables, other arguments, files, words of the sentence)
BROKEN = {
    "name": ({"name": "x" * 60}, {}, "recipe.toml: name", "60 characters"),
    "channel": ({"package": {"channel": "beta."}}, {}, "package.channel", "begin and end"),
    "labels": ({}, {"labels": [f"l{n}" for n in range(1025)]}, "train.tsv", "1025 different labels"),
    "label": ({}, {"labels": ["a", "x" * 257]}, "train.tsv:6", "257 characters"),
    "out_of_scope": (
        {"task": {"threshold": 0.5, "out_of_scope": "x" * 257}}, {}, "task.out_of_scope", "a device would refuse"
    ),
    "bank": ({"export": {"bank_labels": 2}}, {}, "export.bank_labels", "3 labels, the base's bank takes 2"),
    "rank": ({"method": {"rank": 65}}, {}, "export.bank_rank", "set rank = 64 at most"),
    "rank of the device": (
        {"method": {"rank": 4000}}, {}, "method.rank", "from 1 to 512"
    ),
    "positions": (
        {"task": {"max_tokens": 129}, "export": {"bank_tokens": 129}},
        {"known": {"positions": 128}},
        "task.max_tokens", "positions for (128)",
    ),
    "hardware": ({"package": {"hardware": ["a board"]}}, {}, "package.hardware", "it takes letters, digits and"),
    "count of hardware": ({"package": {"hardware": ["b"] * 65}}, {}, "package.hardware", "length <= 64"),
    "min_agent": ({"package": {"min_agent": "new"}}, {}, "package.min_agent", "it takes a version such as '0.1.0'"),
    "min_agent of the future": ({"package": {"min_agent": "99"}}, {}, "package.min_agent", "could not try the package"),
    "counter": ({"package": {"version": 2**54}}, {}, "package.version", "<= 9007199254740992"),
    "tokens": ({"task": {"max_tokens": 513}}, {}, "task.max_tokens", "<= 512"),
    "two packages of one name": ({"base": {"name": "toy"}}, {}, "base.name", "two of its packages"),
    "probes": (
        {"package": {"probes": 32}},
        {"labels": [f"l{n}" for n in range(900)], "known": {"width": 8192}, "files": []},
        "package.probes", "set at most",
    ),
    "probes of two runtimes": (
        {"package": {"probes": 32}, "quantize": {"variants": ["fp32"], "tensorrt": ["fp32"]}},
        {"labels": [f"l{n}" for n in range(900)], "known": {"width": 8192}, "files": []},
        "package.probes", "for 2 variants",
    ),
    "tokenizer": ({}, {"files": [("base/tokenizer.json", limits.TOKENIZER_BYTES + 1)]}, "tokenizer.json", "at most"),
    "card": ({}, {"files": [("card.md", limits.MANIFEST_BYTES + 1)]}, "card.md", "at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_device_would_refuse_is_refused_before_training(tmp_path, monkeypatch, case):
    tables, arguments, where, words = BROKEN[case]
    for name, size in arguments.get("files", ()):
        large_file(name, size)(tmp_path)
    arguments = {name: value for name, value in arguments.items() if name != "files"}
    if case.startswith("probes"):
        tables = {**tables, "export": {"bank_labels": 1024}}
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path, monkeypatch, **arguments, **tables)
    assert where in caught.value.where, str(caught.value)
    assert words in str(caught.value)


def test_banking77_and_clinc150_fit_by_default(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch, labels=[f"a label of a whole sentence, number {n}" for n in range(151)])


def test_the_base_takes_no_more_tokens_than_it_has_positions_for(tmp_path, monkeypatch):
    said = prepare(tmp_path, monkeypatch, known={"positions": 64})
    assert "positions for 64 tokens: bank_tokens is 64, not 128" in said
    assert "bank_tokens" not in prepare(tmp_path, monkeypatch)


def test_a_run_without_a_step_of_any_size_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"train.epochs: .* epochs = 1 make one step, whose step size is 0"):
        prepare(tmp_path, monkeypatch, train={"epochs": 1})
    prepare(tmp_path, monkeypatch, train={"epochs": 2})
    prepare(tmp_path, monkeypatch, train={"epochs": 1, "warmup_fraction": 0.0})
    prepare(tmp_path, monkeypatch, train={"epochs": 1, "batch_size": 4})


def test_texts_that_will_be_cut_are_said_with_the_length_that_most_fit_in(tmp_path, monkeypatch):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "base").mkdir()
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    said = prepare(tmp_path, monkeypatch, labels=("a", "b"), task={"max_tokens": 8})
    assert "are cut" not in said
    long = rows(("a", "b")) + "".join(f"{'word ' * n}end {n}\ta\n" for n in range(5, 25))
    said = prepare(tmp_path, monkeypatch, data={"train": "long.tsv"}, task={"max_tokens": 8}, files={"long.tsv": long})
    assert re.search(r"warning: \d+ of \d+ training texts \(\d+\.\d%\) are longer than max_tokens = 8 and are cut; "
                     r"95 % fit in \d\d tokens, all in 2\d", said)  # fmt: skip


def test_an_expired_release_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    with pytest.raises(ConfigError, match=r"package.expires_days: .*expired at 2002.*unset SOURCE_DATE_EPOCH"):
        prepare(tmp_path, monkeypatch)


@pytest.mark.parametrize("moment", ["yesterday", "-5", "1e9", "9" * 40, "2026-01-01", "253402300800", "\u0663"])
def test_a_source_date_epoch_that_is_no_moment_is_refused_before_training(tmp_path, monkeypatch, moment):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)
    with pytest.raises(ConfigError, match=r"SOURCE_DATE_EPOCH = .* is no number of seconds since 1970 .*unset it"):
        prepare(tmp_path, monkeypatch)


# By document and field: the case above that breaks it, or why no recipe can.
BY_CODE = "written by the forge, the same for every recipe"
MEASURED = "measured; within the bound by what it is"
FIELDS = {
    "ModelDoc.schema": BY_CODE, "ModelDoc.name": "name", "ModelDoc.kind": BY_CODE, "ModelDoc.base_id": BY_CODE,
    "ModelDoc.task": BY_CODE, "ModelDoc.merged_from": BY_CODE, "ModelDoc.requires": BY_CODE,
    "TaskDoc.kind": BY_CODE, "TaskDoc.labels": "labels", "TaskDoc.max_tokens": "tokens",
    "TaskDoc.threshold": "the recipe's own bounds are these", "TaskDoc.out_of_scope": "out_of_scope",
    "TaskDoc.pairs": BY_CODE, "TaskDoc.no_answer": BY_CODE,
    "TaskDoc.window_overlap": "the recipe's own bounds are narrower", "TaskDoc.answer_tokens": BY_CODE,
    "TaskDoc.prompt": "a base with a longer one is refused: test_what_a_folder_asks_for_and_is_not_known_is_refused",
    "AdapterConfig.schema": BY_CODE, "AdapterConfig.name": "name", "AdapterConfig.base_id": BY_CODE,
    "AdapterConfig.rank": "rank of the device", "AdapterConfig.alpha": "the recipe's own bounds are narrower",
    "AdapterConfig.targets": "names of a base's modules: its own layers",
    "AdapterConfig.dtype": BY_CODE, "AdapterConfig.task": BY_CODE, "AdapterConfig.accuracy": MEASURED,
    "AdapterConfig.requires": BY_CODE, "AdapterConfig.metrics": BY_CODE,
    "VariantInfo.runtime": BY_CODE, "VariantInfo.dtype": BY_CODE, "VariantInfo.peak_bytes": MEASURED,
    "VariantInfo.accuracy": MEASURED, "VariantInfo.features": BY_CODE, "VariantInfo.hardware": BY_CODE,
    "VariantInfo.requires": BY_CODE, "VariantInfo.options": BY_CODE,
    "VariantInfo.metrics": "gguf.contexts is bounded by it: test_the_contexts_of_a_generator_fit_the_figures",
    "Release.schema": BY_CODE, "Release.product": "name", "Release.channel": "channel", "Release.counter": "counter",
    "Release.index": BY_CODE, "Release.issued_at": BY_CODE, "Release.expires": BY_CODE,
    "Release.min_agent": "min_agent", "Release.hardware": "hardware", "Release.requires": BY_CODE,
    "ProbeFile.schema": BY_CODE, "ProbeFile.texts": "longer ones are passed over: test_long_texts_are_no_probes",
    "ProbeFile.expected": BY_CODE,
    "Expected.features": "probes", "Expected.features_tolerance": "capped", "Expected.logits": "probes",
    "Expected.logits_tolerance": "capped", "Expected.classes": "of the labels of slots: SLOT_LABELS below",
    "Expected.over_tokens": BY_CODE,
    "Expected.min_effect": "an adapter without effect ends training",
}  # fmt: skip


def test_every_field_of_the_packages_documents_is_known_here():
    found = {
        f"{kind.__name__}.{field.encode_name}"
        for kind in (ModelDoc, TaskDoc, AdapterConfig, VariantInfo, Release, ProbeFile, Expected)
        for field in msgspec.inspect.type_info(kind).fields
    }
    assert found == set(FIELDS)


LIMITS = {
    "TEXT_BYTES": "rows are checked: test_classifier_rows",
    "MANIFEST_BYTES": "card", "MANIFEST_DEPTH": BY_CODE, "STATEMENT_BYTES": "count of hardware",
    "INDEX_ENTRIES": BY_CODE, "LAYERS": BY_CODE, "PROBES": "the recipe's own bound is narrower",
    "NAME_CHARACTERS": "name", "SLOT_LABELS": "the rows are checked: test_slot_rows",
    "ANSWER_WINDOWS": "of the device's work", "ANSWER_TOKENS": "the recipe's own bound is this",
    "LABELS": "labels", "LABEL_CHARACTERS": "label",
    "PROBE_CHARACTERS": "longer ones are passed over: test_long_texts_are_no_probes",
    "TASK_TOKENS": "tokens", "CONTEXT_TOKENS": "the recipe's own bound is this",
    "BLOB_BYTES": "64 GiB: no base that can be opened on a host is so large",
    "PATH_BYTES": BY_CODE, "PACKAGE_MEMBERS": BY_CODE, "TOKENIZER_BYTES": "tokenizer",
    "INSTALL_TRIALS": "of the device's work",
    "COMPANY_TOKENS": "of the device's work",
    "MANIFEST_PARTS": BY_CODE, "STATEMENT_PARTS": BY_CODE,
    "ARTEFACT_BYTES": "edge-forge oci refuses more", "ARTEFACT_PARTS": "edge-forge oci refuses more",
    **dict.fromkeys(
        ("GRAPH_NODES", "GRAPH_TENSORS", "GRAPH_FIELDS", "GRAPH_TEXT_BYTES", "SAFETENSORS_HEADER_BYTES",
         "SAFETENSORS_DIMENSIONS",
         "WEIGHT_TENSORS", "GGUF_KEYS", "GGUF_TEXT_BYTES", "GGUF_TEXTS_BYTES", "GGUF_ITEMS", "GGUF_KEPT_ITEMS",
         "GGUF_COUNT"),
        "of a base's own files, above the largest in use; the package is read back as a device reads it",
    ),
}  # fmt: skip


def test_every_limit_of_packages_is_known_here():
    """New ones come with a case in BROKEN, or with the reason why no recipe breaks them."""
    source = Path(limits.__file__).read_text()
    section = source[source.index("# Packages.") : source.index("# Spool of events")]
    found = set(re.findall(r"^([A-Z_]+) = ", section, re.MULTILINE))
    assert found | {"TEXT_BYTES"} == set(LIMITS)


def test_each_case_that_the_tables_name_exists():
    named = {value for value in (*FIELDS.values(), *LIMITS.values()) if " " not in value or value in BROKEN}
    assert named - {"capped"} <= set(BROKEN)


def test_long_texts_are_no_probes():
    long, short = Row("x" * (limits.PROBE_CHARACTERS + 1), "a"), Row("y" * limits.PROBE_CHARACTERS, "a")
    assert choose_texts([long, short], ["a"], 2) == (short.text,)


def test_the_contexts_of_a_generator_fit_the_figures():
    raw = {"name": "toy", "base": {"name": "m", "source": "./base"}, "task": {"kind": "generate"},
           "data": {"train": "t.jsonl"}, "gguf": {"contexts": list(range(100, 117))}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"gguf.contexts: .*length <= 16"):
        generator_recipe.parse(raw, "r", {})


def test_a_generator_is_checked_by_the_same_documents(tmp_path):
    raw = {"name": "toy", "base": {"name": "toy", "source": "./base"}, "task": {"kind": "generate"},
           "data": {"train": "t.jsonl"}, "package": {"hardware": ["a board"]}}  # fmt: skip
    progress = Progress(io.StringIO())
    steps = Cache(tmp_path, progress)
    with pytest.raises(
        ConfigError, match=r"base.name: two of its packages have the same name \(toy, toy, toy-merged\)"
    ):
        GeneratorPlan(generator_recipe.parse(raw, "r", {}), tmp_path, steps, progress).packages.check()
    raw["base"]["name"] = "m"
    with pytest.raises(ConfigError, match=r"package.hardware: a device would refuse release of m"):
        GeneratorPlan(generator_recipe.parse(raw, "r", {}), tmp_path, steps, progress).packages.check()


def test_texts_that_are_all_too_long_for_probes_are_said(tmp_path, monkeypatch):
    long = "text\tlabel\n" + "".join(f"{n}{'x' * 4096}\t{label}\n" for n in range(4) for label in "ab")
    with pytest.raises(ConfigError, match=r"data.validation: every validation text has more than 4096 characters"):
        prepare(tmp_path, monkeypatch, data={"train": "long.tsv"}, files={"long.tsv": long})


def test_a_bound_of_the_format_that_nobody_thought_of_still_names_a_key(tmp_path, monkeypatch):
    recipe = classifier_recipe.parse(
        {"name": "toy", "base": {"name": "m", "source": "./base"}, "data": {"train": "t.tsv"}}, "r", {}
    )
    task = {"kind": "classify", "labels": ["a", "b"], "max_tokens": 200_000}
    with pytest.raises(ConfigError, match=r"task.max_tokens: a device would refuse model toy, task: expected `int` <="):
        preflight.check_documents(recipe, [("toy", 1)], task, task)
