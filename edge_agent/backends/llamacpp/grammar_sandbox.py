"""Tries a grammar in a forked copy of the worker, so that it cannot block or crash the worker itself.

The cost of a grammar cannot be computed from its text: some build for minutes or take gigabytes, some need seconds per
token, and llama.cpp cannot be interrupted in either. So a text that is seen for the first time is built in a forked
copy and applied to the vocabulary a few times, within COMPUTE_S of CPU time and MEMORY_BYTES of address space.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable

from edge_agent.base.limits import MIB

COMPUTE_S = 1.5
MEMORY_BYTES = 64 * MIB
WALL_S = 15.0
"""A copy that does not end within this time (it waits for a lock that another thread held at the fork) is killed."""
LOOK_S = 0.001


def trouble(work: Callable[[], object]) -> str | None:
    """Run `work` in a forked copy of this process. None where it ends by itself, even with an error; else what it took.

    The copy shares memory until it writes, and has ended when this returns. Raises OSError if no process can be made.
    """
    with warnings.catch_warnings():
        # Python warns of a fork in a process with threads: the copy takes none of their locks, it computes and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
    if pid == 0:
        _compute(work)
    return _verdict(_wait(pid))


def _compute(work: Callable[[], object]) -> None:
    """The copy's part. It ends with `_exit`, so that no file of the worker is closed or flushed twice."""
    try:
        faulthandler.disable()  # its crash is expected: no traceback, no backtrace, no core file
        os.environ["GGML_NO_BACKTRACE"] = "1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (pathlib costs memory for one line)
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, COMPUTE_S)
        work()
    except MemoryError:
        os.abort()
    finally:
        os._exit(0)  # another error comes again in the worker, which reports it


def _wait(pid: int) -> int | None:
    """The copy's exit code (negative: a signal); None for one that was killed after WALL_S."""
    until_s = time.monotonic() + WALL_S
    while time.monotonic() < until_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(LOOK_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _verdict(code: int | None) -> str | None:
    if code == 0:
        return None
    if code is None or code == -signal.SIGPROF:
        return f"takes more than {COMPUTE_S:g} s to build and to find its first tokens"
    if code in {-signal.SIGABRT, -signal.SIGKILL}:
        return f"takes more than {MEMORY_BYTES // MIB} MiB to build, or ends its parser"
    return f"ends its parser ({signal.Signals(-code).name if code < 0 else code})"
