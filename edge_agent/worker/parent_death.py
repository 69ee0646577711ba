"""Ends a process when its parent does, whatever ended that one. Linux alone; elsewhere nothing happens.

A file of its own because the worker's child and the programs of the demo need it, and nothing else with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal that this process gets when its parent ends. It survives an exec."""


def die_with_parent(by: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send `by` to this process when its parent ends; at once where that is not `parent` any more."""
    with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), by)
