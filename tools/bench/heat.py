"""`python -m bench.heat`: the governor against other ways to control temperature, on simulated boards.

It sweeps the plants of `sim.boards` over rooms, coolings and loads (see `bench.heat_cases`), prints a table, and writes
every row as JSON and two plots to --out. Everything comes from the seed. A board takes one to two minutes; finished
boards are kept in --out and are not run again unless --fresh is given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, median

from bench.heat_cases import CONTROLS, SECONDS, SETTLED_S, CaseRow, SweptBoard, sweep
from sim.boards import BOARDS

WORDS = {
    "firmware": "firmware only",
    "on-off": "on/off, 3 °C band",
    "duty": "duty cycle, 20 s",
    "constant": "best constant limit",
    "governor": "governor",
    "constant+clock": "best constant, clock",
    "governor+clock": "governor, clock",
}
HEADS = (
    "control", "work", "of best", "worst", ">= 95 %", "s >= soft", "settled", "overshoot", "J/work", "p99", "changes/h",
    "reversal", "turns/h", "turn",
)  # fmt: skip
SERVABLE = 0.05
"""Cases in which even the best limit leaves less than 5 % of full speed are listed and not averaged."""


def main() -> int:
    """Sweep, tabulate, plot."""
    parser = argparse.ArgumentParser(prog="bench.heat", description=__doc__)
    parser.add_argument("--boards", nargs="*", choices=sorted(BOARDS), default=list(BOARDS))
    parser.add_argument("--out", type=Path, default=Path("build/bench/heat"))
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--settled", type=int, default=SETTLED_S, help="from when on a run counts as settled")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="run finished boards again")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    swept = {}
    for key in options.boards:
        path = options.out / f"{key}.json"
        if options.fresh or not path.exists():
            print(f"{key} ...", flush=True)
            save(sweep(key, options.seconds, options.settled, options.seed), path)
        swept[key] = load(path)
    rows = [row for board in swept.values() for row in board.rows]
    (options.out / "rows.json").write_text(json.dumps([row._asdict() for row in rows], indent=1))
    print(report(rows))
    if not options.no_plots:
        from bench.heat_plots import draw

        draw(swept, options.out)
    return 0


def save(swept: SweptBoard, path: Path) -> None:
    """One board's rows and traces."""
    traces = [[*key, trace] for key, trace in swept.traces.items()]
    path.write_text(json.dumps({"rows": [row._asdict() for row in swept.rows], "traces": traces}))


def load(path: Path) -> SweptBoard:
    """The inverse of `save`."""
    data = json.loads(path.read_text())
    traces = {(str(name), float(room), float(cool), str(who)): trace for name, room, cool, who, trace in data["traces"]}
    return SweptBoard([CaseRow(**row) for row in data["rows"]], traces)


def report(rows: list[CaseRow]) -> str:
    """The table over the cases with a thermal limit, then the cases that it leaves out."""
    limited = [row for row in rows if row.limited]
    best = {_case(row): row.throughput / row.of_best for row in limited if row.control == "constant"}
    hopeless = {case for case, speed in best.items() if speed < SERVABLE}
    counted = [row for row in limited if _case(row) not in hopeless]
    lines = [
        f"{len({_case(row) for row in rows})} cases; heat limits {len(best)}, of which {len(hopeless)} leave less than "
        f"{SERVABLE:.0%} of full speed and are listed apart. Mean over the other {len(best) - len(hopeless)}:",
        "",
        markdown([HEADS, *(_line(control, counted) for control in CONTROLS)]),
        "",
        *_targets(counted),
        *_hopeless([row for row in limited if _case(row) in hopeless]),
    ]
    return "\n".join(lines)


def _case(row: CaseRow) -> tuple[str, str, float, float]:
    return row.board, row.load, row.ambient_c, row.cooling


def _line(control: str, rows: list[CaseRow]) -> tuple[str, ...]:
    mine = [row for row in rows if row.control == control]
    late = [row.p99_s for row in mine if row.p99_s is not None]
    backs = [row.fastest_reversal_s for row in mine if row.fastest_reversal_s is not None]
    turns = [row.fastest_turn_s for row in mine if row.fastest_turn_s is not None]
    return (
        WORDS[control],
        f"{fmean(row.throughput for row in mine):.3f}",
        f"{fmean(row.of_best for row in mine):.3f}",
        f"{min(row.of_best for row in mine):.3f}",
        f"{sum(row.of_best >= 0.95 for row in mine)}/{len(mine)}",
        f"{sum(row.over_soft_s for row in mine):.0f}",
        f"{sum(row.over_soft_settled_s for row in mine):.0f}",
        f"{max(row.overshoot_c for row in mine):.1f} °C",
        f"{fmean(row.joules_per_work for row in mine):.1f}",
        f"{median(late):.0f} s" if late else "",
        f"{fmean(row.changes_per_h for row in mine):.0f}",
        f"{min(backs):.0f} s" if backs else "none",
        f"{fmean(row.turns_per_h for row in mine):.0f}",
        f"{min(turns):.0f} s" if turns else "none",
    )


def markdown(lines: list[tuple[str, ...]]) -> str:
    """A Markdown table with aligned columns; the first line is the header."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _targets(rows: list[CaseRow]) -> list[str]:
    found = []
    for control in ("governor", "governor+clock"):
        mine = [row for row in rows if row.control == control]
        over = sum(row.over_soft_settled_s > 0 for row in mine)
        good = sum(row.of_best >= 0.95 for row in mine)
        soft = fmean(row.of_best_at_soft for row in mine)
        turns = [row.fastest_reversal_s for row in mine if row.fastest_reversal_s is not None]
        fastest_s = min(turns, default=float("inf"))
        found += [
            f"{WORDS[control]}: at or above the soft limit after settling in {over} of {len(mine)} cases;",
            f"  at least 95 % of the best at the cap in {good} of {len(mine)}; fastest reversal {fastest_s:.0f} s;",
            f"  against the best constant limit that just touches the soft limit {soft:.1%}.",
        ]
    firmware = {_case(row): row for row in rows if row.control == "firmware"}
    hotter_c = fmean(row.mean_c for row in firmware.values())
    for control in ("governor", "governor+clock"):
        more = [
            row for row in rows if row.control == control and firmware[_case(row)].throughput > 1.02 * row.throughput
        ]
        found.append(f"Firmware throttling alone did more work than the {WORDS[control]} in {len(more)} cases.")
    found.append(f"It ran at {hotter_c:.1f} °C on average for it.")
    return found


def _hopeless(rows: list[CaseRow]) -> list[str]:
    return [
        f"{row.board}, {row.load}, {row.ambient_c:.0f} °C, sink x{row.cooling}: idle {row.idle_c:.1f} °C; "
        f"{WORDS[row.control]} {row.throughput:.3f} of full speed ({row.of_best:.2f} of best), "
        f"{row.over_soft_settled_s:.0f} s over after settling"
        for row in rows
        if row.control.startswith("governor")
    ]


if __name__ == "__main__":
    raise SystemExit(main())
