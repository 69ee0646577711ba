"""The header of a GGUF file: its keys and tensors, bounded and checked against the size of the file, and the model
that they describe. The one reader for host, install, daemon and worker.

Values of arrays are kept only where they are short lists of numbers (heads per layer); of vocabularies the count is
enough. Weights are not read. Source: ggml docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle.gguf_memory import GgufHeader

MAGIC = b"GGUF"
ALIGNMENT = 32
KEY_BYTES = 255
# ggml keeps names in 64 bytes with their end (GGML_MAX_NAME), and refuses longer ones.
NAME_BYTES = 63
ALIGNMENT_KEY = "general.alignment"
KEPT_ITEMS = 1024
DIMENSIONS_MAX = 4

_SCALARS: Final[Mapping[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32, _STRING, _ARRAY = 4, 8, 9

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    20: ("iq4_nl", 32, 18),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    26: ("i32", 1, 4),
    30: ("bf16", 1, 2),
}
"""ggml's type number -> name, values per block, bytes per block (ggml.h, ggml-common.h)."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array by its length; `values` only where it is a short list of numbers."""

    count: int
    values: tuple[float, ...] | None = None


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: ggml's order of dimensions (the innermost first), its number format, its bytes."""

    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufTable:
    """Keys and tensors of a GGUF file."""

    keys: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def text(self, key: str) -> str | None:
        """A text by its key, None where there is none."""
        found = self.keys.get(key)
        return found if isinstance(found, str) else None

    def number(self, key: str) -> float | None:
        """A number by its key, None where there is none."""
        found = self.keys.get(key)
        return found if isinstance(found, (int, float)) else None


def read_table(file: BinaryIO, name: str, size_bytes: int | None = None) -> GgufTable:
    """Keys and tensors of an open file of `size_bytes` (None: as the file system says).

    Raises PackageError that names `name` for one that is cut or damaged.
    """
    size = os.fstat(file.fileno()).st_size if size_bytes is None else size_bytes
    file.seek(0)
    cursor = _Cursor(file, size, name)
    if size < 16 or cursor.take(4) != MAGIC:
        raise PackageError("it does not begin with GGUF", name)
    version, tensors = int(cursor.number(4)), cursor.length()
    keys = cursor.length() if size >= 24 else limits.GGUF_KEYS + 1
    if version not in (2, 3) or tensors * 32 > size or tensors > limits.WEIGHT_TENSORS or keys > limits.GGUF_KEYS:
        raise PackageError(
            f"its GGUF header is damaged (version {version}, {tensors} tensors, {keys} keys)", name, "copy it again"
        )
    found = _keys(cursor, keys)
    alignment = found.get(ALIGNMENT_KEY, ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 4096 or alignment & (alignment - 1):
        raise PackageError(f"its alignment is {alignment!r}", name)
    return GgufTable(found, _tensors(cursor, tensors, alignment))


class _Cursor:
    """Reads forward through a file of known size; a read beyond its end is an error."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file = file
        self._left = size
        self.size = size
        self.name = name
        self._items = limits.GGUF_ITEMS
        self._kept = limits.GGUF_KEPT_ITEMS
        self._text_bytes = limits.GGUF_TEXTS_BYTES

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self.size - self._left

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._spend(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self._spend(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, kind: int) -> int | float:
        """A scalar of a GGUF type."""
        form = _SCALARS[kind]
        value: int | float = form.unpack(self.take(form.size))[0]
        return value

    def length(self) -> int:
        """A count of 64 bits."""
        return int(self.number(10))

    def text(self, limit_bytes: int) -> str:
        """A text of at most so many bytes."""
        length = self.length()
        if length > limit_bytes:
            raise self.damaged(f"a text of {bytes_text(length)}, at most {bytes_text(limit_bytes)} are taken")
        self._text_bytes -= length
        if self._text_bytes < 0:
            raise self.damaged(f"more than {bytes_text(limits.GGUF_TEXTS_BYTES)} of texts")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text that is not UTF-8") from error

    def name_text(self, limit_bytes: int) -> str:
        """A name of a key or a tensor. llama.cpp ends its process at an empty key, and a tensor's name at a NUL."""
        found = self.text(limit_bytes)
        if not found or "\0" in found:
            raise self.damaged("a name that is empty or holds NUL")
        return found

    def count_items(self, count: int, kept: bool) -> None:
        """Charge the items of an array to the limits of the whole file."""
        self._items -= count
        self._kept -= count if kept else 0
        if self._items < 0 or self._kept < 0:
            raise self.damaged("more items of arrays than are taken")

    def damaged(self, what: str) -> PackageError:
        """The error for a value that the format does not allow."""
        return PackageError(f"its GGUF header is damaged: {what} before byte {self.at}", self.name, "copy it again")

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise PackageError(
                f"it is cut short: its header goes on beyond its {bytes_text(self.size)}", self.name, "copy it again"
            )
        self._left -= count


def _keys(cursor: _Cursor, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.name_text(KEY_BYTES)
        if key in found:
            raise cursor.damaged(f"the key {key[:80]!r} twice")
        kind = int(cursor.number(4))
        if key == ALIGNMENT_KEY and kind != _UINT32:
            raise cursor.damaged(f"an alignment of type {kind}")
        found[key] = _value(cursor, kind)
    return found


def _value(cursor: _Cursor, kind: int) -> Value:
    if kind in _SCALARS:
        return cursor.number(kind)
    if kind == _STRING:
        return cursor.text(limits.GGUF_TEXT_BYTES)
    if kind == _ARRAY:
        return _array(cursor)
    raise cursor.damaged(f"a value of type {kind}")


def _array(cursor: _Cursor) -> Array:
    kind, count = int(cursor.number(4)), cursor.length()
    kept = kind in _SCALARS and count <= KEPT_ITEMS
    if count > limits.GGUF_ITEMS:
        raise cursor.damaged(f"an array of {count} items")
    cursor.count_items(count, kept)
    if kind == _STRING:
        for _ in range(count):
            cursor.skip(cursor.length())
        return Array(count)
    if kind not in _SCALARS:
        raise cursor.damaged(f"an array of type {kind}")
    if kept:
        return Array(count, tuple(cursor.number(kind) for _ in range(count)))
    cursor.skip(count * _SCALARS[kind].size)
    return Array(count)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    end = 0
    for _ in range(count):
        name = cursor.name_text(NAME_BYTES)
        dimensions = int(cursor.number(4))
        if dimensions > DIMENSIONS_MAX or name in found:
            raise cursor.damaged(f"tensor {name[:80]!r} with {dimensions} dimensions, or twice")
        shape = tuple(cursor.length() for _ in range(dimensions))
        kind, offset = int(cursor.number(4)), cursor.length()
        entry = _entry(cursor, name, shape, kind)
        found[name] = entry
        # llama.cpp, too, takes tensors that lie in the order of the table, each at the next aligned place.
        if offset != -(-end // alignment) * alignment:
            raise cursor.damaged("tensors that overlap, leave a gap or are not aligned")
        end = offset + entry.size_bytes
    begin = -(-cursor.at // alignment) * alignment
    if found and begin + end > cursor.size:
        raise PackageError(
            f"it is cut short: its tensors end at byte {begin + end} of {cursor.size}", cursor.name, "copy it again"
        )
    return found


def _entry(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int) -> TensorEntry:
    if kind not in TENSOR_TYPES:
        raise cursor.damaged(f"tensor {name[:80]!r} of the unknown type {kind}")
    dtype, values, size = TENSOR_TYPES[kind]
    total = 1
    for extent in shape:
        total *= extent
    # A block of values is a part of one row: the first extent.
    if max((total, *shape)) > limits.BLOB_BYTES or (shape[0] if shape else 1) % values:
        raise cursor.damaged(f"tensor {name[:80]!r} with {total} values")
    return TensorEntry(shape, dtype, total // values * size)


NFC_KEY = "edge.tokenizer.nfc"
SPACE_PREFIX_KEY = "edge.tokenizer.space_prefix"
SPACES_BEFORE_KEY, SPACES_BEHIND_KEY = "edge.tokenizer.lstrip", "edge.tokenizer.rstrip"
"""What GGUF has no key for and a tokenizer does: see docs/bundle.md."""
SPECIAL_TOKEN_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def header_of(file: BinaryIO, name: str, size_bytes: int | None = None) -> GgufHeader:
    """The header of an open file; `size_bytes` is needed where the file is part of another one. Raises PackageError for
    a file that is damaged or no model."""
    return _header(read_table(file, name, size_bytes), name)


def read_header(path: str | Path) -> GgufHeader:
    """The header of the file at `path`. Raises PackageError for a file that is missing, cut, damaged or no model."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - Path.open costs an object where a str is given
            return header_of(file, str(path))
    except OSError as error:
        raise PackageError(str(error.strerror), str(path)) from error


def header_at(path: str) -> GgufHeader | None:
    """Like `read_header`, None where the file cannot be read. The worker that loads the file reports the reason."""
    try:
        return read_header(path)
    except PackageError:
        return None


def _header(table: GgufTable, where: str) -> GgufHeader:
    arch = table.text("general.architecture")
    if arch is None:
        raise PackageError("the key general.architecture is missing", where)
    adapter_type = table.text("adapter.type") if table.text("general.type") == "adapter" else None
    if adapter_type is not None:
        return _adapter(table, arch, adapter_type)
    blocks, embedding = _count(table, f"{arch}.block_count", where), _count(table, f"{arch}.embedding_length", where)
    if blocks > len(table.tensors):
        raise PackageError(f"{blocks} blocks cannot be made of {len(table.tensors)} tensors", where, "copy it again")
    heads = _per_block(table, f"{arch}.attention.head_count", blocks, where)
    key = f"{arch}.attention.head_count_kv"
    kv_heads = _per_block(table, key, blocks, where) if key in table.keys else heads
    width = f"{arch}.attention.key_length"
    head_dim = _count(table, width, where) if width in table.keys else max(1, embedding // max(1, *heads))
    tokens = table.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or table.text("tokenizer.ggml.model") is None:
        raise PackageError("it carries no tokenizer (tokenizer.ggml.*)", where, "convert it with its tokenizer")
    feed_forward = f"{arch}.feed_forward_length"
    return GgufHeader(
        arch=arch,
        blocks=blocks,
        heads=max(heads),
        kv_heads=max(kv_heads),
        head_dim=head_dim,
        kv_width=sum(kv_heads) * head_dim,
        embedding=embedding,
        feed_forward=max(_per_block(table, feed_forward, blocks, where)) if feed_forward in table.keys else embedding,
        vocab=tokens.count,
        context_length=_count(table, f"{arch}.context_length", where),
        tensor_bytes=table.tensor_bytes,
        file_type=_whole(table.number("general.file_type")),
        tokenizer=table.text("tokenizer.ggml.model"),
        chat_template=table.text("tokenizer.chat_template"),
        adapter_type=None,
        adapter_alpha=None,
        base_id=table.text("edge.base_id"),
        special_token_ids=_special_token_ids(table, tokens.count),
        space_prefix=_space_prefix(table),
        spares_spaces=table.text(SPACE_PREFIX_KEY) is not None,
        nfc=table.keys.get(NFC_KEY) is True,
        takes_spaces_before=_ids(table, SPACES_BEFORE_KEY, where),
        takes_spaces_behind=_ids(table, SPACES_BEHIND_KEY, where),
    )


def _adapter(table: GgufTable, arch: str, adapter_type: str) -> GgufHeader:
    return GgufHeader(
        arch=arch,
        blocks=0,
        heads=0,
        kv_heads=0,
        head_dim=0,
        kv_width=0,
        embedding=0,
        feed_forward=0,
        vocab=0,
        context_length=0,
        tensor_bytes=table.tensor_bytes,
        file_type=_whole(table.number("general.file_type")),
        tokenizer=None,
        chat_template=None,
        adapter_type=adapter_type,
        adapter_alpha=table.number("adapter.lora.alpha"),
        base_id=table.text("edge.base_id"),
    )


def _special_token_ids(table: GgufTable, vocab: int) -> dict[str, int]:
    """Ids by name; llama.cpp ignores an id outside of the vocabulary, and so does this."""
    found = {name: _whole(table.number(key)) for name, key in SPECIAL_TOKEN_KEYS.items()}
    return {name: token for name, token in found.items() if token is not None and 0 <= token < vocab}


def _space_prefix(table: GgufTable) -> str:
    """As llama.cpp: BPE over pieces ('llama') has a prefix unless the file says otherwise, byte-level BPE has none."""
    if table.keys.get("tokenizer.ggml.add_space_prefix", table.text("tokenizer.ggml.model") == "llama") is not True:
        return "never"
    return "first" if table.text(SPACE_PREFIX_KEY) == "first" else "always"


def _ids(table: GgufTable, key: str, where: str) -> frozenset[int]:
    """A short list of token ids. Raises PackageError for one that is too long to be kept."""
    found = table.keys.get(key)
    if not isinstance(found, Array):
        return frozenset()
    if found.values is None:
        raise PackageError(f"{key} has {found.count} entries, at most {KEPT_ITEMS} are taken", where)
    return frozenset(_counted(value, key, where, 0) for value in found.values)


def _count(table: GgufTable, key: str, where: str) -> int:
    found = table.number(key)
    if found is None:
        raise PackageError(f"the key {key} is missing", where, "convert the model again")
    return _counted(found, key, where, 1)


def _counted(value: float, key: str, where: str, lowest: int) -> int:
    """A count that a file states. Raises PackageError for what is none: a fraction, NaN, infinity, less than `lowest`,
    more than any model has."""
    found = _whole(value)
    if found is None or not lowest <= found <= limits.GGUF_COUNT:
        raise PackageError(
            f"the key {key} says {value}, {lowest} to {limits.GGUF_COUNT} are possible",
            where,
            "convert the model again",
        )
    return found


def _per_block(table: GgufTable, key: str, blocks: int, where: str) -> list[int]:
    """A count that is one number for all layers, or one per layer (0 for a layer without, as of kv heads)."""
    found = table.keys.get(key)
    if isinstance(found, Array):
        if found.values is None or found.count != blocks:
            raise PackageError(f"{key} does not have {blocks} entries", where)
        return [_counted(value, key, where, 0) for value in found.values]
    return [_count(table, key, where)] * blocks


def _whole(value: float | None) -> int | None:
    """The number as an integer; None for a fraction, NaN or infinity, which have none."""
    return int(value) if value is not None and math.isfinite(value) and value == int(value) else None
