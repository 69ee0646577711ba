"""Which packages lie in the incoming folder, by the digest of their index.

The digest is read from the statement, unverified: it says which file to hand to the install, which checks everything.
A file that is still being copied has no end mark and counts as not there. A file is opened again only when its size,
inode or time has changed.

A file of its own because the daemon reads packages here, and nowhere else.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Release

MOST_FILES = 1024
"""Files of the folder that are looked at, in the order of their names."""


def package_digest(path: Path) -> str:
    """The digest of the index that a package claims. Raises PackageError."""
    # Imported here, because a daemon that is told no desired state needs none of it, and modules cost it memory.
    from edge_agent.bundle import sign
    from edge_agent.bundle.layout import open_package

    with open_package(path) as package:
        _, payload = sign.unwrap(package.read(RELEASE_FILE, limits.STATEMENT_BYTES), RELEASE_TYPE, RELEASE_FILE)
    return decode(payload, Release, RELEASE_FILE, limits.STATEMENT_BYTES).index.digest


class InboxPackages:
    """The packages in `folder`. Implements `agent.desired_keeper.PackageSource`, but for the thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # By name: what tells a changed file, and its digest (None: no package).
        self._known: dict[str, tuple[tuple[int, ...], str | None]] = {}

    def find(self, wanted: Collection[str]) -> Mapping[str, str]:
        """The names of files by the digests that are wanted; nothing where the folder cannot be read."""
        try:
            names = sorted(path.name for path in self._folder.iterdir())[:MOST_FILES]
        except OSError:
            return {}
        known = {}
        for name in names:
            if not name.startswith(".") and (entry := self._look(name)) is not None:
                known[name] = entry
        self._known = known
        return {digest: name for name, (_, digest) in known.items() if digest is not None and digest in wanted}

    def _look(self, name: str) -> tuple[tuple[int, ...], str | None] | None:
        path = self._folder / name
        try:
            found = path.stat()
        except OSError:
            return None
        mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
        # The time of a folder does not tell whether a file below it is complete.
        if name in self._known and self._known[name][0] == mark and not stat.S_ISDIR(found.st_mode):
            return self._known[name]
        try:
            return mark, package_digest(path)
        except (EdgeError, OSError):
            return mark, None
