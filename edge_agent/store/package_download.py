"""A package from an HTTP server into a folder that the install reads: what the store holds already is not moved.

The tar is walked forwards. Statement and index come first, so a package that is not wanted or not trusted is refused
before its weights move. With a server that knows ranges, the bodies of blobs are skipped, their sizes are compared with
those that the index and its manifests state, room for the missing ones is looked for, and then these alone are fetched.
Without ranges everything is read. What was fetched stays for the next try until the package is installed.

The install trusts nothing of this: it verifies the folder as any other package. Used in processes of their own; the
daemon never imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import manifest as forms
from edge_agent.bundle import tarform
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.layout import BLOBS, Package, open_package
from edge_agent.bundle.manifest import Index
from edge_agent.bundle.verify import fetcher
from edge_agent.store.disk import Blobs, FreeBytes, free_bytes, translated
from edge_agent.store.refusal import of_source
from edge_agent.store.remote_file import WINDOW, RemoteFile, TransferOptions

CHUNK = 64 * limits.KIB
KEPT_S = 7 * 86400.0
"""Downloads that were begun and left are deleted after this time."""
HEAD_BYTES = 4 * limits.MANIFEST_BYTES
"""Of statement, root files and index together: they are fetched before a signature is checked and room looked for."""
Check = Callable[[Package], None]
"""Called with the package as soon as its statement and index are there; refuses it by raising."""


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """`reserve_bytes` stay free on the file system; `free_bytes` is for tests."""

    reserve_bytes: int = 256 * limits.MIB
    free_bytes: FreeBytes = free_bytes


class PackageDownload:
    """One package from one URL, by way of `folder`. `moved_bytes`: what came from the server, headers left out."""

    def __init__(
        self,
        url: str,
        folder: Path,
        store: Path,
        check: Check,
        options: TransferOptions,
        room: RoomOptions,
        digest: str | None = None,
    ) -> None:
        """`folder`: where downloads lie; `store`: whose blobs are not fetched again; `digest`: the package that is
        wanted, so that whatever else lies at the URL is the source's fault."""
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._others, self._top = folder, folder / name
        self._package, self._partial = self._top / "package", self._top / "partial"
        self._blobs = Blobs(store)
        self._check, self._room, self._digest = check, room, digest
        self._checking = False
        self._remote = RemoteFile(url, options)
        self._manifests: frozenset[str] = frozenset()

    @property
    def moved_bytes(self) -> int:
        """Bytes of bodies that were read."""
        return self._remote.moved_bytes

    def fetch(self) -> Path:
        """The folder to install. Raises PackageError, SignatureError, StoreError; what was fetched by then is kept.
        Where a digest is wanted and the URL does not give that package, the cause is SOURCE."""
        with translated(self._top), _alone(self._top), self._blame():
            _forget_old(self._others, self._top)
            for folder in (self._package / BLOBS, self._package / "root", self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._remote):
                self._remote.open()
                if not self._remote.ranges:
                    self._check_room(self._remote.total_bytes)
                members = self._walk()
                self._drop_strangers(members)
                if self._remote.ranges:
                    self._fetch_missing(members)
        return self._package

    @contextlib.contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except PackageError as error:
            wanted, head = self._digest, self._checking
            if wanted is None or not of_source(error, self._package, wanted, self._blobs, head=head):
                raise
            raise PackageError(error.what, error.where, error.remedy, Cause.SOURCE) from error

    def done(self) -> None:
        """The package is installed: what was fetched is deleted."""
        shutil.rmtree(self._top, ignore_errors=True)

    def _walk(self) -> dict[str, tarform.Member]:
        """Every member of the tar; the files that are not skipped are in the folder afterwards."""
        remote, members, last = self._remote, dict[str, tarform.Member](), (-1, 0, "")
        head_bytes = 0
        while any(block := remote.read(tarform.BLOCK)):
            name, size = _header(block, remote.url)
            if tarform.order(name) <= last or (not members and name != "release.dsse.json"):
                raise PackageError(f"{name} stands in the wrong place of the tar", remote.url)
            last = tarform.order(name)
            if len(members) >= limits.PACKAGE_MEMBERS:
                raise PackageError(f"it holds more than {limits.PACKAGE_MEMBERS} files", remote.url)
            if last[0] == 3 and not self._manifests:
                self._check_head()
            head_bytes += size if last[0] < 3 else 0
            if head_bytes > HEAD_BYTES:
                raise PackageError(f"it has more than {bytes_text(HEAD_BYTES)} before its blobs", remote.url)
            member = members[name] = tarform.Member(name, remote.position, size)
            self._take(member)
            remote.seek(member.offset + size + tarform.padding(size))
        if any(remote.read(tarform.BLOCK)) or remote.position != remote.total_bytes:
            text = f"the server states {remote.total_bytes} bytes, the package ends after {remote.position}"
            raise PackageError(text, remote.url, "it was cut or changed on the server")
        if not self._manifests:
            self._check_head()
        return members

    def _take(self, member: tarform.Member) -> None:
        digest = _digest(member.name)
        if (digest is None or digest in self._manifests) and member.size > limits.MANIFEST_BYTES:
            # A manifest is fetched before there is known to be room.
            raise PackageError(f"{member.name} has {bytes_text(member.size)}", self._remote.url)
        if digest is None:
            (self._package / member.name).write_bytes(self._remote.read(member.size))
            return
        small = not self._remote.ranges or member.size <= WINDOW  # else it is skipped for now
        if digest in self._manifests or (small and not self._held(member, digest)):
            self._copy(member, digest)

    def _check_head(self) -> None:
        """Statement and index are there: whether this package is wanted, before its blobs move."""
        with open_package(self._package) as package:
            self._checking = True
            self._check(package)
            self._checking = False
            index = decode(package.read("index.json", limits.MANIFEST_BYTES), Index, "index.json")
        self._manifests = frozenset(one.digest for one in index.manifests)

    def _fetch_missing(self, members: dict[str, tarform.Member]) -> None:
        """The blobs that the store lacks, after their sizes are those of the index and there is room for them."""
        stated = self._stated_sizes()
        missing = []
        for member in members.values():
            digest = _digest(member.name)
            if digest is None or digest in self._manifests:
                continue
            if stated.get(digest) != member.size:
                what = "does not name it" if digest not in stated else f"says {stated[digest]} bytes"
                raise PackageError(f"blob {digest[7:19]} has {member.size} bytes, the index {what}", self._remote.url)
            if not self._held(member, digest):
                missing.append((member, digest))
        self._check_room(sum(member.size for member, _ in missing))
        for member, digest in missing:
            self._copy(member, digest)

    def _stated_sizes(self) -> dict[str, int]:
        """Every blob that the manifests name, with the size that they state."""
        with open_package(self._package) as package:
            index = decode(package.read("index.json", limits.MANIFEST_BYTES), Index, "index.json")
            fetch = fetcher(package, self._blobs.fetch)
            found: dict[str, int] = {}
            for one in index.manifests:
                manifest = decode(fetch(one, limits.MANIFEST_BYTES), forms.Manifest, f"blob {one.digest[7:19]}")
                found |= {each.digest: each.size for each in manifest.descriptors()}
        return found

    def _held(self, member: tarform.Member, digest: str) -> bool:
        """Whether the blob need not be moved: the store has it, or an earlier try has fetched it."""
        path = self._blobs.path(digest)
        with contextlib.suppress(OSError):
            if path.stat().st_size == member.size and self._blobs.digest_of(path) == digest:
                return True
        with contextlib.suppress(OSError):
            return (self._package / member.name).stat().st_size == member.size
        return False

    def _check_room(self, needed_bytes: int) -> None:
        """The install copies each blob into the store, so a moment comes where it is there twice."""
        have = sum(path.stat().st_size for path in self._partial.iterdir())
        needed, reserve = 2 * needed_bytes - have, self._room.reserve_bytes
        if (free := self._room.free_bytes(self._top)) < needed + reserve:
            raise StoreError(
                f"the disk is too full: {bytes_text(needed)} are needed for the download and its install and "
                f"{bytes_text(reserve)} stay reserved, {bytes_text(free)} are free",
                str(self._top),
                "free some space, or remove a model",
                Cause.DISK_FULL,
            )

    def _copy(self, member: tarform.Member, digest: str) -> None:
        """Fetch a blob, going on behind what an earlier try has left."""
        target, partial = self._package / member.name, self._partial / digest.removeprefix("sha256:")
        if target.exists() and target.stat().st_size == member.size:
            return
        # What an earlier try left may be damaged itself: a power cut can leave a file its length without its bytes.
        begun = partial.exists() and partial.stat().st_size > 0
        for _ in range(2 if begun else 1):
            self._append(member, partial)
            if self._blobs.digest_of(partial) == digest:
                partial.replace(target)
                return
            partial.unlink()
        where = f"{self._remote.url} (blob {digest[7:19]})"
        raise PackageError("its SHA-256 is not its name: damaged or exchanged", where, "fetch the package again")

    def _append(self, member: tarform.Member, partial: Path) -> None:
        """Fetch what the partial file lacks of a member."""
        with partial.open("ab") as file:
            done = file.tell()
            if done > member.size:
                file.truncate(done := 0)
            self._remote.seek(member.offset + done, member.offset + member.size)
            while done < member.size:
                chunk = self._remote.some(min(CHUNK, member.size - done))
                file.write(chunk)
                done += len(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _drop_strangers(self, members: dict[str, tarform.Member]) -> None:
        """Files of an earlier package at this URL would be no part of this one."""
        for folder in (self._package, self._package / "root", self._package / BLOBS):
            for path in list(folder.iterdir()):
                if path.is_file() and path.relative_to(self._package).as_posix() not in members:
                    path.unlink()
        for path in list(self._partial.iterdir()):
            if BLOBS + path.name not in members:
                path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a download: two processes that append to one file damage it. Raises StoreError while another
    process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("another process fetches from this URL", str(folder), "wait for it", Cause.BUSY) from None
        yield
    finally:
        os.close(descriptor)


def _digest(name: str) -> str | None:
    return f"sha256:{name.removeprefix(BLOBS)}" if name.startswith(BLOBS) else None


def _header(block: bytes, url: str) -> tuple[str, int]:
    """Name and size of a member. Raises PackageError for all but the one form of a package's tar."""
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    raw = block[124:136]
    try:
        size = int.from_bytes(raw[1:], "big") if raw[:1] == b"\x80" else int(raw.rstrip(b"\0 ") or b"x", 8)
    except ValueError:
        raise PackageError("this is no package: a tar of `edge-forge build` is needed", url) from None
    tarform.check_name(name, url)
    if size > limits.BLOB_BYTES or block != tarform.header(name, size):
        raise PackageError(f"the tar header of {name} is damaged or not in the one form of a package", url)
    return name, size


def _forget_old(folder: Path, own: Path) -> None:
    """Delete what was begun long ago and never finished; a clock that jumped costs a download, nothing else."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path != own and time.time() - path.stat().st_mtime > KEPT_S:
            shutil.rmtree(path, ignore_errors=True)
