"""A control group with a memory limit, where this machine lets the test make one (root, a writable hierarchy)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A group of processes that together may hold so much; the kernel kills one of them when they hold more."""

    folder: Path
    used: str

    def add(self, pid: int) -> None:
        """A process joins, and with it every child that it starts from now on."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def used_bytes(self) -> int:
        """What the group holds, page cache included."""
        return int((self.folder / self.used).read_text())

    def kills(self) -> int:
        """How often the kernel has killed one of the group for its memory."""
        for name in ("memory.events", "memory.oom_control"):
            path = self.folder / name
            if path.exists():
                fields = dict(line.split() for line in path.read_text().splitlines())
                return int(fields.get("oom_kill", 0))
        return 0


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """A fresh group; skips where none can be made, and fails there in CI, which must have one."""
    version1 = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if version1 else ROOT) / f"edge-agent-test-{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version1 else ("memory.max", "memory.current")
    try:
        folder.mkdir()
        (folder / names[0]).write_text(str(limit_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"NO MEMORY CONTROL GROUP CAN BE MADE HERE, so no real limit was tried: {error}")
    try:
        yield MemoryLimit(folder, names[1])
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)
