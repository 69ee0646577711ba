"""`edge-agent plot`: a recorded hour as a picture, from the table that `edge-agent record` writes.

Heat and the governor's forecast, requests and refusals, latencies by model, over the time of day; lines are named where
they end, and a panel without a line says what is missing.

A file of its own because matplotlib is loaded for this verb only.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
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
NO_SENSOR = "no sensor: the device reported no temperature (`edge-agent doctor` on it says why)"
NAME_POINTS = 11.0
"""Height of a name at a line's end, in points."""
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
    """Three panels over the time of day (UTC). Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"text.parse_math": False})  # a name with '$' is no formula
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    heat, load, wait = (_Panel(one) for one in axes)
    reports = list({row["time"]: row for row in rows}.values())
    heat.line(reports, lambda row: _number(row, "temperature_c"), "temperature", COLOURS[5])
    heat.line(reports, lambda row: _number(row, "forecast_c"), "in ten seconds", COLOURS[3])
    heat.titled(f"{one_line(rows[0]['device'])}: temperature, °C", NO_SENSOR)
    rows = [{**row, "device": one_line(row["device"]), "model": one_line(row["model"])} for row in rows]
    models = sorted({row["model"] for row in rows if row["model"]})
    for colour, model in zip(COLOURS * len(models), models, strict=False):
        own = [row for row in rows if row["model"] == model]
        told = {row["time"]: row for row in own}
        every = [told.get(row["time"], {**row, "requests": "0"}) for row in reports if row["time"] >= own[0]["time"]]
        load.line(every, lambda row: _rate(row, "requests"), model, colour)
        wait.line(own, lambda row: _number(row, "p50_ms"), f"{model}, half", colour)
        wait.line(own, lambda row: _number(row, "p99_ms"), f"{model}, 99 in 100", colour, style=":")
    if any(_number(row, "refused") for row in reports):
        load.line(reports, lambda row: _rate(row, "refused"), "refused", "#777777")
    load.titled("requests a second", "no model was asked")
    wait.titled("from arrival to answer, ms", "no request was answered")
    _time_axis(axes[2], float(reports[0]["time"]), float(reports[-1]["time"]))
    figure.canvas.draw()  # where the lines end on the page is known after the layout
    for panel in (heat, load, wait):
        panel.name_ends()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# For ticks by years, months, days, hours, minutes and seconds; matplotlib's own form shows seconds alone.
_TICKS = ("%Y", "%b", "%d", "%H:%M", "%H:%M", "%H:%M:%S")


def _time_axis(axes: Any, first_s: float, last_s: float) -> None:
    """The time of day below the lowest panel; a single report gets a minute around it."""
    from matplotlib import dates as typed

    dates: Any = typed  # its classes have no annotations
    room_s = max(0.01 * (last_s - first_s), 60.0 if last_s - first_s < 10.0 else 0.0)
    axes.set_xlim(_moment(first_s - room_s), _moment(last_s + room_s))
    locator = dates.AutoDateLocator(tz=timezone.utc, minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    ticks = dates.ConciseDateFormatter(locator, tz=timezone.utc, formats=list(_TICKS), show_offset=False)
    axes.xaxis.set_major_formatter(ticks)
    begin, end = _moment(first_s), _moment(last_s)
    until = f"{end:%H:%M:%S}" if end.date() == begin.date() else f"{end:%Y-%m-%d %H:%M:%S}"
    axes.set_xlabel(f"time of day, UTC: {begin:%Y-%m-%d %H:%M:%S} to {until}")


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, timezone.utc)


class _Panel:
    """One panel: its lines, and their names where they end."""

    def __init__(self, axes: Any) -> None:
        self._axes = axes
        self._ends: list[tuple[datetime, float, str, str]] = []
        axes.spines[["top", "right"]].set_visible(False)

    def line(self, rows: Sequence[Row], value: Callable[[Row], float | None], name: str, colour: str,
             style: str = "-") -> None:  # fmt: skip
        """A line through the rows that have the value; a single one is a dot."""
        points = [(_moment(float(row["time"])), number) for row in rows if (number := value(row)) is not None]
        if points:
            marker = "o" if len(points) == 1 else None
            self._axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, linestyle=style, marker=marker)
            self._ends.append((*points[-1], name, colour))

    def titled(self, title: str, missing: str) -> None:
        """The title; a panel without a line says what is missing instead of showing an empty axis."""
        self._axes.set_title(title, loc="left")
        if not self._ends:
            self._axes.text(
                0.5, 0.5, missing, transform=self._axes.transAxes, ha="center", va="center", color="#777777"
            )
            self._axes.set_yticks([])

    def name_ends(self) -> None:
        """Write each line's name at its end, the names apart from each other."""
        per_point = self._axes.figure.dpi / 72.0
        to_page = self._axes.transData.transform
        x_of = self._axes.convert_xunits
        wanted = [float(to_page((x_of(time), value))[1]) / per_point for time, value, _, _ in self._ends]
        for (time, value, name, colour), at, placed in zip(self._ends, wanted, apart(wanted, NAME_POINTS), strict=True):
            self._axes.annotate(
                name, (time, value), xytext=(5, placed - at), textcoords="offset points", color=colour, va="center",
                fontsize=9, annotation_clip=False,
            )  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as keeps them `gap` apart, their order kept; groups stay around their mean."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[list[int]] = []
    middles: list[float] = []
    for index in order:
        group, middle = [index], heights[index]
        while groups and middle - gap * (len(group) - 1) / 2 < middles[-1] + gap * (len(groups[-1]) + 1) / 2:
            group = groups.pop() + group
            middles.pop()
            middle = sum(heights[one] for one in group) / len(group)
        groups.append(group)
        middles.append(middle)
    placed = [0.0] * len(heights)
    for group, middle in zip(groups, middles, strict=True):
        for rank, index in enumerate(group):
            placed[index] = middle + gap * (rank - (len(group) - 1) / 2)
    return placed


def _number(row: Row, column: str) -> float | None:
    return float(row[column]) if row[column] else None


def _rate(row: Row, column: str) -> float | None:
    number = _number(row, column)
    return None if number is None else number / float(row["interval_s"])
