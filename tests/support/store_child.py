"""A process that forks a child per order; the child changes a store and kills itself at a named point.

Run as `python -m tests.support.store_child`: one JSON order per line on standard input, one JSON answer per line on
standard output. It forks from a process without threads, so that a death by SIGKILL costs milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.verify import load_trust
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from tests.support import packages as tiny

ROOT = Path(__file__).resolve().parents[2]


def install_context(trust_file: Path, at: Callable[[str], None] = lambda _point: None) -> InstallContext:
    """The set-up of the device under test."""
    return InstallContext(
        prober=tiny.TinyProber(),
        hardware=tiny.HARDWARE,
        trust=load_trust(trust_file),
        clock=ManualClock(wall_s=tiny.WALL_S),
        reserve_bytes=0,
        at=at,
    )


class End(NamedTuple):
    """How a child ended: by SIGKILL, or with the points it reached and the error it met."""

    killed: bool
    points: list[str]
    error: str | None


class Device:
    """The forking process, from the test's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"},
        )

    def change(self, store: Path, do: str, what: str, point: str | None = None, nth: int = 1) -> End:
        """Let a child `do` (install, rollback, remove) and die at the `nth` time that it reaches `point`."""
        trust = str(tiny.keys().root_file)
        order = {"store": str(store), "trust": trust, "do": do, "what": what, "point": point, "nth": nth}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return End(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=10)


def change(order: dict[str, Any], out: int) -> None:
    """Carry out an order in this process, and write how it ended to the descriptor `out`."""
    points: list[str] = []
    left = order["nth"]

    def at(reached: str) -> None:
        nonlocal left
        points.append(reached)
        if reached == order["point"]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    library = ModelStore(Path(order["store"]), install_context(Path(order["trust"]), at))
    error = None
    try:
        if order["do"] == "install":
            library.install(Path(order["what"]))
        else:
            getattr(library, order["do"])(order["what"])
    except EdgeError as caught:
        error = str(caught)
    os.write(out, json.dumps({"killed": False, "points": points, "error": error}).encode())


def _answer(order: dict[str, Any]) -> str:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            change(order, write)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return json.dumps({"killed": True, "points": [], "error": None})
    return said or json.dumps({"killed": False, "points": [], "error": "the child died of something else"})


if __name__ == "__main__":
    for line in sys.stdin:
        print(_answer(json.loads(line)), flush=True)
