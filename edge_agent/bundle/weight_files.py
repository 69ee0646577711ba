"""Checks of a package's weight files: the kind that the suffix says, and for an adapter what its manifest says.

`check_file` looks at the first bytes and the table of contents. Refused: a pickle, a zip, a script or a library in the
place of weights; a header that claims more than the file holds; an ONNX graph whose tensors lie in another file. All
blobs of the store lie in one folder, so such a graph could read another package's weights, and what runs would not be
what the manifest's digests cover. The ONNX graph is walked as protobuf, without the onnx library. A message that is no
protobuf ends the walk through it: the runtime refuses to parse it too. Sources: onnx.proto3 (ModelProto, IR version
10), ggml docs/gguf.md.

`check_adapter` compares base, rank, labels and number format of an adapter's file with its manifest.
`adapter.safetensors` (encoders): tensors are named by the module they adapt, `<module>.A` [d_in, rank] and `<module>.B`
[rank, d_out], plus `head.weight` [hidden, labels] and `head.bias` [labels]; the string metadata carries
{format: "edge-adapter/1", base_id, rank, ...}. `adapter.gguf` (generators): llama.cpp's own form (general.type
"adapter", adapter.type "lora"), tensors `<tensor>.lora_a` and `<tensor>.lora_b` in pairs; where it has the key
`edge.base_id`, that names its base.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle.gguf_header import GgufTable, read_table
from edge_agent.bundle.manifest import ADAPTER_FILE, ADAPTER_GGUF_FILE, AdapterConfig
from edge_agent.bundle.safetensors import read_safetensors

_SAFETENSORS_HEADER_BYTES = 16 * limits.MIB
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
# ModelProto's fields: ir_version 1, producer 2 3, domain 4, model_version 5, doc 6, graph 7, opset_import 8,
# metadata_props 14, training_info 20, functions 25, configuration 26.
_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_ONNX_ITEMS = 100_000
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
"""A graph of a language model has some ten thousand; a walk through so many takes seconds and is refused."""


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
            read_safetensors(file, size, name, _SAFETENSORS_HEADER_BYTES)
        elif name.endswith(".json") and not head.lstrip(b" \t\r\n").startswith(b"{"):
            raise PackageError("it does not begin as a JSON object", name)


def _check_onnx(file: BinaryIO, size: int, name: str) -> None:
    """Walk the top level of the protobuf: known fields only, a graph among them, lengths that end at the file's end."""
    file.seek(0)
    at, fields, items = 0, set(), 0
    while at < size and items < _ONNX_ITEMS:
        key = _read_varint(file, name)
        number, wire = key >> 3, key & 7
        if number not in _ONNX_FIELDS or wire not in (0, 2):
            raise PackageError(f"byte {at} is no field of an ONNX model", name)
        value = _read_varint(file, name)
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


def _read_varint(file: BinaryIO, name: str) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise PackageError("it is damaged: a number does not end", name)


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
    """(field number, value, 0) of numbers and (field number, begin, end) of what has a length; stops where the bytes
    are no protobuf."""
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
    """(value, offset behind it); the offset is -1 when the number does not end within its message."""
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


FORMAT = "edge-adapter/1"
GGUF_BASE_ID = "edge.base_id"
_DTYPES = {"float32": "F32", "float16": "F16"}
_GGUF_DTYPES = {"float32": "f32", "float16": "f16", "f32": "f32", "f16": "f16"}


def check_adapter(path: Path, config: AdapterConfig) -> None:
    """Raises PackageError when base, rank, labels or number format of the file are not those of the manifest."""
    where = f"adapter {config.name}"
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            _check_gguf(read_table(file, ADAPTER_GGUF_FILE), config, where)
            return
        size_bytes = os.fstat(file.fileno()).st_size
        header = read_safetensors(file, size_bytes, ADAPTER_FILE, _SAFETENSORS_HEADER_BYTES)
    metadata = header.metadata
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackageError(f"its file does not say that it is {FORMAT}", where)
    _check_base(metadata.get("base_id"), config, where)
    labels = len(config.task.labels)
    bias = header.tensors.get("head.bias")
    if labels and (bias is None or bias.shape != (labels,)):
        raise PackageError(f"its head is not for the {labels} labels of its task", where)
    for name, (dtype, shape, _, _) in header.tensors.items():
        if dtype != _DTYPES.get(config.dtype):
            raise PackageError(f"tensor {name[:80]} is {dtype}, the manifest says {config.dtype}", where)
        if name.endswith((".A", ".B")) and (len(shape) != 2 or shape[name.endswith(".A")] > config.rank):
            raise PackageError(f"tensor {name[:80]} has a rank above the manifest's {config.rank}", where)


def _check_base(said: object, config: AdapterConfig, where: str) -> None:
    if said != config.base_id:
        raise PackageError(f"its file is for base {str(said)[:19]}, the manifest says otherwise", where)


def _check_gguf(table: GgufTable, config: AdapterConfig, where: str) -> None:
    if table.text("general.type") != "adapter" or table.text("adapter.type") != "lora":
        raise PackageError("its file is a GGUF, but no LoRA adapter", where)
    if GGUF_BASE_ID in table.keys:
        _check_base(table.text(GGUF_BASE_ID), config, where)
    if table.number("adapter.lora.alpha") is None or not table.tensors:
        raise PackageError("its file lacks adapter.lora.alpha, or has no tensors", where)
    for name, tensor in table.tensors.items():
        stem, _, side = name.rpartition(".")
        other = {"lora_a": "lora_b", "lora_b": "lora_a"}.get(side)
        if other is None or f"{stem}.{other}" not in table.tensors:
            raise PackageError(f"tensor {name[:80]} is not one of a pair .lora_a, .lora_b", where)
        if len(tensor.shape) != 2 or tensor.shape[side == "lora_a"] > config.rank:
            raise PackageError(f"tensor {name[:80]} has a rank above the manifest's {config.rank}", where)
        if tensor.dtype != _GGUF_DTYPES[config.dtype]:
            raise PackageError(f"tensor {name[:80]} is {tensor.dtype}, the manifest says {config.dtype}", where)
