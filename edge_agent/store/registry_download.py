"""A package from an OCI registry into a folder that the install reads: what the store holds already is not moved.

The artefact's manifest names every file of the package with digest and size. Statement, root files and index are
fetched first, so a package that is not wanted or not trusted is refused before its weights move; then manifests, then
the blobs that are missing, once there is room for them.

The install trusts nothing of this: it verifies the folder as any other package. Used in processes of their own; the
daemon never imports it. A file of its own because nothing is walked here, as a tar on a server is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import tarform
from edge_agent.bundle.jsonio import check_size, decode
from edge_agent.bundle.layout import BLOBS, blob_name
from edge_agent.bundle.manifest import TITLE, Artefact, Descriptor
from edge_agent.store.download_folder import DownloadFolder, Wishes
from edge_agent.store.package_download import HEAD_BYTES, head_bytes
from edge_agent.store.registry import RegistryAccess, RegistryPlace
from edge_agent.store.remote_file import RemoteFile, TransferOptions, TransferPace


def read_artefact(data: bytes, where: str) -> Artefact:
    """The manifest of a package in a registry, of which nothing is signed. Raises PackageError."""
    return decode(data, Artefact, where, limits.ARTEFACT_BYTES, limits.ARTEFACT_PARTS)


class RegistryDownload:
    """One package from one repository, by way of `folder`. `moved_bytes`: what came from the registry, headers left
    out."""

    def __init__(
        self,
        place: RegistryPlace,
        folder: Path,
        store: Path,
        options: TransferOptions,
        wishes: Wishes,
        *,
        plain: Collection[str] = (),
        basic: str | None = None,
    ) -> None:
        """`folder`: where downloads lie; `store`: whose blobs are not fetched again; `plain`: registries that are asked
        by http; `basic`: see `registry.credentials`."""
        self._reference = place.digest or place.tag
        self._pinned = place.digest
        self._root = place.root(plain)
        self._folder = DownloadFolder(f"{self._root}:{self._reference}", folder, store, wishes)
        self._options, self._pace = options, TransferPace(options)
        self._access = RegistryAccess(place, basic, plain, options)

    @property
    def moved_bytes(self) -> int:
        """Bytes of bodies that were read."""
        return self._pace.moved_bytes

    def fetch(self) -> Path:
        """The folder to install. Raises PackageError, SignatureError, StoreError; what was fetched by then is kept.
        Where a digest is wanted and the registry does not give that package, the cause is SOURCE."""
        with self._folder.opened():
            files = self._files()
            self._folder.keep_only(files.keys())
            self._fetch_head(files)
            manifests = [one.digest for one in self._folder.check_head().manifests]
            self._fetch_manifests(files, manifests)
            self._fetch_missing(files, manifests)
        return self._folder.package

    def done(self) -> None:
        """The package is installed: what was fetched is deleted."""
        self._folder.done()

    def _files(self) -> dict[str, Descriptor]:
        """The files of the package by name, as the artefact's manifest states them."""
        with contextlib.closing(self._remote(f"manifests/{self._reference}")) as remote:
            remote.open()
            check_size(remote.total_bytes, limits.ARTEFACT_BYTES, remote.url)
            data = remote.read(remote.total_bytes)
        if self._pinned is not None and "sha256:" + hashlib.sha256(data).hexdigest() != self._pinned:
            raise PackageError("its SHA-256 is not its name: damaged or exchanged", remote.url)
        artefact = read_artefact(data, remote.url)
        files: dict[str, Descriptor] = {}
        for layer in artefact.layers:
            name = layer.annotations.get(TITLE, "")
            tarform.check_name(name, remote.url)
            if name in files:
                raise PackageError(f"{name} is there twice", remote.url)
            if name.startswith(BLOBS) and name != blob_name(layer.digest):
                raise PackageError(f"{name} is another blob", remote.url)
            files[name] = layer
        return files

    def _fetch_head(self, files: Mapping[str, Descriptor]) -> None:
        head = {name: found for name, found in files.items() if not name.startswith(BLOBS)}
        if sum(found.size for found in head.values()) > HEAD_BYTES:
            raise PackageError(f"it has more than {bytes_text(HEAD_BYTES)} before its blobs", self._root)
        for name, found in head.items():
            check_size(found.size, head_bytes(name), name)
            with contextlib.closing(self._blob(found)) as remote:
                remote.seek(0, found.size)
                data = remote.read(found.size)
            if "sha256:" + hashlib.sha256(data).hexdigest() != found.digest:
                raise PackageError("its SHA-256 is not its name: damaged or exchanged", f"{self._root} ({name})")
            (self._folder.package / name).write_bytes(data)

    def _fetch_manifests(self, files: Mapping[str, Descriptor], manifests: Collection[str]) -> None:
        for digest in manifests:
            found = files.get(blob_name(digest))
            if found is not None:
                check_size(found.size, limits.MANIFEST_BYTES, f"blob {digest[7:19]}")
                self._copy(found)

    def _fetch_missing(self, files: Mapping[str, Descriptor], manifests: Collection[str]) -> None:
        """The blobs that the store lacks, after their sizes are those of the index and there is room for them."""
        stated = self._folder.stated_sizes()
        missing: dict[str, Descriptor] = {}
        for name, found in files.items():
            if not name.startswith(BLOBS) or found.digest in manifests:
                continue
            if stated.get(found.digest) != found.size:
                what = "does not name it" if found.digest not in stated else f"says {stated[found.digest]} bytes"
                raise PackageError(f"blob {found.digest[7:19]} has {found.size} bytes, the index {what}", self._root)
            if not self._folder.has(found.digest, found.size):
                missing[found.digest] = found
        self._folder.expect({digest: found.size for digest, found in missing.items()})
        for found in missing.values():
            self._copy(found)

    def _copy(self, found: Descriptor) -> None:
        if self._folder.has(found.digest, found.size):
            return
        with contextlib.closing(self._blob(found)) as remote:
            self._folder.copy(remote, 0, found.digest, found.size)

    def _blob(self, found: Descriptor) -> RemoteFile:
        return self._remote(f"blobs/{found.digest}", found.size)

    def _remote(self, path: str, total_bytes: int | None = None) -> RemoteFile:
        return RemoteFile(f"{self._root}/{path}", self._options, self._pace, self._access, total_bytes)
