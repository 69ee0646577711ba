"""Content-addressed files of the store: written whole and checked before they have their name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import PackageError
from edge_agent.bundle import magic
from edge_agent.bundle.contents import check_bytes
from edge_agent.bundle.jsonio import check_size
from edge_agent.bundle.layout import CHUNK, Package, blob_name
from edge_agent.bundle.manifest import Descriptor
from edge_agent.bundle.verify import check_blob
from edge_agent.store.disk import sync_folder
from edge_agent.store.points import At


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that an install needs; `name` is the file's name in the package, whose suffix says what it must be."""

    descriptor: Descriptor
    name: str


class Blobs:
    """`blobs/sha256/<hex>` and the folder for unfinished ones beside it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self._unfinished = root / "unfinished"

    def create(self) -> None:
        """Make the folders."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._unfinished.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a blob stands or would stand."""
        return self.folder / digest.removeprefix("sha256:")

    def whole(self, found: Descriptor) -> bool:
        """True when the blob is there with its size; its bytes are not read."""
        try:
            return self.path(found.digest).stat().st_size == found.size
        except FileNotFoundError:
            return False

    def intact(self, found: Descriptor) -> bool:
        """True when the blob is there and its bytes have its digest."""
        return self.whole(found) and self.digest_of(self.path(found.digest)) == found.digest

    def digest_of(self, path: Path) -> str:
        """SHA-256 of a file, read in chunks."""
        running = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                running.update(chunk)
        return "sha256:" + running.hexdigest()

    def fetch(self, found: Descriptor, limit_bytes: int) -> bytes:
        """The bytes of a small blob, verified. Raises PackageError. (A `contents.Fetch`.)"""
        where = f"blob {found.digest[7:19]}"
        check_size(found.size, limit_bytes, where)
        try:
            data = self.path(found.digest).read_bytes()
        except FileNotFoundError:
            raise PackageError("it is neither in the package nor in the store", where) from None
        return check_bytes(found, data, where)

    def stage(self, package: Package, wanted: Wanted, at: At) -> bool:
        """Have the blob in the store, from the package where it is not there intact. True when it was written.

        Raises PackageError when it is damaged, not what its name says, or nowhere to be had.
        """
        found = wanted.descriptor
        name = blob_name(found.digest)
        if self.intact(found):
            if name in package:
                check_blob(package, found.digest)
            return False
        where = f"{wanted.name} (blob {found.digest[7:19]})"
        if name not in package:
            raise PackageError(
                "it is neither in the package nor intact in the store", where, "install the full package"
            )
        temporary = self._unfinished / found.digest.removeprefix("sha256:")
        if self._write(package, name, temporary, at) != found.digest:
            raise PackageError("its SHA-256 is not its name: damaged or exchanged", where, "fetch the package again")
        magic.check_file(temporary, wanted.name)
        at("blob-written")
        temporary.replace(self.path(found.digest))
        at("blob-placed")
        return True

    def _write(self, package: Package, name: str, temporary: Path, at: At) -> str:
        running = hashlib.sha256()
        with temporary.open("wb") as file:
            for chunk in package.stream(name):
                running.update(chunk)
                file.write(chunk)
                at("blob-begun")
            file.flush()
            os.fsync(file.fileno())
        return "sha256:" + running.hexdigest()

    def sync(self) -> None:
        """Make the names of placed blobs durable."""
        sync_folder(self.folder)

    def names(self) -> tuple[str, ...]:
        """The digests of every blob."""
        return tuple(sorted(f"sha256:{name}" for name in (path.name for path in self.folder.iterdir())))

    def keep_only(self, digests: Iterable[str]) -> int:
        """Delete every other blob and all unfinished ones; returns the bytes that came free."""
        kept = {digest.removeprefix("sha256:") for digest in digests}
        freed = 0
        for folder, names in ((self.folder, kept), (self._unfinished, set[str]())):
            for path in list(folder.iterdir()):
                if path.name not in names:
                    freed += path.stat().st_size
                    path.unlink()
        if freed:
            self.sync()
        return freed
