"""Text that came from elsewhere, made fit to be shown: names, labels, reasons and generated text.

A terminal acts on escape sequences and C1 controls, and an override of the writing direction shows a name as another
one. A spreadsheet runs cells that begin with '=', a browser reads tags. Whoever can
name a model, an adapter or a label, or make a model write, could do all of that to the one who looks. So every output
passes one of these functions, at the place where it is written: `many_lines` (terminal, by `base.terminal`), `one_line`
(journal, drawings, Home Assistant), `json_text`, `csv_cell`, `html_text`. matplotlib's reading of '$' as a formula is
switched off where it draws.

A file of its own because both programs and all rooms that show something use it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Format characters that the writing of Persian, Indic scripts and emoji needs; they move nothing on a terminal."""
KEPT = frozenset("\n\t")
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is no visible character: controls, direction overrides and other format characters,
halves of surrogate pairs, private and unassigned characters, line and paragraph separators."""
_FORMULA = re.compile(r"\s*[=+\-@\t\r|%\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that Excel, LibreOffice or Google Sheets compute, in full width as well: Excel reads it so where
the language is written that way (OWASP, CSV Injection)."""


def one_line(text: object) -> str:
    """A name, a label or a sentence as one line: line breaks and tabs become spaces, what cannot be seen U+FFFD."""
    return "".join(_seen(char) for char in " ".join(str(text).splitlines()).replace("\t", " "))


def many_lines(text: object) -> str:
    """Text that may have several lines, generated text for example: only line feeds and tabs stay as they are."""
    whole = str(text).replace("\r\n", "\n")
    return whole if whole.isprintable() else "".join(char if char in KEPT else _seen(char) for char in whole)


def json_text(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON whose strings hold what cannot be seen as escapes: the same value, and nothing for a terminal to act on."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    return "".join(char if char == "\n" or _seen(char) == char else json.dumps(char)[1:-1] for char in text)


def csv_cell(value: object) -> object:
    """A cell of a table for spreadsheets: text that would be a formula there begins with an apostrophe. Numbers stay
    numbers."""
    if not isinstance(value, str):
        return value
    shown = one_line(value)
    return f"'{shown}" if _FORMULA.match(shown) else shown


def html_text(text: object) -> str:
    """Text for a page, inside an element or an attribute in quotes."""
    import html  # its table of entities costs memory, and only reports and plots need it

    return html.escape(many_lines(text), quote=True)


def _seen(char: str) -> str:
    if char.isprintable() or char in JOINERS:
        return char
    # str.isprintable is False for a few visible spaces as well.
    return REPLACEMENT if unicodedata.category(char) in HIDDEN else " "
