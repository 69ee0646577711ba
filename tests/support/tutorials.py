"""Pages that are worked through line by line, as a reader does it in two terminals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.base.child_python import child_environment
from tests.support import pages

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
WAIT_S = 120.0
BROUGHT = re.compile(r"\. (\.venv|edge)/bin/activate")
"""Lines that make our programs found, as `Terminal` does."""


def page(name: str) -> str:
    """The text of a tutorial."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def lines(text: str) -> list[tuple[str, str]]:
    """(line, what the page shows for it) of its console blocks, those left out that make our programs found."""
    bodies = "".join(body for language, body in pages.FENCE.findall(text) if language == "console")
    found = [(one.partition("\n")[0], one.partition("\n")[2]) for one in bodies.split("$ ")[1:]]
    return [(line, shown) for line, shown in found if not BROUGHT.fullmatch(line)]


def block(text: str, language: str) -> str:
    """The one block of a language."""
    (body,) = [body for name, body in pages.FENCE.findall(text) if name == language]
    return body


class Terminal:
    """A shell in a folder, with our programs on its path."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**child_environment(os.environ), "PATH": path, **environment}

    def run(self, line: str, shown: str = "") -> str:
        """What a line prints, which is as it is `shown`. It must succeed; `doctor` may find something."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self._environment, capture_output=True, text=True,
            timeout=2 * WAIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or line.startswith("edge-agent doctor"), f"{line}: {done.stdout}{done.stderr}"
        assert not shown or pages.shows(shown, done.stdout), done.stdout
        return done.stdout

    @contextlib.contextmanager
    def meanwhile(self, line: str, says: str) -> Iterator[None]:
        """A line that goes on in another terminal until Ctrl-C, from when it has said that."""
        log = self.folder / "meanwhile.log"
        with log.open("wb") as stream, subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self._environment, stdout=stream, stderr=stream,
        ) as process:  # fmt: skip
            try:
                end_s = time.monotonic() + WAIT_S
                while says not in log.read_text(errors="replace"):
                    assert process.poll() is None and time.monotonic() < end_s, log.read_text(errors="replace")
                    time.sleep(0.05)
                yield
                process.send_signal(signal.SIGINT)
                assert process.wait(WAIT_S) == 0, log.read_text(errors="replace")
            finally:
                process.kill()
