from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.base.errors import PackageError
from edge_agent.bundle.layout import CHUNK, open_package
from tests.support import hostile
from tests.support import packages as tiny


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tiny.base_package(tmp_path)


def unpacked(package: Path, folder: Path) -> Path:
    for name, data in hostile.read_parts(package).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_tar_and_folder_are_the_same_package(package: Path, tmp_path: Path) -> None:
    folder = unpacked(package, tmp_path / "folder")
    assert hostile.read_parts(folder) == hostile.read_parts(package)
    with open_package(folder) as one, open_package(package) as other:
        assert dict(one.sizes) == dict(other.sizes) and list(one.sizes) == list(other.sizes)


def test_a_file_is_streamed_in_chunks(tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK + 5)
    out = tmp_path / "big.tar"
    name = "blobs/sha256/" + "a" * 64
    hostile.write_parts(out, {"release.dsse.json": b"{}", name: data})
    with open_package(out) as opened:
        chunks = list(opened.stream(name))
    assert b"".join(chunks) == data and max(map(len, chunks)) == CHUNK


def test_a_limit_is_checked_before_a_byte_is_read(package: Path) -> None:
    with open_package(package) as opened, pytest.raises(PackageError, match="at most 10 B are allowed"):
        opened.read("index.json", 10)
    with open_package(package) as opened, pytest.raises(PackageError, match=r"root/2\.json is missing"):
        opened.read("root/2.json", 10)


def test_a_file_that_shrinks_while_it_is_read(package: Path, tmp_path: Path) -> None:
    folder = unpacked(package, tmp_path / "folder")
    with open_package(folder) as opened:
        (folder / "index.json").write_bytes(b"{}")
        with pytest.raises(PackageError, match="bytes early"):
            opened.read("index.json", 10_000)


def test_a_file_that_becomes_a_link_after_the_look(package: Path, tmp_path: Path) -> None:
    folder = unpacked(package, tmp_path / "folder")
    with open_package(folder) as opened:
        (folder / "index.json").unlink()
        (folder / "index.json").symlink_to("/etc/hostname")
        with pytest.raises(PackageError, match="cannot be opened"):
            opened.read("index.json", 10_000)


def test_two_streams_at_once(tmp_path: Path) -> None:
    """Each stream has its own position, also in a tar."""
    parts = {"release.dsse.json": b"{}"}
    parts.update({"blobs/sha256/" + letter * 64: os.urandom(3 * CHUNK) for letter in "ab"})
    with open_package(hostile.write_parts(tmp_path / "big.tar", parts)) as opened:
        one, other = (opened.stream("blobs/sha256/" + letter * 64) for letter in "ab")
        pairs = list(zip(one, other, strict=True))
    assert b"".join(pair[0] for pair in pairs) == parts["blobs/sha256/" + "a" * 64]
    assert b"".join(pair[1] for pair in pairs) == parts["blobs/sha256/" + "b" * 64]
