"""The settings classes as data: their fields, the kinds and rules of their values, and whether a value fits.

A rule is written beside its field as `Annotated[type, rule]` and says in words what it expects, for error messages.
"""

from __future__ import annotations

import math
import os
import re
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin


class Rule(Protocol):
    """A check of one value."""

    def accepts(self, value: Any) -> bool:
        """True when the value (already of the field's type) is allowed."""
        ...

    def expected(self) -> str:
        """What would be allowed, as the end of the sentence 'a value is needed that is ...'."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """A number from `low` to `high`, both included."""

    low: float
    high: float

    def accepts(self, value: Any) -> bool:
        """See `Rule.accepts`; NaN lies between nothing."""
        return bool(self.low <= value <= self.high)

    def expected(self) -> str:
        """See `Rule.expected`."""
        return f"from {self.low:g} to {self.high:.16g}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A text (or every text of a list) that fits `pattern` from end to end; `words` explains the pattern."""

    pattern: str
    words: str

    def accepts(self, value: Any) -> bool:
        """See `Rule.accepts`."""
        texts = (value,) if isinstance(value, str) else value
        return all(re.fullmatch(self.pattern, text) is not None for text in texts)

    def expected(self) -> str:
        """See `Rule.expected`."""
        return self.words


@dataclass(frozen=True, slots=True)
class Example:
    """A value to show in the example file for a field that is unset by default; checks nothing."""

    value: str | int | float

    def accepts(self, value: Any) -> bool:
        """Everything is allowed."""
        del value
        return True

    def expected(self) -> str:
        """See `Rule.expected`."""
        return "anything"


NAME = Matches(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit"
)
"""Names that appear as one level of a topic: devices, pools, models."""

HOST = Matches(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", "HOST or HOST:PORT")
"""Servers that are named without a scheme."""

VARIANT = Matches(
    f"{NAME.pattern}(/{NAME.pattern})?",
    "a number format such as 'int8', or runtime and format such as 'onnx/int8', as `edge-agent models` shows them",
)
"""Words for variants of a model."""


class Unfit(ValueError):
    """A value that a field cannot take; the text says what would be expected."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field. `kind`: bool, int, float, str, Path, tuple (of texts), the allowed words, or a settings class."""

    name: str
    kind: Any
    optional: bool
    rules: tuple[Rule, ...]

    @property
    def is_section(self) -> bool:
        """True when the field holds a nested settings class."""
        return is_dataclass(self.kind)

    @property
    def example(self) -> str | int | float | None:
        """The value that the example file shows for a field that is unset by default."""
        return next((rule.value for rule in self.rules if isinstance(rule, Example)), None)

    def expected(self) -> str:
        """What the field takes, in words."""
        if isinstance(self.kind, tuple):
            return "one of " + ", ".join(repr(word) for word in self.kind)
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text",
            Path: "a path",
            tuple: "a list of texts",
        }[self.kind]
        bounds = [rule.expected() for rule in self.rules if not isinstance(rule, Example)]
        return f"{words}: {', '.join(bounds)}" if bounds else words

    def checked(self, raw: Any, folder: Path) -> Any:
        """`raw` as the field's type, a relative path taken from `folder`. Raises Unfit saying what is expected."""
        value = self._typed(raw, folder)
        if not all(rule.accepts(value) for rule in self.rules):
            raise Unfit(self.expected())
        return value

    def _typed(self, raw: Any, folder: Path) -> Any:
        if isinstance(self.kind, tuple):
            fits = isinstance(raw, str) and raw in self.kind
        elif self.kind is bool:
            fits = isinstance(raw, bool)
        elif self.kind in (int, float):
            fits = isinstance(raw, self.kind if self.kind is int else (int, float)) and not isinstance(raw, bool)
            raw = _as_float(raw) if fits and self.kind is float else raw
        elif self.kind is Path:
            fits = isinstance(raw, str) and raw != "" and "\0" not in raw
            raw = folder / os.path.expanduser(raw) if fits else raw  # noqa: PTH111 - Path raises for unknown users
        elif self.kind is tuple:
            fits = isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw)
            raw = tuple(raw) if fits else raw
        else:
            fits = isinstance(raw, str)
        if not fits:
            raise Unfit(self.expected())
        return raw

    def from_text(self, text: str) -> Any:
        """An environment variable's text as the raw value that TOML would have given; '' unsets an optional field.

        Lists are separated by commas. Raises Unfit saying what is expected.
        """
        text = text.strip()
        if text == "" and self.optional:
            return None
        if self.kind is bool:
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if text.lower() not in words:
                raise Unfit(self.expected())
            return words[text.lower()]
        if self.kind is tuple:
            return [item.strip() for item in text.split(",") if item.strip()]
        try:
            return self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            raise Unfit(self.expected()) from None


def _as_float(raw: int | float) -> float:
    try:
        return float(raw)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _spec(name: str, annotation: Any) -> FieldSpec:
    rules: tuple[Rule, ...] = ()
    if get_origin(annotation) is typing.Annotated:
        annotation, *found = get_args(annotation)
        rules = tuple(found)
    optional = False
    if get_origin(annotation) in (typing.Union, types.UnionType):
        optional = True
        (annotation,) = (choice for choice in get_args(annotation) if choice is not type(None))
    if get_origin(annotation) is Literal:
        return FieldSpec(name, get_args(annotation), optional, rules)
    return FieldSpec(name, get_origin(annotation) or annotation, optional, rules)


@cache
def specs(section: type) -> tuple[FieldSpec, ...]:
    """The fields of a settings class, in order."""
    hints = typing.get_type_hints(section, include_extras=True)
    return tuple(_spec(item.name, hints[item.name]) for item in fields(section))
