"""What a TensorFlow Lite file must be before a runtime sees it: whole, and all of its tensors inside.

The file is a flatbuffer: bytes 0 to 3 the offset of the table `Model`, bytes 4 to 7 the letters TFL3. A table begins
with the signed distance back to its vtable, which lists the size of both and the place of every field; a field that is
absent has place 0 or lies behind the vtable's end. Fields 8 and 9 of `Model` name other files that hold tensors, so
that fields from 8 on are refused, those of later versions of the schema among them. LiteRT checks the offsets of the
other fields itself before it loads a file. Source: tensorflow/lite/schema/schema.fbs. A file of its own because each
format has one.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from edge_agent.base.errors import PackageError

_IDENTIFIER: Final = b"TFL3"
# version, operator_codes, subgraphs, description, buffers, metadata_buffer, metadata, signature_defs
_FIELDS: Final = 8
# Offsets are signed and have 32 bits.
_BYTES: Final = 2**31 - 1


def check_model(file: BinaryIO, size: int, name: str) -> None:
    """Raises PackageError for a file of `size` bytes that is no TensorFlow Lite model, or keeps tensors elsewhere."""
    head = _read(file, 0, 8, size, name)
    if head[4:] != _IDENTIFIER:
        raise PackageError("it is no TensorFlow Lite model: bytes 4 to 7 are not TFL3", name)
    if size > _BYTES:
        raise PackageError(f"a TensorFlow Lite model has at most {_BYTES} bytes", name)
    (table,) = struct.unpack("<I", head[:4])
    (back,) = struct.unpack("<i", _read(file, table, 4, size, name))
    vtable = table - back
    (length,) = struct.unpack("<H", _read(file, vtable, 2, size, name))
    places = _read(file, vtable, length, size, name)[4:]
    if length % 2 or any(places[2 * _FIELDS :]):
        raise PackageError(
            "it names other files that hold its tensors, or has fields that are not known here",
            name,
            "export it as one file",
        )


def _read(file: BinaryIO, at: int, count: int, size: int, name: str) -> bytes:
    if not 0 <= at <= size - count:
        raise PackageError(f"it is damaged: an offset leads to byte {at} of {size}", name, "export it again")
    file.seek(at)
    return file.read(count)
