"""Reports: blocks in both forms, drawings that are the same text twice, figures set beside claims."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from edge_forge.commands import joined_stem, report_stem
from edge_forge.report import claims, classifier_report, generator_report, plots
from edge_forge.report.blocks import Drawing, Heading, Items, Paragraph, Table, markdown, page, write

RECORD = {
    "method": "lora", "preset": "best", "settings": {"rank": 8, "seed": 1}, "wall_s": 60.0, "cpu_s": 100.0,
    "peak_bytes": 600 << 20, "baseline_bytes": 300 << 20, "trainable_parameters": 500, "total_parameters": 10_000_000,
    "curves": [{"epoch": 1.0, "train_loss": 1.0, "validation_loss": 1.1, "validation_accuracy": 0.5,
                "validation_macro_f1": 0.5}],
    "best_epoch": 1.0, "stopped_early": True, "choice": {"precision": "fp32", "threads": 2},
    "truncated": {"train": 1, "validation": 0}, "versions": {"torch": "2"},
}  # fmt: skip
METRICS = {
    "rows": 10, "accuracy": 0.8, "macro_f1": 0.79, "mcc": 0.6, "ece": 0.05, "labels": ["no", "yes"],
    "confusion": [[4, 1], [1, 4]],
    "per_label": [{"label": name, "precision": 0.8, "recall": 0.8, "f1": 0.8, "support": 5} for name in ("no", "yes")],
}  # fmt: skip


def a_variant(form, dtype, accuracy, size_bytes, latency_ms):
    scores = {"accuracy": accuracy, "macro_f1": accuracy, "mcc": 0.5, "ece": 0.1}
    costs = {"size_bytes": size_bytes, "peak_bytes": 3 * size_bytes, "latency_ms": latency_ms, "parity": 1e-6}
    return {"form": form, "dtype": dtype, "shipped": True, **scores, **costs}


def figures(**changed):
    statistics = {
        "rows": {"train": 20, "validation": 10, "test": 10}, "imbalance": 1.0, "out_of_scope": "no",
        "out_of_scope_share": 0.5, "characters": {"p50": 9, "p95": 20, "max": 22},
        "labels": {name: {"train": 10, "validation": 5, "test": 5} for name in ("no", "yes")},
    }  # fmt: skip
    return {
        "recipe": {"name": "toy", "description": "A toy."},
        "data": {"statistics": statistics, "warnings": ["2 text(s) are twins"]},
        "base": {"name": "minilm", "source": "./x", "base_id": "sha256:00", "size_bytes": 40_000_000},
        "train": RECORD, "split": "test", "scores": {"test": METRICS}, "exam": {"rows": "r", "right": "1111111100"},
        "adapter_bytes": 1 << 20,
        "calibration": [[0.0, 0.0, 0], [0.9, 0.8, 10]],
        "variants": [a_variant("merged", "fp32", 0.8, 4000, 8.0), a_variant("merged", "int8", 0.79, 1000, 2.0)],
        "gates": [{"name": "x", "holds": False, "sentence": "int8 loses 1.00 points"}],
        "left_out": [["merged", "int8"]],
        "packages": [{"file": "toy.tar", "what": "adapter", "size_bytes": 2048, "digest": "sha256:" + "a" * 64}],
        "steps": [{"name": "data", "took_s": 0.1, "cached": False}],
        **changed,
    }  # fmt: skip


def test_a_report_holds_the_result_and_says_what_was_left_out():
    text = markdown(classifier_report.report(figures()))
    for word in (
        "**80.0 %** of the 10 test rows",
        "2 otherwise",
        "`toy.tar`",
        "merged int8 was left out",
        "2.0 KiB",
        "**does not hold**: int8 loses 1.00 points",
        "`no` answered as `yes`: 1 rows",
        "twins",
        "4.00× smaller",
        "4.00× as fast",
        "-1.00 points",
        "stopped early",
        "figures/confusion.svg",
    ):
        assert word in text, word


def test_a_report_without_exports_says_that_claims_were_not_measured():
    bare = figures()
    for key in ("variants", "gates", "left_out", "packages"):
        del bare[key]
    text = markdown(classifier_report.report(bare))
    assert "What runs on devices" not in text
    assert text.count(claims._OPEN) == 5


def test_a_page_is_self_contained_and_well_formed():
    text = page("toy", classifier_report.report(figures()))

    class Check(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.outside = [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "path", "use", "rect", "line", "br"):
                self.open.append(tag)
            self.outside += [
                value for name, value in attributes if name in ("src", "href") and not value.startswith("#")
            ]

        def handle_endtag(self, tag):
            if tag in self.open:
                while self.open.pop() != tag:
                    pass

    check = Check()
    check.feed(text)
    assert check.open == []
    assert check.outside == []
    assert text.count("<svg") == 4
    assert "<script" not in text


def test_what_people_write_cannot_break_a_page_or_a_table():
    blocks = [Heading("<b>", 1), Paragraph("a < b & `x<y>`"), Table(("a",), [["<script>|"]]), Items(["<i>"])]
    text = page("<t>", blocks)
    assert "<script>" not in text
    assert "<code>x&lt;y&gt;</code>" in text
    assert "\\|" in markdown(blocks)


def test_numbers_stand_to_the_right():
    text = markdown([Table(("name", "n"), [["x", "1.5 ms"], ["y", "–"]])])
    assert "| :--- | ---: |" in text


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.curves(RECORD["curves"], 1.0),
        lambda: plots.confusion([[4, 1], [1, 4]], ["no", "yes"]),
        lambda: plots.reliability([plots.Bin(0.0, 0.0, 0), plots.Bin(0.9, 0.8, 10)], 0.1),
        lambda: plots.bars([("Accuracy", "{:.2f}", {"a": 0.9, "b": None})]),
    ],
)
def test_the_same_figures_give_the_same_drawing(draw):
    one = draw()
    assert one == draw()
    assert ET.fromstring(one[one.index("<svg") :]).tag.endswith("svg")


def test_bars_of_close_shares_begin_near_them_and_say_so():
    text = plots.bars([("Accuracy", "{:.3f}", {"a": 0.93, "b": 0.92})])
    assert "(from 0.9)" in text
    assert "not measured" in plots.bars([("Latency", "{:.1f}", {"a": 2.0, "b": None})])
    assert "(from" not in plots.bars([("Train time, s", "{:.1f}", {"a": 0.93, "b": 0.92})]), "0.9 s are no share"


def test_wilson_gives_the_textbook_interval():
    low, high = claims.wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_a_comparison_sets_ways_beside_each_other():
    full = {**RECORD, "method": "full", "wall_s": 100.0, "peak_bytes": 800 << 20, "settings": {"rank": 16, "seed": 1}}
    runs = {"toy lora": figures(), "toy full": figures(train=full)}
    text = markdown(classifier_report.comparison(runs))
    for word in (
        "| toy lora | 0.8000",
        "| toy full | +0.00 (-27.75 to +27.75) |",
        "-40 %",
        "-25 %",
        "20.97×",
        "| toy full | rank = 16 |",
        "+67 %",
        "0.7900",
    ):
        assert word in text, word
    assert "seed" not in text


FULL = {**RECORD, "method": "full"}


@pytest.mark.parametrize(
    ("right", "advice"),
    [
        ("1" * 8 + "0" * 92, "cannot tell them apart: take LoRA"),
        ("1" * 11 + "0" * 89, "cannot tell them apart: take LoRA"),
        ("1" * 60 + "0" * 40, "show that full tuning is better: take it where that is worth its cost"),
        ("0" * 100, "show that LoRA is better: take LoRA"),
    ],
)
def test_a_comparison_recommends_by_what_the_rows_show_and_what_a_task_costs(right, advice):
    lora = figures(exam={"rows": "r", "right": "1" * 8 + "0" * 92})
    full = figures(train=FULL, exam={"rows": "r", "right": right})
    text = markdown(classifier_report.comparison({"toy lora": lora, "toy full": full}))
    assert advice in text
    assert "`toy full` is " in text and "points beside `toy lora` (95 % interval " in text
    assert "a further task adds a file of 1.0 MiB to a device that has the base, and shares its memory" in text
    assert "No step size was searched" in text
    assert "a fully tuned model adds 1000 B (int8) and 2.9 KiB of memory of its own" in text


def test_latencies_of_a_comparison_carry_intervals_and_ratios():
    run = figures()
    for one, times in zip(run["variants"], (1.0, 0.45), strict=True):
        one["latency_ms"] = 8.0 * times
        one["latency"] = {"p50_ms": 8.0 * times, "low_ms": 7.9 * times, "high_ms": 8.4 * times, "ratio": times,
                          "ratio_low": times - 0.01, "ratio_high": times + 0.02}  # fmt: skip
    run["attached"] = [
        {"dtype": "int8", "latency": {"p50_ms": 4.2, "ratio": 1.1, "ratio_low": 1.08, "ratio_high": 1.13}}
    ]
    text = markdown(classifier_report.comparison({"toy lora": run, "toy full": figures(train=FULL)}))
    assert "8.0 (7.9 to 8.4) ms" in text
    assert "Attached, times as long as merged" in text and "`toy lora, int8`: 1.10 (1.08 to 1.13), 4.2 ms" in text
    assert "`toy lora, merged int8`: 0.45 (0.44 to 0.47)" in text
    bare = markdown(classifier_report.comparison({"a": figures(), "b": figures()}))
    assert "measured in turns" not in bare and "Attached" not in bare


def test_runs_on_other_rows_or_of_one_method_are_not_weighed_against_each_other():
    other = figures(train=FULL, exam={"rows": "others", "right": "1" * 10})
    text = markdown(classifier_report.comparison({"toy lora": figures(), "toy full": other}))
    assert "What to choose" not in text
    assert "+0.00 (other rows)" in text
    twice = markdown(classifier_report.comparison({"toy lora": figures(), "toy lora:B": figures()}))
    assert "What to choose" not in twice


def test_a_comparison_shows_what_is_shipped():
    """A better and a faster INT8 that is left out is no figure of the product."""
    better = {**a_variant("merged", "int8", 0.99, 900, 1.0), "shipped": False, "validation_accuracy": 1.0}
    shipped = {**a_variant("merged", "int8", 0.79, 1000, 2.0), "validation_accuracy": 0.5}
    run = figures(variants=[a_variant("merged", "fp32", 0.8, 4000, 8.0), better, shipped])
    row = classifier_report.comparison_tables({"toy lora": run})[0].rows[0]
    assert row[-4:] == ["1000 B", "0.7900", "8.0 ms", "2.0 ms"]
    assert claims._find(run["variants"], "merged", "int8") is shipped
    none = figures(variants=[a_variant("merged", "fp32", 0.8, 4000, 8.0), better])
    assert classifier_report.comparison_tables({"toy lora": none})[0].rows[0][-4:] == ["–", "–", "8.0 ms", "–"]


def test_written_reports_have_their_drawings(tmp_path):
    files = write(tmp_path, "toy", [Heading("Toy", 1), Drawing("one", "A.", "<?xml?><svg></svg>")])
    assert [path.name for path in files] == ["toy.md", "toy.html"]
    assert (tmp_path / "toy-figures" / "one.svg").is_file()
    assert "toy-figures/one.svg" in files[0].read_text()
    assert not list(tmp_path.rglob(".*"))


def _generator(base: float, tuned: float, perplexity: float) -> dict[str, Any]:
    return {
        "scores": {
            "base": {"perplexity": 2.0, "rows": 40, "answers": {"exact_match": base}},
            "tuned": {"perplexity": perplexity, "rows": 40, "answers": {"exact_match": tuned}},
        }
    }


def test_a_build_says_how_good_it_is() -> None:
    assert classifier_report.score_lines({"split": "test", "scores": {"test": {"accuracy": 0.8761, "rows": 387}}}) == [
        "accuracy    0.876 on 387 rows of test"
    ]
    assert generator_report.score_lines(_generator(0.12, 0.95, 1.01)) == [
        "exact match 95.0% (base 12.0%) on 40 rows",
        "perplexity  1.01 (base 2) on 40 rows",
    ]
    assert classifier_report.score_lines({}) == []
    new = {"scores": {"tuned": {"perplexity": 3.0, "rows": 40}}}
    assert generator_report.score_lines(new) == ["perplexity  3 on 40 rows"], "a new model has no base beside it"


def test_a_build_warns_of_an_adapter_that_learned_nothing() -> None:
    assert "raise train.epochs" in generator_report.score_lines(_generator(0.0, 0.0, 1.99))[-1]
    assert "raise train.epochs" not in generator_report.score_lines(_generator(0.0, 0.0, 1.5))[-1]


def a_point(threshold, in_scope_right, caught):
    return {"threshold": threshold, "answered": 0.9, "in_scope_rows": 90, "in_scope_right": in_scope_right,
            "out_of_scope_rows": 10, "out_of_scope_caught": caught, "wrong_caught": 0.5, "right_lost": 0.1}  # fmt: skip


def test_in_scope_and_out_of_scope_stand_apart_with_the_proposed_threshold():
    scope = {
        "label": "oos",
        "threshold": 0.0,
        "proposed": 0.6,
        "curve": [a_point(0.0, 0.948, 0.2), a_point(0.6, 0.9, 0.7)],
    }
    shown = figures(scope=scope, outcome="it never answers 9 of the 12 classes")
    text = markdown(classifier_report.report(shown))
    assert (
        "94.8 % of the 90 test rows in scope are answered rightly, and 20.0 % of the 10 rows out of scope as `oos`"
        in text
    )
    assert (
        "**`threshold = 0.6`**. On the test rows 90.0 % of those in scope are then answered rightly, and 70.0 %" in text
    )
    assert "**Mind: it never answers 9 of the 12 classes.**" in text
    lines = "\n".join(classifier_report.score_lines(shown))
    assert "in scope 0.948, out of scope 0.200" in lines
    assert "task.threshold = 0.6; the report has the curve" in lines
    assert "MIND        it never answers" in lines


def test_what_devices_answer_with_the_recipes_threshold_is_printed_and_reported():
    scope = {"label": "unsure", "threshold": 0.5, "proposed": 0.2, "curve": [a_point(0.0, 0.6, None)],
             "at": {"threshold": 0.5, "in_scope_answered": 0.02, "in_scope_right": 0.01}}  # fmt: skip
    shown = figures(scope={**scope, "curve": [{**a_point(0.0, 0.6, None), "out_of_scope_rows": 0}]})
    said = "with task.threshold = 0.5: 0.020 of the rows in scope are answered, 0.010 rightly; the others get 'unsure'"
    assert said in markdown(classifier_report.report(shown))
    assert said in "\n".join(classifier_report.score_lines(shown))
    shown["scope"] |= {"label": None, "threshold": 0.0}
    assert 'threshold = 0.2 with task.out_of_scope, such as "unsure"' in "\n".join(classifier_report.score_lines(shown))


def test_of_many_classes_the_worst_are_shown_and_no_matrix():
    names = [f"c{n:03}" for n in range(151)]
    per_label = [
        {"label": name, "precision": 0.5, "recall": 0.5, "f1": n / 151, "support": n != 3}
        for n, name in enumerate(names)
    ]
    confusion = [
        [(gold == answered) + (answered == (gold + 1) % 151) for answered in range(151)] for gold in range(151)
    ]
    metrics = {**METRICS, "labels": names, "per_label": per_label, "confusion": confusion}
    text = markdown(classifier_report.report(figures(scores={"test": metrics})))
    assert "The 20 worst of 151 classes" in text
    assert "figures/confusion.svg" not in text
    shown = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `c")]
    assert shown[:20] == [name for name in names[:21] if name != "c003"]
    assert text.count("answered as") == 20


def test_recipes_of_one_name_in_one_build_folder_keep_their_reports_apart(tmp_path):
    """A project's recipes share its build folder, and two of them may have the same name."""
    files = [tmp_path / name / "recipe.toml" for name in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    folder = tmp_path / "reports"
    folder.mkdir()
    assert report_stem(folder, "lamps", files[0]) == "lamps"
    (folder / "lamps.json").write_text(json.dumps({"recipe": {"name": "lamps", "file": str(files[0])}}))
    assert report_stem(folder, "lamps", files[0]) == "lamps"
    apart = report_stem(folder, "lamps", files[1])
    assert re.fullmatch("lamps-[0-9a-f]{8}", apart)
    assert report_stem(folder, "lamps", files[1]) == apart
    files[0].unlink()
    assert report_stem(folder, "lamps", files[1]) == "lamps", "the report of a recipe that is gone may be replaced"
    for odd in ("[]", "{", '{"recipe": {}}'):
        (folder / "lamps.json").write_text(odd)
        assert report_stem(folder, "lamps", files[1]) == "lamps"


def test_a_report_on_many_recipes_has_a_name_that_a_file_system_takes():
    assert joined_stem("compare", ["one", "two", "one"]) == "compare-one-two"
    long = [f"{'n' * 60}{number}" for number in range(5)]
    assert len(joined_stem("compare", long)) < 200
    assert joined_stem("compare", long) != joined_stem("compare", [*long[:4], "other"])


STAGES = ["Data preparation", "Initialisation", "Set-up", "Tuning", "Evaluation", "Deployment", "Monitoring"]


def test_a_report_walks_the_seven_stages_and_shows_what_devices_compare_with():
    reference = {"confidence": [0.0] * 9 + [1.0], "fragmentation": [0.25] * 4 + [0.0] * 6, "out_of_vocabulary": 0.02}
    shown = {**a_variant("merged", "int8", 0.79, 1000, 2.0), **reference}
    text = markdown(classifier_report.report(figures(variants=[shown])))
    found = [line.split(". ", 1)[1] for line in text.splitlines() if line.startswith("## ") and ". " in line]
    assert found == STAGES
    monitoring = text.split("7. Monitoring")[1]
    assert "| 1.0 | 100.0 % | more | 0.0 % |" in monitoring
    assert "| 0.1 | 0.0 % | 0.10 | 25.0 % |" in monitoring
    assert "Unknown tokens: 2.0 %" in monitoring
    assert "golden probes" in monitoring


def test_nothing_is_said_of_a_reference_that_no_package_carries():
    text = markdown(classifier_report.report(figures(packages=[])))
    assert text.split("7. Monitoring")[1].strip() == "No package was made, so no device has anything to compare with."
