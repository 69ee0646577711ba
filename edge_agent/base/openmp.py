"""How OpenMP threads wait for each other: a moment awake, then asleep (docs/decisions/0094 and 0135).

Threads that spin while they wait burn power, and stand still for milliseconds wherever another process has their core;
threads that sleep at once pay for waking after each of several hundred operations per token.
"""

from __future__ import annotations

import platform

# Rounds of GNU OpenMP's waiting loop, about two microseconds: on x86-64 each has a pause instruction, elsewhere not.
_SPINS = {"x86_64": 100}.get(platform.machine(), 1000)
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(_SPINS)}
"""For a process that computes with OpenMP, set before its library is loaded. The second one goes before the first."""
