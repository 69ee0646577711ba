"""The data of tiny-llama and its adapters: what is tested was never read, and the script gives what is here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[3] / "models"
NAMES = ("home-commands", "tickets")


def rows(name, part):
    path = MODELS / name / "data" / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def script():
    folder = MODELS / "tiny-llama"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("make_data", folder / "make_data.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("phrases", None)


@pytest.mark.parametrize("name", NAMES)
def test_no_question_is_in_two_parts_and_answers_are_json(name):
    asked = {
        part: {" ".join(row["prompt"].casefold().split()) for row in rows(name, part)}
        for part in ("train", "validation", "test")
    }
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"]
    assert all(isinstance(json.loads(row["completion"]), dict) for part in asked for row in rows(name, part))


@pytest.mark.parametrize("name", NAMES)
def test_the_base_read_no_question_of_the_tests(script, name):
    read = (MODELS / "tiny-llama" / "data" / "text.txt").read_text(encoding="utf-8").splitlines()
    begins = [shape.partition("{asked}")[0] for shape in (*script.p.LOGS, *script.p.DESK)]
    said = {line.removeprefix(begin) for line in read for begin in begins if line.startswith(begin)}
    assert [row for part in ("validation", "test") for row in rows(name, part) if row["prompt"] in said] == []
    assert all(row["prompt"] in said for row in rows(name, "train"))


def test_some_combinations_are_only_in_the_test():
    def combinations(part):
        found = (json.loads(row["completion"]) for row in rows("home-commands", part))
        return {(one["action"], one.get("device"), one["room"]) for one in found if "room" in one}

    assert len(combinations("test") - combinations("train") - combinations("validation")) >= 20


def test_the_script_writes_what_is_here(script, tmp_path, monkeypatch):
    (tmp_path / "tiny-llama" / "data").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.setattr(script, "HERE", tmp_path / "tiny-llama")
    script.main()
    for path in sorted(tmp_path.rglob("*.*")):
        assert path.read_bytes() == (MODELS / path.relative_to(tmp_path)).read_bytes(), path.name
