"""Read a safetensors file with numpy alone, every bound checked before a byte is used.

The format: 8 bytes little-endian length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the bytes.
Offsets must cover the bytes without gap or overlap, as the format demands.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, NamedTuple

from edge_agent.base.errors import AdapterRefused

HEADER_BYTES = 4 * 1024 * 1024
TENSORS = 4096
_WIDTHS = {"F32": ("<f4", 4), "F16": ("<f2", 2)}


class TensorFile(NamedTuple):
    """`tensors` by name as float32 arrays, and the string metadata."""

    tensors: dict[str, Any]
    metadata: dict[str, str]


def read_tensors(path: str, size_max_bytes: int) -> TensorFile:
    """All tensors of a file. Raises AdapterRefused for anything that is not exactly a safetensors file."""
    try:
        size = os.stat(path).st_size  # noqa: PTH116 (pathlib costs memory for two lines)
        if size > size_max_bytes:
            raise AdapterRefused(f"the file has {size} bytes, at most {size_max_bytes} are taken", path)
        with open(path, "rb") as stream:  # noqa: PTH123 (as above)
            data = stream.read(size)
    except OSError as error:
        raise AdapterRefused(f"the file cannot be read: {error.strerror}", path) from error
    return parse_tensors(data, path)


def parse_tensors(data: bytes, where: str) -> TensorFile:
    """The same from bytes; `where` is named in errors."""
    header, begin = _header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterRefused("the metadata is not a map of texts", where)
    if len(header) > TENSORS:
        raise AdapterRefused(f"{len(header)} tensors are more than {TENSORS}", where)
    end = 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: _place(item[1])):
        dtype, shape, first, last = _entry(name, entry, where)
        if first != end or last > len(data) - begin:
            raise AdapterRefused(f"tensor {name!r} leaves a gap, overlaps or ends outside the file", where)
        tensors[name] = _array(data, begin + first, dtype, shape)
        end = last
    if end != len(data) - begin:
        raise AdapterRefused(f"the file has {len(data) - begin - end} bytes that no tensor claims", where)
    return TensorFile(tensors, metadata)


def _header(data: bytes, where: str) -> Any:
    if len(data) < 8:
        raise AdapterRefused("the file is too short for a safetensors file", where)
    (length,) = struct.unpack("<Q", data[:8])
    if not 2 <= length <= min(HEADER_BYTES, len(data) - 8):
        raise AdapterRefused(f"the header length {length} does not fit the file", where)
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"the header is not JSON: {error}", where) from error
    if not isinstance(header, dict):
        raise AdapterRefused("the header is not a map", where)
    return header, 8 + length


def _place(entry: Any) -> tuple[int, int]:
    """Begin and end of an entry, for sorting; what is malformed comes first and is refused by `_entry`."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        return (0, 0)
    return (offsets[0], offsets[1])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _entry(name: str, entry: Any, where: str) -> Any:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or str(fields.get("dtype")) not in _WIDTHS:
        raise _unfit(name, where)
    if len(shape) > 2 or len(offsets) != 2 or not all(map(_whole, shape + offsets)):
        raise _unfit(name, where)
    dtype, width = _WIDTHS[fields["dtype"]]
    elements = 1
    for extent in shape:
        elements *= extent
    if offsets[1] - offsets[0] != elements * width:
        raise AdapterRefused(f"tensor {name!r} has another size than its shape says", where)
    return dtype, shape, offsets[0], offsets[1]


def _unfit(name: str, where: str) -> AdapterRefused:
    return AdapterRefused(f"tensor {name!r} is not a float32 or float16 vector or matrix", where)


def _array(data: bytes, first: int, dtype: str, shape: Any) -> Any:
    import numpy

    count = 1
    for extent in shape:
        count *= extent
    array = numpy.frombuffer(data, dtype=dtype, count=count, offset=first).reshape(shape)
    return array.astype(numpy.float32, copy=False)
