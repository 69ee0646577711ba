"""The canonical tar form of a package: plain ustar, fixed metadata, fixed order, nothing before, between or after.

The header of a member is a function of its name and size. A reader that accepts exactly those bytes excludes links,
devices, pax and sparse headers, odd modes, second names and data hidden in padding; and the same contents always give
the same file. Source of the layout: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text

BLOCK = 512
END = bytes(2 * BLOCK)
_OCTAL_LIMIT = 8**11
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"x": "a pax header",
    b"g": "a global pax header",
    b"L": "a GNU long name",
    b"K": "a GNU long link",
    b"S": "a sparse file",
    b"V": "a volume label",
    b"M": "a multi-volume part",
    b"D": "a folder dump",
}
_MEMBER = re.compile(r"release\.dsse\.json|root/[1-9][0-9]{0,8}\.json|oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_FIRST = ("release.dsse.json",)
_BEFORE_BLOBS = ("oci-layout", "index.json")


class Member(NamedTuple):
    """A file inside the tar: its name, where its bytes begin, how many there are."""

    name: str
    offset: int
    size: int


def check_name(name: str, where: str) -> None:
    """Refuse every name but those of the format, so that no path leads out of the package."""
    if not _MEMBER.fullmatch(name):
        raise PackageError(f"{name[:100]!r} is no file of a package", where)


def order(name: str) -> tuple[int, int, str]:
    """Sort key: statement, root files by version, oci-layout, index, blobs by digest."""
    if name in _FIRST:
        return (0, 0, name)
    if name.startswith("root/"):
        return (1, int(name[5:-5]), name)
    if name in _BEFORE_BLOBS:
        return (2, _BEFORE_BLOBS.index(name), name)
    return (3, 0, name)


def header(name: str, size: int) -> bytes:
    """The 512 bytes that stand before a member's data."""
    blank = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            b"0000644\x00",
            b"0000000\x00",
            b"0000000\x00",
            _size_field(size),
            b"00000000000\x00",
            b"        ",
            b"0",
            bytes(100),
            b"ustar\x00",
            b"00",
            bytes(64),
            b"0000000\x00",
            b"0000000\x00",
            bytes(167),
        )
    )
    checksum = b"%06o\0 " % sum(blank)
    return blank[:148] + checksum + blank[156:]


def padding(size: int) -> int:
    """Zero bytes after `size` bytes of data, up to the next block."""
    return -size % BLOCK


def total_size(sizes: Mapping[str, int]) -> int:
    """Bytes of the tar that holds files of these sizes."""
    return sum(BLOCK + size + padding(size) for size in sizes.values()) + len(END)


def read_members(file: BinaryIO, file_bytes: int, where: str) -> list[Member]:
    """The members of a tar in canonical form, without reading their data. Raises PackageError."""
    members: list[Member] = []
    at = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK and at == 0:
            raise PackageError(f"this is no package: it has {len(block)} bytes", where)
        if len(block) < BLOCK:
            raise PackageError("the tar is cut off: its end mark is missing", where)
        if not any(block):
            break
        member = _member(block, at, file_bytes, where)
        _check_follows(members, member, where)
        members.append(member)
        _check_padding(file, member, where)
        at = member.offset + member.size + padding(member.size)
    if block + file.read(BLOCK + 1) != END:
        raise PackageError("there is something behind the end mark of the tar", where)
    return members


def _member(block: bytes, at: int, file_bytes: int, where: str) -> Member:
    kind = block[156:157]
    if block[257:263] != b"ustar\0" and block[257:265] != b"ustar  \0":
        remedy = "name a .tar that `edge-forge build` wrote" if at == 0 else "it was cut or changed: copy it again"
        raise PackageError(f"byte {at} is no tar header", where, remedy)
    if kind in _KINDS:
        raise PackageError(f"byte {at}: the tar holds {_KINDS[kind]}, only plain files are allowed", where)
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    check_name(name, where)
    size = _read_size(block[124:136], name, where)
    if size > limits.BLOB_BYTES:
        raise PackageError(
            f"{name} claims {bytes_text(size)}, at most {bytes_text(limits.BLOB_BYTES)} are allowed", where
        )
    if block != header(name, size):
        raise PackageError(f"the tar header of {name} is damaged or not in the one form of a package", where)
    offset = at + BLOCK
    if offset + size + padding(size) > file_bytes:
        raise PackageError(
            f"the tar is cut off: {name} claims {size} bytes, {max(0, file_bytes - offset)} follow", where
        )
    return Member(name, offset, size)


def _check_follows(members: list[Member], member: Member, where: str) -> None:
    if len(members) >= limits.PACKAGE_MEMBERS:
        raise PackageError(f"it holds more than {limits.PACKAGE_MEMBERS} files", where)
    if not members and member.name not in _FIRST:
        raise PackageError(f"it begins with {member.name}, not with the signed statement", where)
    if members and member.name == members[-1].name:
        raise PackageError(f"{member.name} stands in it twice", where)
    if members and order(member.name) < order(members[-1].name):
        raise PackageError(f"{member.name} stands behind {members[-1].name}, out of order or twice", where)


def _check_padding(file: BinaryIO, member: Member, where: str) -> None:
    count = padding(member.size)
    file.seek(member.offset + member.size)
    if file.read(count) != bytes(count):
        raise PackageError(f"something is hidden in the padding behind {member.name}", where)


def _size_field(size: int) -> bytes:
    if size < _OCTAL_LIMIT:
        return b"%011o\0" % size
    return b"\x80" + size.to_bytes(11, "big")


def _read_size(raw: bytes, name: str, where: str) -> int:
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    try:
        return int(raw.rstrip(b"\0 "), 8)
    except ValueError as error:
        raise PackageError(f"the size of {name} is not a number", where) from error
