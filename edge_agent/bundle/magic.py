"""Is a file what its name says? A look at its head (and, where the format has one, its table), never its meaning.

Closes: a pickle, a zip, a script or a library in the place of weights; a header that claims more than the file holds.
Sources: onnx.proto3 (ModelProto), ggml docs/gguf.md, safetensors README ("Format").
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import BinaryIO, TypeGuard

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle.gguf_header import read_table
from edge_agent.bundle.onnxwalk import refuse_external

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (PyTorch checkpoints are such)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x7fELF", "a program or library"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
)
_SAFETENSORS_HEADER = 16 * limits.MIB
_SAFETENSORS_BYTES = {
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
# ModelProto's fields: ir_version 1, producer 2 3, domain 4, model_version 5, doc 6, graph 7, opset_import 8,
# metadata_props 14, training_info 20, functions 25, configuration 26.
_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_ONNX_ITEMS = 100_000


def check_file(path: Path, name: str) -> None:
    """Raises PackageError when the file at `path` is not of the kind that `name`'s suffix says."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        for magic, kind in _FOREIGN:
            if head.startswith(magic):
                raise PackageError(f"{name} is {kind}, which is never loaded", name)
        if name.endswith(".onnx"):
            _check_onnx(file, size, name)
        elif name.endswith(".gguf"):
            read_table(file, name)
        elif name.endswith(".safetensors"):
            safetensors_table(file, size, name)
        elif name.endswith(".json") and not head.lstrip(b" \t\r\n").startswith(b"{"):
            raise PackageError("it does not begin as a JSON object", name)


def safetensors_table(file: BinaryIO, size: int, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> (dtype, shape) of a safetensors file whose table fits its bytes exactly. Raises PackageError."""
    file.seek(0)
    lead = file.read(8)
    length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
    if length > min(_SAFETENSORS_HEADER, size - 8):
        raise PackageError(f"its header claims {bytes_text(length)} of {bytes_text(size)}", name)
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise PackageError("its header is no JSON object: this is no safetensors file", name)
    try:
        table = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"its header is damaged: {type(error).__name__}", name) from error
    return _tensors(table, size - 8 - length, name)


def _tensors(table: dict[str, object], data_bytes: int, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    found, spans = {}, []
    for tensor, entry in table.items():
        if tensor == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(entry, tensor, name)
        count = 1
        for extent in shape:
            count *= extent
        if count * _SAFETENSORS_BYTES[dtype] != end - begin:
            raise PackageError(f"tensor {tensor[:80]!r} has a shape that does not fit its bytes", name)
        found[tensor] = (dtype, shape)
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise PackageError("its tensors overlap or leave a gap", name)
        at = end
    if at != data_bytes:
        raise PackageError(f"its tensors cover {at} bytes of {data_bytes}", name)
    return found


def _entry(entry: object, tensor: str, name: str) -> tuple[str, tuple[int, ...], int, int]:
    if isinstance(entry, dict):
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if dtype in _SAFETENSORS_BYTES and _sizes(shape) and _sizes(offsets) and len(offsets) == 2:
            return dtype, tuple(shape), offsets[0], offsets[1]
    raise PackageError(f"the entry of tensor {tensor[:80]!r} is damaged", name)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= limits.BLOB_BYTES for item in value)


def _check_onnx(file: BinaryIO, size: int, name: str) -> None:
    """Walk the top level of the protobuf: known fields only, a graph among them, lengths that end at the file's end."""
    file.seek(0)
    at, fields, items = 0, set(), 0
    while at < size and items < _ONNX_ITEMS:
        key = _varint(file, name)
        number, wire = key >> 3, key & 7
        if number not in _ONNX_FIELDS or wire not in (0, 2):
            raise PackageError(f"byte {at} is no field of an ONNX model", name)
        value = _varint(file, name)
        if wire == 2:
            if value > size - file.tell():
                raise PackageError(f"field {number} claims {bytes_text(value)}, more than the file holds", name)
            file.seek(value, os.SEEK_CUR)
        fields.add(number)
        at = file.tell()
        items += 1
    if not {1, 7} <= fields or at != size:
        raise PackageError("it holds no ONNX graph", name)
    refuse_external(file, size, name)


def _varint(file: BinaryIO, name: str) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise PackageError("it is damaged: a number does not end", name)
