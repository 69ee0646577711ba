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
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import tarform
from edge_agent.bundle.layout import BLOBS
from edge_agent.store.download_folder import DownloadFolder, Wishes
from edge_agent.store.remote_file import WINDOW, RemoteFile, TransferOptions

HEAD_BYTES = 4 * limits.MANIFEST_BYTES
"""Of statement, root files and index together: they are fetched before a signature is checked and room looked for."""
MARK = "index"
"""Beside the package: the index that the folder was last filled for."""


def head_bytes(name: str) -> int:
    """The most bytes of a file that is fetched before the package's blobs."""
    return limits.MANIFEST_BYTES if name == "index.json" else limits.STATEMENT_BYTES


class PackageDownload:
    """One package from one URL, by way of `folder`. `moved_bytes`: what came from the server, headers left out."""

    def __init__(self, url: str, folder: Path, store: Path, options: TransferOptions, wishes: Wishes) -> None:
        """`folder`: where downloads lie; `store`: whose blobs are not fetched again."""
        self._folder = DownloadFolder(url, folder, store, wishes)
        self._remote = RemoteFile(url, options)
        self._manifests: frozenset[str] = frozenset()

    @property
    def moved_bytes(self) -> int:
        """Bytes of bodies that were read."""
        return self._remote.moved_bytes

    def fetch(self) -> Path:
        """The folder to install. Raises PackageError, SignatureError, StoreError; what was fetched by then is kept.
        Where a digest is wanted and the URL does not give that package, the cause is SOURCE."""
        with self._folder.opened(), contextlib.closing(self._remote):
            self._remote.open()
            members = self._walk()
            self._folder.keep_only(members.keys())
            if self._remote.ranges:
                self._fetch_missing(members)
        return self._folder.package

    def done(self) -> None:
        """The package is installed: what was fetched is deleted."""
        self._folder.done()

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
            if not remote.ranges:
                self._folder.tell(min(remote.position, remote.total_bytes), remote.total_bytes)
        if any(remote.read(tarform.BLOCK)) or remote.position != remote.total_bytes:
            text = f"the server states {remote.total_bytes} bytes, the package ends after {remote.position}"
            raise PackageError(text, remote.url, "it was cut or changed on the server")
        if not self._manifests:
            self._check_head()
        return members

    def _take(self, member: tarform.Member) -> None:
        digest = _digest(member.name)
        most = head_bytes(member.name) if digest is None else limits.MANIFEST_BYTES
        if (digest is None or digest in self._manifests) and member.size > most:
            # A manifest is fetched before there is known to be room, statement and root files before a signature is.
            raise PackageError(f"{member.name} has {bytes_text(member.size)}", self._remote.url)
        if digest is None:
            (self._folder.package / member.name).write_bytes(self._remote.read(member.size))
            return
        small = not self._remote.ranges or member.size <= WINDOW  # else it is skipped for now
        if digest in self._manifests or (small and not self._folder.has(digest, member.size)):
            self._folder.copy(self._remote, member.offset, digest, member.size)

    def _check_head(self) -> None:
        """Whether this package is wanted; where all of it will be read, whether there is room."""
        self._manifests = frozenset(one.digest for one in self._folder.check_head().manifests)
        if not self._remote.ranges:
            self._forget_another((self._folder.package / "index.json").read_bytes())
            self._folder.check_room(self._remote.total_bytes, self._folder.fetched_bytes())

    def _forget_another(self, index: bytes) -> None:
        """What lies here of another package that this URL gave before is no part of this one's room."""
        mark = self._folder.top / MARK
        if not mark.exists() or mark.read_bytes() != index:
            self._folder.keep_only([path.name for path in self._folder.package.iterdir()] + self._roots())
            mark.write_bytes(index)

    def _roots(self) -> list[str]:
        return [f"root/{path.name}" for path in (self._folder.package / "root").iterdir()]

    def _fetch_missing(self, members: dict[str, tarform.Member]) -> None:
        """The blobs that the store lacks, after their sizes are those of the index and there is room for them."""
        stated = self._folder.stated_sizes()
        missing: dict[str, tarform.Member] = {}
        for member in members.values():
            digest = _digest(member.name)
            if digest is None or digest in self._manifests:
                continue
            if stated.get(digest) != member.size:
                what = "does not name it" if digest not in stated else f"says {stated[digest]} bytes"
                raise PackageError(f"blob {digest[7:19]} has {member.size} bytes, the index {what}", self._remote.url)
            if not self._folder.has(digest, member.size):
                missing[digest] = member
        self._folder.expect({digest: member.size for digest, member in missing.items()})
        for digest, member in missing.items():
            self._folder.copy(self._remote, member.offset, digest, member.size)


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
