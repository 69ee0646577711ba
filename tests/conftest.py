"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A time never fails a test: a loaded machine is not a fault of the code, also where drawing examples is slow. `quick` is
# for running the same tests once more on another Python, where it is the interpreter that is looked at, not the examples.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("full", **PATIENT)
settings.register_profile("quick", max_examples=20, **PATIENT)
settings.load_profile("full")
