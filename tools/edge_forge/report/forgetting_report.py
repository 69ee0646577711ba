"""What was learned and what was forgotten, side by side: tables and a drawing, for `diagnose` and `compare`.

`kept` maps a run to what a plan's training says of it: {before, after, lost} by question (`evaluate.forgetting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_forge.evaluate.forgetting import EXACT, PAIRS, PERPLEXITY, PROBE, SIMILARITY, lost
from edge_forge.report import plots
from edge_forge.report.blocks import Block, Drawing, Heading, Paragraph, Table

Kept = Mapping[str, Mapping[str, Mapping[str, float]]]
_TITLES = {SIMILARITY: "similarity (Spearman)", PERPLEXITY: "perplexity of the text", PAIRS: "good sentences preferred"}


def title(question: str) -> str:
    """A question as people read it."""
    if question.startswith(PROBE):
        return f"probe of {question.removeprefix(PROBE)}"
    if question.startswith(EXACT):
        return f"answers right of {question.removeprefix(EXACT)}"
    return _TITLES[question]


def table(kept: Kept) -> Table:
    """A row for each question of each run."""
    return Table(
        ("run", "asked", "the base", "after tuning", "lost"),
        [
            [name, title(question), _score(question, one["before"]), _score(question, one["after"]), _lost(one)]
            for name, found in kept.items() for question, one in found.items()
        ],
    )  # fmt: skip


def _lost(one: Mapping[str, float]) -> str:
    """With its interval, where it is known."""
    text = share(one["lost"])
    return f"{text} ({share(one['lost_low'])} to {share(one['lost_high'])})" if "lost_low" in one else text


def worst(found: Mapping[str, Mapping[str, float]]) -> str:
    """The largest loss of a run, as a cell; a dash where nothing was asked."""
    return share(max(one["lost"] for one in found.values())) if found else "–"


def share(value: float) -> str:
    """A loss in points of a hundred; below zero where something was gained."""
    return f"{100 * value:.2f}"


def _score(question: str, value: float) -> str:
    if question.startswith(EXACT):
        return f"{value:.1%}"
    return f"{value:.2f}" if question == PERPLEXITY else f"{value:.4f}"


def beyond(kept: Kept, most: float) -> str:
    """What there is to say of runs that lost more than `most` of something (of sets of questions: by the whole
    interval); '' where none did."""
    said = [
        f"{name} lost {100 * one['lost']:.1f} points of {title(question)}"
        for name, found in kept.items() for question, one in found.items()
        if one.get("lost_low", one["lost"]) > most
    ]  # fmt: skip
    return f"{', '.join(said)}; the recipe takes {100 * most:g}" if said else ""


def comparison(kept: Kept) -> Iterator[Block]:
    """For a comparison of runs; nothing where no run was asked."""
    if any(kept.values()):
        yield Heading("What was forgotten")
        yield Paragraph(
            "The same questions to the base and to each tuned model, none of them of the task. Losses in points of a "
            "hundred; of a perplexity in percent. An adapter that is attached changes answers only where it is asked "
            "for: the base beside it forgets nothing."
        )
        yield table(kept)


def of_diagnosis(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Block]:
    """For a diagnosis: the table, and learning against forgetting, with what the repair does to both."""
    kept = {name: one["kept"] for name, one in runs.items()}
    if not any(kept.values()):
        return
    yield from comparison(kept)
    learned = next(iter(runs.values()))["learned"][0]
    paths = {question: _paths(runs, question) for question in next(iter(kept.values()))}
    drawn = plots.learning_and_forgetting({title(key): found for key, found in paths.items()}, learned)
    yield Drawing(
        "forgetting",
        "Each dot is a run: up is learned, right is kept. A dashed line is what scaling its intruders down does.",
        drawn,
    )


def _paths(runs: Mapping[str, Mapping[str, Any]], question: str) -> dict[str, Sequence[tuple[float, float]]]:
    """(points lost, learned) of each run, first as trained, then with each factor of the repair."""
    found: dict[str, Sequence[tuple[float, float]]] = {}
    for name, one in runs.items():
        before = one["kept"][question]["before"]
        points = [(100 * one["kept"][question]["lost"], one["learned"][1])]
        points += [
            (100 * lost(question, before, step["kept"][question]), step["learned"])
            for step in one["repair"] if step["factor"] != 1.0
        ]  # fmt: skip
        found[name] = points
    return found


def repair_cells(run: Mapping[str, Any], step: Mapping[str, Any]) -> list[str]:
    """What a factor of the repair leaves of each question, behind the cells of what was learned."""
    found = []
    for question, one in run["kept"].items():
        value = step["kept"][question]
        found.append(f"{_score(question, value)} (lost {share(lost(question, one['before'], value))})")
    return found
