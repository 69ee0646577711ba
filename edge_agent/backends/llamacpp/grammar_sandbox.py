"""A grammar is tried in a process of its own before it may hold up, or end, the one that serves everybody.

What a grammar costs cannot be told from its text: some build for minutes or take gigabytes, some need seconds for each
token. llama.cpp cannot be interrupted in either. So the first time that a text is seen, a forked copy of the worker
builds it and looks at the vocabulary under it a few times, bounded in computing time and in memory.
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
"""A copy that neither ends nor computes (a lock that another thread held when it was made) is given up."""
LOOK_S = 0.001


def trouble(work: Callable[[], object]) -> str | None:
    """Do `work` in a forked copy of this process: None where it ends by itself, even with an error, else what it took.

    The copy shares this one's memory until it writes, and is over before this returns. Raises OSError where the system
    has no room for a process.
    """
    with warnings.catch_warnings():
        # Python warns of forks beside threads: the copy takes no lock of theirs, it computes and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
    if pid == 0:
        _compute(work)
    return _verdict(_wait(pid))


def _compute(work: Callable[[], object]) -> None:
    """In the copy. It leaves by `_exit`: nothing of the worker's is closed or flushed twice."""
    try:
        faulthandler.disable()  # how it ends is no news for anybody's log, or debugger
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
        os._exit(0)  # whatever else it was, the worker meets it again and says it


def _wait(pid: int) -> int | None:
    """How the copy ended, as `waitstatus_to_exitcode` puts it; None for one that had to be given up."""
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
