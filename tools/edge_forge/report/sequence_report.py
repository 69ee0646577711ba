"""The report of `edge-forge sequence`: a matrix of accuracies, tasks across, and after which task down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_forge.report.blocks import Block, Heading, Paragraph, Table


def blocks_of(found: Mapping[str, Any]) -> list[Block]:
    """All blocks; `found` is what `sequence` measured."""
    return [
        Heading("Tasks one after another", 1),
        Paragraph(
            "Accuracy on the measured rows by PyTorch, by each task's own head. Down: the model after each training, "
            "which begins with what the one before made, adapters folded in. The last line is a model per task: an "
            "adapter of its own (or its own weights) on the untouched base, as a device attaches them."
        ),
        table(found),
        Paragraph(said(found)),
    ]


def table(found: Mapping[str, Any]) -> Table:
    """A row after each task, and one of each task alone."""
    tasks = found["tasks"]
    rows = [
        [f"after {name} ({method})", *(f"{score:.4f}" for score in scores), *[""] * (len(tasks) - len(scores))]
        for name, method, scores in zip(tasks, found["methods"], found["after"], strict=True)
    ]
    rows.append(["each apart on the base", *(f"{score:.4f}" for score in found["apart"])])
    return Table(("accuracy", *tasks), rows)


def lost(found: Mapping[str, Any]) -> dict[str, float]:
    """By task, all but the last: its accuracy right after its training minus that after the last one's."""
    after = found["after"]
    return {name: after[place][place] - after[-1][place] for place, name in enumerate(found["tasks"][:-1])}


def said(found: Mapping[str, Any]) -> str:
    """What the matrix tells, in a sentence or two."""
    gone = lost(found)
    worst = max(gone, key=lambda name: gone[name])
    parts = ", ".join(f"{name} {100 * value:+.1f}" for name, value in gone.items())
    text = f"Lost of each by the end, in points: {parts}. "
    if gone[worst] <= 0.0:
        return text + "One model for all forgot nothing here."
    kept = found["apart"][found["tasks"].index(worst)] - found["after"][-1][found["tasks"].index(worst)]
    return text + (
        f"Most was lost of {worst}; with an adapter of its own it has {100 * kept:+.1f} points beside the last model. "
        "Attached adapters cost a device their own size, and no task costs another one anything."
    )
