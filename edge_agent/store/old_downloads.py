"""Downloads that were begun and never finished are deleted after a week.

A file of its own because the daemon does it, too, and imports nothing that fetches.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

DOWNLOADS = "downloads"
"""In the state folder."""
KEPT_S = 7 * 86400.0
"""Since the last try of a download."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the folder of a download against other processes; False where another one does. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def remove_old(downloads: Path) -> None:
    """Delete what was begun long ago and never finished. A clock that jumped costs a download, nothing else."""
    with contextlib.suppress(OSError):
        for path in list(downloads.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    with held(path) as mine:
                        if mine:
                            shutil.rmtree(path, ignore_errors=True)
