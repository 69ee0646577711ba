"""How OpenMP threads wait for each other: they spin for a short time and then sleep (docs/decisions/0094 and 0135).

Threads that only spin burn power, and are suspended for milliseconds whenever another process needs their core. Threads
that sleep at once pay a wake-up after each of several hundred operations per token.

In a file of its own because the worker supervisor, edge_forge and the benchmarks share it.
"""

from __future__ import annotations

import platform

# Iterations of GNU OpenMP's waiting loop, about two microseconds in all. On x86-64 each contains a pause instruction,
# so that fewer are needed.
_SPINS = {"x86_64": 100}.get(platform.machine(), 1000)
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(_SPINS)}
"""Environment of a process that computes with OpenMP, set before its library is loaded. GOMP_SPINCOUNT takes precedence
over OMP_WAIT_POLICY in GNU OpenMP; other implementations only know the latter."""
