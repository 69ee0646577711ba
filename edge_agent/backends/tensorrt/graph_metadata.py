"""The metadata of an ONNX file, without the onnx library: TensorRT's engines carry none of it.

Fields of ModelProto at the top level are walked; everything else is skipped by its length. What a package's graph may
hold is checked at the install (`bundle.onnx_graph`), with limits inside the loop. A file of its own because it knows
nothing of engines.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from edge_agent.base.errors import BackendError

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# The bank's description of a model of 24 layers has 40 kB.
_ENTRY_BYTES = 1 << 20


def read_metadata(path: str) -> dict[str, str]:
    """The texts of `metadata_props` by key. Raises BackendError for a file that is no ONNX model."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
            found = {}
            for number, begin, end in _fields(data, 0, len(data)):
                if number == _METADATA_PROPS and end - begin <= _ENTRY_BYTES:
                    entry = {one: bytes(data[first:last]) for one, first, last in _fields(data, begin, end)}
                    found[entry.get(_KEY, b"").decode()] = entry.get(_VALUE, b"").decode()
            return found
    except (OSError, ValueError, IndexError) as error:
        raise BackendError(f"TensorRT cannot load the graph: it is no ONNX file ({error})", path) from error


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of every field that holds bytes. Raises ValueError or IndexError where it is damaged."""
    while at < end:
        key, at = _varint(data, at)
        wire, size = key & 7, 0
        if wire == _VARINT:
            _, at = _varint(data, at)
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"byte {at} begins no field")
        if at + size > end:
            raise ValueError(f"a field at byte {at} ends behind its message")
        if wire == _BYTES:
            yield key >> 3, at, at + size
        at += size


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
