"""The report of `edge-forge sequence`: a matrix of scores, tasks across, and after which task down.

`found` is what `sequence` measured: `tasks`, `methods`, `scores` (the score that each task is told by), `after` and
`apart` of these, and `further` matrices by score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_forge.report.blocks import Block, Heading, Paragraph, Table

_TITLES = {
    "accuracy": "accuracy", "exact_match": "exact match", "preferred": "chosen preferred", "perplexity": "perplexity",
}  # fmt: skip


def blocks_of(found: Mapping[str, Any]) -> list[Block]:
    """All blocks."""
    own = "by each task's own head" if set(found["scores"]) == {"accuracy"} else "of each task's own rows"
    return [
        Heading("Tasks one after another", 1),
        Paragraph(
            f"Scores on the measured rows by PyTorch, {own}. Down: the model after each training, which begins with "
            "what the one before made, adapters folded in. The last line is a model per task: an adapter of its own "
            "(or its own weights) on the untouched base, as a device attaches them."
        ),
        *tables(found),
        Paragraph(said(found)),
    ]


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """The matrix of the score that each task is told by, and one of each score that all tasks have beside it."""
    yield _table(found, found["scores"], found["after"], found["apart"])
    for key, one in found["further"].items():
        yield _table(found, [key] * len(found["tasks"]), one["after"], one["apart"])


def _table(
    found: Mapping[str, Any], scores: Sequence[str], after: Sequence[Sequence[float]], apart: Sequence[float]
) -> Table:
    """A row after each task, and one of each task alone."""
    tasks, alike = found["tasks"], len(set(scores)) == 1
    columns = tasks if alike else [f"{name}: {_TITLES[key]}" for name, key in zip(tasks, scores, strict=True)]
    rows = [
        [f"after {name} ({method})", *map(_cell, scores, row), *[""] * (len(tasks) - len(row))]
        for name, method, row in zip(tasks, found["methods"], after, strict=True)
    ]
    rows.append(["each apart on the base", *map(_cell, scores, apart)])
    return Table((_TITLES[scores[0]] if alike else "score", *columns), rows)


def _cell(key: str, value: float) -> str:
    return f"{value:.3f}" if key == "perplexity" else f"{value:.4f}"


def _gone(key: str, before: float, after: float) -> float:
    """What is lost between two scores: of a share its fall, of a perplexity its rise as a share of what it was."""
    return after / before - 1.0 if key == "perplexity" else before - after


def lost(found: Mapping[str, Any]) -> dict[str, float]:
    """By task, all but the last: what is gone of its score right after its training by the end."""
    after, scores = found["after"], found["scores"]
    return {
        name: _gone(scores[place], after[place][place], after[-1][place])
        for place, name in enumerate(found["tasks"][:-1])
    }


def said(found: Mapping[str, Any]) -> str:
    """What the matrix tells, in a sentence or two."""
    gone = lost(found)
    scores = dict(zip(found["tasks"], found["scores"], strict=True))
    worst = max(gone, key=lambda name: gone[name])
    parts = ", ".join(f"{name} {_told(scores[name], value)}" for name, value in gone.items())
    unit = ", in points" if "perplexity" not in {scores[name] for name in gone} else ""
    text = f"Lost of each by the end{unit}: {parts}. "
    if gone[worst] <= 0.0:
        return text + "One model for all forgot nothing here."
    place = found["tasks"].index(worst)
    kept = _gone(scores[worst], found["apart"][place], found["after"][-1][place])
    beside = (
        f"the last model has {100 * kept:+.1f} % perplexity beside an adapter of its own"
        if scores[worst] == "perplexity"
        else f"with an adapter of its own it has {100 * kept:+.1f} points beside the last model"
    )
    return text + (
        f"Most was lost of {worst}; {beside}. Attached adapters cost a device their own size, and no task costs "
        "another one anything."
    )


def _told(key: str, value: float) -> str:
    return f"{100 * value:+.1f}{' % perplexity' if key == 'perplexity' else ''}"
