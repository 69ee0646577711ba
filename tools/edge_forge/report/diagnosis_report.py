"""The report of `edge-forge diagnose`: intruder dimensions, the rank of the update, how much each layer changed.

`runs` maps a name to what a plan's `diagnosis` gives: `weights` (`spectra.WeightDiagnosis` as plain values), `repair`
({factor, learned, kept} of each factor), `learned` (its name and value), `kept` ({before, after, lost} by question),
`split`, `rows` and `train` (a TrainRecord).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_forge.report import forgetting_report, plots
from edge_forge.report.blocks import Block, Drawing, Heading, Paragraph, Table
from edge_forge.report.claims import percent

Runs = Mapping[str, Mapping[str, Any]]
_WORST = 12


def blocks_of(runs: Runs, threshold: float) -> list[Block]:
    """All blocks, in the order in which they are read."""
    weights = {name: found["weights"] for name, found in runs.items()}
    top = max(len(one["cosines"]) for found in weights.values() for one in found)
    found: list[Block] = [
        Heading("What training did to the weights", 1),
        Paragraph(
            f"An intruder dimension is one of the first {top} left singular vectors of a tuned weight whose largest "
            f"cosine to any of the base's is below {threshold:g} (Shuttleworth et al. 2024): a direction that the base "
            "did not have, and that now weighs among its largest. Adapters of low rank make them more often than full "
            "fine-tuning does, and models with many of them forget more of what the base knew."
        ),
        table(runs),
        Drawing("intruders", "Each dot is a singular vector of a tuned weight; dots below the line are intruders.",
                plots.intruders(weights, threshold)),
        Drawing("updates", "Left: a curve that rises at once is an update of low rank. Right: how much changed.",
                plots.updates(weights)),
    ]  # fmt: skip
    found += forgetting_report.of_diagnosis(runs)
    for name, one in runs.items():
        found += _repair(name, one)
        found += _worst(name, one["weights"])
    return found


def table(runs: Runs) -> Table:
    """A row per run."""
    columns = ("run", "trained rank", "intruders", "weights with some", "lowest cosine", "effective rank",
               "directions for 90 %", "of at most", "change of the norm")  # fmt: skip
    return Table(columns, [[name, *_cells(one)] for name, one in runs.items()])


def _cells(run: Mapping[str, Any]) -> list[str]:
    weights = run["weights"]
    changed = [one for one in weights if one["change"] > 0.0]
    rank = run["train"]["settings"]["rank"] if run["train"].get("adapted_modules") else None
    if not changed:
        return [str(rank or "–"), "0", "0", "–", "–", "–", "–", "0.0 %"]
    mean = {key: sum(one[key] for one in changed) / len(changed) for key in ("effective_rank", "rank_90", "full_rank")}
    moved = sum(one["change"] for one in weights) / sum(one["norm"] for one in weights)
    return [
        str(rank or "–"), str(count(weights)), str(sum(bool(one["intruders"]) for one in weights)),
        f"{min(min(one['cosines']) for one in weights):.3f}", f"{mean['effective_rank']:.1f}", f"{mean['rank_90']:.1f}",
        f"{mean['full_rank']:.0f}", f"{100 * moved:.1f} %",
    ]  # fmt: skip


def count(weights: Sequence[Mapping[str, Any]]) -> int:
    """Intruders over all weights."""
    return sum(len(one["intruders"]) for one in weights)


def beyond(runs: Runs, most: int) -> str:
    """What there is to say of runs with more than `most` intruders; '' where there are none."""
    over = {name: count(one["weights"]) for name, one in runs.items() if count(one["weights"]) > most}
    said = ", ".join(f"{name} has {number}" for name, number in over.items())
    return f"{said} intruder dimensions; the recipe takes {most}" if over else ""


def _repair(name: str, run: Mapping[str, Any]) -> list[Block]:
    """What scaling the intruders down does to the answers, and to what the base knew."""
    if not run["repair"]:
        return []
    learned, before = run["learned"][0], run["repair"][0]["learned"]
    rows = [
        [f"× {one['factor']:g}", *_learned(learned, one["learned"], before), *forgetting_report.repair_cells(run, one)]
        for one in run["repair"]
    ]
    asked = [forgetting_report.title(question) for question in run["kept"]]
    tells = "this table says what comes back and what it costs." if asked else "this table says what it costs here."
    return [
        Heading(f"{name}: intruders scaled down"),
        Paragraph(
            f"The {count(run['weights'])} intruders' singular values are multiplied by a factor, in the merged "
            f"weights; {learned} is PyTorch's on the {run['rows']} {run['split']} rows. What the base "
            f"knew comes back as the factor falls, where the paper's finding holds; {tells}"
        ),
        Table(("singular values", learned, "change", *asked), rows),
    ]


def _learned(name: str, value: float, before: float) -> list[str]:
    if name == "perplexity":
        return [f"{value:.2f}", f"{100 * (value / before - 1):+.1f} %"]
    return [percent(value), f"{100 * (value - before):+.2f}"]


def _worst(name: str, weights: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The weights with the most intruders."""
    having = sorted((one for one in weights if one["intruders"]), key=lambda one: -len(one["intruders"]))[:_WORST]
    if not having:
        return []
    rows = [
        [f"`{one['name']}`", str(len(one["intruders"])), ", ".join(str(place + 1) for place in one["intruders"]),
         f"{min(one['cosines']):.3f}", f"{one['effective_rank']:.1f}", f"{100 * one['change'] / one['norm']:.1f} %"]
        for one in having
    ]  # fmt: skip
    columns = (
        "weight",
        "intruders",
        "at places",
        "lowest cosine",
        "effective rank of the update",
        "change of the norm",
    )
    return [Heading(f"{name}: where they are"), Table(columns, rows)]
