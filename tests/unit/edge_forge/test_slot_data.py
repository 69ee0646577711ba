"""The data of models/home-slots: what is tested was never read, and the script gives what is here."""

import importlib.util
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from edge_forge.data import slot_rows
from edge_forge.recipe.classifier_recipe import load

MODELS = Path(__file__).resolve().parents[3] / "models"
FOLDER = MODELS / "home-slots"
LABELS = {"colour", "device", "duration", "level", "media", "room", "scene", "temperature", "time"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_slots", FOLDER / "make_data.py")
    module = sys.modules["make_slots"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["make_slots"]


@pytest.fixture(scope="module")
def data():
    recipe = load(FOLDER / "recipe.toml")
    return slot_rows.load(recipe.data, recipe.task, FOLDER)


def values(rows):
    """(label, words) of all spans, lower case."""
    return {
        (span.label, str(row.text)[span.start : span.end].casefold())
        for row in rows
        for span in slot_rows.spans_of(row)
    }


def test_the_script_writes_what_is_here(script, tmp_path, monkeypatch):
    (tmp_path / "said").symlink_to(FOLDER / "said")
    monkeypatch.setattr(script, "HERE", tmp_path)
    script.main()
    for path in sorted((tmp_path / "data").iterdir()):
        assert path.read_bytes() == (FOLDER / "data" / path.name).read_bytes(), path.name


def test_no_value_of_the_test_is_in_another_part(data):
    assert set(data.labels) == LABELS
    assert not values(data.test) & (values(data.train) | values(data.validation))
    assert {label for label, _ in values(data.test)} == LABELS


def test_no_template_is_in_two_parts(script):
    every = [template for part in script.TEMPLATES.values() for template in part]
    assert [one for one, count in Counter(every).items() if count > 1] == []
    for kind, parts in script.VALUES.items():
        named = [script.value(one) for part in parts.values() for one in part]
        assert [one for one, count in Counter(named).items() if count > 1] == [], kind


def test_no_text_is_in_two_parts_and_none_has_two_readings(data):
    assert data.statistics["shared"] == {} and data.statistics["contradictions"] == 0


def test_no_sentence_of_the_second_test_was_learned(script):
    parts = {name: {script.bare(one) for one in found} for name, found in script.rows().items()}
    assert len(parts["said"]) >= 330
    assert not parts["said"] & (parts["train"] | parts["validation"])


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_marked_sentences_are_those_of_home_intents_in_the_same_part(script, part):
    lines = (MODELS / "home-intents" / "data" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts = {line.split("\t")[0] for line in lines if not line.endswith("\tout_of_scope")}
    marked = script.said(part)
    assert {one.text for one in marked} <= texts
    assert {label for one in marked for _, _, label in one.spans} <= LABELS
    if part == "test":
        assert {one.text for one in marked} == texts, "all of them: none was left out for being hard"


def test_a_time_and_its_day_are_one_span(script):
    assert script.read_marked("wake me at [six on friday](time)") == ("wake me at six on friday", ((11, 24, "time"),))
    for one in script.rows()["train"]:
        for (_, end, label), (start, _, other) in pairwise(one.spans):
            assert (label, other) != ("time", "time") or one.text[end:start] not in (" ", " on "), one.text
