"""A package on disk, as one tar or as a folder: which files it holds, and their bytes. Nothing in it is trusted.

A folder is walked by descriptors that never follow a link. Sizes come from the file system or the tar headers and are
known before a byte is read; every read is bounded by them.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError
from edge_agent.bundle import tarform
from edge_agent.bundle.jsonio import check_size

CHUNK = limits.MIB
BLOBS = "blobs/sha256/"


def blob_name(digest: str) -> str:
    """'sha256:ab…' -> 'blobs/sha256/ab…'."""
    return BLOBS + digest.removeprefix("sha256:")


class _Source(Protocol):
    def sizes(self) -> Mapping[str, int]: ...

    def open(self, name: str) -> AbstractContextManager[tuple[int, int]]:
        """A descriptor to read from, and where the file begins in it."""
        ...

    def close(self) -> None: ...


class Package:
    """An opened package. `sizes` maps each of its files to its bytes. Use as a context manager."""

    def __init__(self, source: _Source, where: str) -> None:
        self._source = source
        self.where = where
        self.sizes = source.sizes()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._source.close()

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    def read(self, name: str, limit_bytes: int) -> bytes:
        """All bytes of a small file; its size is checked against the limit first. Raises PackageError."""
        if name not in self.sizes:
            raise PackageError(f"{name} is missing", self.where)
        check_size(self.sizes[name], limit_bytes, name)
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in chunks of at most 1 MiB; exactly as many as `sizes` says, or PackageError."""
        done, size = 0, self.sizes[name]
        with self._source.open(name) as (descriptor, offset):
            while done < size:
                try:
                    chunk = os.pread(descriptor, min(CHUNK, size - done), offset + done)
                except OSError as error:
                    raise unreadable(error, name, self.where) from error
                if not chunk:
                    raise PackageError(f"{name} ends {size - done} bytes early", self.where)
                done += len(chunk)
                yield chunk

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A file of the package to read and seek in; it ends where `sizes` says."""
        with self._source.open(name) as (descriptor, offset):
            yield io.BufferedReader(_Window(descriptor, offset, self.sizes[name], self.where), limits.KIB * 64)

    def blobs(self) -> Mapping[str, int]:
        """Digest -> size of every blob that travels in the package."""
        return {f"sha256:{name[len(BLOBS) :]}": size for name, size in self.sizes.items() if name.startswith(BLOBS)}


def unreadable(error: OSError, name: str, where: str) -> PackageError:
    """The medium that a package lies on does not give its bytes: that says nothing about the package."""
    remedy = "is the stick still there, and the network folder? else copy the package again"
    return PackageError(f"{name} cannot be read: {error.strerror or error}", where, remedy, Cause.SOURCE)


def package_descriptor(path: Path) -> int:
    """A descriptor of a tar or of a folder, for `open_package`. Raises PackageError.

    A command opens it before it gives up rights that the way there needs (a home with mode 0700), and reads afterwards.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        remedy = "name a package that `edge-forge` wrote"
        raise PackageError("there is no such file", str(path), remedy, Cause.SOURCE) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        what = f"it cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise PackageError(what, str(path), cause=Cause.SOURCE) from error


def open_package(path: Path, descriptor: int | None = None) -> Package:
    """Open a tar or a folder, or what was opened already (`descriptor`, which stays the caller's). Raises PackageError
    when it is neither, or holds anything but a package's files.
    """
    where = path.name or str(path)
    own = package_descriptor(path) if descriptor is None else os.dup(descriptor)
    try:
        found = os.fstat(own)
        if stat.S_ISDIR(found.st_mode):
            return Package(_Folder(own, where), where)
        if stat.S_ISREG(found.st_mode):
            return Package(_Tar(own, where), where)
        os.close(own)
    except OSError as error:
        raise unreadable(error, "it", str(path)) from error
    raise PackageError("it is neither a file nor a folder", str(path))


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own. It does not close the descriptor."""

    def __init__(self, descriptor: int, offset: int, size: int, where: str) -> None:
        super().__init__()
        self._where = where
        self._descriptor, self._offset, self._size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        try:
            data = os.pread(self._descriptor, wanted, self._offset + self._at)
        except OSError as error:
            raise unreadable(error, "a file of it", self._where) from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Tar:
    def __init__(self, descriptor: int, where: str) -> None:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(os.fdopen(descriptor, "rb"))
            size = os.fstat(self._file.fileno()).st_size
            self._members = {member.name: member for member in tarform.read_members(self._file, size, where)}
            stack.pop_all()

    def sizes(self) -> Mapping[str, int]:
        return {member.name: member.size for member in self._members.values()}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[int, int]]:
        yield self._file.fileno(), self._members[name].offset

    def close(self) -> None:
        self._file.close()


class _Folder:
    """Three folders held open by descriptor: the package, `root`, `blobs/sha256`."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._where = where
        self._folders: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._enter(descriptor)
            self._stack = stack.pop_all()

    def _enter(self, descriptor: int) -> None:
        top = self._descend("", descriptor)
        self._list(top, "", folders=("root", "blobs"))
        if "root" in self._names(top):
            self._list(self._descend("root/", self._open_folder("root", top)), "root/")
        if "blobs" in self._names(top):
            blobs = self._open_folder("blobs", top)
            self._stack.callback(os.close, blobs)
            self._list(blobs, "blobs/", folders=("sha256",))
            if "sha256" in self._names(blobs):
                self._list(self._descend(BLOBS, self._open_folder("sha256", blobs)), BLOBS)

    def _descend(self, prefix: str, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        self._folders[prefix] = descriptor
        return descriptor

    def _names(self, folder: int) -> list[str]:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]

    def _open_folder(self, name: str, parent: int) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            raise PackageError(f"{name} is a link or no folder", self._where) from error

    def _list(self, folder: int, prefix: str, folders: tuple[str, ...] = ()) -> None:
        for name in self._names(folder):
            if name in folders:
                continue
            tarform.check_name(prefix + name, self._where)
            if len(self._sizes) >= limits.PACKAGE_MEMBERS:
                raise PackageError(f"it holds more than {limits.PACKAGE_MEMBERS} files", self._where)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise PackageError(f"{prefix}{name} is a link or device, only plain files are allowed", self._where)
            if found.st_size > limits.BLOB_BYTES:
                check_size(found.st_size, limits.BLOB_BYTES, prefix + name)
            self._sizes[prefix + name] = found.st_size

    def sizes(self) -> Mapping[str, int]:
        return dict(sorted(self._sizes.items(), key=lambda item: tarform.order(item[0])))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[int, int]]:
        prefix = next(prefix for prefix in (BLOBS, "root/", "") if name.startswith(prefix))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(name[len(prefix) :], flags, dir_fd=self._folders[prefix])
        except OSError as error:
            raise PackageError(f"{name} cannot be opened: {error.strerror}", self._where) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PackageError(f"{name} is no plain file", self._where)
            yield descriptor, 0
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self._stack.close()
