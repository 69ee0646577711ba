"""Write a package, as one deterministic tar or as a folder: the same contents give the same bytes, anywhere."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import UsageError
from edge_agent.bundle import manifest as forms
from edge_agent.bundle import tarform
from edge_agent.bundle.layout import CHUNK, Package, blob_name

FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file of a package: bytes at hand, or a file on disk that is read when the package is written."""

    digest: str
    size: int
    source: bytes | Path

    def chunks(self) -> Iterator[bytes]:
        """The bytes. Raises UsageError when the file has changed since it was hashed."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        running = hashlib.sha256()
        with self.source.open("rb") as file:
            while chunk := file.read(CHUNK):
                running.update(chunk)
                yield chunk
        if "sha256:" + running.hexdigest() != self.digest:
            raise UsageError("the file changed while it was being packed", str(self.source), "pack it again")


def package_file(source: bytes | Path) -> PackageFile:
    """Hash a file or bytes. Raises UsageError for a file that cannot be read."""
    if isinstance(source, bytes):
        return PackageFile("sha256:" + hashlib.sha256(source).hexdigest(), len(source), source)
    try:
        with source.open("rb") as file:
            running, size = hashlib.sha256(), 0
            while chunk := file.read(CHUNK):
                running.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", str(source)) from error
    if size > limits.BLOB_BYTES:
        raise UsageError("the file is larger than a package may carry", str(source))
    return PackageFile("sha256:" + running.hexdigest(), size, source)


class Layout:
    """The files of a package while it is being put together."""

    def __init__(self) -> None:
        self._parts: dict[str, PackageFile] = {"oci-layout": package_file(forms.OCI_LAYOUT)}

    def put(self, name: str, data: bytes) -> PackageFile:
        """A file by its name: `index.json`, `release.dsse.json`, `root/2.json`."""
        self._parts[name] = package_file(data)
        return self._parts[name]

    def blob(self, source: bytes | Path) -> PackageFile:
        """A blob, named by its digest; the same contents are carried once."""
        part = package_file(source)
        self._parts.setdefault(blob_name(part.digest), part)
        return part

    def write(self, out: Path, folder: bool, check: Callable[[Path], object]) -> None:
        """Write everything, `check` it, then put it in the place of `out`: nobody sees half of it, or a bad one."""
        parts = dict(sorted(self._parts.items(), key=lambda item: tarform.order(item[0])))
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            if folder:
                write_folder(temporary, parts)
            else:
                write_tar(temporary, parts)
            check(temporary)
            _replace(temporary, out)
        finally:
            _remove(temporary)


def write_tar(path: Path, parts: Mapping[str, PackageFile]) -> None:
    """One tar in the package's form; `parts` come in the format's order."""
    with path.open("wb") as file:
        for name, part in parts.items():
            file.write(tarform.header(name, part.size))
            for chunk in part.chunks():
                file.write(chunk)
            file.write(bytes(tarform.padding(part.size)))
        file.write(tarform.END)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(FILE_MODE)


def write_folder(path: Path, parts: Mapping[str, PackageFile]) -> None:
    """The same as a folder, for registries' tools and for looking into."""
    for name, part in parts.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in part.chunks():
                file.write(chunk)
        target.chmod(FILE_MODE)


def rewrite(package: Package, path: Path, changed: Mapping[str, bytes]) -> None:
    """Write a package again with some small files changed or added (a signature, a root file)."""
    if path.is_dir():
        for name, data in changed.items():
            target = path / name
            target.parent.mkdir(exist_ok=True)
            temporary = target.with_name(target.name + ".tmp")
            temporary.write_bytes(data)
            temporary.chmod(FILE_MODE)
            temporary.replace(target)
        return
    sizes = {**package.sizes, **{name: len(data) for name, data in changed.items()}}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for name in sorted(sizes, key=tarform.order):
                file.write(tarform.header(name, sizes[name]))
                for chunk in [changed[name]] if name in changed else package.stream(name):
                    file.write(chunk)
                file.write(bytes(tarform.padding(sizes[name])))
            file.write(tarform.END)
        temporary.chmod(FILE_MODE)
        temporary.replace(path)
    finally:
        _remove(temporary)


def _replace(temporary: Path, out: Path) -> None:
    if out.is_dir() and temporary.is_dir():
        shutil.rmtree(out)
    temporary.replace(out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
