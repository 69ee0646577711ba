"""A sweep's space, its journal, and what it says: without a training."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_forge.kinds import registry
from edge_forge.kinds.classifier import KIND as CLASSIFIER
from edge_forge.plan.cost import TrainingWork, foretold_trials
from edge_forge.progress import Progress
from edge_forge.recipe import schema
from edge_forge.report import blocks
from edge_forge.sweep import search, space, sweep_report
from edge_forge.sweep.space import Choices, Range
from edge_forge.sweep.study import DONE, ENDED, FAILED, SweepStudy, SweepTrial, TrialResult
from edge_forge.user_state import UserState
from tests.support.needs import need

TRAINING = SimpleNamespace(learning_rate=1e-3, epochs=8, rank=16, alpha=32.0, method="lora", targets=("all",))
RATE = Range("train.learning_rate", 1e-4, 1e-2, whole=False, log=True)
RANK = Choices("method.rank", ("4", "8"))


def by(method):
    return SimpleNamespace(**{**vars(TRAINING), "method": method})


def anything(_):
    return ""


def bank_of(rank):
    """A recipe that takes ranks up to this one."""
    return lambda values: "the bank is narrower" if int(values.get("method.rank", 1)) > rank else ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train.learning_rate=1e-4:1e-2:log", RATE),
        ("train.epochs=2:8", Range("train.epochs", 2, 8, whole=True, log=False)),
        ("train.dropout = 0.0 : 0.3", Range("train.dropout", 0.0, 0.3, whole=False, log=False)),
        ("method.rank=4,8", RANK),
        ('method.targets=["attention","mlp"],["all"]', Choices("method.targets", ('["attention","mlp"]', '["all"]'))),
        ("train.schedule=linear,cosine,linear", Choices("train.schedule", ("linear", "cosine"))),
    ],
)
def test_values_of_a_key(text, wanted):
    assert space.parsed(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank", "names no key and values"),
        ("method.rank=", "names no key and values"),
        ("a.b.c=1,2", "names no key and values"),
        ("method.rank=8", "is one value, which leaves no choice"),
        ("train.epochs=8:2", "the first bound must be below the second"),
        ("train.epochs=2:2", "the first bound must be below the second"),
        ("train.learning_rate=0:1:log", "begins above 0"),
        ("train.learning_rate=1:1e999", "is no range"),
        ("train.learning_rate=1e-4:1e-2:lin", "'lin' is no scale"),
        ("train.learning_rate=a:b", "is no range of numbers"),
    ],
)
def test_a_wrong_space_is_a_sentence(text, said):
    with pytest.raises(UsageError, match=said):
        space.parsed(text)


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e3))
def test_a_drawn_value_is_read_back_as_it_was_written(low, times):
    found = space.parsed(f"train.learning_rate={low!r}:{low * times!r}:log")
    text = found.text(low)
    assert float(text) == pytest.approx(low, rel=0.01) and found.text(float(text)) == text
    assert schema.overlaid({}, [f"train.learning_rate={text}"])["train"]["learning_rate"] == float(text)


def test_the_space_of_a_method_is_around_the_recipes_own_values():
    keys = [str(one) for one in space.default_space(TRAINING, bank_of(16))]
    assert keys == [
        "train.learning_rate from 0.0001 to 0.005 (log)",
        "train.epochs from 4 to 12",
        "method.rank in 2, 4, 8, 16",
        'method.targets in ["all"], ["attention"], ["mlp"]',
    ]
    assert [one.key for one in space.default_space(by("half"), anything)] == [space.RATE, space.EPOCHS]
    assert [one.key for one in space.default_space(by("bottleneck"), anything)] == [
        space.RATE,
        space.EPOCHS,
        space.RANK,
    ]


def test_the_ablation_has_every_rank_that_the_recipe_takes():
    ranks, left_out = space.ablation_of_ranks(TRAINING, bank_of(16))
    assert ranks == Choices("method.rank", ("1", "2", "4", "8", "16"))
    assert left_out == [f"rank {rank} is left out: the bank is narrower" for rank in (32, 64)]
    with pytest.raises(UsageError, match="1 rank is left to compare"):
        space.ablation_of_ranks(TRAINING, bank_of(1))
    with pytest.raises(UsageError, match="trains no adapter, so it has no rank"):
        space.ablation_of_ranks(by("full"), anything)


def test_another_rank_keeps_the_scale_except_rslora():
    assert space.with_alpha({"method.rank": "4"}, TRAINING) == {"method.rank": "4", "method.alpha": "8"}
    assert space.with_alpha({"method.rank": "4", "method.alpha": "32"}, TRAINING)["method.alpha"] == "32"
    assert space.with_alpha({"method.rank": "4"}, by("rslora")) == {"method.rank": "4"}


def test_values_that_the_recipe_refuses_and_keys_given_twice_are_refused_before_a_trial():
    with pytest.raises(ConfigError, match=r"the recipe refuses method\.rank = 8: the bank is narrower"):
        space.check([RANK], bank_of(4), TRAINING)
    with pytest.raises(UsageError, match="given twice"):
        space.check([RANK, RANK], anything, TRAINING)
    space.check([RATE, RANK], anything, TRAINING)


@pytest.mark.parametrize("key", ["train.beta", "train.chosen_weight"])
def test_keys_that_change_the_score_itself_are_refused(key):
    with pytest.raises(UsageError, match=f"another one for each {key}"):
        space.check([Range(key, 0.1, 1.0, whole=False, log=False)], anything, TRAINING)


@pytest.mark.parametrize(
    ("key", "layers", "changes"),
    [
        ("compress.layers", 3, True), ("train.seed", 3, True), ("train.learning_rate", 3, False),
        ("method.rank", 3, False), ("train.seed", 0, False),
    ],
)  # fmt: skip
def test_keys_that_make_another_base_for_each_trial_are_known(key, layers, changes):
    made = SimpleNamespace(compress=SimpleNamespace(wanted=layers > 0))
    assert space.changes_base(key, made) is changes
    assert not space.changes_base(key, SimpleNamespace()), "a generator makes its base no smaller"


def test_combinations():
    assert space.combinations([RANK, Range("train.epochs", 2, 4, whole=True, log=False)]) == 6
    assert space.combinations([RANK, RATE]) is None


def test_values_become_lines_of_a_recipe():
    values = {"train.schedule": "linear", "method.rank": "4", "train.learning_rate": "1e-4", "method.alpha": "8"}
    lines = space.recipe_lines(values)
    assert lines == ["[method]", "alpha = 8", "rank = 4", "[train]", "learning_rate = 1e-4", 'schedule = "linear"']
    assert schema.tomllib.loads("\n".join(lines))["train"] == {"learning_rate": 1e-4, "schedule": "linear"}


def test_what_the_trials_cost_is_a_range_over_their_passes():
    work = TrainingWork(rows=1000, tokens=20_000, epochs=2, weights=10_000_000, frozen_share=0.0, base_bytes=1)
    text = foretold_trials(10, (work, work._replace(epochs=6)), 1e11, ends_early=True)
    assert text.startswith(
        "cost: 10 trials of 2 to 6 epochs on 1000 rows of 20 tokens: about 3 min 12 s to 16 min 00 s"
    )
    assert text.endswith("; less where trials fall behind and are ended")
    assert "ended" not in foretold_trials(10, (work, work), 1e11, ends_early=False)


def test_the_time_left_is_that_of_trials_that_were_trained_now():
    pace = search.Pace()
    assert pace.left(5) == ""
    pace.note(0.01, trained=False)
    assert pace.left(5) == ""
    pace.note(30.0, trained=True)
    pace.note(0.01, trained=False)
    pace.note(50.0, trained=True)
    assert pace.left(3) == " (about 2 min 00 s left)"


def test_another_rank_of_another_method_has_that_methods_scale(tmp_path, monkeypatch):
    """A sweep over methods: the recipe's own method is LoRA with alpha 32 over rank 16, PiSSA has 8 over 8."""
    (tmp_path / "recipe.toml").write_text(
        "name = 'lamps'\n[base]\nname = 'tiny'\nsource = './base'\n[data]\ntrain = 't.tsv'\n[method]\nname = 'lora'\n"
    )
    document, told = schema.read(tmp_path / "recipe.toml"), {}
    trained = SimpleNamespace(check_inputs=lambda: None, trained=SimpleNamespace(facts={"curves": [], "cpu_s": 1.0}))
    monkeypatch.setattr(search._Sweep, "training", lambda self, recipe: told.setdefault("recipe", recipe) and trained)
    watch = search._Watch(Progress(quiet=True))
    sweep = search._Sweep(document, tmp_path / "recipe.toml", CLASSIFIER, None, watch.progress, watch, (), True)
    for method, scale in (("pissa", 1.0), ("lora", 2.0)):
        told.clear()
        study = SimpleNamespace(tell=lambda trial, values, result: told.update(values=values))
        values = {"method.name": f'"{method}"', "method.rank": "4"}
        search._tried(sweep, study, SimpleNamespace(values=values))
        settings = told["recipe"].training
        assert (settings.method, settings.rank, settings.alpha) == (method, 4, 4 * scale)


def opened(folder, state="state", seed=3):
    need("optuna")
    return SweepStudy(folder / "sweep", [RATE, RANK], maximise=True, seed=seed, state=UserState(folder / state))


def result(score, state=DONE):
    return TrialResult(state, score, 1.5, parameters=10, passes=3.0, error=0.01, curve=[score or 0.0])


def made(study, count, state=DONE):
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, trial.values, result(float(trial.values["train.learning_rate"]), state))


def test_a_sweep_that_is_taken_up_again_draws_what_it_would_have_drawn(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    made(opened(tmp_path / "one"), 10)
    for _ in range(10):
        made(opened(tmp_path / "other"), 1)
    one, other = opened(tmp_path / "one").trials, opened(tmp_path / "other").trials
    assert one == other and len({json.dumps(trial.values) for trial in one}) > 7


def test_a_trial_that_was_killed_is_drawn_again_with_its_values(tmp_path):
    study = opened(tmp_path)
    made(study, 2)
    killed = study.ask()
    killed.falls_behind(1, 0.5)
    again = opened(tmp_path)
    assert len(again.trials) == 2
    again.plan([{"train.learning_rate": "0.001", "method.rank": "8"}])
    asked = again.ask()
    assert (asked.number, asked.values) == (killed.number, killed.values)
    asked.falls_behind(1, 0.5)
    again.tell(asked, asked.values, result(0.5))
    made(again, 1)
    assert [one.number for one in opened(tmp_path).trials] == [0, 1, 2, 3]
    assert opened(tmp_path).trials[3].values["train.learning_rate"] == "0.001"


def test_a_line_that_a_killed_process_did_not_end_is_cut_off(tmp_path):
    made(opened(tmp_path), 3)
    with (tmp_path / "sweep" / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"half')
    again = opened(tmp_path)
    assert len(again.trials) == 3
    made(again, 1)
    assert len(opened(tmp_path).trials) == 4


def test_a_journal_of_another_user_or_a_changed_one_is_not_believed(tmp_path):
    made(opened(tmp_path), 3)
    assert opened(tmp_path, "another").trials == []
    made(opened(tmp_path, "another"), 3)
    journal = tmp_path / "sweep" / "journal.log"
    journal.write_bytes(journal.read_bytes().replace(b'"score":0.00', b'"score":0.99'))
    assert opened(tmp_path, "another").trials == []


def test_planned_values_come_first_and_once(tmp_path):
    wanted = [
        {"train.learning_rate": "0.001", "method.rank": "8"},
        {"train.learning_rate": "0.002", "method.rank": "4"},
    ]
    study = opened(tmp_path)
    study.plan(wanted)
    made(study, 1)
    again = opened(tmp_path)
    again.plan(wanted)
    made(again, 2)
    assert [trial.values for trial in again.trials][:2] == wanted
    assert again.trials[2].values not in wanted


def test_a_trial_below_the_median_of_the_others_after_as_many_passes_falls_behind(tmp_path):
    study = opened(tmp_path)
    for _ in range(3):
        trial = study.ask()
        assert not any(trial.falls_behind(passed, 0.8) for passed in (1, 2, 3))
        study.tell(trial, trial.values, result(0.8))
    weak = study.ask()
    assert [weak.falls_behind(passed, 0.3) for passed in (1, 2)] == [False, True]
    study.tell(weak, weak.values, result(0.3, ENDED))
    good = study.ask()
    assert not any(good.falls_behind(passed, 0.9) for passed in (1, 2, 3))


def figures(trials):
    recipe = SimpleNamespace(name="lamps", training=TRAINING)
    return sweep_report.found(registry.kind("classify"), recipe, [RATE, RANK], trials)


def trial(number, score, state=DONE, **more):
    values = {"train.learning_rate": "0.001", "method.rank": str(4 + 4 * (number % 2)), "method.alpha": "8"}
    return SweepTrial(number, values, TrialResult(state, score, 10.0 - number, 100, 3.0, 0.02, curve=[0.1], **more))


def test_the_table_has_the_best_trial_first_and_ended_and_failed_ones_last():
    trials = [trial(0, 0.7), trial(1, None, FAILED, reason="not a number"), trial(2, 0.95, ENDED), trial(3, 0.9)]
    found = figures(trials)
    table = sweep_report.table(found)
    assert [row[0] for row in table.rows] == ["4", "1", "3", "2"]
    assert table.columns[:5] == ["trial", "macro-F1", "learning_rate", "rank", "alpha"]
    assert table.rows[-1][-1] == "failed: not a number"
    assert found["best"]["number"] == 4 and "rank = 8" in found["best"]["lines"]
    page = blocks.page("t", sweep_report.blocks_of(found))
    assert page.count("<svg") == 2 and "learning_rate = 0.001" in page
    json.dumps(found, allow_nan=False)


def test_trials_that_the_rows_do_not_tell_apart_are_said_with_the_cheapest():
    lines = sweep_report.advice(figures([trial(0, 0.90), trial(1, 0.89), trial(2, 0.5)]))
    assert "1 more lie within one standard error of it (0.0200)" in lines[1]
    assert "the cheapest of them is trial 2 (9.0 s of processor time)" in lines[1]
    assert len(sweep_report.advice(figures([trial(0, 0.90), trial(1, 0.5)]))) == 2


def test_where_no_error_is_known_it_is_said_that_small_differences_may_be_chance():
    held = figures([trial(0, 0.90), trial(1, 0.5)])
    for one in held["trials"]:
        one["error"] = 0.0
    assert any("small differences may be chance" in line for line in sweep_report.advice(held))


def test_a_sweep_whose_trials_all_failed_advises_nothing():
    found = figures([trial(0, None, FAILED, reason="x")])
    assert found["best"] is None and sweep_report.advice(found) == [
        "no trial was trained to its end: nothing can be advised"
    ]
    assert "<svg" not in blocks.page("t", sweep_report.blocks_of(found))


def test_without_optuna_the_line_that_installs_it_is_said(monkeypatch):
    import sys

    from edge_forge.sweep import study

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EdgeError, match="needs Optuna") as caught:
        study.require()
    assert caught.value.remedy == "`make setup` in the clone"
