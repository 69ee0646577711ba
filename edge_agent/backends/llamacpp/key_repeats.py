"""Which tokens would repeat a name in a JSON object. Pure.

A grammar cannot count names: {"a":1,"a":2} fits every schema that allows further properties, and readers differ in what
they make of it. So the text is followed token by token, and the tokens that would end a name which its object has
already are taken out of the mask.

A file of its own because it is pure, and the only part that reads JSON as it is written.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

_QUOTE, _BACKSLASH = 0x22, 0x5C
_OPENS_NAME = re.compile(rb'"[^"\\]*"[ \n\r\t]*:|[{,][ \n\r\t]*"[^"\\]*"')
_NAME = re.compile(rb'"([^"\\]*")')
_LEADS: Final = (b"", b" ", b"\n")


class Repeated(ValueError):
    """A text that names something twice in one object."""


class JsonText(NamedTuple):
    """A beginning of a JSON text. `objects`: for each open bracket the names so far (quoted, as written), None for a
    list; `text`: what a string that is not closed yet holds, None outside; `named`: whether that string is a name, or
    outside of one, whether a name may come next."""

    objects: tuple[frozenset[bytes] | None, ...] = ()
    text: bytes | None = None
    named: bool = False

    def after(self, data: bytes) -> JsonText:
        """The text with these bytes behind it. Raises Repeated."""
        objects, begun, named = self
        if begun is not None and _QUOTE not in data and _BACKSLASH not in data:
            return JsonText(objects, begun + data, named)
        at = 0
        while at < len(data):
            if begun is not None:
                stop = _string_end(begun, data, at)
                begun += data[at : stop + 1]
                at = stop + 1
                if stop < len(data):
                    if named and objects and (names := objects[-1]) is not None:
                        if begun in names:
                            raise Repeated(f"the name {begun[:-1].decode('utf-8', 'replace')!r} twice")
                        objects = (*objects[:-1], names | {begun})
                    begun, named = None, False
                continue
            sign = data[at]
            at += 1
            if sign == _QUOTE:
                begun = b""
            elif sign == 0x7B:
                objects, named = (*objects, frozenset()), True
            elif sign == 0x5B:
                objects, named = (*objects, None), False
            elif sign in b"}]":
                objects, named = objects[:-1], False
            elif sign == 0x2C:
                named = bool(objects) and objects[-1] is not None
        return JsonText(objects, begun, named)

    @property
    def names(self) -> frozenset[bytes]:
        """The names of the innermost object so far, each with its closing quote."""
        return (self.objects[-1] if self.objects else None) or frozenset()


def _string_end(text: bytes, data: bytes, at: int) -> int:
    """Where the closing quote is, or the length of `data`."""
    escaped = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
    while at < len(data):
        if escaped:
            escaped = False
        elif data[at] == _BACKSLASH:
            escaped = True
        elif data[at] == _QUOTE:
            return at
        at += 1
    return at


class NameGuard:
    """The tokens to take out of a mask, by the vocabulary. `tokens`: the bytes of each; empty ones are never asked."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens
        self._sorted = array("I", sorted(range(len(tokens)), key=tokens.__getitem__))
        self._unicode = [token for token, data in enumerate(tokens) if b"\\u" in data]
        self._whole: dict[bytes, list[int]] = {}
        self._doubled: list[int] = []
        self._held: tuple[frozenset[bytes], list[int]] = (frozenset(), self._doubled)
        for token, data in enumerate(tokens):
            if _OPENS_NAME.search(data):
                self._note_names(token, _NAME.findall(data))

    def barred(self, so_far: JsonText) -> list[int]:
        r"""Tokens that would end a name that is there already, or write a name with \u, in which one name has several
        spellings."""
        names, begun = so_far.names, so_far.text
        if not so_far.named:
            return self._with_names(so_far, names)
        if begun is None:
            found = self._with_names(so_far, names)
            for name in names:
                for lead in _LEADS:
                    found += self._beginning(lead + b'"' + name)
            return found
        found = list(self._unicode)
        if (len(begun) - len(begun.rstrip(b"\\"))) % 2:
            found += self._beginning(b"u")
        for name in names:
            if name.startswith(begun):
                found += self._beginning(name[len(begun) :])
        return found

    def _note_names(self, token: int, names: list[bytes]) -> None:
        for name in set(names):
            self._whole.setdefault(name, []).append(token)
        if len(set(names)) < len(names):
            self._doubled.append(token)

    def _with_names(self, so_far: JsonText, names: frozenset[bytes]) -> list[int]:
        """Tokens that hold a whole name, perhaps behind the end of a value, and repeat it."""
        if names is not self._held[0]:  # a value's tokens have the same names before them
            self._held = (names, [*{token for name in names for token in self._whole.get(name, ())}, *self._doubled])
        asked = self._held[1]
        return [token for token in dict.fromkeys(asked) if self._repeats(so_far, token)] if asked else []

    def _repeats(self, text: JsonText, token: int) -> bool:
        try:
            text.after(self._tokens[token])
        except Repeated:
            return True
        return False

    def _beginning(self, data: bytes) -> list[int]:
        """Tokens that begin with these bytes."""
        found: list[int] = []
        at = bisect_left(self._sorted, data, key=self._tokens.__getitem__)
        while at < len(self._sorted) and self._tokens[self._sorted[at]].startswith(data):
            found.append(self._sorted[at])
            at += 1
        return found
