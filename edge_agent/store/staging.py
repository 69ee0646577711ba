"""Blobs from a package into the store: written whole, hashed and looked at before they have their name."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import PackageError
from edge_agent.bundle import magic
from edge_agent.bundle.layout import Package, blob_name
from edge_agent.bundle.manifest import Descriptor
from edge_agent.bundle.verify import check_blob
from edge_agent.store.blobs import Blobs
from edge_agent.store.crash_points import At


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A blob that an install needs; `name` is the file's name in the package, whose suffix says what it must be."""

    descriptor: Descriptor
    name: str


def stage(blobs: Blobs, package: Package, wanted: BlobRequest, at: At) -> bool:
    """Have the blob in the store, from the package where it is not there intact. True when it was written.

    Raises PackageError when it is damaged, not what its name says, or nowhere to be had.
    """
    found = wanted.descriptor
    name = blob_name(found.digest)
    if blobs.intact(found):
        if name in package:
            check_blob(package, found.digest)
        return False
    where = f"{wanted.name} (blob {found.digest[7:19]})"
    if name not in package:
        raise PackageError("it is neither in the package nor intact in the store", where, "install the full package")
    temporary = blobs.unfinished / found.digest.removeprefix("sha256:")
    if _write(package, name, temporary, at) != found.digest:
        raise PackageError("its SHA-256 is not its name: damaged or exchanged", where, "fetch the package again")
    magic.check_file(temporary, wanted.name)
    at("blob-written")
    temporary.replace(blobs.path(found.digest))
    at("blob-placed")
    return True


def _write(package: Package, name: str, temporary: Path, at: At) -> str:
    running = hashlib.sha256()
    with temporary.open("wb") as file:
        for chunk in package.stream(name):
            running.update(chunk)
            file.write(chunk)
            at("blob-begun")
        file.flush()
        os.fsync(file.fileno())
    return "sha256:" + running.hexdigest()
