"""The files of the store: atomic and durable writes, and the content-addressed blobs.

A write is: temporary file, fsync, rename, fsync of the folder. A power cut at any moment leaves the old file or the new
one. `Blobs` knows the paths of the blobs, reads them verified, and deletes the unneeded ones; `install` writes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.limits import MIB
from edge_agent.bundle.contents import check_bytes
from edge_agent.bundle.jsonio import check_size
from edge_agent.bundle.manifest import Descriptor

FreeBytes = Callable[[Path], int]

_REMEDIES = {
    errno.ENOSPC: "free some space, or remove a model",
    errno.EDQUOT: "raise the quota, or remove a model",
    errno.EROFS: "the file system is mounted read-only; check the card and `dmesg`",
    errno.EACCES: "run it as the service's user",
    errno.EPERM: "run it as the service's user",
    errno.EEXIST: "a file lies where a folder is needed; move it away, or set store.state_dir",
    errno.ENOTDIR: "a file lies where a folder is needed; move it away, or set store.state_dir",
    errno.EIO: "the disk reports errors; check `dmesg`",
}


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write on the folder's file system; `sys.maxsize` where it says no
    size, as some file systems in user space do: a full one tells by ENOSPC."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize if found.f_blocks else sys.maxsize


def sync_folder(folder: Path) -> None:
    """Make the directory entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably: `fsync` of a file does not keep the name of a folder
    that it lies in. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


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
        cause = Cause.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise StoreError(f"the disk says: {error.strerror or error}", place, remedy, cause) from error


class Blobs:
    """The folder `blobs/sha256/<hex>` and the folder for blobs that are not finished."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self.unfinished = root / "unfinished"

    def create(self) -> None:
        """Make the folders."""
        make_folder(self.folder)
        make_folder(self.unfinished)

    def path(self, digest: str) -> Path:
        """The path of a blob, present or not."""
        return self.folder / digest.removeprefix("sha256:")

    def whole(self, found: Descriptor) -> bool:
        """True when the blob is present with its size; its bytes are not read. What the disk does not give counts as
        not present, so that it is written anew."""
        try:
            return self.path(found.digest).stat().st_size == found.size
        except OSError:
            return False

    def there(self, found: Descriptor) -> bool:
        """True when there is a file, of whatever size; what the disk does not give counts as not there."""
        try:
            return self.path(found.digest).exists()
        except OSError:
            return False

    def intact(self, found: Descriptor, pace: Callable[[], None] = lambda: None) -> bool:
        """True when the blob is present and its bytes have its digest. `pace` is called after each MiB."""
        try:
            return self.whole(found) and self.digest_of(self.path(found.digest), pace) == found.digest
        except OSError:  # a bad sector
            return False

    def digest_of(self, path: Path, pace: Callable[[], None] = lambda: None) -> str:
        """SHA-256 of a file, read in chunks."""
        running = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                running.update(chunk)
                pace()
        return "sha256:" + running.hexdigest()

    def fetch(self, found: Descriptor, limit_bytes: int) -> bytes:
        """The bytes of a small blob, verified; a `contents.Fetch`. Raises PackageError."""
        where = f"blob {found.digest[7:19]}"
        check_size(found.size, limit_bytes, where)
        try:
            data = self.path(found.digest).read_bytes()
        except FileNotFoundError:
            raise PackageError("it is neither in the package nor in the store", where) from None
        except OSError as error:
            # Of one model: the daemon serves the others on.
            remedy = "check the card and `dmesg`, and install its package again"
            raise PackageError(f"it cannot be read: {error.strerror or error}", where, remedy) from error
        return check_bytes(found, data, where)

    def sync(self) -> None:
        """Make the directory entries of renamed blobs durable."""
        sync_folder(self.folder)

    def names(self) -> tuple[str, ...]:
        """The digests of every blob."""
        return tuple(sorted(f"sha256:{name}" for name in (path.name for path in self.folder.iterdir())))

    def keep_only(self, digests: Iterable[str]) -> int:
        """Delete every other blob and all unfinished ones; returns the bytes freed."""
        kept = {digest.removeprefix("sha256:") for digest in digests}
        freed = 0
        for folder, names in ((self.folder, kept), (self.unfinished, set[str]())):
            for path in list(folder.iterdir()):
                if path.name not in names:
                    freed += path.stat().st_size
                    path.unlink()
        if freed:
            self.sync()
        return freed
