"""The workload of `bench.deadlines`: clients, arrivals and deadlines of requests, and the cost of batches.

Arrivals are a renewal process with Gamma-distributed gaps (coefficient of variation 1.5: bursts). Clients and adapters
follow power laws, lengths are log-normal, deadlines and priorities are mixed. Everything comes from one seed.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

ARRIVAL_CV = 1.5
CLIENTS, CLIENT_EXPONENT = 12, 1.0
ADAPTERS, ADAPTER_EXPONENT = 64, 1.1
DEADLINES_S = ((0.25, 0.2), (1.0, 0.3), (3.0, 0.3), (10.0, 0.2))
"""(seconds, share)."""
PRIORITIES = ((2, 0.1), (5, 0.7), (8, 0.2))
ROWS = ((1, 0.85), (4, 0.1), (16, 0.05))
MEDIAN_BYTES, LENGTH_SIGMA, LONGEST_BYTES = 60, 0.6, 400

# A small encoder on a small board: seconds per step, per text and per byte, and to attach an adapter. Estimated.
STEP_S, ROW_S, BYTE_S, ATTACH_S = 0.006, 0.0012, 0.00006, 0.002
STEP_SIGMA = 0.08
MAX_ROWS = 16
ADAPTERS_HELD = 32


@dataclass(frozen=True, slots=True)
class Offer:
    """One request; `number`: in order of arrival."""

    number: int
    arrival_s: float
    deadline_s: float
    client: str
    adapter: str
    priority: int
    rows: int
    row_bytes: int

    @property
    def work_s(self) -> float:
        """Seconds of a worker whose batches are always full: the lowest possible cost."""
        return self.rows * (ROW_S + BYTE_S * self.row_bytes + STEP_S / MAX_ROWS)


class BatchCosts:
    """The cost of batches: step, rows, attaching of adapters, and noise. Keeps which adapters are attached."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(f"costs {seed}")
        self._held: dict[str, None] = {}

    def batch_s(self, batch: Sequence[Offer]) -> tuple[float, float]:
        """(seconds to attach, seconds to compute)."""
        attach_s = 0.0
        for offer in batch:
            if offer.adapter not in self._held:
                attach_s += ATTACH_S
            self._held.pop(offer.adapter, None)
            self._held[offer.adapter] = None
            while len(self._held) > ADAPTERS_HELD:
                del self._held[next(iter(self._held))]
        rows = sum(offer.rows for offer in batch)
        steps = -(-rows // MAX_ROWS)
        compute_s = STEP_S * steps + sum(offer.rows * (ROW_S + BYTE_S * offer.row_bytes) for offer in batch)
        return attach_s, compute_s * self._dice.lognormvariate(0.0, STEP_SIGMA)


def offers(seed: int, load: float, seconds: float) -> list[Offer]:
    """Requests over `seconds` whose mean work is `load` times the capacity of a worker with full batches."""
    dice = random.Random(f"offers {seed} {load}")
    probe = [_offer(random.Random(f"mix {index}"), index, 0.0) for index in range(4000)]
    mean_gap_s = sum(offer.work_s for offer in probe) / len(probe) / load
    shape = 1.0 / ARRIVAL_CV**2
    found: list[Offer] = []
    now_s = 0.0
    while True:
        now_s += dice.gammavariate(shape, mean_gap_s / shape)
        if now_s >= seconds:
            return found
        found.append(_offer(dice, len(found), now_s))


def _offer(dice: random.Random, number: int, now_s: float) -> Offer:
    row_bytes = min(LONGEST_BYTES, max(4, int(dice.lognormvariate(0.0, LENGTH_SIGMA) * MEDIAN_BYTES)))
    return Offer(
        number,
        now_s,
        now_s + _one_of(dice, DEADLINES_S),
        f"client-{_ranked(dice, CLIENTS, CLIENT_EXPONENT)}",
        f"adapter-{_ranked(dice, ADAPTERS, ADAPTER_EXPONENT)}",
        int(_one_of(dice, PRIORITIES)),
        int(_one_of(dice, ROWS)),
        row_bytes,
    )


def _one_of(dice: random.Random, shares: Sequence[tuple[float, float]]) -> float:
    return dice.choices([value for value, _ in shares], [share for _, share in shares])[0]


def _ranked(dice: random.Random, count: int, exponent: float) -> int:
    """A rank with a probability proportional to rank^-exponent."""
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(count)))
    return bisect_left(weights, dice.random() * weights[-1])
