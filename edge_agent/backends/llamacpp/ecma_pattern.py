r"""A `pattern` of JSON Schema, written in ECMA-262's regular expressions, in the words of Rust's. Pure.

They read some signs differently: `.` and `\s` mean other characters, `[` and `&&` inside of brackets are letters in one
and operators in the other, and a brace that repeats nothing is an error in one. Every literal character is put out as
its number, so that none can mean something else.

Where a class holds every control character and no `"`, or no backslash, llguidance lets both through as escapes in the
JSON text (`[^"]` took `\\"`). It does so only where U+0000 is among them: such classes lose that character.

A file of its own because it is one translation, tested alone against Python's `re`.
"""

from __future__ import annotations

import re

CHARS = 4096
_CLASSES = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r"\t\n\x{b}\x{c}\r\x{20}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}",
}
_DOT = r"[^\n\r\x{2028}\x{2029}]"
_NAMED = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_MARKS = frozenset({0, 0x22, 0x5C})
_UNKNOWN = -1
_NOT_NUL = r"[^\x{0}]"
_COUNT = re.compile(r"\{([0-9]+)(?:,([0-9]*))?\}")
_GROUP = re.compile(r"\?(?::|i:|i\)|<[A-Za-z_][A-Za-z0-9_]*>|P<[A-Za-z_][A-Za-z0-9_]*>)")
_PROPERTY = re.compile(r"\{([A-Za-z0-9_=]+)\}")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")


class PatternRefused(ValueError):
    """A pattern that is not followed, with what in it is not."""


def rust_pattern(text: str) -> str:
    """The pattern for Rust's `regex`. Raises PatternRefused with the place of what has no equal there."""
    if len(text) > CHARS:
        raise PatternRefused(f"has {len(text)} characters; at most {CHARS} are followed")
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._groups: list[int] = []

    def read(self) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            found.append(self._next())
        if self._groups:
            self._at = self._groups[-1]
            raise self._refused("has ( without )")
        return "".join(found)

    def _next(self) -> str:
        sign = self._take()
        if sign == "\\":
            return self._outside(self._escape())
        if sign == "[":
            return self._class()
        if sign == ".":
            return _DOT
        if sign == "(":
            return self._group()
        if sign == ")":
            if not self._groups:
                raise self._refused("has ) without (")
            self._groups.pop()
            return sign
        if sign == "{":
            return self._count()
        if sign in "*+?":
            self._skip_lazy()
            return sign
        return sign if sign in "^$|" else self._outside(self._joined(ord(sign)))

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise self._refused("ends early")
        self._at += 1
        return self._text[self._at - 1]

    def _refused(self, why: str) -> PatternRefused:
        return PatternRefused(f"{why}, at character {self._at}")

    def _skip_lazy(self) -> None:
        # Which of several matches is found makes no difference to whether there is one.
        if self._text[self._at : self._at + 1] == "?":
            self._at += 1
        if self._text[self._at : self._at + 1] in ("*", "+", "?"):
            raise self._refused("repeats a repetition")

    def _count(self) -> str:
        found = _COUNT.match(self._text, self._at - 1)
        if found is None:
            if re.match(r"\{,[0-9]+\}", self._text[self._at - 1 :]):
                raise self._refused("has {,n}, which some read as text and some as a count: write {0,n}")
            return _literal(ord("{"))
        self._at = found.end()
        self._skip_lazy()
        return found[0]

    def _group(self) -> str:
        self._groups.append(self._at)
        if self._text[self._at : self._at + 1] != "?":
            return "(?:"
        found = _GROUP.match(self._text, self._at)
        if found is None:
            raise self._refused("looks ahead or behind, or sets a mode, which is not followed")
        self._at = found.end()
        if found[0] == "?i)":
            self._groups.pop()
        return f"({found[0]}" if found[0] in ("?:", "?i:", "?i)") else "(?:"

    def _escape(self) -> int | str:
        r"""A character's number, or a class as it stands inside of brackets, for `\D` and its like with a leading ^."""
        sign = self._take()
        if sign in "dws":
            return _CLASSES[sign]
        if sign in "DWS":
            return "^" + _CLASSES[sign.lower()]
        if sign in "pP":
            found = _PROPERTY.match(self._text, self._at)
            if found is None:
                raise self._refused(f"has \\{sign} without a property")
            self._at = found.end()
            return f"\\{sign}{{{found[1]}}}"
        if sign in "xu":
            found = _HEX.match(self._text, self._at - 1)
            if found is None:
                raise self._refused(f"has \\{sign} without a number")
            self._at = found.end()
            return self._joined(int(found[1] or found[2] or found[3], 16))
        return self._named(sign)

    def _named(self, sign: str) -> int:
        if sign in _NAMED:
            return _NAMED[sign]
        if sign == "c" and re.match("[A-Za-z]", self._text[self._at : self._at + 1]):
            return ord(self._take()) % 32
        if sign == "0" and not re.match("[0-9]", self._text[self._at : self._at + 1]):
            return 0
        if sign.isascii() and sign.isalnum():
            kind = "a word boundary" if sign in "bB" else f"\\{sign}"
            raise self._refused(f"has {kind}, which is not followed")
        return ord(sign)

    def _joined(self, number: int) -> int:
        """The character of a number, or of it and the following one where they are a surrogate pair."""
        if number > 0x10FFFF:
            raise self._refused("has a number that is no character")
        if 0xD800 <= number < 0xE000:
            found = re.compile(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})").match(self._text, self._at)
            if number >= 0xDC00 or found is None:
                raise self._refused("has half of a surrogate pair")
            self._at = found.end()
            return 0x10000 + ((number - 0xD800) << 10) + int(found[1], 16) - 0xDC00
        return number

    def _outside(self, found: int | str) -> str:
        if found == 0:
            raise self._refused("has U+0000, which is not followed")
        if isinstance(found, int):
            return _literal(found)
        return f"[{found}&&{_NOT_NUL}]" if found.startswith(("\\p", "\\P")) else f"[{found}]"

    def _class(self) -> str:
        negated = self._text[self._at : self._at + 1] == "^"
        self._at += negated
        parts: list[str] = []
        held: set[int] = set()
        while (sign := self._take()) != "]":
            part, marks = self._range(self._escape() if sign == "\\" else self._joined(ord(sign)))
            parts.append(part)
            held |= marks
        if not parts:
            if negated:
                return "(?s:.)"
            raise self._refused("has [], which no character fits")
        body = "".join(parts)
        if negated:
            return f"[^{body}{_literal(0)}]" if 0 not in held and held else f"[^{body}]"
        return f"[{body}&&{_NOT_NUL}]" if held & {0, _UNKNOWN} and not held >= _MARKS else f"[{body}]"

    def _range(self, first: int | str) -> tuple[str, set[int]]:
        """A part of a class, and which of `_MARKS` it holds; `_UNKNOWN` of a property."""
        follows = self._text[self._at : self._at + 2]
        if isinstance(first, str):
            if first.startswith("^"):
                return f"[{first}]", set(_MARKS)
            return first, {_UNKNOWN} if first.startswith(("\\p", "\\P")) else set()
        if len(follows) < 2 or follows[0] != "-" or follows[1] == "]":
            return _literal(first), {first} & _MARKS
        back, self._at = self._at, self._at + 1
        sign = self._take()
        last = self._escape() if sign == "\\" else self._joined(ord(sign))
        if isinstance(last, str):  # a class ends no range: the minus is a letter
            self._at = back
            return _literal(first), {first} & _MARKS
        if last < first:
            raise self._refused("has a range that goes backwards")
        return f"{_literal(first)}-{_literal(last)}", {mark for mark in _MARKS if first <= mark <= last}


def _literal(number: int) -> str:
    return chr(number) if 0x30 <= number <= 0x7A and chr(number).isalnum() else f"\\x{{{number:x}}}"
