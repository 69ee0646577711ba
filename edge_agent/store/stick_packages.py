"""Which packages lie on sticks: in the folders below `store.sticks_dir`, where they are mounted.

As in the incoming folder, a package is found by the digest that its statement claims, whatever its name is, and the
install checks everything. A stick is foreign, so less is looked at: plain files named `*.tar` at its top, so many of
so many sticks, for so long. Links, devices and pipes are passed by. Nothing is written or deleted there.

A file of its own because a stick may never answer: each is looked at in a thread of its own that nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from edge_agent.base.errors import EdgeError
from edge_agent.core.desired_state import FoundPackage
from edge_agent.store.inbox_packages import Mark, file_mark, package_digest

T = TypeVar("T")
log = logging.getLogger("edge_agent.store")
MOST_STICKS, MOST_ENTRIES = 16, 1024
"""Folders below `sticks_dir`, and entries of each, that are read, in the order in which the file systems give them."""
LOOK_S = 20.0
"""A look at a stick ends then; what it found is kept, and the next one goes on."""
WAIT_S = 5.0
"""A look that takes longer goes on without anybody waiting for it: a dying stick may hold a read for ever."""


class StickPackages:
    """The packages on the stick that is mounted at `folder`."""

    def __init__(self, folder: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._now_s = now_s
        # By path: what tells a changed file, and its digest (None: no package); and which an install refused. The last
        # is changed by the look's thread and by the daemon's loop, which never waits for more than the other's few
        # lines.
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Mark, str | None]] = {}
        self._refused: dict[str, Mark] = {}

    def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """The files, by their paths, by the digests that are wanted."""
        known, until_s = {}, self._now_s() + LOOK_S
        for path in _candidates(self._folder):
            if self._now_s() > until_s:
                break
            if (entry := self._look(path)) is not None:
                known[str(path)] = entry
        self._known = known
        marks = {path: mark for path, (mark, _) in known.items()}
        with self._lock:
            self._refused = {path: mark for path, mark in self._refused.items() if marks.get(path) == mark}
            return {
                digest: FoundPackage(path, mark)
                for path, (mark, digest) in known.items()
                if digest is not None and digest in wanted and path not in self._refused
            }

    def refused(self, found: FoundPackage) -> None:
        """An install found that the file is not the package that it claims: it is looked at again once it changes, or
        was away."""
        # Not asked of the file itself: the stick may not answer, and the daemon's loop calls this.
        with self._lock:
            self._refused[found.name] = found.mark

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


def _candidates(stick: Path) -> Iterator[Path]:
    yield from (path for path in _entries(stick, MOST_ENTRIES) if path.suffix == ".tar")


def _entries(folder: Path, most: int) -> list[Path]:
    """Of the first entries the plain files, links not followed, by name; none where the folder cannot be read."""
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, most):
            with contextlib.suppress(OSError):
                if not entry.name.startswith(".") and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    found.append(folder / entry.name)
    return sorted(found)


def mounted(folder: Path) -> list[Path]:
    """The folders below it, without a look at what is mounted there: of a dead stick even `stat` may not return."""
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, MOST_STICKS):
            with contextlib.suppress(OSError):
                # By the kind that the folder itself states of its entry.
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    found.append(folder / entry.name)
    return sorted(found)


class _OwnThread(Generic[T]):
    """Calls a function in a thread of its own, not of a pool: the daemon's end waits for those."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._function, self._loop = function, asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._call, name="sticks", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether there is no answer yet, and may be one."""
        return self._thread.is_alive() and not self.answer.done()

    def _call(self) -> None:
        found = self._function()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._tell, found)

    def _tell(self, found: T) -> None:
        if not self.answer.done():
            self.answer.set_result(found)


class StickLook:
    """Looks at sticks from the daemon's loop, at all at once, and never waits for one that does not answer."""

    def __init__(
        self, folder: Path, wait_s: float = WAIT_S, packages: Callable[[Path], StickPackages] = StickPackages
    ) -> None:
        self._folder, self._wait_s, self._packages = folder, wait_s, packages
        self._sticks: dict[Path, StickPackages] = {}
        self._looks: dict[Path, _OwnThread[Mapping[str, FoundPackage]]] = {}
        self._listing: _OwnThread[list[Path]] | None = None
        self._silent: frozenset[Path] = frozenset()

    async def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """See `StickPackages.find`: of all sticks that answer in time. One whose look before has not ended is passed
        by."""
        there = await self._there()
        for stick in [one for one in self._sticks if one not in there and not self._busy(one)]:
            del self._sticks[stick]  # put in again, it is looked at anew
            self._looks.pop(stick, None)
        begun = []
        for stick in there:
            # The threads that dead sticks hold count, also of those that are gone.
            if not self._busy(stick) and sum(map(self._busy, self._looks)) < MOST_STICKS:
                packages = self._sticks.setdefault(stick, self._packages(stick))
                self._looks[stick] = _OwnThread(functools.partial(packages.find, wanted))
                begun.append(self._looks[stick].answer)
        if begun:
            await asyncio.wait(begun, timeout=self._wait_s)
        self._note_silent(frozenset(stick for stick in there if self._busy(stick)))
        found: dict[str, FoundPackage] = {}
        for answer in begun:
            found |= answer.result() if answer.done() else {}
        return found

    def refused(self, found: FoundPackage) -> None:
        """See `StickPackages.refused`."""
        if (packages := self._sticks.get(Path(found.name).parent)) is not None:
            packages.refused(found)

    async def _there(self) -> list[Path]:
        if self._listing is None or not self._listing.busy:
            self._listing = _OwnThread(functools.partial(mounted, self._folder))
            await asyncio.wait({self._listing.answer}, timeout=self._wait_s)
        return self._listing.answer.result() if self._listing.answer.done() else []

    def _busy(self, stick: Path) -> bool:
        return stick in self._looks and self._looks[stick].busy

    def _note_silent(self, silent: frozenset[Path]) -> None:
        for stick in silent - self._silent:
            log.warning("the stick at %s does not answer; it is passed by until it does", stick)
        self._silent = silent
