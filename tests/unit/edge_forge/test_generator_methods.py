"""Generators by method: what the table holds, and which run is recommended for which reason."""

import pytest

from edge_forge.report import generator_methods
from edge_forge.report.blocks import markdown
from tests.unit.edge_forge.test_generator_comparison import MIB, a_file, figures, scores

FORMATS = {"ratio": 1.02, "ratio_low": 1.01, "ratio_high": 1.03, "rows": 100}


def against(ratio, low, high, gain=(0.0, -0.1, 0.1)):
    return {
        "perplexity": {"rows": 100, "ratio": ratio, "ratio_low": low, "ratio_high": high},
        "exact_match": dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)),
    }


def runs(lora=1.25, full=1.5, beside=None, **changed):
    """LoRA beside full tuning; `beside` is how full differs from LoRA."""
    first, second = figures("lora", tuned=lora), figures("full", tuned=full)
    for one in (first, second):
        one["exam"] = {"rows": "toy", "tokenizer": "t"}
        for file in one["files"]:
            if file["dtype"] != "f16":
                file |= {"paired": FORMATS, "holds": True}
    if beside is not None:
        ratio = beside["perplexity"]
        turned = {
            "ratio": 1 / ratio["ratio"],
            "ratio_low": 1 / ratio["ratio_high"],
            "ratio_high": 1 / ratio["ratio_low"],
        }
        second["beside"] = {"toy lora": {**beside, "perplexity": {**ratio, **turned}}}
        first["beside"] = {"toy full": beside}
    first |= changed
    return {"toy lora": first, "toy full": second}


def seeds(*perplexities, cpu_s=10.0):
    return [
        {"seed": place, "scores": {"perplexity": one, "exact_match": 0.5}, "cpu_s": cpu_s, "wall_s": 5.0,
         "peak_bytes": 100 * MIB}
        for place, one in enumerate(perplexities)
    ]  # fmt: skip


def test_a_row_has_scores_with_intervals_costs_what_a_task_adds_and_what_formats_lose():
    table = generator_methods.table(runs(kept={"perplexity": {"before": 5.0, "after": 6.0, "lost": 0.2}}))
    lora, full = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert lora["exact match"] == "90.0% (82.6% to 94.5%)" and lora["perplexity"] == "1.250"
    assert (lora["one more task"], full["one more task"]) == ("1.0 MiB adapter", "2.0 MiB model")
    assert lora["q8_0 loss"] == "+2.0 % (+1.0 to +3.0)"
    assert (lora["most forgotten"], full["most forgotten"]) == ("20.00", "–")
    assert (lora["trained parameters"], lora["peak memory"]) == ("500", "600.0 MiB")


def test_over_seeds_scores_and_costs_are_means():
    held = runs()
    for one, values in zip(held.values(), ((1.0, 1.2), (1.1, 1.3)), strict=True):
        one["seeds"] = seeds(*values)
    table = generator_methods.table(held)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    # Student's: t(0.975, 1) = 12.706, the deviation of two values 0.2 apart is 0.1414.
    assert row["perplexity"] == "1.100 ± 1.271" and row["processor time"] == "10 s"
    assert "means of 2 runs" in markdown(generator_methods.blocks_of(held))


@pytest.mark.parametrize(
    ("given", "begins", "says"),
    [
        # Shown to be better: no matter the cost.
        (runs(1.5, 1.25, against(1 / 1.2, 0.8, 0.9)), "**Take toy full**", "no other run is as good. Behind: toy lora"),
        # Not told apart: the adapter, as it costs a device less.
        (runs(1.30, 1.25, against(0.96, 0.9, 1.02)), "**Take toy lora**", "is not told apart from the lowest, 1.250"),
        (runs(1.2525, 1.25), "**Take toy lora**", "a further task adds 1.0 MiB to a device that has the base"),
        (runs(1.25, 1.5, against(1.2, 1.1, 1.3)), "**Take toy lora**", "is the lowest; no other run is as good"),
    ],
)  # fmt: skip
def test_the_recommendation_is_of_what_the_rows_tell_apart(given, begins, says):
    told = generator_methods.recommendation(given)
    assert told.startswith(begins) and says in told


def test_it_names_form_rank_and_the_fastest_format_within_the_limits():
    told = generator_methods.recommendation(runs())
    assert "(LoRA, rank 8), attached to a shared base, as Q8_0 (100 tokens/s on this host, 6.0 MiB of memory" in told
    assert "perplexity +2.0 % beside F16" in told
    held = runs()
    next(one for one in held["toy lora"]["files"] if (one["form"], one["dtype"]) == ("adapter", "q8_0"))["holds"] = (
        False
    )
    assert "as F16 (80 tokens/s" in (told := generator_methods.recommendation(held))
    assert "Q8_0 lost more than the recipe allows" in told


def test_what_speaks_against_it_is_said():
    held = runs(1.25, 1.26, against(1.008, 0.99, 1.02, gain=(0.12, 0.04, 0.2)))
    assert "Mind that toy full has 12.0 points more answers right" in generator_methods.recommendation(held)
    worse = {name: {**one, "scores": {**one["scores"], "base": scores(1.0, 0.1)}} for name, one in runs().items()}
    assert "no better than the base itself (1.000)" in generator_methods.recommendation(worse)
    lost = runs(kept={"pairs": {"before": 0.9, "after": 0.7, "lost": 0.2}})
    assert "it lost 20.00 points of good sentences preferred" in generator_methods.recommendation(lost)


def test_runs_on_other_rows_are_not_ranked():
    held = runs()
    held["toy full"]["exam"] = {"rows": "other", "tokenizer": "t"}
    assert "nothing is recommended" in generator_methods.recommendation(held)


def test_of_preferences_the_share_of_pairs_decides():
    held = runs()
    for one, share in zip(held.values(), (0.7, 0.9), strict=True):
        found = {"preferred": share, "preferred_low": share - 0.1, "preferred_high": share + 0.1}
        one["scores"]["tuned"] = {**one["scores"]["tuned"], "preferences": found}
    held["toy full"]["beside"] = {"toy lora": {"preferred": {"gain": -0.2, "gain_low": -0.3, "gain_high": -0.1}}}
    assert "**Take toy full**" in (told := generator_methods.recommendation(held))
    assert "share of preferred pairs, 90.0%, is the highest" in told and "toy lora (-20.0 points)" in told
    held["toy full"]["beside"]["toy lora"]["preferred"]["gain_high"] = 0.01
    assert "**Take toy lora**" in generator_methods.recommendation(held)


def test_without_speeds_the_smallest_file_is_named():
    held = runs()
    for one in held["toy lora"]["files"]:
        one["speed"] = {}
    assert "as Q8_0 (the smallest within the limits" in generator_methods.recommendation(held)
    assert a_file("base", "f16", 1.0, 1, 1.0)["speed"], "the files of the tests are timed otherwise"
