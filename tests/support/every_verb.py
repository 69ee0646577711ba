"""Runs many command lines of one program as one user, each in a fork of this process, and says how each ended.

    python every_verb.py PROGRAM USER_ID < JSON list of argument lists > JSON list of [exit code, output]

A file of its own because it is a program: it becomes another user and cannot become root again. A fork per line,
because verbs give up root's rights themselves; everything is imported before, so that a line costs milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

LONGEST_S = 40
"""A command line that takes longer waits for something that will not come."""
AT_ONCE = 16
MORE_BYTES = 2 << 30
"""What a command line may take beside what is imported: whoever reads an enormous file whole ends with MemoryError."""
PROGRAMS = {"edge-agent": ("edge_agent.cli", "edge_agent"), "edge-forge": ("edge_forge.cli", "edge_forge")}
LEFT_OUT = (".backends.", ".worker.child", ".engine_host", ".tasks", "train.worker", "train.engine", "__main__")


class TooLong(BaseException):
    """Passes every `except Exception`."""


def _too_long(*_: object) -> None:
    raise TooLong


def _run(program: str, arguments: list[str]) -> list[Any]:
    run = importlib.import_module(PROGRAMS[program][0]).main
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code: object = run(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:  # noqa: BLE001 - what the test is about
            code = "traceback"
            traceback.print_exc(file=out)
    return [code, out.getvalue()]


def _begin(program: str, arguments: list[str]) -> tuple[int, int]:
    """The process of a line, and the descriptor that its result comes from."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(LONGEST_S)
        with os.fdopen(theirs, "w") as file:
            json.dump(_run(program, arguments), file)
        os._exit(0)
    os.close(theirs)
    return child, ours


def _end(child: int, descriptor: int) -> list[Any]:
    with os.fdopen(descriptor) as file:
        text = file.read()
    status = os.waitpid(child, 0)[1]
    return list(json.loads(text)) if text else ["traceback", f"the process ended with {status}"]


def main() -> None:
    """See the module."""
    program, user = sys.argv[1], int(sys.argv[2])
    lines = json.load(sys.stdin)
    for package in ("edge_agent", PROGRAMS[program][1]):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not any(part in f"{module.name}." for part in LEFT_OUT):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)
    # What verbs import late of the standard library: the interpreter may lie where the other users do not reach.
    for name in (
        "difflib",
        "statistics",
        "syslog",
        "pwd",
        "psutil",
        "csv",
        "secrets",
        "encodings.idna",
        "encodings.ascii",
        "concurrent.futures.thread",  # lazily at the first `asyncio.to_thread`
    ):
        importlib.import_module(name)
    "localhost".encode("idna")
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_BYTES, taken + MORE_BYTES))
    results: list[list[Any]] = []
    under_way: list[tuple[int, int]] = []
    for line in lines:  # most of them wait: for a broker that is not there, for a child
        if len(under_way) == AT_ONCE:
            results.append(_end(*under_way.pop(0)))
        under_way.append(_begin(program, line))
    json.dump([*results, *(_end(*one) for one in under_way)], sys.stdout)


if __name__ == "__main__":
    main()
