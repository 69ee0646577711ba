"""Whether a package was refused for what it is, or for what a source made of it.

A package is named by the digest of its index; index, manifests and blobs are what the digest covers. The tar around
them, the statement and the root files are what a source gives, and another source may give others. So a page of a
captive portal, a truncated file or an exchanged blob says nothing about the package.

A file of its own because installs and downloads decide by it alike.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError
from edge_agent.base.limits import MANIFEST_BYTES, STATEMENT_BYTES
from edge_agent.bundle import sign
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.layout import Package, blob_name, open_package
from edge_agent.bundle.manifest import Descriptor, Index, Manifest
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Release
from edge_agent.bundle.verify import check_blob, fetcher
from edge_agent.store.disk import Blobs
from edge_agent.store.inbox_packages import file_mark


def of_source(
    error: PackageError,
    path: Path,
    digest: str,
    blobs: Blobs,
    descriptor: int | None = None,
    *,
    head: bool = False,
    changed: bool = False,
) -> bool:
    """Whether an install of `path`, where package `digest` is wanted, failed for what the source gave. Only failures
    that would end the package for good are looked into: of a signature, and where only the `head` is there, the
    statement and the index are read again, else the whole package. `changed`: while it was read."""
    if error.cause not in (Cause.PACKAGE_REFUSED, Cause.SIGNATURE):
        return False
    if changed:
        return True
    weights = not head and error.cause is not Cause.SIGNATURE
    try:
        with open_package(path, descriptor) as package:
            return foreign(package, digest, blobs, weights=weights) is not None
    except (PackageError, OSError):
        return True


def read_marks(path: Path, descriptor: int | None = None) -> tuple[object, ...]:
    """What changes when the file that is installed is changed or exchanged meanwhile: what was read first and what is
    read afterwards are then two files, and a refusal of the one says nothing about the other."""
    if descriptor is None:
        return (file_mark(path),)
    found = os.fstat(descriptor)
    return (file_mark(path), found.st_size, found.st_mtime_ns)


def foreign(package: Package, digest: str, blobs: Blobs, *, weights: bool = True) -> str | None:
    """Why the files there are not the package `digest` with all of its parts, here or in the store; None where they
    are, and where what the digest covers cannot be read by itself. `weights`: also look at manifests and blobs."""
    try:
        index = _index(package, digest)
        manifests = decode(index, Index, "index.json").manifests if weights else ()
        # All manifests first: one that cannot be used is known before the weights are there.
        for found in [part for one in manifests for part in _parts(package, one, blobs)]:
            _check_part(package, found, blobs)
    except _UnusableContents:
        return None
    except PackageError as error:
        return str(error)
    return None


class _UnusableContents(Exception):
    """The bytes have their digest and cannot be used: so it is everywhere."""


def _index(package: Package, digest: str) -> bytes:
    _, payload = sign.unwrap(package.read(RELEASE_FILE, STATEMENT_BYTES), RELEASE_TYPE, RELEASE_FILE)
    if (named := decode(payload, Release, RELEASE_FILE, STATEMENT_BYTES).index.digest) != digest:
        raise PackageError(f"this is package {named}, {digest} was asked for", package.where)
    data = package.read("index.json", MANIFEST_BYTES)
    if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        raise PackageError("its SHA-256 is not the one that was signed", "index.json")
    try:
        decode(data, Index, "index.json")
    except PackageError as error:
        raise _UnusableContents from error
    return data


def _parts(package: Package, one: Descriptor, blobs: Blobs) -> tuple[Descriptor, ...]:
    if one.size > MANIFEST_BYTES:
        raise _UnusableContents
    data = fetcher(package, blobs.fetch)(one, MANIFEST_BYTES)
    try:
        return decode(data, Manifest, f"blob {one.digest[7:19]}").descriptors()
    except PackageError as error:
        raise _UnusableContents from error


def _check_part(package: Package, found: Descriptor, blobs: Blobs) -> None:
    size = package.sizes.get(blob_name(found.digest))
    where = f"blob {found.digest[7:19]}"
    if size is None:
        if not blobs.whole(found):
            raise PackageError("it is neither in the package nor in the store", where)
    elif size != found.size:
        raise PackageError(f"it has {size} bytes, its descriptor says {found.size}", where)
    else:
        check_blob(package, found.digest)
