"""Kinds of recipes: which one a document is of, and that each names its parts and keys its steps by their code."""

from types import SimpleNamespace

import pytest

from edge_forge.kinds import registry
from edge_forge.plan import classifier_code, generator_training
from edge_forge.plan.classifier_plan import ClassifierPlan
from edge_forge.plan.step_runner import _WITHOUT_EFFECT, _WITHOUT_EFFECT_BELOW, _closure, _path, code_version
from edge_forge.recipe.scaffold import _TEMPLATES

CODES = {
    "classify": classifier_code.CODE, "slots": classifier_code.CODE, "answers": classifier_code.CODE,
    "generate": generator_training.CODE, "prefer": generator_training.CODE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({"task": {"kind": "generate"}}, "generate"),
        ({"task": {"kind": "prefer"}}, "prefer"),
        ({"task": {"kind": "classify"}}, "classify"),
        ({"task": {"kind": "slots"}}, "slots"),
        ({"task": {"kind": "answers"}}, "answers"),
        ({"task": {}}, "classify"),
        ({}, "classify"),
        ({"task": {"kind": "dream"}}, "classify"),
        ({"task": {"kind": 3}}, "classify"),
        ({"task": "generate"}, "classify"),
    ],
)
def test_the_kind_of_a_document_is_that_of_its_task(document, name):
    assert registry.kind_of(document).name == name


@pytest.mark.parametrize("name", registry.KINDS)
def test_a_kind_has_its_name_its_templates_and_a_step_table(name):
    kind = registry.kind(name)
    assert kind.name == name and name in CODES
    assert (_TEMPLATES / kind.recipe.template).is_file() and (_TEMPLATES / kind.recipe.sample).is_file()
    assert {"base", "package", "task", "data", "method", "train"} <= set(kind.recipe.schema.sections)


@pytest.mark.parametrize("name", registry.KINDS)
def test_every_step_is_keyed_by_modules_that_exist_and_not_by_the_whole_plan(name):
    for step, (modules, distributions) in CODES[name].items():
        assert len(code_version(modules, distributions)) == 16
        reached = _closure(modules)
        if step != "package":
            assert not {one for one in reached if one.startswith(("edge_forge.plan", "edge_forge.kinds"))}, step
        assert not {one for one in reached if one.startswith(_WITHOUT_EFFECT_BELOW)}, (
            "its values are settings in the key"
        )


def test_training_is_keyed_by_what_runs_in_the_worker_process():
    for code, step, session in (
        (CODES["classify"], "train", "edge_forge.train.classifier_session"),
        (CODES["generate"], "generate-train", "edge_forge.train.generator_session"),
        (CODES["prefer"], "prefer-train", "edge_forge.train.preference_trainer"),
    ):
        assert {session, "edge_forge.train.methods", "edge_forge.train.lora"} <= _closure(code[step][0])


def test_modules_that_do_not_count_for_a_key_exist():
    assert [name for name in (*_WITHOUT_EFFECT, _WITHOUT_EFFECT_BELOW.rstrip(".")) if _path(name) is None] == []


def test_trials_are_kept_by_the_code_of_the_kinds_own_training():
    found = {name: registry.kind(name).score.step for name in registry.KINDS}
    encoders = dict.fromkeys(("classify", "slots", "answers"), "train")
    assert found == {**encoders, "generate": "generate-train", "prefer": "prefer-train"}


@pytest.mark.parametrize("more", [{}, {"spans": {"f1": 0.8, "low": 0.7, "high": 0.9, "spans": 40}}])
def test_evaluate_prints_the_score_that_a_report_begins_with(more):
    scores = {"rows": 9, "accuracy": 0.6, "macro_f1": 0.7, "mcc": 0.5, "ece": 0.1, "confusion": [], **more}
    plan = object.__new__(ClassifierPlan)
    plan.training = SimpleNamespace(
        data=SimpleNamespace(measured=("test", ())), evaluated=SimpleNamespace(facts={"test": scores})
    )
    assert plan.result("evaluate") == {"split": "test", **{key: scores[key] for key in scores if key != "confusion"}}
