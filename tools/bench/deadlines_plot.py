"""The plot of `bench.deadlines`: what is answered in time at each load, and who waits how long at three times capacity.

Lines are labelled at their ends instead of in a legend.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"edge-agent": "#1b7837", "fifo, drops late": "#e08214", "fifo": "#b2182b"}
NAMES = {"edge-agent": "edge-agent", "fifo, drops late": "first come first served,\nlate ones dropped",
         "fifo": "first come first served"}  # fmt: skip
STORY_LOAD = "3"
PRIORITIES = {"2": "urgent (2)", "5": "normal (5)", "8": "background (8)"}


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Write the plot; `rows` as `deadlines.sweep` returns them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1.15, 1))
    _goodput(left, rows)
    _latency(right, rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _goodput(axes: Any, rows: Mapping[str, Any]) -> None:
    for order, colour in COLOURS.items():
        points = [(float(name.split(" @ ")[1]), row["goodput"]) for name, row in rows.items()
                  if name.split(" @ ")[0] == order]  # fmt: skip
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2.4, marker="o", markersize=5)
        load, goodput = points[-1]
        place = "bottom" if order == "edge-agent" else "top"
        axes.text(load + 0.06, goodput, NAMES[order], color=colour, va=place, fontsize=10, fontweight="bold")
    axes.axhline(1.0, color="#888888", linewidth=1, linestyle=":")
    axes.text(0.5, 1.015, "all that the worker can do", color="#666666", fontsize=9)
    axes.set(xlim=(0.4, 4.3), ylim=(0.0, 1.1), xticks=(0.5, 1, 2, 3))
    axes.set_xticklabels(("half", "once", "twice", "three times"))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("requests offered, against capacity")
    axes.set_title("Work answered within its deadline", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)


def _latency(axes: Any, rows: Mapping[str, Any]) -> None:
    place, ticks = 0.0, []
    for priority, name in PRIORITIES.items():
        for order, colour in COLOURS.items():
            latency = rows[f"{order} @ {STORY_LOAD}"]["by_priority"].get(priority)
            if latency is not None and latency["p99"] > 0.0:
                p50_s, p99_s = latency["p50"] / 1000.0, latency["p99"] / 1000.0
                axes.plot((p50_s, p99_s), (place, place), color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
                axes.plot(p50_s, place, "o", color=colour, markersize=8)
                axes.plot(p99_s, place, "|", color=colour, markersize=14, markeredgewidth=2.5)
            place -= 1.0
        ticks.append((place + 2.0, name))
        place -= 0.7
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_xscale("log")
    axes.set_xticks((0.1, 0.3, 1, 3, 10), ("0.1 s", "0.3 s", "1 s", "3 s", "10 s"))
    axes.minorticks_off()
    axes.set_xlabel("from arrival to answer; dot: half are faster, bar: 99 in 100")
    axes.set_title("What was answered in time, at three times capacity", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
