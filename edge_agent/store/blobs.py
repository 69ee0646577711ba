"""Content-addressed files of the store: paths, verified reads and garbage collection. `install` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from edge_agent.base.errors import PackageError
from edge_agent.base.limits import MIB
from edge_agent.bundle.contents import check_bytes
from edge_agent.bundle.jsonio import check_size
from edge_agent.bundle.manifest import Descriptor
from edge_agent.store.disk import sync_folder


class Blobs:
    """The folder `blobs/sha256/<hex>` and the folder for blobs that are not finished."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self.unfinished = root / "unfinished"

    def create(self) -> None:
        """Make the folders."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unfinished.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """The path of a blob, present or not."""
        return self.folder / digest.removeprefix("sha256:")

    def whole(self, found: Descriptor) -> bool:
        """True when the blob is present with its size; its bytes are not read."""
        try:
            return self.path(found.digest).stat().st_size == found.size
        except FileNotFoundError:
            return False

    def intact(self, found: Descriptor) -> bool:
        """True when the blob is present and its bytes have its digest."""
        return self.whole(found) and self.digest_of(self.path(found.digest)) == found.digest

    def digest_of(self, path: Path) -> str:
        """SHA-256 of a file, read in chunks."""
        running = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                running.update(chunk)
        return "sha256:" + running.hexdigest()

    def fetch(self, found: Descriptor, limit_bytes: int) -> bytes:
        """The bytes of a small blob, verified; a `contents.Fetch`. Raises PackageError."""
        where = f"blob {found.digest[7:19]}"
        check_size(found.size, limit_bytes, where)
        try:
            data = self.path(found.digest).read_bytes()
        except FileNotFoundError:
            raise PackageError("it is neither in the package nor in the store", where) from None
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
