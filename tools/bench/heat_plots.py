"""Plots of `bench.heat`: temperature and throughput over time for one case, and the share of the best for all cases.

Lines are labelled at their ends instead of in a legend.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.heat_cases import CaseRow, SweptBoard
from sim.boards import BOARDS

STORY = ("pi-5-bare", "encoder", 25.0, 1.0)
"""A bare Pi 5 in a room of 25 °C under a compute-bound load: the most common case."""
CURVES = (
    ("firmware", "firmware only", "#b2182b"),
    ("on-off", "on/off", "#e08214"),
    ("duty", "duty cycle", "#8073ac"),
    ("governor", "governor", "#1b7837"),
    ("governor+clock", "governor,\nmay set clock", "#2166ac"),
)
SMOOTH_S = 60
"""Three periods of the duty cycle."""
SHOWN_S = 1200


def draw(swept: Mapping[str, SweptBoard], out: Path) -> None:
    """Write time.png (when its board was swept) and best.png into `out`."""
    import matplotlib

    matplotlib.use("Agg")
    if STORY[0] in swept:
        _over_time(swept[STORY[0]].traces, out / "time.png")
    _of_best([row for board in swept.values() for row in board.rows], out / "best.png")


def _over_time(traces: Mapping[tuple[str, float, float, str], Mapping[str, list[float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(CURVES), figsize=(15, 5.6), sharex=True, sharey="row", layout="constrained")
    soft_c = BOARDS[STORY[0]].soft_c
    for place, (control, name, colour) in enumerate(CURVES):
        trace = traces[(*STORY[1:], control)]
        die_c, served = trace["die_c"][:SHOWN_S], trace["served"][:SHOWN_S]
        minutes = [second / 60 for second in range(len(die_c))]
        top, bottom = axes[0][place], axes[1][place]
        top.set_title(name.replace("\n", " "), color=colour, fontsize=12, fontweight="bold")
        top.plot(minutes, die_c, color=colour, linewidth=1.2)
        last = place == len(CURVES) - 1
        _line(top, soft_c, "soft limit" if last else "", "#b2182b")
        _line(top, soft_c - 2.5, "set point" if last else "", "#666666")
        over_s = sum(value >= soft_c for value in die_c)
        top.text(0.97, 0.05, f"{over_s} s at or above 80 °C", transform=top.transAxes, ha="right", fontsize=10)
        bottom.plot(minutes, served, color=colour, linewidth=0.4, alpha=0.25)
        bottom.plot(minutes, _smooth(served), color=colour, linewidth=1.8)
        settled = sum(served[SHOWN_S // 2 :]) / (SHOWN_S - SHOWN_S // 2)
        bottom.text(0.97, 0.05, f"settles at {settled:.0%}", transform=bottom.transAxes, ha="right", fontsize=11,
                    fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8})  # fmt: skip
        bottom.set_xlabel("minutes under full load")
    axes[0][0].set_ylabel("die, °C")
    axes[1][0].set_ylabel("work, share of full speed")
    axes[1][0].set_ylim(0, 1.08)
    _plain(axes.flat)
    figure.suptitle("Bare Raspberry Pi 5, 25 °C room, encoder under full load (simulated)", fontsize=13)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis: Any, value: float, name: str, colour: str) -> None:
    axis.axhline(value, color=colour, linewidth=0.8, linestyle="--")
    if name:
        up = "bottom" if "soft" in name else "top"
        axis.text(1.01, value, name, color=colour, fontsize=9, va=up, ha="left", transform=axis.get_yaxis_transform())


def _smooth(values: list[float]) -> list[float]:
    sums, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - SMOOTH_S] if place >= SMOOTH_S else 0.0)
        sums.append(total / min(place + 1, SMOOTH_S))
    return sums


def _of_best(rows: list[CaseRow], path: Path) -> None:
    """One mark per case with a thermal limit: throughput relative to the best constant limit at the same cap."""
    import matplotlib.pyplot as plt

    names = ("on-off", "duty", "constant", "governor", "constant+clock", "governor+clock")
    words = {"on-off": "on/off", "duty": "duty cycle", "constant": "best constant limit", "governor": "governor",
             "constant+clock": "best constant, clock set", "governor+clock": "governor, clock set"}  # fmt: skip
    figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
    for place, control in enumerate(reversed(names)):
        mine = [row for row in rows if row.limited and row.control == control and row.throughput / row.of_best >= 0.05]
        for number, row in enumerate(mine):
            hot = row.over_soft_settled_s > 0
            height = place + 0.5 * ((number * 7 % 19) / 19 - 0.5)
            mark, colour = ("x", "#b2182b") if hot else ("o", "#1b7837")
            axis.plot(row.of_best, height, mark, markersize=6 if hot else 5, alpha=0.75, color=colour)
    axis.axvline(0.95, color="#666666", linewidth=0.8, linestyle="--")
    axis.text(0.948, len(names) - 0.45, "target 95 %", ha="right", fontsize=9, color="#666666")
    axis.set_yticks(range(len(names)), [words[name] for name in reversed(names)])
    axis.set_ylim(-0.6, len(names) - 0.2)
    axis.set_xlabel("throughput, share of the best constant limit at the same cap")
    meaning = "green dot: never at the soft limit once settled; red cross: at or above it"
    axis.set_title(f"Each mark is a board, room, cooling and load that heat limits\n{meaning}", fontsize=11)
    _plain([axis])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plain(axes: Any) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#eeeeee", linewidth=0.6)
