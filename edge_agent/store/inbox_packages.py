"""Which packages lie in the incoming folder, by the digest of their index.

The digest is read from the statement, unverified: it says which file to hand to the install, which checks everything.
A file that is still being copied has no end mark and counts as not there. A file is opened again only when its size,
inode or time has changed; so is one that an install found to be another package than it claims, or a damaged one.

A file of its own because the daemon reads packages here, and nowhere else.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Release
from edge_agent.core.desired_state import FoundPackage

MOST_FILES = 1024
"""Entries of the folder that are read, in the order in which the file system gives them."""
Mark = tuple[int, ...]


def package_digest(path: Path, descriptor: int | None = None) -> str:
    """The digest of the index that a package claims; `descriptor`: it is open already. Raises PackageError."""
    # Imported here, because a daemon that is told no desired state needs none of it, and modules cost it memory.
    from edge_agent.bundle import sign
    from edge_agent.bundle.layout import open_package

    with open_package(path, descriptor) as package:
        _, payload = sign.unwrap(package.read(RELEASE_FILE, limits.STATEMENT_BYTES), RELEASE_TYPE, RELEASE_FILE)
    return decode(payload, Release, RELEASE_FILE, limits.STATEMENT_BYTES).index.digest


def file_mark(path: Path) -> Mark | None:
    """What changes when a file, or a file of a folder of the form of a package, is changed or exchanged; None where it
    is not there, or cannot be read."""
    try:
        found = path.stat()
        marks = [_mark(found)]
        if stat.S_ISDIR(found.st_mode):
            marks += sorted(_mark(one.stat()) for one in itertools.islice(_below(path), limits.PACKAGE_MEMBERS))
    except OSError:
        return None
    return tuple(itertools.chain.from_iterable(marks))


def _mark(found: os.stat_result) -> Mark:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def _below(package: Path) -> Iterator[Path]:
    for folder in (package, package / "root", package / "blobs" / "sha256"):
        if folder.is_dir():
            yield from folder.iterdir()


class InboxPackages:
    """The packages in `folder`. Implements `agent.desired_keeper.PackageSource`, but for the thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # By name: what tells a changed file, and its digest (None: no package); and which an install refused. The last
        # is changed by the look's thread and by the daemon's loop.
        self._known: dict[str, tuple[Mark, str | None]] = {}
        self._refused: dict[str, Mark] = {}
        self._lock = threading.Lock()

    def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """The files by the digests that are wanted; nothing where the folder cannot be read."""
        try:
            names = sorted(path.name for path in itertools.islice(self._folder.iterdir(), MOST_FILES))
        except OSError:
            return {}
        known = {}
        for name in names:
            if not name.startswith(".") and (entry := self._look(name)) is not None:
                known[name] = entry
        self._known = known
        with self._lock:
            # A file that is not there any more has changed, too, and so has one that is exchanged.
            self._refused = {name: mark for name, mark in self._refused.items() if known.get(name, ((),))[0] == mark}
            return {
                digest: FoundPackage(name, mark)
                for name, (mark, digest) in known.items()
                if digest is not None and digest in wanted and name not in self._refused
            }

    def refused(self, found: FoundPackage) -> None:
        """An install found that the file is not the package that it claims: it is looked at again once it changes, also
        where it has changed since it was found."""
        with self._lock:
            self._refused[found.name] = found.mark

    def _look(self, name: str) -> tuple[Mark, str | None] | None:
        path = self._folder / name
        if (mark := file_mark(path)) is None:
            return None
        if name in self._known and self._known[name][0] == mark:
            return self._known[name]
        try:
            return mark, package_digest(path)
        except (EdgeError, OSError):
            return mark, None
