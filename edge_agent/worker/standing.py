"""How a child stands with the kernel: whom it takes first when memory runs out, and with whom it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def step_back(oom_score_adj: int, nice: int) -> None:
    """Ask the kernel to take this process before the daemon when memory runs out, and to let others run first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123 (pathlib costs memory for one line)
            stream.write(str(oom_score_adj))
        os.nice(nice)
    except OSError as error:
        sys.stderr.write(f"worker: cannot lower its own standing: {error}\n")


def die_with_the_daemon() -> None:
    """Ask the kernel to end this process when the daemon is gone: one that is inside a load or a step that never comes
    back would not read of it, and would hold its memory for ever."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such thing
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
