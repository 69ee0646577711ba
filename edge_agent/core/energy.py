"""Energy of a request: board power integrated over its share of the compute, or null with the reason.

Between two looks the power is the mean of the samples at both ends. At every moment it is shared by all requests
that are inside a worker, by their rows; what the board takes while it only waits is nobody's. Where the board has no
sensor, a utilisation model of it stands in, and the method says that it is an estimate. Where there is neither, or a
sample was missing while the request ran, the energy is None: half an integral is no figure.

Pure: readings and times are arguments. `agent.governor_loop` samples once a second, `agent.respond` closes the
accounts.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.base.reading import Reading
from edge_agent.core.operating_points import CLOCK_EXPONENT

FRESH_S = 5.0
NOT_METERED = "the request was not metered"


@dataclass(frozen=True, slots=True)
class Utilisation:
    """What a kind of board takes: `idle_w`, plus up to `full_w` by the threads that compute and their clock.

    The figures are those of `thermal_model.PRIORS` (published measurements of such boards, not of this one).
    """

    board: str
    idle_w: float
    full_w: float
    cores: int

    def watts(self, threads: int, clock: float = 1.0) -> float:
        """Watts while so many threads compute at this share of the highest clock."""
        return self.idle_w + self.full_w * min(1.0, threads / max(1, self.cores)) * float(clock**CLOCK_EXPONENT)

    def method(self, over: str = "the request's share of the compute") -> str:
        """How an estimate is named in a reply; `over` is the time that it is taken over."""
        return (
            f"estimated: {self.idle_w:g} W idle + {self.full_w:g} W at full load of a {self.board}, by threads in use, "
            f"over {over}"
        )


@dataclass(slots=True)
class _Share:
    """One request inside a worker; `gap` says why a part of its time has no power."""

    rows: int
    joules: float = 0.0
    method: str = ""
    gap: str | None = None


class EnergyMeter:
    """The running integrals of all requests that are inside a worker."""

    def __init__(self, model: Utilisation | None = None) -> None:
        self._model = model
        self._shares: dict[str, _Share] = {}
        self._power: Reading | None = None
        self._at_s: float | None = None
        self._watts = 0.0

    def look(self, power: Reading, now_s: float, threads: int, clock: float = 1.0) -> None:
        """A sample of the board's power; `threads` compute now, at `clock` of the highest. Gaps are tolerated."""
        estimate_w = self._model.watts(threads, clock) if self._model is not None else 0.0
        self._advance(power, estimate_w, now_s)

    def begin(self, job_id: str, rows: int, now_s: float) -> None:
        """A request enters a worker."""
        self._advance(self._power, self._watts, now_s)
        self._shares[job_id] = _Share(max(1, rows))

    def end(self, job_id: str, power: Reading, now_s: float) -> tuple[float | None, str]:
        """(joules or None, method or reason); the request has left its worker."""
        self._advance(power, self._watts, now_s)
        share = self._shares.pop(job_id, None)
        if share is None:
            return None, NOT_METERED
        if share.gap is not None:
            return None, share.gap
        if share.method:
            return share.joules, share.method
        method = self._method(power)
        return (0.0, method) if method else (None, power.reason or NOT_METERED)

    def drop(self, job_id: str) -> None:
        """The request left without an answer of a worker; unknown ones are no error."""
        self._shares.pop(job_id, None)

    def _advance(self, power: Reading | None, estimate_w: float, now_s: float) -> None:
        before, before_w = self._power, self._watts
        elapsed_s = max(0.0, now_s - self._at_s) if self._at_s is not None else 0.0
        self._power, self._watts, self._at_s = power, estimate_w, now_s
        if not self._shares or elapsed_s <= 0.0 or power is None:
            return
        watts = _measured(before, power, now_s)
        if watts is None and self._model is not None:
            watts = (before_w + estimate_w) / 2.0
        total_rows = sum(share.rows for share in self._shares.values())
        for share in self._shares.values():
            if watts is None:
                share.gap = power.reason or "the last power sample is too old"
            else:
                share.joules += watts * elapsed_s * share.rows / total_rows
                share.method = self._method(power, share.method)

    def _method(self, power: Reading, already: str = "") -> str:
        """A request that was estimated for a part of its time is an estimate."""
        if power.value is not None and not already.startswith("estimated"):
            return f"{power.source} over the request's share of the compute"
        return already if self._model is None else self._model.method()


def _measured(before: Reading | None, after: Reading, now_s: float) -> float | None:
    """Mean watts between two samples; one alone stands for both. None when neither is fresh."""
    found = [one.value for one in (before, after) if one is not None and one.fresh(now_s, FRESH_S)]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None
