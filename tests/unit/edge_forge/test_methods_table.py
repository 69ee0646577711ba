"""Comparisons over seeds: what is run, which step size is taken, and what is recommended for which figures."""

from types import SimpleNamespace

import msgspec
import pytest

from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_forge import trials
from edge_forge.report import methods_table, plots
from edge_forge.report.blocks import Drawing, Paragraph, Table


class Recipe(msgspec.Struct, frozen=True):
    """As much of a recipe as trials change."""

    train: dict = {}

    @property
    def training(self):
        return SimpleNamespace(learning_rate=self.train.get("learning_rate", 1e-3), seed=self.train.get("seed", 17))


def plans(score):
    """A planner whose runs score by their settings."""
    return lambda recipe: SimpleNamespace(trial=lambda: {"score": 0.5, "validation": score(recipe.training)})


def test_the_step_size_that_validates_best_is_taken_and_the_smaller_of_equals():
    replan = plans(lambda training: -abs(training.learning_rate - 3e-3))
    recipe, tried = trials.best_step_size(Recipe({"epochs": 2}), replan, (3.0, 1.0, 0.3))
    assert recipe.train == {"epochs": 2, "learning_rate": 3e-3}
    assert [one["learning_rate"] for one in tried] == [3e-4, 1e-3, 3e-3]
    assert trials.best_step_size(Recipe(), plans(lambda _: 1.0), (1.0, 0.3))[0].training.learning_rate == 3e-4


def test_a_step_size_at_which_training_fails_is_told_and_the_others_decide():
    def score(training):
        if training.learning_rate > 2e-3:
            raise EdgeError("the run diverged", "train")
        return float("nan") if training.learning_rate > 1e-3 else 0.8

    recipe, tried = trials.best_step_size(Recipe(), plans(score), (1.0, 1.5, 3.0))
    assert recipe.training.learning_rate == 1e-3
    assert [one["validation"] for one in tried] == [0.8, None, None]
    said = methods_table.steps_said({"lora": {"step_sizes": tried}})
    assert "0.001 0.8000, 0.0015 failed (the validation score is no number), 0.003 failed (the run diverged)" in said
    with pytest.raises(EdgeError, match="the run diverged"):
        trials.best_step_size(Recipe(), plans(score), (3.0, 10.0))


def test_what_has_another_reason_than_the_step_size_ends_the_comparison():
    def refuses(_):
        raise ConfigError("there is no such base", "base.source")

    with pytest.raises(ConfigError, match="no such base"):
        trials.best_step_size(Recipe(), plans(refuses), (0.3, 1.0))
    with pytest.raises(UsageError, match=r"step size of 1.5 is tried.*factors up to 1e\+03"):
        trials.best_step_size(Recipe(), plans(refuses), (1500.0, 1.0))


def test_seeds_follow_on_the_recipes_own():
    found = trials.over_seeds(Recipe({"seed": 5}), plans(lambda training: training.seed), 3)
    assert [(one["seed"], one["validation"]) for one in found] == [(5, 5), (6, 6), (7, 7)]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "1,nan", "inf"])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(UsageError, match=r"no factors .* as 0.3,1,3"):
        trials.factors(text)


def test_the_interval_is_students():
    found = methods_table.spread([0.90, 0.91, 0.92])
    assert found.mean == pytest.approx(0.91) and found.half == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    assert str(methods_table.spread([0.9]).half) == "nan"


def run(method, scores, cpu_s, adapter=True):
    latency = {"p50_ms": 4.0, "p99_ms": 9.0}
    variants = [{"form": "merged", "dtype": dtype, "accuracy": accuracy, "shipped": True, "size_bytes": 23 << 20,
                 "peak_bytes": 90 << 20, "latency": latency}
                for dtype, accuracy in (("fp32", 0.9), ("int8", 0.895))]  # fmt: skip
    figures = {
        "train": {"method": method, "adapter_rank": 16 if adapter else 0, "trainable_parameters": 1000,
                  "settings": {"learning_rate": 1e-3}},
        "seeds": [{"seed": at, "score": score, "cpu_s": cpu_s, "wall_s": 1.0, "peak_bytes": 1 << 30}
                  for at, score in enumerate(scores)],
        "variants": variants, "step_sizes": [], "split": "test", "scores": {"test": {"rows": 1000}},
    }  # fmt: skip
    return figures | ({"adapter_bytes": 700 << 10} if adapter else {})


GOOD = (0.90, 0.91, 0.92)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"t full": run("full", (0.905, 0.911, 0.919), 90, False), "t lora": run("lora", GOOD, 60)},
         ["**Take t lora** (LoRA, rank 16), attached to a shared base, as FP32 (merged: 4.0 ms a text on this host)",
          "adds 700.0 KiB to a device that has the base", "0.67 times the processor time of t full"]),
        ({"t full": run("full", (0.95, 0.96, 0.97), 90, False), "t lora": run("lora", GOOD, 60)},
         ["**Take t full** (full fine-tuning), merged only", "the highest; no other run is as good",
          "Behind: t lora (-5.00 points)"]),
        ({"t lora": run("lora", GOOD, 60), "t pissa": run("pissa", (0.899, 0.909, 0.919), 50)},
         ["**Take t pissa** (PiSSA, rank 16)", "is not told apart from the highest, 0.9100 of t lora, by 3 seeds",
          "0.83 times the processor time of t lora"]),
        ({"t full": run("full", (0.92,), 90, False), "t lora": run("lora", (0.88,), 60)}, ["**Take t full**"]),
        ({"t full": run("full", (0.92,), 90, False), "t lora": run("lora", (0.91,), 60)},
         ["**Take t lora**", "is not told apart from the highest, 0.9200 of t full, by one seed on so many rows"]),
    ],
)  # fmt: skip
def test_the_recommendation_follows_from_the_figures(runs, said):
    found = methods_table.recommendation(runs)
    for words in said:
        assert words in found, found


def test_the_table_holds_what_was_measured():
    runs = {"t lora": run("lora", GOOD, 60), "t full": run("full", GOOD, 90, False)}
    runs["t lora"] |= {"intruders": 3, "attached": [{"dtype": "int8", "latency": {"p50_ms": 4.6, "attach_ms": 0.31}}]}
    table = next(one for one in methods_table.blocks_of(runs) if isinstance(one, Table))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["attached p50"], cells["swap"], cells["intruders"]) == ("4.6 ms", "0.31 ms", "3")
    assert table.rows[1][table.columns.index("swap")] == "–"
    assert (cells["accuracy"], cells["±"], cells["INT8 loss"], cells["FP16 loss"]) == ("0.9100", "0.0248", "+0.50", "–")
    assert (cells["INT8 p50"], cells["INT8 p99"], cells["file"]) == ("4.0 ms", "9.0 ms", "700.0 KiB adapter")
    assert table.rows[1][table.columns.index("file")] == "23.0 MiB model"


@pytest.mark.parametrize(("tried", "said"), [((), True), ((1e-3,), True), ((1e-3, 3e-3), False)])
def test_the_recommendation_says_where_step_sizes_were_not_searched(tried, said):
    sizes = [{"learning_rate": rate, "validation": 0.9} for rate in tried]
    searched = [{"learning_rate": rate, "validation": 0.9} for rate in (1e-3, 3e-3)]
    runs = {"t lora": run("lora", GOOD, 60) | {"step_sizes": searched},
            "t full": run("full", GOOD, 90, False) | {"step_sizes": sizes}}  # fmt: skip
    advice = [one.text for one in methods_table.blocks_of(runs) if isinstance(one, Paragraph)][-1]
    assert advice.startswith("**Take") and (methods_table.UNSEARCHED in advice) == said


def test_the_drawing_joins_the_runs_that_no_other_beats_in_both():
    runs = {"t full": run("full", (0.95, 0.96), 90, False), "t lora": run("lora", (0.92, 0.93), 60),
            "t pissa": run("pissa", (0.91, 0.92), 80)}  # fmt: skip
    points = {name: (sum(one["score"] for one in found["seeds"]) / 2, found["seeds"][0]["cpu_s"])
              for name, found in runs.items()}  # fmt: skip
    assert not plots._dominates(points["t full"], points["t lora"])
    assert plots._dominates(points["t lora"], points["t pissa"])
    assert not plots._dominates(points["t lora"], points["t lora"])
    drawn = [one for one in methods_table.blocks_of(runs) if isinstance(one, Drawing)]
    assert [one.name for one in drawn] == ["pareto"]
    for words in ("t pissa", "Processor time to train, s", "File of one more task, MiB", "INT8 p50, ms"):
        assert words in drawn[0].svg
    assert methods_table.pareto_of(runs) == drawn[0].svg
    assert not [one for one in methods_table.blocks_of({"t": runs["t lora"]}) if isinstance(one, Drawing)]
