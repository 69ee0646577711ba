"""The assumed effect of limits on speed and power, for the two kinds of load. All figures here are estimates.

Encoder (compute-bound). Speed = clock * Amdahl(threads; 5 % serial) * rows / (rows + 0.5), relative to all cores, a
full batch and the full clock: each batch has an overhead of half a row. Power share = (0.15 + 0.85 * threads / cores) *
(0.9 + 0.1 * batch efficiency): 15 % of dynamic power is shared by the cores (caches, memory, interconnect).

Generator (bandwidth-bound). A decode step reads all weights once for all sequences. At the full clock with one sequence
90 % of its time is memory access and 10 % arithmetic (decode speed hardly changes with the clock: Pi 500 between 2.2
and 2.4 GHz; arXiv 2501.08219). Memory time does not depend on the clock; one core uses 62 % of the bandwidth, two 95 %
(decode on 2 or 3 of 4 cores is as fast as on 4). Arithmetic grows with the number of sequences. Power share = (0.25 +
0.75 * threads / cores) * 0.9: waiting cores use almost as much power as computing ones.

Dynamic power also depends on f * V(f)^2 and rises by 0.4 % per °C above 60 °C (leakage); `plant` models both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SERIAL = 0.05
ROW_OVERHEAD = 0.5
SHARED = 0.15
MEMORY_SHARE = 0.9


def speed(generator: Any, cores: Any, rows: Any, full_rows: Any, threads: Any, clock: Any) -> Floats:
    """Throughput relative to full limits. All arguments broadcast."""
    amdahl = _amdahl(threads) / _amdahl(cores)
    batch = _efficiency(rows) / _efficiency(full_rows)
    encoder = clock * amdahl * batch
    decode = _decode(cores, rows, threads, clock) / _decode(cores, full_rows, cores, 1.0)
    return np.asarray(np.where(generator, decode, encoder), dtype=np.float64)


def power_share(generator: Any, cores: Any, rows: Any, threads: Any) -> Floats:
    """Dynamic power relative to full power, without the clock's part."""
    encoder = (SHARED + (1.0 - SHARED) * threads / cores) * (0.9 + 0.1 * _efficiency(rows))
    decode = 0.9 * (0.25 + 0.75 * threads / cores)
    return np.asarray(np.where(generator, decode, encoder), dtype=np.float64)


def step_s(generator: Any, row_s: Any, token_s: Any, rows: Any, relative_speed: Any) -> Floats:
    """Seconds of one step: a batch of an encoder, or one token of every sequence of a generator."""
    return np.asarray(np.where(generator, token_s, row_s * rows) / np.maximum(relative_speed, 1e-6), dtype=np.float64)


def _amdahl(threads: Any) -> Any:
    return 1.0 / (SERIAL + (1.0 - SERIAL) / threads)


def _efficiency(rows: Any) -> Any:
    return rows / (rows + ROW_OVERHEAD)


def _decode(cores: Any, sequences: Any, threads: Any, clock: Any) -> Any:
    """Sequences per unit of time."""
    bandwidth = np.interp(np.asarray(threads, dtype=np.float64), (1.0, 2.0, 3.0, 4.0), (0.62, 0.95, 1.0, 1.0))
    arithmetic = (1.0 - MEMORY_SHARE) * sequences * cores / (threads * clock)
    return sequences / (MEMORY_SHARE / bandwidth + arithmetic)
