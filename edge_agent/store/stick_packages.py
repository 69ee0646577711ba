"""Which packages lie on sticks: in the folders below `store.sticks_dir`, where they are mounted.

As in the incoming folder, a package is found by the digest that its statement claims, whatever its name is, and the
install checks everything. A stick is foreign, so less is looked at: plain files named `*.tar` at its top, so many of
so many sticks, for so long. Links, devices and pipes are passed by. Nothing is written or deleted there.

A file of its own because a stick may never answer: it is looked at in a thread that nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from edge_agent.base.errors import EdgeError
from edge_agent.store.inbox_packages import Mark, file_mark, package_digest

log = logging.getLogger("edge_agent.store")
MOST_STICKS, MOST_ENTRIES = 16, 1024
"""Folders below `sticks_dir`, and entries of each, that are read, in the order in which the file systems give them."""
LOOK_S = 20.0
"""A look at all sticks ends then; what it found is kept, and the next one goes on."""
WAIT_S = 5.0
"""A look that takes longer goes on without anybody waiting for it: a dying stick may hold a read for ever."""


class StickPackages:
    """The packages on the sticks that are mounted below `folder`."""

    def __init__(self, folder: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._now_s = now_s
        # By path: what tells a changed file, and its digest (None: no package).
        self._known: dict[str, tuple[Mark, str | None]] = {}

    def find(self, wanted: Collection[str]) -> Mapping[str, str]:
        """The paths of files by the digests that are wanted."""
        known, until_s = {}, self._now_s() + LOOK_S
        for path in _candidates(self._folder):
            if self._now_s() > until_s:
                break
            if (entry := self._look(path)) is not None:
                known[str(path)] = entry
        self._known = known
        return {digest: path for path, (_, digest) in known.items() if digest is not None and digest in wanted}

    def refused(self, path: str) -> None:
        """An install found that the file is not the package that it claims: it is looked at again once it changes, or
        was away."""
        # Not asked of the file itself: the stick may not answer, and the daemon's loop calls this.
        if (known := self._known.get(path)) is not None:
            self._known = {**self._known, path: (known[0], None)}

    def _look(self, path: Path) -> tuple[Mark, str | None] | None:
        if (mark := file_mark(path)) is None:
            return None
        known = self._known.get(str(path))
        if known is not None and known[0] == mark:
            return known
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return mark, None
        try:
            return mark, package_digest(path, descriptor)
        except (EdgeError, OSError):
            return mark, None
        finally:
            os.close(descriptor)


def _candidates(folder: Path) -> Iterator[Path]:
    for stick in _entries(folder, MOST_STICKS, stat.S_ISDIR):
        yield from (path for path in _entries(stick, MOST_ENTRIES, stat.S_ISREG) if path.suffix == ".tar")


def _entries(folder: Path, most: int, kind: Callable[[int], bool]) -> list[Path]:
    """Of the first entries those of a kind, links not followed, by name; none where the folder cannot be read."""
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, most):
            with contextlib.suppress(OSError):
                if not entry.name.startswith(".") and kind(entry.stat(follow_symlinks=False).st_mode):
                    found.append(folder / entry.name)
    return sorted(found)


class StickLook:
    """Looks at sticks from the daemon's loop, and never waits for one that does not answer."""

    def __init__(self, packages: StickPackages, wait_s: float = WAIT_S) -> None:
        self._packages, self._wait_s = packages, wait_s
        self._thread: threading.Thread | None = None

    async def find(self, wanted: Collection[str]) -> Mapping[str, str]:
        """See `StickPackages.find`; nothing while a look before this one has not ended."""
        if self._thread is not None and self._thread.is_alive():
            return {}
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Mapping[str, str]] = loop.create_future()

        def tell(found: Mapping[str, str]) -> None:
            if not answer.done():
                answer.set_result(found)

        def look() -> None:
            found = self._packages.find(wanted)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found)

        # A thread of its own, not of a pool: the daemon's end waits for those.
        self._thread = threading.Thread(target=look, name="sticks", daemon=True)
        self._thread.start()
        await asyncio.wait({answer}, timeout=self._wait_s)
        if answer.done():
            return answer.result()
        log.warning("a stick does not answer within %.0f s; it is looked for again when it does", self._wait_s)
        return {}

    def refused(self, path: str) -> None:
        """See `StickPackages.refused`."""
        self._packages.refused(path)
