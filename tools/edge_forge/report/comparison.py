"""The report of a comparison: runs side by side. `runs` maps a name to the figures of a build (`figures.gather`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_forge.progress import duration, size
from edge_forge.report import plots
from edge_forge.report.blocks import Block, Figure, Heading, Table, Text
from edge_forge.report.claims import training_claims
from edge_forge.report.content import percent, wilson

_Runs = Mapping[str, Mapping[str, Any]]


def columns() -> tuple[str, ...]:
    """The heads of the table."""
    return (
        "run", "accuracy", "macro-F1", "MCC", "train time", "processor time", "peak memory", "trained parameters",
        "fp32 size", "int8 size", "int8 accuracy", "fp32 latency", "int8 latency",
    )  # fmt: skip


def rows(runs: _Runs) -> list[list[str]]:
    """One row per run; '–' where nothing was measured."""
    return [_row(name, figures) for name, figures in runs.items()]


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    scores, record = figures["scores"][figures["split"]], figures["train"]
    float32, int8 = variant(figures, "fp32"), variant(figures, "int8")
    return [
        name, f"{scores['accuracy']:.4f}", f"{scores['macro_f1']:.3f}", f"{scores['mcc']:.3f}",
        duration(record["wall_s"]), duration(record["cpu_s"]), size(record["peak_bytes"]),
        f"{record['trainable_parameters']:,}",
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


def report(runs: _Runs) -> list[Block]:
    """All blocks."""
    first = next(iter(runs.values()))
    count = first["scores"][first["split"]]["rows"]
    low, high = wilson(round(first["scores"][first["split"]]["accuracy"] * count), count)
    blocks: list[Block] = [
        Heading("Comparison", 1),
        Text(
            f"Measured in one build folder on one machine, on the {first['split']} split. With {count} rows an "
            f"accuracy like the first is known to {percent((high - low) / 2)} either way (95 %); what is smaller is "
            "noise."
        ),
        Table(columns(), rows(runs)),
        Figure("comparison", "Quality and cost of each run.", _drawing(runs)),
        Heading("Differences to the first run"),
        Table(("run", "accuracy, points", "train time", "processor time", "peak memory", "trained parameters"),
              [_change(name, figures, first) for name, figures in list(runs.items())[1:]]),
    ]  # fmt: skip
    by_method = {figures["train"]["method"]: figures for figures in runs.values()}
    accuracy = {method: figures["scores"][figures["split"]]["accuracy"] for method, figures in by_method.items()}
    claims = training_claims({method: figures["train"] for method, figures in by_method.items()}, accuracy)
    blocks += [Heading("Beside the sources' claims"), Table(("source", "claim", "here", "why it may differ"), claims)]
    blocks.append(Heading("Settings"))
    blocks += [
        Table(("run", "what differs"), [[name, _own_settings(name, runs)] for name in runs]),
        Text("Memory is the peak of the training process, its libraries included "
             f"({size(first['train']['baseline_bytes'])} of it before the base was opened)."),
    ]  # fmt: skip
    return blocks


def _drawing(runs: _Runs) -> str:
    records = {name: figures["train"] for name, figures in runs.items()}
    panels = [
        ("Accuracy", "{:.4f}", {name: one["scores"][one["split"]]["accuracy"] for name, one in runs.items()}),
        ("Train time, s", "{:.0f}", {name: record["wall_s"] for name, record in records.items()}),
        ("Peak memory, MiB", "{:.0f}", {name: record["peak_bytes"] / 2**20 for name, record in records.items()}),
    ]
    if all(variant(figures, "int8") for figures in runs.values()):
        latencies = {name: (variant(figures, "int8") or {}).get("latency_ms") for name, figures in runs.items()}
        panels.append(("INT8 latency, ms", "{:.1f}", latencies))
    return plots.bars(panels)


def _change(name: str, figures: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    def points(one: Mapping[str, Any]) -> float:
        return 100 * float(one["scores"][one["split"]]["accuracy"])

    def change(key: str) -> str:
        return f"{100 * (figures['train'][key] / first['train'][key] - 1):+.0f} %"

    keys = ("wall_s", "cpu_s", "peak_bytes", "trainable_parameters")
    return [name, f"{points(figures) - points(first):+.2f}", *map(change, keys)]


def _own_settings(name: str, runs: _Runs) -> str:
    own = runs[name]["train"]["settings"]
    others = [figures["train"]["settings"] for figures in runs.values()]
    return ", ".join(f"{key} = {value}" for key, value in sorted(own.items()) if any(o[key] != value for o in others))
