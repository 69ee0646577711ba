"""Attacks on the container: names, links, sizes, order, padding, bombs."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.base.errors import PackageError, StoreError
from edge_agent.bundle import tarform
from edge_agent.bundle.statement import RELEASE_FILE
from tests.support import hostile
from tests.support.hostile import GIB, Attack, Forge, Good, Make


def with_member(block: bytes, data: bytes = b"") -> Make:
    """The good tar with a foreign member before its end."""

    def make(good: Good, folder: Path) -> Path:
        out = folder / "member.tar"
        body = good.newer.read_bytes()[: -len(tarform.END)]
        out.write_bytes(body + block + data + bytes(-len(data) % 512) + tarform.END)
        return out

    return make


def changed_bytes(change: Callable[[bytes], bytes]) -> Make:
    """The good tar with its bytes changed."""

    def make(good: Good, folder: Path) -> Path:
        out = folder / "changed.tar"
        out.write_bytes(change(good.newer.read_bytes()))
        return out

    return make


def twice(name: str) -> Make:
    """A tar that holds one of its files twice."""

    def make(good: Good, folder: Path) -> Path:
        parts = hostile.read_parts(good.newer)
        order = sorted(parts, key=tarform.order)
        at = order.index(name)
        return hostile.write_parts(folder / "twice.tar", parts, [*order[: at + 1], name, *order[at + 1 :]])

    return make


def late_duplicate(good: Good, folder: Path) -> Path:
    parts = hostile.read_parts(good.newer)
    order = sorted(parts, key=tarform.order)
    return hostile.write_parts(folder / "late.tar", parts, [*order, "index.json"])


def statement_last(good: Good, folder: Path) -> Path:
    parts = hostile.read_parts(good.newer)
    order = sorted(parts, key=tarform.order)
    return hostile.write_parts(folder / "last.tar", parts, [*order[1:], order[0]])


def python_tar(**fields: Any) -> Make:
    """The same files packed by `tarfile`, with a member's metadata changed."""

    def make(good: Good, folder: Path) -> Path:
        out = folder / "python.tar"
        with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in hostile.read_parts(good.newer).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                for field, value in fields.items():
                    setattr(info, field, value)
                tar.addfile(info, io.BytesIO(data))
        return out

    return make


def many_members(good: Good, folder: Path) -> Path:
    out = folder / "many.tar"
    with out.open("wb") as file:
        file.write(hostile.member(RELEASE_FILE, b"{}"))
        for number in range(1, 5001):
            file.write(hostile.member(f"root/{number}.json", b""))
        file.write(tarform.END)
    return out


def sparse_tar(good: Good, folder: Path) -> Path:
    """A blob of 5 GiB of nothing: the file claims it, takes no room, and must not be read to be refused."""
    parts = hostile.read_parts(good.newer)
    order = sorted(parts, key=tarform.order)
    out = folder / "sparse.tar"
    with out.open("wb") as file:
        for name in order[:-1]:
            file.write(hostile.member(name, parts[name]))
        file.write(tarform.header(order[-1], 5 * GIB))
        file.truncate(file.tell() + 5 * GIB + len(tarform.END))
    return out


def sparse_claim(good: Good, folder: Path) -> Path:
    """The same, with a descriptor that agrees: only the room on disk can refuse it before 5 GiB are hashed."""
    forge = Forge(good.newer)
    fake = "sha256:" + "f" * 64

    def change(manifest: Any) -> None:
        layer = forge.layer(manifest, "model.onnx")
        forge.parts.pop("blobs/sha256/" + layer["digest"][7:])
        layer.update(digest=fake, size=5 * GIB)

    forge.edit(change, 1)
    forge.edit(change, 0)
    out = forge.write(folder / "claim.tar")
    with out.open("r+b") as file:
        file.seek(-len(tarform.END), os.SEEK_END)
        file.write(tarform.header("blobs/sha256/" + "f" * 64, 5 * GIB))
        file.truncate(file.tell() + 5 * GIB + len(tarform.END))
    return out


def gzipped(good: Good, folder: Path) -> Path:
    out = folder / "bomb.tar.gz"
    out.write_bytes(gzip.compress(bytes(20_000_000)))
    return out


def zipped(good: Good, folder: Path) -> Path:
    out = folder / "bomb.zip"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(RELEASE_FILE, bytes(20_000_000))
    return out


CONTAINER = {
    "absolute-path": Attack(with_member(hostile.raw_header(b"/etc/passwd")), PackageError, "is no file of a package"),
    "dot-dot": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/../../../x")), PackageError, "is no file of a package"
    ),
    "ustar-prefix": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/" + b"f" * 64, prefix=b"/etc")),
        PackageError,
        "not in the one form",
    ),
    "name-with-nul": Attack(
        with_member(hostile.raw_header(b"index.json\x00/../../x")), PackageError, "is no file of a package"
    ),
    "symlink": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/" + b"f" * 64, kind=b"2", link=b"/etc/shadow")),
        PackageError,
        "a symbolic link, only plain files",
    ),
    "hard-link": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/" + b"f" * 64, kind=b"1", link=b"index.json")),
        PackageError,
        "a hard link, only plain files",
    ),
    "character-device": Attack(with_member(hostile.raw_header(b"null", kind=b"3")), PackageError, "a character device"),
    "block-device": Attack(with_member(hostile.raw_header(b"sda", kind=b"4")), PackageError, "a block device"),
    "fifo": Attack(with_member(hostile.raw_header(b"pipe", kind=b"6")), PackageError, "a FIFO"),
    "folder-member": Attack(with_member(hostile.raw_header(b"blobs/", kind=b"5")), PackageError, "a folder"),
    "gnu-sparse": Attack(with_member(hostile.raw_header(b"x", kind=b"S")), PackageError, "a sparse file"),
    "gnu-long-name": Attack(
        with_member(hostile.raw_header(b"././@LongLink", kind=b"L")), PackageError, "a GNU long name"
    ),
    "pax-path": Attack(
        with_member(hostile.raw_header(b"PaxHeaders/x", 24, kind=b"x"), b"24 path=../../etc/passwd\n"),
        PackageError,
        "a pax header",
    ),
    "pax-size": Attack(
        with_member(hostile.raw_header(b"p", 16, kind=b"g"), b"16 size=9999999\n"), PackageError, "global pax"
    ),
    "setuid-mode": Attack(python_tar(mode=0o4755), PackageError, "not in the one form"),
    "owner": Attack(python_tar(uid=1000), PackageError, "not in the one form"),
    "mtime": Attack(python_tar(mtime=1), PackageError, "not in the one form"),
    "unknown-file": Attack(with_member(hostile.raw_header(b"setup.py")), PackageError, "is no file of a package"),
    "blob-name-upper-case": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/" + b"F" * 64)), PackageError, "is no file of a package"
    ),
    "negative-size": Attack(
        with_member(hostile.raw_header(b"index.json", size_field=b"\xff" * 12)), PackageError, "is not a number"
    ),
    "size-with-letters": Attack(
        with_member(hostile.raw_header(b"index.json", size_field=b"0x000000010\x00")), PackageError, "is not a number"
    ),
    "size-of-exabytes": Attack(
        with_member(hostile.raw_header(b"index.json", size_field=b"\x80" + (2**62).to_bytes(11, "big"))),
        PackageError,
        "are allowed",
    ),
    "size-beyond-the-file": Attack(
        with_member(hostile.raw_header(b"blobs/sha256/" + b"f" * 64, 10**9)), PackageError, "the tar is cut off"
    ),
    "duplicate-index": Attack(twice("index.json"), PackageError, "stands in it twice"),
    "duplicate-statement": Attack(twice(RELEASE_FILE), PackageError, "stands in it twice"),
    "duplicate-at-the-end": Attack(late_duplicate, PackageError, "out of order or twice"),
    "statement-last": Attack(statement_last, PackageError, "not with the signed statement"),
    "hidden-in-padding": Attack(
        changed_bytes(lambda data: data.replace(b"}" + bytes(40), b"}" + b"evil" * 10, 1)),
        PackageError,
        "hidden in the padding",
    ),
    "behind-the-end": Attack(changed_bytes(lambda data: data + b"more"), PackageError, "behind the end mark"),
    "second-archive-behind": Attack(changed_bytes(lambda data: data + data), PackageError, "behind the end mark"),
    "end-mark-missing": Attack(changed_bytes(lambda data: data[:-1024]), PackageError, "its end mark is missing"),
    "cut-in-a-blob": Attack(changed_bytes(lambda data: data[: len(data) // 2]), PackageError, "the tar is cut off"),
    "cut-in-a-header": Attack(changed_bytes(lambda data: data[:700]), PackageError, "the tar is cut off"),
    "empty-file": Attack(changed_bytes(lambda data: b""), PackageError, "this is no package: it has 0 bytes"),
    "only-zeros": Attack(changed_bytes(lambda data: bytes(10240)), PackageError, "behind the end mark"),
    "thousands-of-files": Attack(many_members, PackageError, "more than 2048 files"),
    "gzip-bomb": Attack(gzipped, PackageError, "is no tar header"),
    "zip-bomb": Attack(zipped, PackageError, "is no tar header"),
    "sparse-5-gib": Attack(sparse_tar, PackageError, "its descriptor says"),
    "sparse-5-gib-agreed": Attack(sparse_claim, StoreError, "the disk is too full"),
}
