"""The walk over an ONNX graph: what its file holds, as strictly as protobuf allows, without the onnx library.

Every field of every message is looked up in the table of onnx.proto3 (IR version 11, `_MESSAGES`). A field that stands
there is read as protobuf reads it: a repeated number packed or one by one, an embedded message as often as it comes
(each part of a merged message is walked, so what is refused in the whole is refused in a part). A form that protobuf
reads and a parser might read otherwise is refused: unknown fields and groups, known fields of another wire type, keys
of more than five bytes or 32 bits, lengths beyond the message around them, texts that are not UTF-8 (ONNX Runtime loads
them, and cannot say its inputs' names then). Exporters write none of these.

Refused by content: a tensor whose values lie in another file, and the operator EPContext, which names a file of a
compiled graph. All blobs of the store lie in one folder, so either could read another package's weights, and what runs
would not be what the manifest's digests cover.

Counted while it walks: a node of two bytes becomes an object of some hundred bytes in the runtime, so a graph's cost is
its count of messages and fields, not its size. Not checked here: types, shapes, operators; the runtime does that, in a
process whose memory is limited.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from edge_agent.base import limits
from edge_agent.base.errors import PackageError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# What a field may be: a number, a text in UTF-8, bytes, repeated numbers (packed or not) of each width; else the name
# of a message of this table.
_WIRES: Final[Mapping[str, tuple[int, ...]]] = {
    "int": (_VARINT,),
    "text": (_BYTES,),
    "bytes": (_BYTES,),
    "float": (_FIXED32,),
    "ints": (_VARINT, _BYTES),
    "floats": (_FIXED32, _BYTES),
    "doubles": (_FIXED64, _BYTES),
}


def _message(**fields: tuple[int, ...]) -> Mapping[int, str]:
    """A message of the table: field number -> form, from form = field numbers."""
    return {number: form for form, numbers in fields.items() for number in numbers}


_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": _message(
        int=(1, 5), text=(2, 3, 4, 6), graph=(7,), opset=(8,), entry=(14,), training=(20,), function=(25,)
    ),
    "training": _message(graph=(1, 2), entry=(3, 4)),
    "function": _message(
        text=(1, 4, 5, 6, 8, 10, 13), node=(7,), opset=(9,), attribute=(11,), value=(12,), entry=(14,)
    ),
    "graph": _message(
        node=(1,), text=(2, 10), tensor=(5,), value=(11, 12, 13), annotation=(14,), sparse_tensor=(15,), entry=(16,)
    ),
    "node": _message(text=(1, 2, 3, 4, 6, 7, 8), attribute=(5,), entry=(9,)),
    "attribute": _message(
        text=(1, 13, 21),
        bytes=(4, 9),
        int=(3, 20),
        ints=(8,),
        float=(2,),
        floats=(7,),
        tensor=(5, 10),
        graph=(6, 11),
        type=(14, 15),
        sparse_tensor=(22, 23),
    ),
    "sparse_tensor": _message(tensor=(1, 2), ints=(3,)),
    "tensor": _message(
        int=(2, 14),
        ints=(1, 5, 7, 11),
        segment=(3,),
        floats=(4,),
        doubles=(10,),
        text=(8, 12),
        bytes=(6, 9),
        entry=(13, 16),
    ),
    "segment": _message(int=(1, 2)),
    "value": _message(text=(1, 3), type=(2,), entry=(4,)),
    "type": _message(tensor_type=(1, 8), inner_type=(4, 9), map_type=(5,), text=(6,)),
    "tensor_type": _message(int=(1,), shape=(2,)),
    "inner_type": _message(type=(1,)),
    "map_type": _message(int=(1,), type=(2,)),
    "shape": _message(dimension=(1,)),
    "dimension": _message(int=(1,), text=(2, 3)),
    "annotation": _message(text=(1,), entry=(2,)),
    "opset": _message(text=(1,), int=(2,)),
    "entry": _message(text=(1, 2)),
}
_EXTERNAL_DATA, _DATA_LOCATION, _OP_TYPE = 13, 14, 4
_MODEL_VERSION, _MODEL_GRAPH, _MODEL_METADATA = 1, 7, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
# Packed numbers: the bytes of one of fixed width; a varint has ten bytes at most.
_WIDTHS: Final = {"floats": 4, "doubles": 8}
_TOO_LONG = re.compile(rb"[\x80-\xff]{10}")
_EP_CONTEXT = b"EPContext"
# protobuf gives up at 100 messages inside of each other.
_DEPTH = 64


class _Open(NamedTuple):
    """A message that is being walked: its name in the table, where it goes on and where it ends."""

    kind: str
    at: int
    end: int


def check_graph(file: BinaryIO, size: int, name: str) -> None:
    """Raises PackageError that names `name` when the open file of `size` bytes is no ONNX model, has parts in another
    file, or has more parts than the limits allow."""
    if not size:
        raise PackageError("it holds no ONNX graph", name)
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        _Walk(data, name).walk()


def graph_metadata(path: Path) -> dict[str, str]:
    """The texts of a graph's `metadata_props` by key, read without the onnx library. Raises PackageError, OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise PackageError("it holds no ONNX graph", str(path))
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            return _Walk(data, str(path)).metadata()


class _Walk:
    """One walk, depth first, so that it holds one place for each level of nesting and nothing for each field."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._counts = {"node": 0, "tensor": 0}
        self._most = {"node": limits.GRAPH_NODES, "tensor": limits.GRAPH_TENSORS}

    def walk(self) -> None:
        """Raises PackageError."""
        stack, fields, top = [_Open("model", 0, len(self._data))], 0, set()
        while stack:
            kind, at, end = stack.pop()
            while at < end:
                fields += 1
                if fields > limits.GRAPH_FIELDS:
                    raise self._refused(f"its graph has more than {limits.GRAPH_FIELDS:,} fields")
                number, form, value, behind = self._field(kind, at, end)
                if kind == "model":
                    top.add(number)
                at = behind
                if form in _MESSAGES:
                    self._count(form)
                    stack += (_Open(kind, at, end), _Open(form, behind - value, behind))
                    break
            if len(stack) > _DEPTH:
                raise self._refused(f"its graph nests deeper than {_DEPTH} levels")
        if not {_MODEL_VERSION, _MODEL_GRAPH} <= top:
            raise self._refused("it holds no ONNX graph")

    def metadata(self) -> dict[str, str]:
        """The fields of the model itself; what lies inside of others is passed over. Raises PackageError."""
        found: dict[str, str] = {}
        at = 0
        while at < len(self._data):
            number, _, value, behind = self._field("model", at, len(self._data))
            if number == _MODEL_METADATA:
                entry: dict[int, str] = {}
                inside = behind - value
                while inside < behind:
                    place, _, length, end = self._field("entry", inside, behind)
                    entry[place], inside = self._data[end - length : end].decode(), end
                found[entry.get(_ENTRY_KEY, "")] = entry.get(_ENTRY_VALUE, "")
            at = behind
        return found

    def _field(self, kind: str, at: int, end: int) -> tuple[int, str, int, int]:
        """(number, form, value or length in bytes, offset behind it) of the field at `at`."""
        begin = at
        key, at = self._varint(at, end, 5)
        number, wire = key >> 3, key & 7
        form = _MESSAGES[kind].get(number)
        if form is None or key >> 32 or wire not in _WIRES.get(form, (_BYTES,)):
            raise self._refused(f"byte {begin} is no field of an ONNX {kind}")
        if wire == _VARINT:
            value, at = self._varint(at, end, 10)
        elif wire == _BYTES:
            value, at = self._varint(at, end, 5)
            at += value
        else:
            value = 8 if wire == _FIXED64 else 4
            at += value
        if at > end:
            raise self._refused(f"field {number} at byte {begin} claims more bytes than its {kind} holds")
        if form == "text":
            self._check_text(at - value, at, number, kind)
        elif wire == _BYTES and value and form in ("ints", "floats", "doubles"):
            self._check_packed(form, at - value, at)
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
            raise PackageError("a tensor of the graph lies in another file", self._name, "save it in one file")
        if kind == "node" and number == _OP_TYPE and self._data[at - value : at] == _EP_CONTEXT:
            raise PackageError(
                "the graph was compiled for one accelerator (EPContext) and may lie in another file",
                self._name,
                "export it as a plain graph",
            )
        return number, form, value, at

    def _check_text(self, begin: int, end: int, number: int, kind: str) -> None:
        if end - begin > limits.GRAPH_TEXT_BYTES:
            raise self._refused(f"a text of its graph has {end - begin:,} bytes")
        try:
            self._data[begin:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._refused(f"field {number} of the {kind} at byte {begin} is not UTF-8 text") from error

    def _check_packed(self, form: str, begin: int, end: int) -> None:
        """Refuse packed numbers of which protobuf cannot read the last one, or one of more than ten bytes."""
        if form == "ints":
            sound = self._data[end - 1] < 0x80 and not _TOO_LONG.search(self._data, begin, end)
        else:
            sound = (end - begin) % _WIDTHS[form] == 0
        if not sound:
            raise self._refused(f"it is damaged: a number between the bytes {begin} and {end} does not end")

    def _varint(self, at: int, end: int, most: int) -> tuple[int, int]:
        """(value, offset behind it) of a number of at most so many bytes, seven bits in each."""
        value = 0
        for place in range(min(most, end - at)):
            byte = self._data[at + place]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, at + place + 1
        raise self._refused(f"it is damaged: the number at byte {at} does not end")

    def _count(self, kind: str) -> None:
        if kind in self._counts:
            self._counts[kind] += 1
            if self._counts[kind] > self._most[kind]:
                raise self._refused(f"its graph has more than {self._most[kind]:,} {kind}s")

    def _refused(self, what: str) -> PackageError:
        return PackageError(what, self._name, "export the graph again")
