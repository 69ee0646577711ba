"""Energy of a request: measured power over its share of the compute time, or null with the reason."""

from __future__ import annotations

from edge_agent.base.reading import Reading

FRESH_S = 5.0


def energy(power: Reading, now_s: float, compute_s: float, rows: int, batch_rows: int) -> tuple[float | None, str]:
    """(joules or None, method). Power is taken as constant over the batch; a request's share is its share of rows."""
    if not power.fresh(now_s, FRESH_S) or power.value is None:
        return None, power.reason or "the last power sample is too old"
    joules = power.value * compute_s * rows / max(1, batch_rows)
    return joules, f"{power.source} over the request's share of the batch"
