"""JSON of a package: bounded, strict, and written in one canonical form.

Refused before anything is built from it: more bytes than the limit, deeper nesting than the limit, text that is not
UTF-8, an object with the same key twice (readers differ on which one counts), NaN and infinities, an unknown field, a
value of another type.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.units import bytes_text

T = TypeVar("T")

# The closing quote is optional: a string that never ends is one token up to the end of the data. If the quote were
# required, the search would fail there and begin anew at each quote inside, quadratic in the size of unsigned data.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON object of the format: unknown fields are an error, fields that hold their default are not written."""


def encode(value: object) -> bytes:
    """The canonical bytes of a document: keys sorted, no blanks. The same value always gives the same digest."""
    return msgspec.json.encode(value, order="sorted")


def decode(data: bytes, kind: type[T], where: str, limit_bytes: int = limits.MANIFEST_BYTES) -> T:
    """A document of type `kind`. Raises PackageError that names `where` and what is wrong."""
    check_size(len(data), limit_bytes, where)
    text = _text(data, where)
    _check_depth(data, where)
    _check_strict(text, where)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise PackageError(f"it does not follow the format: {_plain(str(error))}", where) from error
    except msgspec.DecodeError as error:
        raise PackageError(f"it is no valid JSON: {error}", where) from error
    except UnicodeDecodeError as error:
        raise PackageError("it is not UTF-8 text", where) from error


def check_size(size_bytes: int, limit_bytes: int, where: str) -> None:
    """Refuse a document above its limit before it is read."""
    if size_bytes > limit_bytes:
        raise PackageError(f"it has {bytes_text(size_bytes)}, at most {bytes_text(limit_bytes)} are allowed", where)


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a file that a person named, at most `limit_bytes`: a wrong name may be that of an image of a disk.
    Raises PackageError for a larger one, OSError."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise PackageError(f"it is larger than {bytes_text(limit_bytes)}", str(path), "name the right file")
    return data


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"it is not UTF-8 text (byte {error.start})", where) from error


def _check_depth(data: bytes, where: str) -> None:
    depth = 0
    for token in _TOKENS.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > limits.MANIFEST_DEPTH:
                raise PackageError(f"it nests deeper than {limits.MANIFEST_DEPTH} levels", where)
        elif first in b"]}":
            depth -= 1


def _check_strict(text: str, where: str) -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PackageError(f"the key {key!r} stands twice in one object", where)
            found[key] = value
        return found

    def no_number(word: str) -> NoReturn:
        raise PackageError(f"{word} is no number of JSON", where)

    try:
        json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except ValueError as error:
        raise PackageError(f"it is no valid JSON: {str(error)[:200]}", where) from error


def _plain(message: str) -> str:
    """msgspec's message with its path in our form; bounded, because it may quote the package."""
    return message.replace(" - at `$", " at `").replace("`.", "`")[:300]
