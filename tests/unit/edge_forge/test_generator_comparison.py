"""Generators side by side: what is shown of runs whose figures are given, and recipes by another method."""

import xml.etree.ElementTree as ET

import pytest

from edge_agent.base.errors import ConfigError, UsageError
from edge_forge import cli, commands
from edge_forge.commands import Opened
from edge_forge.evaluate import measure_gguf as measure
from edge_forge.evaluate import paired
from edge_forge.kinds.generator import KIND
from edge_forge.plan.cache import Cache
from edge_forge.plan.generator_plan import GeneratorPlan
from edge_forge.progress import Progress
from edge_forge.recipe.generator_recipe import parse, with_method
from edge_forge.report import generator_comparison
from edge_forge.report.blocks import Drawing, Table, markdown

MIB = 1 << 20
RECIPE = {
    "name": "toy",
    "base": {"name": "b", "source": "./b"},
    "task": {"kind": "generate"},
    "data": {"train": "t.jsonl"},
    "method": {"rank": 4},
    "train": {"learning_rate": 2e-3, "batch_size": 4, "seed": 5},
}


def scores(perplexity, exact_match=None):
    answers = {"rows": 100, "exact_match": exact_match, "json_match": None, "bleu": 50.0, "rouge_l": 0.5}
    return {"rows": 100, "tokens": 900, "perplexity": perplexity} | (
        {} if exact_match is None else {"answers": answers}
    )


def a_file(form, dtype, perplexity, size_mib, tokens_per_s, exact_match=0.5):
    rounds = [
        {"first_token_ms": 7.0 * slow, "tokens_per_s": tokens_per_s and tokens_per_s / slow, "prompt_tokens": 20.0,
         "answer_tokens": 30.0, "prompts": 8, "threads": 2}
        for slow in (0.5, 1.0, 2.0)
    ]  # fmt: skip
    first = [{**one, "tokens_per_s": 100.0 / slow} for one, slow in zip(rounds, (0.5, 1.0, 2.0), strict=True)]
    speed = paired.speeds({"first": first, "file": rounds})["file"]
    return {"form": form, "dtype": dtype, "perplexity": perplexity, "exact_match": exact_match,
            "size_bytes": size_mib * MIB, "peak_bytes": 3 * size_mib * MIB, "speed": speed}  # fmt: skip


def figures(method, *, name="toy", tuned=1.25, base=8.0, **changed):
    record = {
        "method": method, "settings": {"learning_rate": 1e-3 if method == "lora" else 1e-4, "seed": 1, "rank": 8},
        "wall_s": 60.0 if method == "lora" else 100.0, "cpu_s": 100.0, "peak_bytes": 600 * MIB,
        "baseline_bytes": 300 * MIB, "trainable_parameters": 500 if method == "lora" else 2000,
        "total_parameters": 2000,
    }  # fmt: skip
    merged = [a_file("merged", "f16", tuned, 4, 100.0), a_file("merged", "q8_0", tuned + 0.25, 2, 150.0)]
    adapter = [a_file("adapter", "f16", tuned, 4, 80.0), a_file("adapter", "q8_0", tuned, 2, 100.0)]
    return {
        "recipe": {"name": name}, "train": record, "split": "test", "exam": {"rows": name, "tokenizer": "t"},
        "scores": {"tuned": scores(tuned, 0.9), "base": scores(base, 0.1)},
        "files": [a_file("base", "f16", base, 4, 110.0, 0.1), *(adapter if method == "lora" else []), *merged],
        "adapter": {"size_bytes": MIB} if method == "lora" else None, **changed,
    }  # fmt: skip


RUNS = {"toy lora": figures("lora"), "toy full": figures("full", tuned=1.5)}


def test_the_base_stands_once_beside_the_ways_to_adapt_it():
    quality, training, devices = generator_comparison.comparison_tables(RUNS)
    assert quality.columns == ("quality", "perplexity", "exact match", "BLEU", "ROUGE-L")
    assert [row[:3] for row in quality.rows] == [
        ["base", "8.000", "10.0%"], ["lora", "1.250", "90.0%"], ["full", "1.500", "90.0%"],
    ]  # fmt: skip
    assert training.rows == [
        ["lora", "1 min 00 s", "1 min 40 s", "600.0 MiB", "500"],
        ["full", "1 min 40 s", "1 min 40 s", "600.0 MiB", "2,000"],
    ]
    assert [row[0] for row in devices.rows] == [
        "base f16", "lora adapter f16", "lora merged f16", "lora adapter q8_0", "lora merged q8_0",
        "full merged f16", "full merged q8_0",
    ]  # fmt: skip
    lora = dict(zip(devices.columns, devices.rows[1], strict=True))
    assert lora == {
        "on devices": "lora adapter f16", "perplexity": "1.250", "exact match": "50.0%", "file": "4.0 MiB",
        "adapter": "1.0 MiB", "memory": "13.0 MiB", "first token": "7.0 ms (3.5 to 14.0)",
        "tokens/s": "80.0 (40.0 to 160.0)",
    }  # fmt: skip


def test_the_report_says_what_merging_changes_and_how_far_figures_can_be_believed():
    text = markdown(generator_comparison.comparison(RUNS))
    for line in (
        "| lora f16 | 1.000× | 4.0 MiB | 1.0 MiB | -7.7 % | +25 % |",
        "| lora q8_0 | 1.200× | 2.0 MiB | 1.0 MiB | -14.3 % | +50 % |",
        "| full | 1.200× | +0.0 | +67 % | +0 % | +0 % | +300 % |",
        "| B | LoRA trains in 40 % less time | -40 % |",
        "| toy full | learning_rate = 0.0001 |",
        "on 2 threads of this host, 8 rows (in the first line 20 tokens in, 30 out)",
        "The files took turns in 3 rounds",
        "Tokens/s, times those of `base f16`, by round:",
        # The rates differ by four between rounds, the ratio by nothing: the host slowed both alike.
        "`lora adapter f16`: 0.80 (0.80 to 0.80)",
        "is known to 6.0 % either way",
    ):
        assert line in text, line
    assert "SST-2" not in text, "an accuracy of labels is no score of answers"


def test_drawings_show_the_base_where_it_was_measured():
    found = {block.name: block.svg for block in generator_comparison.comparison(RUNS) if isinstance(block, Drawing)}
    assert set(found) == {"quality", "cost", "files"}
    texts = {
        name: {(one.text or "").strip() for one in ET.fromstring(svg[svg.index("<svg") :]).iter()}
        for name, svg in found.items()
    }
    assert {"base", "lora", "full", "8.000", "1.250", "0.900"} <= texts["quality"]
    assert {"lora", "full", "600"} <= texts["cost"]
    assert "base" not in texts["cost"], "nobody trained it here"
    assert {"base f16", "lora adapter q8_0", "full merged f16", "150"} <= texts["files"]


def test_recipes_of_their_own_keep_their_names_and_bases():
    runs = {"toy lora": figures("lora"), "tickets lora": figures("lora", name="tickets", base=9.0)}
    quality, _, devices = generator_comparison.comparison_tables(runs)
    assert [row[0] for row in quality.rows] == ["toy base", "toy lora", "tickets base", "tickets lora"]
    assert {"tickets base f16", "tickets lora merged q8_0"} <= {row[0] for row in devices.rows}
    text = markdown(generator_comparison.comparison(runs))
    assert "set each beside its base" in text
    assert "| tickets lora | – | – | +0 % |" in text, "other rows: no difference is a difference"


def test_perplexities_of_other_tokenizers_are_not_compared():
    other = figures("lora", name="other", exam={"rows": "toy", "tokenizer": "u"})
    text = markdown(generator_comparison.comparison({"toy lora": figures("lora"), "other lora": other}))
    assert "Perplexities of different tokenizers say nothing" in text
    assert "| other lora | – | +0.0 | +0 % |" in text


def test_the_same_recipe_on_another_base_has_that_base_beside_it():
    runs = {"toy lora": figures("lora"), "toy lora (2)": figures("lora", base=9.0)}
    rows = generator_comparison.comparison_tables(runs)[0].rows
    assert [(row[0], row[1]) for row in rows] == [
        ("base", "8.000"), ("lora", "1.250"), ("lora (2) base", "9.000"), ("lora (2)", "1.250"),
    ]  # fmt: skip


def test_texts_have_perplexity_alone_and_a_new_model_no_base():
    files = [a_file("base", "f16", 3.0, 4, None, None), a_file("base", "q8_0", 3.5, 2, 90.0, None)]
    new = figures("full", name="new", scores={"tuned": scores(3.0)}, files=files)
    other = {**new, "recipe": {"name": "other"}}
    quality, _, devices = generator_comparison.comparison_tables({"new full": new, "other full": other})
    assert quality == Table(("quality", "perplexity"), [["new full", "3.000"], ["other full", "3.000"]])
    assert [row[0] for row in devices.rows] == [
        "new full f16", "new full q8_0", "other full f16", "other full q8_0",
    ]  # fmt: skip
    assert devices.rows[0][-1] == "–", "no answer had a second token"
    text = markdown(generator_comparison.comparison({"new full": new, "other full": other}))
    assert "exact match" not in text
    assert "Merged against adapter" not in text


def test_another_method_keeps_the_ratio_of_its_step_size_and_what_concerns_all():
    full = with_method(parse(RECIPE, "r", {}), "full")
    assert (full.training.method, full.training.learning_rate) == ("full", 2e-4)
    assert (full.training.batch_size, full.training.seed, full.training.rank) == (4, 5, 16)
    usual = {**RECIPE, "train": {}}
    assert with_method(parse(usual, "r", {}), "full").training.learning_rate == 2e-5
    fresh = {**RECIPE, "base": {"name": "b", "source": "new:llama"}, "method": {"name": "full"}}
    with pytest.raises(ConfigError, match="trained as a whole"):
        with_method(parse(fresh, "r", {}), "lora")
    alone = {**RECIPE, "gguf": {"merged": False}}
    with pytest.raises(ConfigError, match=r"toy by method full: gguf\.merged"):
        with_method(parse(alone, "r", {}), "full")


def test_a_plan_by_another_method_is_a_plan_and_generators_have_no_presets(tmp_path):
    progress = Progress(quiet=True)
    steps = GeneratorPlan(parse(RECIPE, "r", {}), tmp_path, Cache(tmp_path, progress), progress)
    plan = Opened(KIND, steps, tmp_path / "recipe.toml")
    assert commands.with_method(plan, "lora") is plan
    full = commands.with_method(plan, "full")
    assert isinstance(full.plan, GeneratorPlan)
    assert commands.title(full.plan.recipe) == "toy full"
    with pytest.raises(UsageError, match="'lora:B': generators have no presets"):
        commands.with_method(plan, "lora:B")


def test_a_classifier_and_a_generator_have_nothing_to_compare(tmp_path, capsys):
    assert cli.main(["init", "words", "--dir", str(tmp_path)]) == 0
    assert cli.main(["init", "talk", "--task", "generate", "--dir", str(tmp_path)]) == 0
    assert cli.main(["compare", str(tmp_path / "words"), str(tmp_path / "talk")]) == 2
    assert "talk generate and words classify: they have no score in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finish", "tokens", "decode_s", "rate"),
    [("length", 11, 2.0, 5.0), ("stop", 10, 2.0, 5.0), ("length", 1, 0.0, None), ("stop", 0, 0.0, None)],
)
def test_the_rate_counts_what_came_after_the_first_token(finish, tokens, decode_s, rate):
    answer = {"finish": finish, "completion_tokens": tokens, "decode_s": decode_s}
    assert measure._rate(answer) == rate
