"""Does an ONNX graph keep tensors outside its own file? A walk over its protobuf, without the onnx library.

All blobs of the store lie in one folder, so that a graph whose tensor names a file beside it would read another
package's weights, and what runs would not be what the manifest's digests cover. Such graphs are refused.

Fields by number from onnx.proto3 (IR version 10). A message that is no protobuf ends the walk through it: the runtime
refuses to parse it too.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

from edge_agent.base.errors import PackageError

# Which fields of a message hold messages that may hold tensors.
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEPTH = 64
_FIELDS = 5_000_000
"""A graph of a language model has some ten thousand; a walk of so many takes seconds and is given up."""


def refuse_external(file: BinaryIO, size: int, name: str) -> None:
    """Raises PackageError when a tensor of the graph in `file` (`size` bytes) lies outside the file."""
    if not size:
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        waiting, seen = [("model", 0, size, 0)], 0
        while waiting:
            kind, at, end, depth = waiting.pop()
            for number, value, inner in _fields(data, at, end):
                seen += 1
                if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                    raise PackageError("a tensor of the graph lies in another file", name, "save it in one file")
                if inner and number in _INSIDE[kind]:
                    waiting.append((_INSIDE[kind][number], value, inner, depth + 1))
            if seen > _FIELDS or depth > _DEPTH:
                raise PackageError("the graph is too large or too deeply nested to be looked through", name)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, value, 0) of numbers and (field number, begin, end) of what has a length; stops at nonsense."""
    while at < end:
        key, at = _varint(data, at, end)
        if at < 0:
            return
        number, wire = key >> 3, key & 7
        if wire in (_VARINT, _BYTES):
            value, at = _varint(data, at, end)
            if at < 0:
                return
            if wire == _VARINT:
                yield number, value, 0
                continue
            if value > end - at:
                return
            yield number, at, at + value
            at += value
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            return


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """(value, place behind it); the place is -1 when the number does not end within its message."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, -1
