"""The plan: what each step is given, what wakes it again, and what is said before anything long begins."""

import dataclasses
import io

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edge_agent.base.errors import ConfigError, EdgeError
from edge_forge.evaluate import predict as prediction
from edge_forge.export import litert_converter
from edge_forge.plan import step_runner
from edge_forge.plan.cache import Cache
from edge_forge.plan.classifier_code import CODE
from edge_forge.plan.classifier_plan import calibration
from edge_forge.plan.classifier_training import ClassifierTraining
from edge_forge.plan.step_runner import StepRunner, runtime_versions
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe as recipe
from edge_forge.train import classifier_job
from tests.support import known_base

ROWS = "text\tlabel\n" + "".join(f"{word} {n}\t{word}\n" for word in ("on", "off") for n in range(6))
RAW = {
    "name": "toy",
    "base": {"name": "m", "source": "./base"},
    "data": {"train": "train.tsv", "test": "test.tsv"},
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A recipe folder, a base that is not opened, and training and prediction that only note what they were given."""
    (tmp_path / "train.tsv").write_text(ROWS)
    (tmp_path / "test.tsv").write_text("text\tlabel\nswitch on\ton\nswitch off\toff\n")
    (tmp_path / "base").mkdir()
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "base" / "tokenizer.json"))
    (tmp_path / "base" / "config.json").write_text("{}")
    known_base.put(monkeypatch, tmp_path / "base")
    calls = {"train": [], "predict": []}

    @dataclasses.dataclass
    class Record:
        method: str = "lora"

    def train(**given):
        calls["train"].append(given)
        given["out_dir"].mkdir()
        given["progress"]("train", 1.0)
        (given["out_dir"] / "adapter.safetensors").write_text(str(given["settings"].rank))
        (given["out_dir"] / "train.log").write_text(str(len(calls["train"])))
        return Record()

    def predict(base_dir, trained_dir, texts, *, max_tokens):
        calls["predict"].append(texts)
        return np.asarray([[0.0, 3.0] if text.startswith("switch on") else [3.0, 0.0] for text in texts])

    monkeypatch.setattr(classifier_job, "train", train)
    monkeypatch.setattr(prediction, "predict", predict)

    def plan(**tables):
        raw = {**RAW, **{name: {**RAW.get(name, {}), **keys} for name, keys in tables.items()}}
        steps = StepRunner(tmp_path, Cache(tmp_path / "build", Progress(io.StringIO())), quiet, CODE)
        return ClassifierTraining(recipe.parse(raw, "r", {}), steps)

    quiet = Progress(io.StringIO(), quiet=True)
    return tmp_path, calls, plan


def test_training_is_given_the_checked_rows_and_runs_once(world):
    _, calls, plan = world
    first = plan()
    assert first.evaluated.facts["test"]["accuracy"] == 1.0
    given = calls["train"][0]
    assert given["labels"] == ("off", "on")
    assert sum(map(len, given["rows"])) == 12
    again = plan()
    assert again.evaluated.cached
    assert again.trained.cached
    assert len(calls["train"]) == 1
    assert set(again.steps.entries) == {"data", "count tokens", "train", "evaluate"}


@pytest.mark.parametrize(
    ("tables", "trained"),
    [
        ({"train": {"epochs": 2}}, 2),
        ({"method": {"rank": 4}}, 2),
        ({"task": {"max_tokens": 32}}, 2),
        ({"task": {"labels": ["on", "off"]}}, 2),
        ({"package": {"version": 2}}, 1),
        ({"quantize": {"max_loss_points": 1.0}}, 1),
    ],
)
def test_only_what_training_depends_on_wakes_it(world, tables, trained):
    _, calls, plan = world
    plan().trained  # noqa: B018
    plan(**tables).trained  # noqa: B018
    assert len(calls["train"]) == trained


def earlier_task(place, words):
    """A recipe called `earlier` whose rows have the words as labels, in turns."""
    place.mkdir()
    rows = "text\tlabel\n" + "".join(f"{n} {word}\t{word}\n" for n in range(12) for word in words)
    for split in ("train", "validation"):
        (place / f"{split}.tsv").write_text(rows)
    (place / "recipe.toml").write_text(
        'name = "earlier"\n[base]\nname = "m"\nsource = "../base"\n'
        '[data]\ntrain = "train.tsv"\nvalidation = "validation.tsv"\n'
    )


def test_earlier_recipes_of_one_name_are_asked_all_and_each_once(world):
    folder, _, plan = world
    for name, words in (("one", ("yes", "no")), ("other", ("up", "down"))):
        earlier_task(folder / name, words)
    asked = plan(diagnose={"earlier": ["one", "other", "one/recipe.toml"]}).questions
    labels = {name: {label for _, label in task.measured} for name, task in asked.named.earlier.items()}
    assert labels == {"earlier": {"yes", "no"}, f"earlier of {folder / 'other'}": {"up", "down"}}
    assert len(asked.digests) == 2


def test_a_probe_of_an_earlier_task_is_given_rows_of_each_label_where_they_stand_in_turns(world):
    folder, _, plan = world
    earlier_task(folder / "earlier", ("yes", "no"))
    asked = plan(diagnose={"earlier": ["earlier"], "rows": 12}).questions.named.earlier["earlier"]
    for part in asked:
        assert sorted(label for _, label in part) == ["no"] * 6 + ["yes"] * 6


def test_the_first_phase_is_named_before_the_worker_reports(world):
    _, calls, plan = world
    found = plan()
    found.steps.progress = Progress(io.StringIO())
    found.trained  # noqa: B018
    lines = found.steps.progress._stream.getvalue().splitlines()
    assert lines.index("  train: load the training libraries") < lines.index("  train: train")
    assert len(calls["train"]) == 1


def test_a_missing_converter_is_said_before_anything_runs_and_only_where_it_is_needed(world, monkeypatch):
    _, calls, plan = world
    monkeypatch.setattr(litert_converter, "_MODULES", ("numpy", "no_such_converter"))
    plan().check_inputs()
    wanted = plan(quantize={"litert": ["int8"]})
    with pytest.raises(ConfigError, match="LiteRT need no_such_converter, which") as caught:
        wanted.trained  # noqa: B018
    assert caught.value.where == "quantize.litert"
    assert "`make litert`" in caught.value.remedy
    assert wanted.steps.entries == {} and calls["train"] == []


def test_results_by_litert_depend_on_its_version_and_others_do_not(monkeypatch):
    assert runtime_versions(["onnx", "tensorrt"]) == {}
    before = runtime_versions(["onnx", "litert"])
    monkeypatch.setattr(step_runner, "_version", lambda name: f"another {name}")
    after = runtime_versions(["litert"])
    assert set(before) == set(after) == {"litert"}
    assert before != after


def test_what_a_training_will_cost_is_said_before_it_and_not_where_it_is_cached(world):
    _, _, plan = world
    for said in (1, 0):
        found = plan()
        found.steps.progress = Progress(io.StringIO())
        found.trained  # noqa: B018
        lines = found.steps.progress._stream.getvalue().splitlines()
        costs = [line for line in lines if line.startswith("cost: 10 texts of ")]
        assert len(costs) == said
        assert not said or lines.index(costs[0]) < lines.index("  train: load the training libraries")


def test_new_test_rows_do_not_train_again(world):
    folder, calls, plan = world
    plan().evaluated  # noqa: B018
    (folder / "test.tsv").write_text("text\tlabel\nswitch on\ton\nother\toff\n")
    assert not plan().evaluated.cached
    assert len(calls["train"]) == 1


def test_data_that_is_only_laid_out_otherwise_does_not_train_again(world):
    folder, _, plan = world
    plan().trained  # noqa: B018
    (folder / "train.tsv").write_text(ROWS.replace("\n", "\r\n"))
    found = plan()
    assert not found.data_step.cached
    assert found.trained.cached


def test_equal_training_results_do_not_wake_evaluation(world):
    _, calls, plan = world
    plan().evaluated  # noqa: B018
    other = plan(train={"epochs": 2})
    assert other.evaluated.cached
    assert len(calls["train"]) == 2


def test_a_failed_training_keeps_its_log_and_nothing_else(world, monkeypatch):
    folder, _, plan = world

    def failing(**given):
        given["out_dir"].mkdir()
        log = given["out_dir"] / "train.log"
        log.write_text("out of memory")
        raise EdgeError("training ended with signal 9", "train", f"the whole output is in {log.resolve()}")

    monkeypatch.setattr(classifier_job, "train", failing)
    with pytest.raises(EdgeError) as caught:
        plan().trained  # noqa: B018
    kept = folder / "build" / "logs" / "train.log"
    assert str(kept) in str(caught.value)
    assert kept.read_text() == "out of memory"
    assert not (folder / "build" / "steps" / "train").exists()


def test_a_run_is_judged_by_what_devices_answer_with_its_threshold(world):
    _, _, plan = world
    assert not plan().outcome.failed
    sure = plan(task={"threshold": 0.9, "out_of_scope": "unsure"})
    assert sure.outcome == plan().outcome
    strict = plan(task={"threshold": 0.99, "out_of_scope": "unsure"})
    assert strict.evaluated.facts["test"]["accuracy"] == 1.0
    assert "answers 'unsure' to every one of the 2 measured rows" in strict.outcome.failed
    assert strict.scope["at"]["answered"] == 0.0


def test_equal_bytes_under_another_suffix_or_name_are_read_again(world):
    folder, _, plan = world
    for name in ("rows.csv", "rows.tsv", "other.tsv"):
        (folder / name).write_text('text\tlabel\n"lamp"\ton\nlight\ton\n"lamp off"\toff\nstop\toff\n')
    found = {name: plan(data={"train": name}).data for name in ("rows.tsv", "rows.csv", "other.tsv")}
    texts = {name: {row.text for split in data.splits.values() for row in split} for name, data in found.items()}
    assert '"lamp"' in texts["rows.tsv"]
    assert "lamp" in texts["rows.csv"]
    for name, data in found.items():
        assert all(name in said for said in data.warnings if "rows.tsv" in said or "other.tsv" in said)


def test_a_text_length_beyond_the_base_is_refused(world, monkeypatch):
    folder, _, plan = world
    known_base.put(monkeypatch, folder / "base", positions=16)
    with pytest.raises(ConfigError, match=r"task.max_tokens: 64 tokens are more than the base has positions for .16."):
        plan().base  # noqa: B018


def test_warnings_of_the_data_are_said_on_every_run(world):
    folder, _, plan = world
    (folder / "test.tsv").write_text("text\tlabel\non 1\ton\non 2\toff\n")
    for _ in range(2):
        found = plan()
        found.steps.progress = Progress(io.StringIO(), quiet=True)
        found.data_step  # noqa: B018
        assert "also in train" in found.steps.progress._stream.getvalue()


def test_how_a_file_was_read_is_a_line_and_no_warning_and_said_on_every_run(world):
    folder, _, plan = world
    (folder / "train.tsv").rename(folder / "train.csv")
    for _ in range(2):
        found = plan(data={"train": "train.csv"})
        found.steps.progress = Progress(io.StringIO())
        found.data_step  # noqa: B018
        lines = [line for line in found.steps.progress._stream.getvalue().splitlines() if "separated by tabs" in line]
        assert len(lines) == 1
        assert not lines[0].startswith("warning")


def test_calibration_bins_add_up_to_the_error(tmp_path):
    logits = np.log(np.asarray([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.95, 0.05]]))
    np.save(tmp_path / "l.npy", logits)
    bins = calibration(tmp_path / "l.npy", ["a", "b", "b", "a"], ("a", "b"))
    assert sum(rows for _, _, rows in bins) == 4
    error = sum(rows * abs(right - confidence) for confidence, right, rows in bins) / 4
    from edge_forge.evaluate.classifier_metrics import evaluate

    assert evaluate(logits, ["a", "b", "b", "a"], ("a", "b")).ece == pytest.approx(error)
