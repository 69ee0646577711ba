"""What decides which GGUF files are shipped: perplexity, and of preferences the pairs too.

A file of its own because it gives the exports measurements that no llama.cpp made.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.base.errors import EdgeError
from edge_forge.plan.gguf_exports import GgufExports, GgufVariant
from edge_forge.progress import Progress
from edge_forge.recipe.generator_recipe import parse

RECIPE = {
    "name": "toy", "base": {"name": "b", "source": "./b"}, "data": {"train": "t.jsonl"},
    "quantize": {"variants": ["f16", "q4_0"]},
}  # fmt: skip
PAIRS = 40


class Steps:
    """Runs every step at once."""

    progress = Progress(quiet=True)

    def run(self, _name, _inputs, _settings, work, _title):
        return SimpleNamespace(facts=work(None))


def exports(kind, margins, **quantize):
    """With an adapter and a merged file in F16 and Q4_0 of equal losses, whose `margins` are given by number format."""
    document = {**RECIPE, "task": {"kind": kind}, "quantize": {**RECIPE["quantize"], **quantize}}
    made = GgufExports(SimpleNamespace(recipe=parse(document, "r", {}), steps=Steps()))
    facts = {}
    for form in ("base", "adapter", "merged"):
        for dtype in ("f16", "q4_0"):
            own = [0.0] * PAIRS if form == "base" else margins.get(dtype)
            held = {"row_losses": [[1.0 + 0.01 * place, 4] for place in range(PAIRS)]}
            facts[form, dtype] = SimpleNamespace(
                facts=held | ({"preferences": {"pair_margins": own}} if kind == "prefer" else {})
            )
    made._measurements.update(facts)
    files = {key: GgufVariant(*key, Path(__file__), "d", {"perplexity": 1.3}) for key in facts}
    made.__dict__ |= {
        "bare": files["base", "f16"],
        "adapter_files": tuple(files["adapter", dtype] for dtype in ("f16", "q4_0")),
        "merged_files": tuple(files["merged", dtype] for dtype in ("f16", "q4_0")),
    }
    return made


def shipped(made):
    return [(file.form, file.dtype) for file in made.judged[1]]


ALL = [("adapter", "f16"), ("adapter", "q4_0"), ("merged", "f16"), ("merged", "q4_0")]
GOOD = [2.0] * PAIRS


@pytest.mark.parametrize(
    ("quantised", "stays"),
    [
        (GOOD, True),
        ([2.0, *[1.9] * (PAIRS - 1)], True),
        # A third of the pairs turns: the perplexity of the chosen answers says nothing of it.
        ([-1.0] * 13 + [2.6] * (PAIRS - 13), False),
        # Every pair is preferred still, by half of the margin that training made.
        ([1.0, 1.01] * (PAIRS // 2), False),
    ],
)
def test_a_merged_format_that_takes_preferences_back_is_left_out(quantised, stays):
    made = exports("prefer", {"f16": GOOD, "q4_0": quantised})
    assert shipped(made) == (ALL if stays else ALL[:3]), "the base's file stays: it belongs to no recipe"
    names = [gate.name for gate in made.judged[0]]
    assert names == [
        f"{what} of {form} q4_0" for form in ("adapter", "merged") for what in ("perplexity", "preferences")
    ]
    assert all(gate.holds for gate in made.judged[0] if gate.name.startswith("perplexity"))


def test_limits_are_the_recipes_and_a_build_may_end_by_them():
    turned = {"f16": GOOD, "q4_0": [1.0, 1.01] * (PAIRS // 2)}
    assert shipped(exports("prefer", turned, max_margin_loss=0.6)) == ALL
    with pytest.raises(EdgeError, match="of what training added to the margin may be lost"):
        _ = exports("prefer", turned, beyond="fail").judged


def test_other_generators_are_judged_by_perplexity_alone():
    made = exports("generate", {})
    assert [gate.name for gate in made.judged[0]] == ["perplexity of adapter q4_0", "perplexity of merged q4_0"]
    rows = list(made.rows_of(made.merged_files))
    assert "paired" not in rows[0] and rows[1]["holds"] and rows[1]["paired"]["ratio"] == pytest.approx(1.0)
    assert "paired_preferences" not in rows[1]


def test_a_report_of_preferences_has_what_a_format_loses():
    made = exports("prefer", {"f16": GOOD, "q4_0": [-1.0] * 13 + [2.6] * (PAIRS - 13)})
    row = list(made.rows_of(made.merged_files))[1]
    assert row["paired_preferences"]["loss"] == pytest.approx(13 / PAIRS) and row["holds"] is False
    assert row["paired_preferences"]["rise"] == pytest.approx(2.0)
