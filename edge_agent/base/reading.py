"""A sensor reading: a value with unit, source and time, or no value with the reason. Never an invented figure.

In a file of its own because sensors, the governor, telemetry and trials share it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One sampled quantity.

    `value` is None exactly when `reason` says why. `unit` is one of 'celsius', 'watts', 'bytes', 'hertz', 'percent',
    'flags', 'rpm', 'count'. `taken_s`: monotonic seconds.
    """

    value: float | None
    unit: str
    source: str
    taken_s: float
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a reading has either a value or a reason for having none")

    def age_s(self, now_s: float) -> float:
        """Seconds since the sample was taken."""
        return max(0.0, now_s - self.taken_s)

    def fresh(self, now_s: float, max_age_s: float) -> bool:
        """True when there is a value and it is at most `max_age_s` old."""
        return self.value is not None and self.age_s(now_s) <= max_age_s


def unavailable(unit: str, source: str, taken_s: float, reason: str) -> Reading:
    """A reading without a value; `reason` is shown to the operator."""
    return Reading(None, unit, source, taken_s, reason)
