"""The comparison of classifiers: runs side by side. `runs` maps a name to the figures of a build (`figures.gather`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_forge.progress import size
from edge_forge.report import plots
from edge_forge.report.blocks import Block, Figure, Heading, Table, Text
from edge_forge.report.classifier_report import percent, wilson
from edge_forge.report.runs import COSTS, Runs, claims, cost_changes, cost_panels, costs, settings


def tables(runs: Runs) -> list[Table]:
    """What is shown at a terminal: one row per run; '–' where nothing was measured."""
    columns = (
        "run", "accuracy", "macro-F1", "MCC", *COSTS,
        "fp32 size", "int8 size", "int8 accuracy", "fp32 latency", "int8 latency",
    )  # fmt: skip
    return [Table(columns, [_row(name, figures) for name, figures in runs.items()])]


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    scores = figures["scores"][figures["split"]]
    float32, int8 = variant(figures, "fp32"), variant(figures, "int8")
    return [
        name, f"{scores['accuracy']:.4f}", f"{scores['macro_f1']:.3f}", f"{scores['mcc']:.3f}",
        *costs(figures["train"]),
        size(float32["size_bytes"]) if float32 else "–", size(int8["size_bytes"]) if int8 else "–",
        f"{int8['accuracy']:.4f}" if int8 else "–",
        _latency(float32), _latency(int8),
    ]  # fmt: skip


def _latency(one: Mapping[str, Any] | None) -> str:
    return f"{one['latency_ms']:.1f} ms" if one and one.get("latency_ms") else "–"


def variant(figures: Mapping[str, Any], dtype: str) -> Mapping[str, Any] | None:
    """The merged variant of that number format, if it was made."""
    for one in figures.get("variants") or ():
        if one["form"] == "merged" and one["dtype"] == dtype:
            found: Mapping[str, Any] = one
            return found
    return None


def report(runs: Runs) -> list[Block]:
    """All blocks."""
    first = next(iter(runs.values()))
    count = first["scores"][first["split"]]["rows"]
    accuracy = {name: float(figures["scores"][figures["split"]]["accuracy"]) for name, figures in runs.items()}
    names = list(runs)
    low, high = wilson(round(accuracy[names[0]] * count), count)
    return [
        Heading("Comparison", 1),
        Text(
            f"Measured in one build folder on one machine, on the {first['split']} split. With {count} rows an "
            f"accuracy like the first is known to {percent((high - low) / 2)} either way (95 %); what is smaller is "
            "noise."
        ),
        *tables(runs),
        Figure("comparison", "Quality and cost of each run.", _drawing(runs, accuracy)),
        Heading("Differences to the first run"),
        Table(
            ("run", "accuracy, points", *COSTS),
            [[name, f"{100 * (accuracy[name] - accuracy[names[0]]):+.2f}",
              *cost_changes(runs[name]["train"], first["train"])] for name in names[1:]],
        ),
        *claims(runs, accuracy),
        *settings(runs),
    ]  # fmt: skip


def _drawing(runs: Runs, accuracy: Mapping[str, float]) -> str:
    panels = [("Accuracy", "{:.4f}", accuracy), *cost_panels(runs)]
    if all(variant(figures, "int8") for figures in runs.values()):
        latencies = {name: (variant(figures, "int8") or {}).get("latency_ms") for name, figures in runs.items()}
        panels.append(("INT8 latency, ms", "{:.1f}", latencies))
    return plots.bars(panels)
