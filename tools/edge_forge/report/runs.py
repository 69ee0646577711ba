"""What comparisons share, whatever kind of model was made: the cost of training, what differs, and the drawing of it.

`runs` maps a name to the figures of a build; `record` is its training (`training.record.TrainRecord` as plain values).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_forge.progress import duration, size
from edge_forge.report.blocks import Block, Heading, Paragraph, Table
from edge_forge.report.claims import training_claims

Runs = Mapping[str, Mapping[str, Any]]
Panel = tuple[str, str, Mapping[str, float | None]]
COSTS = ("train time", "processor time", "peak memory", "trained parameters")
_KEYS = ("wall_s", "cpu_s", "peak_bytes", "trainable_parameters")


def costs(record: Mapping[str, Any]) -> list[str]:
    """The cells under `COSTS`."""
    return [
        duration(record["wall_s"]), duration(record["cpu_s"]), size(record["peak_bytes"]),
        f"{record['trainable_parameters']:,}",
    ]  # fmt: skip


def cost_changes(record: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """The cells under `COSTS` as differences to the first run's."""
    return [f"{100 * (record[key] / first[key] - 1):+.0f} %" for key in _KEYS]


def cost_panels(runs: Runs) -> list[Panel]:
    """Time and memory of training, to be drawn."""
    records = {name: figures["train"] for name, figures in runs.items()}
    return [
        ("Train time, s", "{:.0f}", {name: record["wall_s"] for name, record in records.items()}),
        ("Peak memory, MiB", "{:.0f}", {name: record["peak_bytes"] / 2**20 for name, record in records.items()}),
    ]


def claims(runs: Runs, accuracy: Mapping[str, float] | None = None) -> list[Block]:
    """What the sources claim of methods, beside the recipe here that most methods were tried on.

    `accuracy` is that of every run, where answers are labels.
    """
    recipes: dict[str, dict[str, str]] = {}
    for name, figures in runs.items():
        recipes.setdefault(figures["recipe"]["name"], {})[figures["train"]["method"]] = name
    tried = max(recipes.values(), key=len)
    records = {method: runs[name]["train"] for method, name in tried.items()}
    shares = None if accuracy is None else {method: accuracy[name] for method, name in tried.items()}
    rows = training_claims(records, shares)
    return [Heading("Beside the sources' claims"), Table(("source", "claim", "here", "why it may differ"), rows)]


def settings(runs: Runs) -> list[Block]:
    """What the runs were told that differs between them, and what peak memory holds."""
    first = next(iter(runs.values()))["train"]
    return [
        Heading("Settings"),
        Table(("run", "what differs"), [[name, _own(name, runs)] for name in runs]),
        Paragraph("Memory is the peak of the training process, its libraries included "
             f"({size(first['baseline_bytes'])} of it before the base was opened)."),
    ]  # fmt: skip


def _own(name: str, runs: Runs) -> str:
    own = runs[name]["train"]["settings"]
    others = [figures["train"]["settings"] for figures in runs.values()]
    return ", ".join(f"{key} = {value}" for key, value in sorted(own.items()) if any(o[key] != value for o in others))
