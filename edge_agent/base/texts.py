"""One question to an encoder: a text, or a pair of texts that are read together.

A file of its own because protocol, core, tasks, packages and the host pass such questions on, and none of them owns it.
"""

from __future__ import annotations

Text = str | tuple[str, str]
"""A text, or (text, text_pair)."""


def parts_of(text: Text) -> tuple[str, ...]:
    """The one text, or the two of a pair."""
    return (text,) if isinstance(text, str) else tuple(text)


def characters(text: Text) -> int:
    """Characters of a text, or of both texts of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def size_bytes(text: Text) -> int:
    """Bytes in UTF-8 of a text, or of both texts of a pair."""
    return sum(len(part.encode()) for part in parts_of(text))


def beginning(text: Text, most: int = 40) -> str:
    """The first characters of a text, or of each of a pair, quoted, for messages."""
    return " | ".join(repr(part[:most]) for part in parts_of(text))
