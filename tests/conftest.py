"""What holds for every test."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import HealthCheck, settings

# A time never fails a test: a loaded machine is not a fault of the code, not even where drawing examples is slow.
# `quick` is for running the same tests once more on another Python, where the interpreter counts.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("full", **PATIENT)
settings.register_profile("quick", max_examples=20, **PATIENT)
settings.load_profile("full")

# What a shell starts in the background ignores Ctrl-C, and so would every child that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Keys and seals of the tests are no keys of the person who runs them; child processes inherit it.
_STATE = tempfile.mkdtemp(prefix="edge-test-state-")
os.environ["XDG_STATE_HOME"] = _STATE
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)
