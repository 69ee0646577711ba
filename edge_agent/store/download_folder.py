"""The folder in which a download grows: what it has, what it lacks, whether there is room for that.

`package` is what the install reads, `partial` holds blobs that are not whole. Both stay for the next try, over power
cuts, until the package is installed.

A file of its own because a package from an HTTP server and one from an OCI registry are kept alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import manifest as forms
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.layout import BLOBS, Package, blob_name, open_package
from edge_agent.bundle.manifest import Index
from edge_agent.bundle.verify import fetcher
from edge_agent.store.disk import Blobs, FreeBytes, free_bytes, translated
from edge_agent.store.install_plan import Progress, silent
from edge_agent.store.old_downloads import held, remove_old
from edge_agent.store.refusal import of_source
from edge_agent.store.remote_file import RemoteFile

CHUNK = 64 * limits.KIB
FETCHING = "fetching"
"""The name of this step for `Progress`."""
Check = Callable[[Package], None]
"""Called with the package as soon as its statement and index are there; refuses it by raising."""


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """`reserve_bytes` stay free on the file system; `free_bytes` is for tests."""

    reserve_bytes: int = 256 * limits.MIB
    free_bytes: FreeBytes = free_bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a download is for. `check`: see `Check`; `digest`: the package that is wanted, None takes any; whatever else
    the place gives is then the fault of the source. `progress` hears of every chunk."""

    check: Check
    room: RoomOptions
    digest: str | None = None
    progress: Progress = silent


class DownloadFolder:
    """What was fetched of one place, in a folder of `downloads` that is named by the place."""

    def __init__(self, place: str, downloads: Path, store: Path, wishes: Wishes) -> None:
        """`store`: whose blobs are not fetched again."""
        self._downloads, self.top = downloads, downloads / hashlib.sha256(place.encode()).hexdigest()[:32]
        self.package, self.partial = self.top / "package", self.top / "partial"
        self.blobs = Blobs(store)
        self._place, self._wishes = place, wishes
        self._checking = False
        self._done_bytes = self._total_bytes = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder while something is fetched into it: two processes that append to one file damage it. Raises
        StoreError while another process holds it, and PackageError with the cause SOURCE where the bytes that came are
        not those of the digest that is wanted."""
        with translated(self.top), _alone(self.top):
            remove_old(self._downloads)
            for folder in (self.package / BLOBS, self.package / "root", self.partial):
                folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.top)
            try:
                yield
            except PackageError as error:
                wanted, head = self._wishes.digest, self._checking
                if wanted is None or not of_source(error, self.package, wanted, self.blobs, head=head):
                    raise
                raise PackageError(error.what, error.where, error.remedy, Cause.SOURCE) from error

    def done(self) -> None:
        """The package is installed: what was fetched is deleted."""
        shutil.rmtree(self.top, ignore_errors=True)

    def check_head(self) -> Index:
        """Statement and index are there: whether this package is wanted, before its blobs move."""
        with open_package(self.package) as package:
            self._checking = True
            self._wishes.check(package)
            self._checking = False
            return _index(package)

    def stated_sizes(self) -> dict[str, int]:
        """Every blob that the manifests name, with the size that they state."""
        with open_package(self.package) as package:
            fetch = fetcher(package, self.blobs.fetch)
            found: dict[str, int] = {}
            for one in _index(package).manifests:
                manifest = decode(fetch(one, limits.MANIFEST_BYTES), forms.Manifest, f"blob {one.digest[7:19]}")
                found |= {each.digest: each.size for each in manifest.descriptors()}
        return found

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob need not be moved: the store has it, or an earlier try has fetched it."""
        path = self.blobs.path(digest)
        with contextlib.suppress(OSError):
            if path.stat().st_size == size and self.blobs.digest_of(path) == digest:
                return True
        with contextlib.suppress(OSError):
            return (self.package / blob_name(digest)).stat().st_size == size
        return False

    def expect(self, missing: Mapping[str, int]) -> None:
        """These blobs are going to be fetched: of all others nothing half is kept, and there must be room. The install
        copies each blob into the store, so a moment comes where it is there twice. Raises StoreError."""
        names = {digest.removeprefix("sha256:") for digest in missing}
        have = 0
        for path in list(self.partial.iterdir()):
            if path.name in names:
                have += min(path.stat().st_size, missing[f"sha256:{path.name}"])
            else:
                path.unlink()
        total = sum(missing.values())
        self.check_room(total, have)
        self._done_bytes, self._total_bytes = have, total

    def fetched_bytes(self) -> int:
        """What lies here of blobs, whole or not."""
        folders = (self.partial, self.package / BLOBS)
        return sum(path.stat().st_size for folder in folders for path in folder.iterdir())

    def check_room(self, needed_bytes: int, have: int) -> None:
        """`have`: bytes of them that are here already. Raises StoreError."""
        room = self._wishes.room
        needed, reserve = 2 * needed_bytes - have, room.reserve_bytes
        if (free := room.free_bytes(self.top)) < needed + reserve:
            raise StoreError(
                f"the disk is too full: {bytes_text(needed)} are needed for the download and its install and "
                f"{bytes_text(reserve)} stay reserved, {bytes_text(free)} are free",
                str(self.top),
                "free some space, or remove a model",
                Cause.DISK_FULL,
            )

    def tell(self, done: int, total: int) -> None:
        """So many bytes of so many are there."""
        self._done_bytes, self._total_bytes = done, total
        self._wishes.progress(FETCHING, done, total)

    def copy(self, remote: RemoteFile, offset: int, digest: str, size: int) -> None:
        """Fetch a blob that begins at `offset` there, going on behind what an earlier try has left."""
        target, partial = self.package / blob_name(digest), self.partial / digest.removeprefix("sha256:")
        if target.exists() and target.stat().st_size == size:
            return
        # What an earlier try left may be damaged itself: a power cut can leave a file its length without its bytes.
        begun = partial.exists() and partial.stat().st_size > 0
        for _ in range(2 if begun else 1):
            self._append(remote, offset, partial, size)
            if self.blobs.digest_of(partial) == digest:
                partial.replace(target)
                return
            partial.unlink()
        where = f"{self._place} (blob {digest[7:19]})"
        raise PackageError("its SHA-256 is not its name: damaged or exchanged", where, "fetch the package again")

    def _append(self, remote: RemoteFile, offset: int, partial: Path, size: int) -> None:
        """Fetch what the partial file lacks of a blob."""
        with partial.open("ab") as file:
            done = file.tell()
            if done > size:
                file.truncate(done := 0)
            remote.seek(offset + done, offset + size)
            while done < size:
                chunk = remote.some(min(CHUNK, size - done))
                file.write(chunk)
                done += len(chunk)
                if self._total_bytes:
                    self.tell(min(self._done_bytes + len(chunk), self._total_bytes), self._total_bytes)
            file.flush()
            os.fsync(file.fileno())

    def keep_only(self, names: Collection[str]) -> None:
        """Files of an earlier package at this place would be no part of this one."""
        for folder in (self.package, self.package / "root", self.package / BLOBS):
            for path in list(folder.iterdir()):
                if path.is_file() and path.relative_to(self.package).as_posix() not in names:
                    path.unlink()
        for path in list(self.partial.iterdir()):
            if BLOBS + path.name not in names:
                path.unlink()


def _index(package: Package) -> Index:
    return decode(package.read("index.json", limits.MANIFEST_BYTES), Index, "index.json")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder) as mine:
        if not mine:
            raise StoreError("another process fetches from this URL", str(folder), "wait for it", Cause.BUSY)
        yield
