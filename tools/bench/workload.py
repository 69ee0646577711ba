"""`python -m bench.workload`: overload on a simulated worker, the real scheduling code against first come first served.

A seeded discrete-event simulation of one worker: Gamma arrivals (cv 1.5), power-law adapters, mixed lengths, deadlines
and priorities, one client that sends half of everything; at 0.5, 1, 2 and 3 times what the worker can do in full
batches. Under test are `core.scheduler`, `core.admission`, `core.forecast` and `core.latency` as the agent uses them.
The worker's times are a stated model with noise, learned by the cost model as measured times are on a device. Refusals
cost no time here; what they take on a device is in tests/integration/test_overload.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from edge_agent.core import admission
from edge_agent.core.forecast import Station, batch_s, batched, least_s, remaining_s, take_hopeless
from edge_agent.core.job import Job
from edge_agent.core.latency import CostModel, Quantiles
from edge_agent.core.scheduler import BatchLimits, Queue

LOADS = (0.5, 1.0, 2.0, 3.0)
ROWS, PLACES = 16, 256
STEP_S, BYTE_S, NOISE = 0.004, 0.00008, 0.08
"""A step takes 4 ms and 80 microseconds a byte of text: 16 texts of 64 bytes in 86 ms, as on a Pi 4."""
LENGTHS = (16, 32, 64, 128, 256)
DEADLINES_S = (0.25, 1.0, 5.0)
PRIORITIES = ((2, 0.1), (5, 0.8), (8, 0.1))
CLIENTS, FLOOD_SHARE = ("flood", "a", "b", "c", "d", "e"), 0.5
ADAPTERS = 12
CV = 1.5


@dataclass
class Outcome:
    """What became of a run's requests. Times in seconds."""

    asked: int = 0
    in_time: int = 0
    refused: int = 0
    given_up: int = 0
    silent: int = 0
    late: int = 0
    rows_in_time: int = 0
    latency_s: dict[int, Quantiles] = field(default_factory=lambda: defaultdict(lambda: Quantiles(100_000)))
    by_client: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))


def compute_s(batch: Sequence[Job], draw: random.Random) -> float:
    """What a batch takes: padded to its longest text, with log-normal noise."""
    rows, longest = sum(job.rows for job in batch), max(job.size_bytes // job.rows for job in batch)
    return (STEP_S + BYTE_S * rows * longest) * math.exp(draw.gauss(0.0, NOISE))


def arrivals(rate: float, seconds: float, draw: random.Random) -> Iterator[Job]:
    """Requests of one text each. Gamma gaps: shape 1 / cv^2; adapter k is asked with weight k^-1.1."""
    weights = [(number + 1) ** -1.1 for number in range(ADAPTERS)]
    now_s = 0.0
    for number in itertools.count():
        now_s += draw.gammavariate(1.0 / CV**2, CV**2 / rate)
        if now_s >= seconds:
            return
        client = "flood" if draw.random() < FLOOD_SHARE else draw.choice(CLIENTS[1:])
        yield Job(
            key=(client, str(number)),
            model="m",
            adapter=f"adapter-{draw.choices(range(ADAPTERS), weights)[0]}",
            texts=("x" * draw.choice(LENGTHS),),
            params={},
            priority=draw.choices([one for one, _ in PRIORITIES], [weight for _, weight in PRIORITIES])[0],
            deadline_s=now_s + draw.choice(DEADLINES_S),
            received_s=now_s,
        )


def capacity(draw: random.Random) -> float:
    """Requests a second in full batches of this mixture."""
    took_s = 0.0
    for _ in range(400):
        batch = [Job(("", ""), "m", None, ("x" * draw.choice(LENGTHS),), {}, 5, 0.0, 0.0) for _ in range(ROWS)]
        took_s += compute_s(batch, draw)
    return 400 * ROWS / took_s


class Desk:
    """The agent's side: admit, order, expire."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.costs = CostModel()

    def take(self, job: Job, running: Sequence[Job], now_s: float) -> bool:
        """False when the job is refused."""
        at = Station("m", ROWS, 4)
        at = Station("m", ROWS, 4, running_s=remaining_s(running, self.costs, at, now_s))
        wait_s, needed_s = batched(self.queue, job, self.costs, at, now_s)
        waiting = [*self.queue.jobs(), *running]
        own = sum(1 for other in waiting if other.key[0] == job.key[0])
        load = admission.Load(len(waiting), PLACES, wait_s, needed_s, own)
        if admission.decide(load, job.deadline_s, now_s, None) is not None:
            return False
        self.queue.add(job)
        return True

    def batch(self, now_s: float, outcome: Outcome) -> list[Job]:
        """The jobs that run next; what is too late is dropped, what has become hopeless is refused."""
        at = Station("m", ROWS, 4)
        outcome.silent += len(self.queue.take(lambda job: job.deadline_s <= now_s))
        outcome.given_up += len(take_hopeless(self.queue, self.costs, at, now_s))
        takes_s = functools.partial(batch_s, self.costs, at)
        found = self.queue.next_batch(BatchLimits(ROWS, mixed=True, takes_s=takes_s), now_s)
        outcome.given_up += len(take_hopeless(self.queue, self.costs, at, now_s + least_s(found, self.costs, at)))
        return found

    def learn(self, batch: Sequence[Job], took_s: float) -> None:
        """What the batch took."""
        for job in batch:
            self.costs.learn("m", len(batch), job.size_bytes * len(batch), took_s, 4)


class FirstCome(Desk):
    """The usual: a bounded queue in order of arrival, no admission by deadline."""

    def take(self, job: Job, running: Sequence[Job], now_s: float) -> bool:
        """See `Desk.take`."""
        if len(self.queue) + len(running) >= PLACES:
            return False
        self.queue.add(job)
        return True

    def batch(self, now_s: float, outcome: Outcome) -> list[Job]:
        """See `Desk.batch`."""
        found = list(self.queue.jobs()[:ROWS])
        for job in found:
            self.queue.remove(job)
        return found


def run(desk: Desk, load: float, seconds: float, seed: int, flood: bool = True) -> Outcome:
    """One desk under one load. An answer after its deadline is late; the agent sends none such, it expires.

    Without `flood` the same requests arrive less those of the client that floods.
    """
    noise = random.Random(seed + 1)
    outcome, running, free_s = Outcome(), list[Job](), 0.0
    jobs = arrivals(load * capacity(random.Random(0)), seconds, random.Random(seed))
    jobs = jobs if flood else (job for job in jobs if job.key[0] != "flood")
    upcoming = next(jobs, None)
    now_s = 0.0
    while upcoming is not None or running or len(desk.queue):
        if running and (upcoming is None or free_s <= upcoming.received_s):
            now_s = free_s
            settle(running, now_s, outcome)
            running = []
        elif upcoming is not None:
            now_s = upcoming.received_s
            outcome.asked += 1
            outcome.by_client[upcoming.key[0]][0] += 1
            outcome.refused += 0 if desk.take(upcoming, running, now_s) else 1
            upcoming = next(jobs, None)
        if not running:
            running = desk.batch(now_s, outcome)
            if running:
                for job in running:
                    job.started_s = now_s
                took_s = compute_s(running, noise)
                desk.learn(running, took_s)
                free_s = now_s + took_s
    return outcome


def settle(batch: Sequence[Job], now_s: float, outcome: Outcome) -> None:
    """The batch is done."""
    for job in batch:
        if now_s >= job.deadline_s:
            outcome.late += 1
            continue
        outcome.in_time += 1
        outcome.rows_in_time += job.rows
        outcome.by_client[job.key[0]][1] += 1
        outcome.latency_s[job.priority].add(now_s - job.received_s)


def against_best(seed: int, instances: int = 40, jobs: int = 7) -> float:
    """Requests in time by the scheduler over the most that any order could serve, one at a time, in small instances
    where all arrive at once and every order can be tried."""
    draw = random.Random(seed)
    shares = []
    for _ in range(instances):
        waiting = [
            Job(("a", str(index)), "m", None, ("x" * draw.choice(LENGTHS),), {}, 5, draw.uniform(0.005, 0.08), 0.0)
            for index in range(jobs)
        ]
        times = {job.key: STEP_S + BYTE_S * job.size_bytes for job in waiting}
        best = max(served(order, times) for order in itertools.permutations(waiting))
        desk = Desk()
        for length in LENGTHS:
            desk.costs.learn("m", 1, length, STEP_S + BYTE_S * length, 4)
        now_s, done = 0.0, 0
        for job in waiting:
            desk.queue.add(job)
        while len(desk.queue):
            desk.queue.take(functools.partial(_too_late, times, now_s))
            for job in desk.queue.next_batch(BatchLimits(1, mixed=True), now_s):
                now_s += times[job.key]
                done += 1
        shares.append(done / best if best else 1.0)
    return fmean(shares)


def _too_late(times: dict[tuple[str, str], float], now_s: float, job: Job) -> bool:
    return now_s + times[job.key] > job.deadline_s


def served(order: Sequence[Job], times: dict[tuple[str, str], float]) -> int:
    """How many of an order are in time when each that cannot be is left out."""
    now_s, count = 0.0, 0
    for job in order:
        if now_s + times[job.key] <= job.deadline_s:
            now_s += times[job.key]
            count += 1
    return count


def others_share(outcome: Outcome) -> float:
    """The part of the requests of all clients but the flood that was answered in time."""
    counts = [outcome.by_client[client] for client in CLIENTS[1:]]
    return round(sum(one[1] for one in counts) / max(1, sum(one[0] for one in counts)), 3)


def row(name: str, load: float, outcome: Outcome, alone: Outcome, seconds: float) -> dict[str, object]:
    """One line of the table; `alone` is the same without the flood."""
    flood = outcome.by_client["flood"]
    return {
        "desk": name,
        "load": load,
        "goodput": round(outcome.in_time / seconds / capacity(random.Random(0)), 3),
        "refused": round(outcome.refused / outcome.asked, 3),
        "given up": round(outcome.given_up / outcome.asked, 3),
        "expired": round((outcome.silent + outcome.late) / outcome.asked, 4),
        "flood": round(flood[1] / max(1, flood[0]), 3),
        "others": others_share(outcome),
        "others alone": others_share(alone),
        **{
            f"p{priority} {name}": round(1000.0 * (outcome.latency_s[priority].quantile(share) or math.nan))
            for priority, _ in PRIORITIES
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
    }


def main() -> int:
    """Run, tabulate, save."""
    parser = argparse.ArgumentParser(prog="bench.workload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/workload.json"))
    options = parser.parse_args()
    rows = [
        row(
            name,
            load,
            run(kind(), load, options.seconds, options.seed),
            run(kind(), load, options.seconds, options.seed, flood=False),
            options.seconds,
        )
        for load in LOADS
        for name, kind in (("edge-agent", Desk), ("first come", FirstCome))
    ]
    best = against_best(options.seed)
    print(f"capacity {capacity(random.Random(0)):.0f} requests/s in full batches; latencies in ms")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for one in rows:
        print("| " + " | ".join(str(value) for value in one.values()) + " |")
    print(f"against the best offline order, small instances, all arriving at once: {best:.3f} of its requests in time")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows, "of_best": best, "seed": options.seed}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
