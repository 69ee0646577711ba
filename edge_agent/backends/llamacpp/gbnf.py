r"""A grammar of llama.cpp (GBNF) in the words that llguidance's converter reads as llama.cpp does. Pure.

The converter drops zeros of `\u0041`, copies brackets into a Rust class, where `--`, `&&` and `~~` are operations, and
lets rules fall together whose names differ in case or in `-` and `_`. So characters are put out as they are or as
`\xHH`, and rules get names that are numbers.

A file of its own because it is one translation, tested without llguidance.
"""

from __future__ import annotations

import re
from typing import Final

LARK: Final = re.compile(r"(?m)^\s*(?:%llguidance\b|start\s*:(?!:=))")
"""What tells a grammar of llguidance (Lark) from one of llama.cpp."""
_SETTINGS = re.compile(r"(?m)^\s*%llguidance\b[ \t]*(.*)$")
_NAME = re.compile(r"[\w-]+")
_COUNT = re.compile(r"\{[ \t\r\n]*([0-9]*)[ \t\r\n]*(,?)[ \t\r\n]*([0-9]*)[ \t\r\n]*\}")
_COMMENT = re.compile(r"#[^\r\n]*")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})")
_NAMED: Final = {"t": 9, "n": 10, "r": 13, '"': 0x22, "\\": 0x5C, "[": 0x5B, "]": 0x5D}
ANY: Final = "[\\x00-\U0010ffff]"
"""Any character, line breaks too, as `.` means in GBNF."""


class GbnfRefused(ValueError):
    """A grammar that cannot be followed, with what in it and where."""


def lark_without_settings(text: str) -> str:
    """A grammar of llguidance without the line of its settings, which belong to this process. Raises GbnfRefused."""
    for found in _SETTINGS.finditer(text):
        if found[1].replace(" ", "") not in ("", "{}"):
            line = text.count("\n", 0, found.start(1)) + 1
            raise GbnfRefused(f"the settings behind %llguidance are not followed, in line {line}: leave them out")
    return _SETTINGS.sub("", text)


def plain_gbnf(text: str) -> str:
    """The grammar with every character written plainly and rules named by number. Raises GbnfRefused."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._names: dict[str, str] = {"root": "root"}
        self._used: dict[str, int] = {}
        self._defined: set[str] = set()

    def read(self) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            found.append(self._next())
        for name, at in self._used.items():
            if self._defined and name not in self._defined:
                raise GbnfRefused(f"the rule {name} is not defined, in line {self._line(at)}")
        return "".join(found)

    def _next(self) -> str:
        sign = self._text[self._at]
        if sign == '"':
            return self._literal()
        if sign == "[":
            return self._class()
        if sign == "#":
            self._at = _COMMENT.match(self._text, self._at).end()  # type: ignore[union-attr]
            return ""
        if sign == "{":
            return self._count()
        if name := _NAME.match(self._text, self._at):
            return self._name(name[0])
        self._at += 1
        return ANY if sign == "." else sign

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _refused(self, why: str) -> GbnfRefused:
        return GbnfRefused(f"{why}, in line {self._line(self._at)}")

    def _count(self) -> str:
        found = _COUNT.match(self._text, self._at)
        if found is None or not (found[1] or found[3]):
            raise self._refused("it has a brace that counts nothing")
        self._at = found.end()
        return f"{{{found[1] or '0'}{found[2]}{found[3]}}}"

    def _name(self, name: str) -> str:
        begun, self._at = self._at, self._at + len(name)
        if re.compile(r"[ \t]*::=").match(self._text, self._at):
            self._defined.add(name)
        else:
            self._used.setdefault(name, begun)
        return self._names.setdefault(name, f"r{len(self._names)}")

    def _character(self, inside: str) -> tuple[int, bool]:
        """(number, whether it was escaped) of the next character; `inside`: of what."""
        if self._at >= len(self._text):
            raise self._refused(f"{inside} has no end")
        sign = self._text[self._at]
        self._at += 1
        if sign != "\\":
            return self._valid(ord(sign)), False
        if found := _HEX.match(self._text, self._at):
            self._at = found.end()
            return self._valid(int(found[1] or found[2] or found[3], 16)), True
        sign = self._text[self._at : self._at + 1]
        if sign not in _NAMED or not sign:
            raise self._refused(f"{inside} has \\{sign}, which is no escape")
        self._at += 1
        return _NAMED[sign], True

    def _valid(self, number: int) -> int:
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise self._refused(f"the number {number:x} is no character")
        return number

    def _literal(self) -> str:
        self._at += 1
        found: list[str] = []
        while (one := self._character("a text in quotes")) != (0x22, False):
            found.append(_plain(one[0], r" !#$%&'()*+,-./:;<=>?@[]^_`{|}~"))
        return f'"{"".join(found)}"'

    def _class(self) -> str:
        self._at += 1
        negated = self._text[self._at : self._at + 1] == "^"
        self._at += negated
        found: list[str] = []
        while (one := self._character("a list in brackets")) != (0x5D, False):
            first = last = one[0]
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                last = self._character("a list in brackets")[0]
                if last < first:
                    raise self._refused("a list in brackets has a range that goes backwards")
            found.append(_plain(first) if first == last else f"{_plain(first)}-{_plain(last)}")
        if not found:
            raise self._refused("a list in brackets is empty")
        return f"[{'^' if negated else ''}{''.join(found)}]"


def _plain(number: int, kept: str = "") -> str:
    sign = chr(number)
    return sign if number > 0x9F or sign in kept or (sign.isascii() and sign.isalnum()) else f"\\x{number:02x}"
