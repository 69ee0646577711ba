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
from edge_agent.base.errors import PackageError, brief
from edge_agent.base.named_file import open_named
from edge_agent.base.units import bytes_text

T = TypeVar("T")

# What a string may hold, removed in two passes of simple patterns. One pattern for a string with its escapes keeps 128
# bytes of state for each character: 31 MiB for an unsigned statement. The closing quote is optional: if it were
# required, the search in a string that never ends would begin anew at each quote, quadratic in the size.
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"?')
_NEITHER = bytes(set(range(256)) - set(b'[]{}"'))


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON object of the format: unknown fields are an error, fields that hold their default are not written."""


def encode(value: object) -> bytes:
    """The canonical bytes of a document: keys sorted, no blanks. The same value always gives the same digest."""
    return msgspec.json.encode(value, order="sorted")


def decode(
    data: bytes, kind: type[T], where: str, limit_bytes: int = limits.MANIFEST_BYTES, parts: int | None = None
) -> T:
    """A document of type `kind`. Raises PackageError that names `where` and what is wrong. One with the limit of a
    statement, which is read before its signature is known, may have few objects and lists, unless `parts` says how
    many."""
    check_size(len(data), limit_bytes, where)
    text = _text(data, where)
    if parts is None:
        parts = limits.STATEMENT_PARTS if limit_bytes <= limits.STATEMENT_BYTES else limits.MANIFEST_PARTS
    check_nesting(data, where, limits.MANIFEST_DEPTH, parts)
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
    with open_named(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise PackageError(f"it is larger than {bytes_text(limit_bytes)}", str(path), "name the right file")
    return data


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"it is not UTF-8 text (byte {error.start})", where) from error


def check_nesting(data: bytes, where: str, depth: int, parts: int) -> None:
    """Refuse JSON that nests deeper than `depth`, or has more objects and lists than `parts`: an empty one of two bytes
    is an object of 64. Raises PackageError. Builds nothing of it."""
    # Two quotes that are neighbours then are a string without brackets, or two borders: removed, they change nothing.
    marks = _ESCAPE.sub(b"", data).translate(None, _NEITHER).replace(b'""', b"")
    brackets = _STRING.sub(b"", marks)
    if brackets.count(b"[") + brackets.count(b"{") > parts:
        raise PackageError(f"it has more than {parts:,} objects and lists", where)
    level = 0
    for bracket in brackets:
        level += 1 if bracket in b"[{" else -1
        if level > depth:
            raise PackageError(f"it nests deeper than {depth} levels", where)


def _check_strict(text: str, where: str) -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PackageError(f"the key {brief(key)} stands twice in one object", where)
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
