"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A time never fails a test: a loaded machine is not a fault of the code. `quick` is for running the same tests once
# more on another Python, where it is the interpreter that is looked at, not the examples.
settings.register_profile("full", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile("full")
