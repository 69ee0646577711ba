"""A recorded hour as a plot: `python -m bench.telemetry_plot HOUR.csv HOUR.png`, from `edge-agent record HOUR.csv`.

Heat and the governor's forecast, requests and refusals, latencies by model; lines are named where they end.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
COLOURS = ("#1b7837", "#2166ac", "#8073ac", "#e08214", "#35978f", "#b2182b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the table, write the plot; 1 when the table has no rows."""
    parser = argparse.ArgumentParser(prog="bench.telemetry_plot", description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("plot", type=Path)
    options = parser.parse_args(arguments)
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        print(f"{options.table}: no rows")
        return 1
    draw(rows, options.plot)
    return 0


def draw(rows: Sequence[Row], path: Path) -> None:
    """Three panels over the minutes since the first report."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    begin_s = float(rows[0]["time"])
    reports = list({row["time"]: row for row in rows}.values())
    _line(axes[0], reports, begin_s, lambda row: _number(row, "temperature_c"), "temperature", COLOURS[5])
    _line(axes[0], reports, begin_s, lambda row: _number(row, "forecast_c"), "in ten seconds", COLOURS[3])
    axes[0].set_title(f"{rows[0]['device']}: temperature, °C", loc="left")
    models = sorted({row["model"] for row in rows if row["model"]})
    for colour, model in zip(COLOURS * len(models), models, strict=False):
        own = [row for row in rows if row["model"] == model]
        _line(axes[1], own, begin_s, lambda row: _rate(row, "requests"), model, colour)
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


if __name__ == "__main__":
    raise SystemExit(main())
