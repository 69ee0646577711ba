"""Atomic and durable writes: temporary file, fsync, rename, fsync of the folder.

A power cut at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.base.errors import StoreError

FreeBytes = Callable[[Path], int]

_REMEDIES = {
    errno.ENOSPC: "free some space, or remove a model",
    errno.EDQUOT: "raise the quota, or remove a model",
    errno.EROFS: "the file system is mounted read-only; check the card and `dmesg`",
    errno.EACCES: "run it as the service's user",
    errno.EPERM: "run it as the service's user",
    errno.EIO: "the disk reports errors; check `dmesg`",
}


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write on the folder's file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def sync_folder(folder: Path) -> None:
    """Make the directory entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, written: Callable[[], None] = lambda: None) -> None:
    """Put `data` in the place of `path`, atomically and durably. `written` is called just before the rename.

    The new file's mtime is later than the old one's even when the clock went back, so that one stat detects the change.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            _later_than(path, file.fileno())
            os.fsync(file.fileno())
        written()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _later_than(path: Path, descriptor: int) -> None:
    new_ns = os.fstat(descriptor).st_mtime_ns
    old_ns = path.stat().st_mtime_ns if path.exists() else 0
    if new_ns <= old_ns:
        os.utime(descriptor, ns=(old_ns + 1, old_ns + 1))


def remove_file(path: Path) -> None:
    """Remove a file, durably; a missing file is no error."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


@contextlib.contextmanager
def translated(where: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        place = str(error.filename or where)
        raise StoreError(f"the disk says: {error.strerror or error}", place, remedy) from error
