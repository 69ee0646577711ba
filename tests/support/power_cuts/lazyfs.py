"""A folder on LazyFS: a file system in user space that keeps what is written in its own memory until `fsync`.

LazyFS is a program of others (github.com/dsrhaslab/lazyfs), built beforehand. A power cut is either
its end by SIGKILL after an operation that it was told beforehand, or an order into its FIFO to clear its cache when
everything that ran on it has been killed. Names are kept at once, bytes by `fsync` alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNT_S = CLEAR_S = 20.0
# What changes a file, or makes a change durable; LazyFS does not see `fsync` of folders.
CHANGES = ("create", "write", "fsync", "rename", "unlink", "truncate")
_LINE = re.compile(
    rf"\[lazyfs\.ops\]: lfs_({'|'.join(CHANGES)})"
    r"\((?:path|from)=(.*?)(?:,to=(.*?))?(?:,(?:size|mode|isdatasync|off)=.*)?\)$"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes right after the `nth` operation of this kind on this file; paths are below the folder."""

    operation: str
    path: str
    to: str
    nth: int

    def __str__(self) -> str:
        to = f" to {self.to}" if self.to else ""
        return f"after {self.operation} number {self.nth} of {self.path}{to}"


class LazyFolder:
    """`backing` as seen through LazyFS at `folder`. What is in `backing` is what a power cut leaves."""

    def __init__(self, program: Path, folder: Path, backing: Path) -> None:
        self.folder, self._backing = folder, backing
        self._program = program
        self._aside = backing.parent / "lazyfs"
        self._aside.mkdir(parents=True, exist_ok=True)
        self._log = self._aside / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._cleared = -1

    def mount(self, cut: Cut | None = None) -> None:
        """Mount it; with `cut` LazyFS ends itself there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._backing.mkdir(parents=True, exist_ok=True)
        config = self._aside / "config.toml"
        config.write_text(self._config(cut))
        cleared = self._aside / "cleared"
        if not cleared.exists():
            os.mkfifo(cleared)
        # LazyFS waits for a reader of this FIFO.
        self._cleared = os.open(cleared, os.O_RDWR | os.O_NONBLOCK)
        command = [self._program, self.folder, "--config-path", config, "-o", "modules=subdir"]
        command += ["-o", f"subdir={self._backing}", "-f"]
        with (self._aside / "said").open("ab") as said:
            self._process = subprocess.Popen([*map(str, command)], stdout=said, stderr=said)
        until_s = time.monotonic() + MOUNT_S
        while not os.path.ismount(self.folder):
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"LazyFS did not mount: {(self._aside / 'said').read_text()[-2000:]}")
            time.sleep(0.005)
        if cut is not None and cut.operation == "unlink":
            # In its configuration LazyFS takes what follows an unlink for what precedes it; by order it does not.
            order = f"lazyfs::crash::timing=after::op=unlink::from_rgx={self._backing / cut.path}"
            (self._aside / "orders").write_text(f"{order}\n")

    def _config(self, cut: Cut | None) -> str:
        aside = self._aside
        lines = ["[faults]", f'fifo_path="{aside / "orders"}"', f'fifo_path_completed="{aside / "cleared"}"']
        lines += ["[cache]", "apply_eviction=false", "[cache.simple]", 'custom_size="32mb"', "blocks_per_page=1"]
        lines += ["[filesystem]", "log_all_operations=true", f'logfile="{self._log}"']
        if cut is not None and cut.operation != "unlink":
            lines += [
                "[[injection]]",
                'type="clear-cache"',
                f'op="{cut.operation}"',
                f'from="{self._backing / cut.path}"',
            ]
            lines += [f'to="{self._backing / cut.to}"'] if cut.to else []
            lines += ['timing="after"', f"occurrence={cut.nth}", "crash=true"]
        return "\n".join(lines) + "\n"

    @property
    def dead(self) -> bool:
        """True when LazyFS has ended: nothing on it can be read or written."""
        return self._process is None or self._process.poll() is not None

    def drop(self) -> None:
        """Clear the cache: what was not synced is gone. Nothing may run on it."""
        # Without a reader the opening of a FIFO fails at once in this way.
        orders = os.open(self._aside / "orders", os.O_WRONLY | os.O_NONBLOCK)
        os.write(orders, b"lazyfs::clear-cache\n")
        os.close(orders)
        until_s = time.monotonic() + CLEAR_S
        said = b""
        while b"finished::clear-cache" not in said:
            with contextlib.suppress(BlockingIOError):
                said += os.read(self._cleared, 4096)
            if self.dead or time.monotonic() > until_s:
                raise AssertionError(f"LazyFS did not clear its cache: {said!r}")
            time.sleep(0.005)

    def end(self) -> None:
        """End LazyFS by SIGKILL, its cache with it, and unmount."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        os.close(self._cleared)
        subprocess.run(["umount", "-l", self.folder], check=os.path.ismount(self.folder))

    def operations(self) -> list[Cut]:
        """Every change since it was mounted, as the cut that would follow it."""
        counted: Counter[tuple[str, str, str]] = Counter()
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            match = _LINE.search(line)
            if match is None:
                continue
            operation, *paths = match.groups(default="")
            names = [os.path.relpath(path, self._backing) if path else "" for path in paths]
            counted[operation, names[0], names[1]] += 1
            found.append(Cut(operation, names[0], names[1], counted[operation, names[0], names[1]]))
        return found


def kill_tree(pid: int) -> None:
    """End a process of ours and everything that it started, at once, as a power cut does."""
    found = _stopped(pid)
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def _stopped(pid: int) -> Sequence[int]:
    """It and its descendants, each stopped before its children are read, so that none is missed."""
    try:
        os.kill(pid, signal.SIGSTOP)
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except (ProcessLookupError, FileNotFoundError):
        return [pid]
    return [pid, *(one for child in children.split() for one in _stopped(int(child)))]
