from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError
from edge_agent.bundle import tarform

HEX = "0123456789abcdef"
BLOBS = st.text(HEX, min_size=64, max_size=64).map(lambda name: f"blobs/sha256/{name}")
FILES = st.dictionaries(BLOBS, st.binary(max_size=1500), max_size=6)


def pack(files: dict[str, bytes]) -> bytes:
    found = {"release.dsse.json": b"{}", **files}
    body = b"".join(
        tarform.header(name, len(found[name])) + found[name] + bytes(tarform.padding(len(found[name])))
        for name in sorted(found, key=tarform.order)
    )
    return body + tarform.END


@given(FILES)
def test_round_trip_and_python_agrees(files: dict[str, bytes]) -> None:
    data = pack(files)
    members = tarform.read_members(io.BytesIO(data), len(data), "t")
    found = {member.name: data[member.offset : member.offset + member.size] for member in members}
    assert found == {"release.dsse.json": b"{}", **files}
    assert len(data) == tarform.total_size({name: len(content) for name, content in found.items()})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {info.name: info.size for info in tar} == {name: len(content) for name, content in found.items()}
        assert all(info.isreg() and info.mode == 0o644 and info.mtime == 0 for info in tar)


@given(st.integers(0, 64 * 1024**3))
def test_header_is_512_bytes_and_python_reads_the_size(size: int) -> None:
    header = tarform.header("index.json", size)
    assert len(header) == 512
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size


@given(FILES, st.data())
def test_any_cut_is_seen(files: dict[str, bytes], data: st.DataObject) -> None:
    whole = pack(files)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PackageError):
        tarform.read_members(io.BytesIO(whole[:cut]), cut, "t")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/index.json",
        "./index.json",
        "index.json/",
        "root/0.json",
        "root/01.json",
        "root/a.json",
        "blobs/sha256/" + "g" * 64,
        "blobs/sha256/" + "a" * 63,
        "blobs/sha512/" + "a" * 64,
        "INDEX.JSON",
        "index.json\n",
    ],
)
def test_names_of_the_format_only(name: str) -> None:
    with pytest.raises(PackageError, match="is no file of a package"):
        tarform.check_name(name, "t")


def test_order_is_statement_roots_by_number_layout_index_blobs() -> None:
    names = ["release.dsse.json", "root/2.json", "root/10.json", "oci-layout", "index.json", "blobs/sha256/" + "a" * 64]
    assert sorted(names, key=tarform.order) == names
