"""`edge-agent plot`: a recorded hour as a picture, from the table that `edge-agent record` writes.

Heat and the governor's forecast, requests and refusals, latencies by model; lines are named where they end.

A file of its own because matplotlib is loaded for this verb only.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.errors import UsageError, brief
from edge_agent.base.limits import MIB
from edge_agent.base.named_file import open_named
from edge_agent.base.shown_text import one_line
from edge_agent.base.units import bytes_text

Row = Mapping[str, str]
COLUMNS = (
    "time", "device", "interval_s", "model", "requests", "refused", "p50_ms", "p99_ms", "temperature_c", "forecast_c",
)  # fmt: skip
"""Of the recorded table, those that are drawn; an older one need not have the others."""
TABLE_BYTES = 256 * MIB
"""A month of reports every ten seconds about three models. A table is read whole."""
ALWAYS = ("time", "interval_s")
"""Columns that every row has, above 0."""
NUMBERS = tuple(column for column in COLUMNS if column not in {"device", "model"})
COLOURS = ("#1b7837", "#2166ac", "#8073ac", "#e08214", "#35978f", "#b2182b")


def plot(arguments: argparse.Namespace) -> int:
    """Read the table, write the picture in the format that its name ends in. Raises UsageError for what cannot be."""
    rows = read(arguments.table)
    try:
        draw(rows, arguments.picture)
    except ImportError as error:
        raise UsageError(
            "matplotlib draws, and is not installed", "plot", "install edge-agent with its extra plot"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{arguments.picture} cannot be written: {error}") from error
    print(f"{arguments.picture}: {len({row['time'] for row in rows})} reports of {one_line(rows[0]['device'])}")
    return 0


def read(table: Path) -> Sequence[Row]:
    """The rows of a recorded table. Raises UsageError for a file that is none, or has no rows."""
    try:
        if table.stat().st_size > TABLE_BYTES:
            raise UsageError(f"{table} is larger than {bytes_text(TABLE_BYTES)}", "plot", "record a shorter time")
        with open_named(table) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UsageError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise UsageError(f"{table} has no rows", "plot", "`edge-agent record` writes one per report")
    missing = [column for column in COLUMNS if column not in rows[0]]
    if missing:
        raise UsageError(f"{table} is no table of `edge-agent record`: {missing[0]} is missing")
    for number, row in enumerate(rows, 2):
        for column in NUMBERS:
            if not _is_number(row[column], column in ALWAYS):
                raise UsageError(f"{table}, line {number}: {column} is {brief(row[column])}, no number that is drawn")
    return rows


def _is_number(text: str | None, needed: bool) -> bool:
    if not text:
        return not needed
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and (value > 0.0 or not needed)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Three panels over the minutes since the first report. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"text.parse_math": False})  # a name with '$' is no formula
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    begin_s = float(rows[0]["time"])
    reports = list({row["time"]: row for row in rows}.values())
    _line(axes[0], reports, begin_s, lambda row: _number(row, "temperature_c"), "temperature", COLOURS[5])
    _line(axes[0], reports, begin_s, lambda row: _number(row, "forecast_c"), "in ten seconds", COLOURS[3])
    axes[0].set_title(f"{one_line(rows[0]['device'])}: temperature, °C", loc="left")
    rows = [{**row, "device": one_line(row["device"]), "model": one_line(row["model"])} for row in rows]
    models = sorted({row["model"] for row in rows if row["model"]})
    for colour, model in zip(COLOURS * len(models), models, strict=False):
        own = [row for row in rows if row["model"] == model]
        told = {row["time"]: row for row in own}
        every = [told.get(row["time"], {**row, "requests": "0"}) for row in reports if row["time"] >= own[0]["time"]]
        _line(axes[1], every, begin_s, lambda row: _rate(row, "requests"), model, colour)
        _line(axes[2], own, begin_s, lambda row: _number(row, "p50_ms"), f"{model}, half", colour)
        _line(axes[2], own, begin_s, lambda row: _number(row, "p99_ms"), f"{model}, 99 in 100", colour, style=":")
    if any(_number(row, "refused") for row in reports):
        _line(axes[1], reports, begin_s, lambda row: _rate(row, "refused"), "refused", "#777777")
    axes[1].set_title("requests a second", loc="left")
    axes[2].set_title("from arrival to answer, ms", loc="left")
    axes[2].set_xlabel("minutes")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axes: Any, rows: Sequence[Row], begin_s: float, value: Callable[[Row], float | None], name: str,
          colour: str, style: str = "-") -> None:  # fmt: skip
    points = [((float(row["time"]) - begin_s) / 60.0, number) for row in rows if (number := value(row)) is not None]
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, linestyle=style)
    axes.annotate(name, points[-1], xytext=(5, 0), textcoords="offset points", color=colour, va="center", fontsize=9,
                  annotation_clip=False)  # fmt: skip


def _number(row: Row, column: str) -> float | None:
    return float(row[column]) if row[column] else None


def _rate(row: Row, column: str) -> float | None:
    number = _number(row, column)
    return None if number is None else number / float(row["interval_s"])
