"""Deadlines under overload: the agent's core against first come first served and an upper bound for any order.

    python -m bench.deadlines [--seconds N] [--seeds N] [--json FILE] [--plot FILE]

A discrete-event simulation of one worker: the real `core` decides, a stated cost model computes (`deadlines_load`), and
no time is measured. Capacity is the throughput of the worker with batches that are always full.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.deadlines_load import BatchCosts, Offer, offers
from bench.deadlines_orders import AgentOrder, FifoOrder, Refuse, ServingOrder, best_s

LOADS = (0.5, 1.0, 2.0, 3.0)
SETTLE_S = 10.0
ORDERS: Mapping[str, Callable[[Refuse], ServingOrder]] = {
    "edge-agent": AgentOrder,
    "fifo, drops late": lambda refuse: FifoOrder(refuse, drops=True),
    "fifo": lambda refuse: FifoOrder(refuse, drops=False),
}


@dataclass
class RunRecord:
    """The outcome of the requests of one run; times in seconds."""

    served: list[tuple[Offer, float]] = field(default_factory=list)
    late: int = 0
    refused: list[tuple[Offer, int, float]] = field(default_factory=list)
    expired: int = 0


def play(name: str, offered: Sequence[Offer], seed: int) -> RunRecord:
    """Serve these offers in one order, to the end."""
    record = RunRecord()

    def refuse(offer: Offer, status: int, now_s: float) -> None:
        if status == 408:
            record.expired += 1
        else:
            record.refused.append((offer, status, now_s - offer.arrival_s))

    order, costs = ORDERS[name](refuse), BatchCosts(seed)
    now_s, place = 0.0, 0
    while True:
        while place < len(offered) and offered[place].arrival_s <= now_s:
            order.arrive(offered[place], offered[place].arrival_s, busy=False)
            place += 1
        batch = order.next_batch(now_s)
        if not batch:
            if place == len(offered):
                return record
            now_s = offered[place].arrival_s
            continue
        attach_s, compute_s = costs.batch_s(batch)
        end_s = now_s + attach_s + compute_s
        while place < len(offered) and offered[place].arrival_s < end_s:
            order.arrive(offered[place], offered[place].arrival_s, busy=True)
            place += 1
        for offer in order.done(batch, end_s, compute_s):
            record.late += end_s > offer.deadline_s
            record.served.append((offer, end_s))
        now_s = end_s


def figures(record: RunRecord, offered: Sequence[Offer], seconds: float) -> dict[str, Any]:
    """The figures of one run, from `SETTLE_S` (until then costs are learned) to the last arrival."""
    counted = [offer for offer in offered if offer.arrival_s >= SETTLE_S]
    span_s = seconds - SETTLE_S
    in_time = [(o, end_s) for o, end_s in record.served if end_s <= o.deadline_s and o.arrival_s >= SETTLE_S]
    work_s = sum(o.work_s for o, end_s in record.served if end_s <= o.deadline_s and SETTLE_S < end_s <= seconds)
    refused = [(offer, after_s) for offer, _, after_s in record.refused if offer.arrival_s >= SETTLE_S]
    delays_s = sorted(after_s for _, after_s in refused)
    by_priority: dict[int, list[float]] = {offer.priority: [] for offer in counted}
    asked = Counter(offer.priority for offer in counted)
    for offer, end_s in in_time:
        by_priority[offer.priority].append((end_s - offer.arrival_s) * 1000.0)
    return {
        "goodput": work_s / span_s,
        "of_best": work_s / best_s(offered, SETTLE_S, seconds),
        "answered": len(in_time) / len(counted),
        "refused": len(refused) / len(counted),
        "refused_at_once": sum(after_s == 0.0 for after_s in delays_s) / max(1, len(delays_s)),
        "refusal_delay_p99_ms": _at(delays_s, 0.99) * 1000.0,
        "late_sent": record.late,
        "fairness": _fairness(counted, in_time),
        "by_priority": {
            str(priority): {
                "p50": _at(sorted(found), 0.5),
                "p99": _at(sorted(found), 0.99),
                "answered": len(found) / asked[priority],
            }
            for priority, found in sorted(by_priority.items())
        },
    }


def _fairness(offered: Sequence[Offer], in_time: Sequence[tuple[Offer, float]]) -> float:
    """Jain's fairness index of each client's served work over its max-min fair share of all served work."""
    wanted: dict[str, float] = defaultdict(float)
    got: dict[str, float] = defaultdict(float)
    for offer in offered:
        wanted[offer.client] += offer.work_s
    for offer, _ in in_time:
        got[offer.client] += offer.work_s
    fair: dict[str, float] = {}
    left_s = sum(got.values())
    for place, (client, want_s) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        fair[client] = min(want_s, left_s / (len(wanted) - place))
        left_s -= fair[client]
    shares = [got[client] / fair[client] for client in wanted]
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def sweep(seconds: float, seeds: int) -> dict[str, Any]:
    """Every order at every load: means over the seeds, and the lowest goodput."""
    rows: dict[str, Any] = {}
    for load in LOADS:
        for name in ORDERS:
            runs = []
            for seed in range(seeds):
                offered = offers(seed, load, seconds)
                runs.append(figures(play(name, offered, seed), offered, seconds))
            rows[f"{name} @ {load:g}"] = _mean(runs) | {"worst_goodput": min(run["goodput"] for run in runs)}
    return rows


def _mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    found: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, Mapping):
            found[key] = {name: _mean([run[key][name] for run in runs if name in run[key]]) for name in value}
        else:
            found[key] = round(statistics.fmean(run[key] for run in runs), 4)
    return found


def table(rows: Mapping[str, Any]) -> str:
    """The rows as the tables of docs/deadlines.md."""
    head = "| load | order | goodput | of best | answered | refused | at once | refusal p99 | late sent | fairness |"
    lines = [head, "|" + "---|" * 10]
    for name, row in rows.items():
        order, load = name.split(" @ ")
        lines.append(
            f"| {load}× | {order} | {row['goodput']:.0%} | {row['of_best']:.0%} | {row['answered']:.0%} | "
            f"{row['refused']:.0%} | {row['refused_at_once']:.0%} | {row['refusal_delay_p99_ms']:.0f} ms | "
            f"{row['late_sent']:.0f} | {row['fairness']:.3f} |"
        )
    lines += ["", "| load | order | priority | answered | p50 | p99 |", "|" + "---|" * 6]
    for name, row in rows.items():
        order, load = name.split(" @ ")
        for priority, latency in row["by_priority"].items():
            answered = f"{latency['answered']:.0%}"
            lines.append(
                f"| {load}× | {order} | {priority} | {answered} | {latency['p50']:.0f} ms | {latency['p99']:.0f} ms |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the table, write JSON and the plot."""
    parser = argparse.ArgumentParser(prog="bench.deadlines", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated, of which the first 10 do not count")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    rows = sweep(options.seconds, options.seeds)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    if options.plot:
        from bench.deadlines_plot import draw

        draw(rows, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
