"""Read a safetensors file with numpy alone, every bound checked before a byte is used. Importable on Python 3.6.

The format: 8 bytes little-endian length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the bytes.
Offsets must cover the bytes without gap or overlap, as the format demands.
"""

import json
import os
import struct
from typing import Any, Dict, NamedTuple, Tuple

from edge_agent.base.errors import AdapterRefused

HEADER_BYTES = 4 * 1024 * 1024
TENSORS = 4096
_WIDTHS = {"F32": ("<f4", 4), "F16": ("<f2", 2)}


class TensorFile(NamedTuple):
    """`tensors` by name as float32 arrays, and the string metadata."""

    tensors: Dict[str, Any]
    metadata: Dict[str, str]


def read_tensors(path: str, size_max_bytes: int) -> TensorFile:
    """All tensors of a file. Raises AdapterRefused for anything that is not exactly a safetensors file."""
    try:
        size = os.path.getsize(path)
        if size > size_max_bytes:
            raise AdapterRefused("the file has {} bytes, at most {} are taken".format(size, size_max_bytes), path)
        with open(path, "rb") as stream:
            data = stream.read(size)
    except OSError as error:
        raise AdapterRefused("the file cannot be read: {}".format(error.strerror), path) from error
    return parse_tensors(data, path)


def parse_tensors(data: bytes, where: str) -> TensorFile:
    """The same from bytes; `where` is named in errors."""
    header, begin = _header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterRefused("the metadata is not a map of texts", where)
    if len(header) > TENSORS:
        raise AdapterRefused("{} tensors are more than {}".format(len(header), TENSORS), where)
    end = 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: _place(item[1])):
        dtype, shape, first, last = _entry(name, entry, where)
        if first != end or last > len(data) - begin:
            raise AdapterRefused("tensor {!r} leaves a gap, overlaps or ends outside the file".format(name), where)
        tensors[name] = _array(data, begin + first, dtype, shape)
        end = last
    if end != len(data) - begin:
        raise AdapterRefused("the file has {} bytes that no tensor claims".format(len(data) - begin - end), where)
    return TensorFile(tensors, metadata)


def _header(data: bytes, where: str) -> Any:
    if len(data) < 8:
        raise AdapterRefused("the file is too short for a safetensors file", where)
    (length,) = struct.unpack("<Q", data[:8])
    if not 2 <= length <= min(HEADER_BYTES, len(data) - 8):
        raise AdapterRefused("the header length {} does not fit the file".format(length), where)
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterRefused("the header is not JSON: {}".format(error), where) from error
    if not isinstance(header, dict):
        raise AdapterRefused("the header is not a map", where)
    return header, 8 + length


def _place(entry: Any) -> Tuple[int, int]:
    """Begin and end of an entry, for sorting; what is malformed comes first and is refused by `_entry`."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        return (0, 0)
    return (offsets[0], offsets[1])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _entry(name: str, entry: Any, where: str) -> Any:
    fields: Dict[str, Any] = entry if isinstance(entry, dict) else {}
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
        raise AdapterRefused("tensor {!r} has another size than its shape says".format(name), where)
    return dtype, shape, offsets[0], offsets[1]


def _unfit(name: str, where: str) -> AdapterRefused:
    return AdapterRefused("tensor {!r} is not a float32 or float16 vector or matrix".format(name), where)


def _array(data: bytes, first: int, dtype: str, shape: Any) -> Any:
    import numpy

    count = 1
    for extent in shape:
        count *= extent
    array = numpy.frombuffer(data, dtype=dtype, count=count, offset=first).reshape(shape)
    return array.astype(numpy.float32, copy=False)
