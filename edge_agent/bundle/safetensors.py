"""The header of a safetensors file: tensor names, number formats, shapes and places.

The format: 8 bytes little-endian length of a JSON header, the header {name: {dtype, shape, data_offsets}} with optional
string metadata under `__metadata__`, then the tensors' bytes. Source: safetensors README ("Format").

The one reader for host, install and worker (docs/decisions/0036). Every bound is checked before a byte is used: size of
the header, its objects and lists, counts of tensors and dimensions, plain non-negative integers, shapes that fit their
bytes, tensors that cover the data without gap or overlap, and metadata of texts alone, as the format demands. What the
library `safetensors` refuses is refused (tests/fuzz/differential_targets.py). The caller gives the bound of the header:
a package's file may hold a whole model, an adapter's is small. The tensors' values are not checked here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple, NoReturn, TypeGuard

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import jsonio

METADATA = "__metadata__"
WIDTHS: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per value of each number format."""
OF_TOKENS = "tokens"
"""The metadata `head` of an adapter's file whose head reads every token; absent: it reads the features of the text."""


class TensorPlace(NamedTuple):
    """One tensor: number format, shape, and where its bytes begin and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsHeader(NamedTuple):
    """The tensors of a file by name, in the order of their bytes, and its metadata, {} for none."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]


def read_safetensors(file: BinaryIO, size_bytes: int, name: str, header_bytes: int) -> SafetensorsHeader:
    """The checked header, of at most `header_bytes`, of an open file of `size_bytes`. Raises PackageError that names
    `name`."""
    file.seek(0)
    lead = file.read(8)
    length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size_bytes
    if length > min(header_bytes, size_bytes - 8):
        raise PackageError(f"its header claims {bytes_text(length)} of {bytes_text(size_bytes)}", name)
    raw = file.read(length)
    # A JSON header may begin with blanks; the format demands the brace first.
    if not raw.startswith(b"{"):
        raise PackageError("its header is no JSON object: this is no safetensors file", name)
    # Each tensor has an object and two lists; what has more builds objects without end before it is looked at.
    jsonio.check_nesting(raw, name, limits.MANIFEST_DEPTH, 3 * limits.WEIGHT_TENSORS + 16)
    try:
        table: dict[str, object] = json.loads(
            raw.decode("utf-8"), object_pairs_hook=lambda pairs: _once(pairs, name), parse_constant=_no_number
        )
        if b"\\" in raw:
            json.dumps(
                table, ensure_ascii=False
            ).encode()  # an escape may write half of a surrogate pair, which other readers refuse
    except (ValueError, RecursionError) as error:
        raise PackageError(f"its header is damaged: {type(error).__name__}", name) from error
    metadata = _metadata(table.pop(METADATA, None), name)
    if len(table) > limits.WEIGHT_TENSORS:
        raise PackageError(f"it has {len(table)} tensors, at most {limits.WEIGHT_TENSORS} are taken", name)
    return SafetensorsHeader(_placed(table, 8 + length, size_bytes, name), metadata)


def _no_number(word: str) -> NoReturn:
    """For NaN and infinities, which Python takes and JSON does not know."""
    raise ValueError(word)


def _metadata(found: object, name: str) -> Mapping[str, str]:
    """The metadata, a map of texts as the format demands; none for null."""
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise PackageError("its metadata is not a map of texts", name)
    return found


def _once(pairs: list[tuple[str, object]], name: str) -> dict[str, object]:
    """An object whose keys differ; readers differ on which of two counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PackageError("a name stands twice in its header", name)
    return found


def _placed(table: Mapping[str, object], data_begin: int, size_bytes: int, name: str) -> dict[str, TensorPlace]:
    """The entries by place, with offsets from the beginning of the file."""
    entries = {tensor: _entry(entry, tensor, name) for tensor, entry in table.items()}
    found: dict[str, TensorPlace] = {}
    at = 0
    for tensor, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if math.prod(entry.shape) * WIDTHS[entry.dtype] != entry.end - entry.begin:
            raise PackageError(f"tensor {tensor[:80]!r} has a shape that does not fit its bytes", name)
        if entry.begin != at:
            raise PackageError("its tensors overlap or leave a gap", name)
        found[tensor] = entry._replace(begin=data_begin + entry.begin, end=data_begin + entry.end)
        at = entry.end
    if at != size_bytes - data_begin:
        raise PackageError(f"its tensors cover {at} bytes of {size_bytes - data_begin}", name)
    return found


def _entry(entry: object, tensor: str, name: str) -> TensorPlace:
    if isinstance(entry, dict):
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if isinstance(shape, list) and len(shape) > limits.SAFETENSORS_DIMENSIONS:
            raise PackageError(f"tensor {tensor[:80]!r} has {len(shape)} dimensions", name)
        if isinstance(dtype, str) and dtype in WIDTHS and _sizes(shape) and _sizes(offsets) and len(offsets) == 2:
            return TensorPlace(dtype, tuple(shape), offsets[0], offsets[1])
    raise PackageError(f"the entry of tensor {tensor[:80]!r} is damaged", name)


def _sizes(value: object) -> TypeGuard[list[int]]:
    """A list of whole numbers within the largest blob; `type() is int` leaves out booleans."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= limits.BLOB_BYTES for item in value)
