"""Data files as text: encodings, lines, tables, objects of JSONL, and the characters that a row may hold.

Used by the readers of classifiers' and generators' rows. Every error is a ConfigError that names the file and the line.
This module loads no runtime.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError, brief
from edge_agent.base.named_file import open_named

# Zero width joiner and non-joiner: Persian, Hindi and emoji need them inside a word. No other format character is
# visible or changes how a name is read, except to deceive (direction overrides).
_JOINERS = "\u200c\u200d"
_BEGINNING_BYTES, _FEWEST_BYTES = 65_536, 8
_SHOWN_KEYS, _SHOWN_CHARACTERS = 12, 40
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Letters and signs of Unicode that are drawn as nothing: Hangul fillers and the empty Braille pattern.
_EMPTY = "\u115f\u1160\u3164\uffa0\u2800"
# What files begin with that spreadsheets and archivers write, with what they are. Each has a byte that text does not
# have, or more of the head than the name: "PAR16" begins a row on lamps, too.
_NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet (.xlsx, .ods) or another ZIP archive", b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)",
    b"\x1f\x8b": "compressed by gzip", b"PAR1\x15": "Parquet",
    b"SQLite format 3\x00": "an SQLite database", b"%PDF-": "a PDF", b"ARROW1\x00": "Arrow",
    b"\x28\xb5\x2f\xfd": "compressed by zstd", b"BZh91AY&SY": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz", b"version https://git-lfs": "a pointer of Git LFS without the file itself",
}  # fmt: skip


def read_text(path: Path) -> str:
    """The text of a data file in UTF-8, or in UTF-16 or UTF-32 where it begins with that byte order mark.

    Spreadsheets save "Unicode text" as UTF-16. Raises ConfigError that names the file, and the line that cannot be
    decoded, or what the file is where its first bytes tell.
    """
    try:
        with open_named(path) as file:
            raw = file.read()
    except FileNotFoundError:
        raise ConfigError("there is no such data file", str(path), "see [data] of the recipe") from None
    except OSError as error:
        raise ConfigError(f"the data file cannot be read: {error.strerror}", str(path)) from error
    if _is_bare_utf16(raw[:_BEGINNING_BYTES]):
        raise ConfigError(
            "it looks like UTF-16 without a byte order mark", str(path),
            "save the file as UTF-8, or as UTF-16 with its mark",
        )  # fmt: skip
    for begin, what in _NO_TEXT.items():
        if raw.startswith(begin):
            raise ConfigError(f"it is no text but {what}", str(path), "save the rows as TSV, CSV or JSONL in UTF-8")
    wide = _wide_encoding(raw)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode(wide or "utf-8")
    except UnicodeDecodeError as error:
        if wide:
            raise ConfigError(
                f"it begins as {wide.upper()} and is not: {error.reason}", str(path), "save the file as UTF-8"
            ) from error
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte {raw[error.start]:#04x} is not UTF-8", f"{path}:{line}", "save the file as UTF-8"
        ) from error


def _wide_encoding(raw: bytes) -> str:
    """'utf-32' or 'utf-16' where a byte order mark says so; else ''. UTF-32's mark begins with that of UTF-16."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""


def _is_bare_utf16(raw: bytes) -> bool:
    """Whether every second byte, of even or of odd places alone, is mostly zero: Latin letters in UTF-16."""
    if _wide_encoding(raw) or len(raw) < _FEWEST_BYTES:
        return False
    shares = sorted(part.count(0) / len(part) for part in (raw[::2], raw[1::2]))
    return shares[0] < 0.05 and shares[1] > 0.5


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank. A line ends with LF or CRLF; in a file without any, with CR.

    A line of white space alone is blank: spreadsheets write empty rows so. Unicode's own separators (U+2028, U+0085)
    are text: JSON may hold them unescaped within a string.
    """
    ends = text if "\n" in text else text.replace("\r", "\n")
    for number, line in enumerate(ends.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may separate the cells of a table, with its name for people."""
# The first line by which Excel is told what separates the cells below.
_SEPARATOR_LINE = re.compile(r"(?:sep=([,;\t|])|\"sep=([,;\t|])\")[,;\t|]*")
# A cell whose quotation marks stand behind a space, the beginning of one that holds the separator, and a cell in
# single quotation marks.
_SPACED_CELL, _SPACED_BEGIN = re.compile(r' +".*" *', re.DOTALL), re.compile(' +"')
_SINGLE_CELL = re.compile(r" *'.*' *", re.DOTALL)
_CSV_CELL_CHARACTERS = csv.field_size_limit()
# A cell that only a program writes so: in quotation marks, with those inside of it doubled.
_QUOTED_CELL = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
Cells = list[tuple[int, list[str]]]
"""Rows of a table: the number of the line that a row ends in, and its cells."""


class TableRows(NamedTuple):
    """The rows of a table, header included, and what separates their cells.

    `note` says how it was read where that was a choice; `warning` says what the reader may have to change.
    """

    rows: Cells
    separator: str
    note: str = ""
    warning: str = ""


def tsv_rows(text: str, where: str) -> TableRows:
    """The rows of a TSV file. It has no quoting, but spreadsheets quote cells that hold a tab, a line break or a mark.

    Their quoting is read where all rows have equally many cells only with it, or where a cell has doubled quotation
    marks inside of its own; else quotation marks are part of the text.
    """
    plain = [(number, line.split("\t")) for number, line in lines_of(text)]
    cells = [cell for _, row in plain for cell in row if len(cell) > 1 and cell[0] == cell[-1] == '"']
    if not _is_even(plain) or any(map(_QUOTED_CELL.fullmatch, cells)):
        quoted = _quoted_rows(text, "\t")
        if quoted is not None and _is_even(quoted):
            return TableRows(quoted, "\t", f"{where}: cells in quotation marks are read as spreadsheets write them")
    warning = (
        f"{where}: {len(cells)} cell(s) stand in quotation marks, which stay part of the text: TSV has no quoting "
        '(data.format = "csv" reads them as such)'
    )
    return TableRows(plain, "\t", warning=warning if cells else "")


def csv_rows(text: str, wanted: Sequence[str], width: int, where: str) -> TableRows:
    """The rows of a CSV file, quoted as RFC 4180 says. Raises ConfigError at the line that is no CSV.

    Cells are separated by what a first line `sep=;` names, as Excel writes and reads it; else by commas, or by
    semicolons, tabs or vertical bars where only with these the first row is a header that has `wanted` (without a
    header: has `width` cells). Spreadsheets write semicolons in countries of the decimal comma. Spaces before a
    quotation mark are left out where that is how the file is written: its rows have equally many cells then.
    """
    first = next((line for _, line in lines_of(text)), "")
    named = _SEPARATOR_LINE.fullmatch(first)
    if named is not None:  # the line becomes a blank one, so that the numbers of the others stay
        text = text.replace(first, "", 1)
    found = (named[1] or named[2]) if named is not None else _separator(first, wanted, width)
    rows = _strict_rows(text, found, where)
    notes = [] if found == "," and named is None else [f"{where}: its cells are separated by {SEPARATORS[found]}"]
    # Read strictly, a spaced cell that holds the separator falls into two, so that the rows are uneven.
    is_spaced = _SPACED_CELL.fullmatch if _is_even(rows) else _SPACED_BEGIN.match
    if any(is_spaced(cell) for _, row in rows for cell in row):
        spared = _quoted_rows(text, found, spaces=True)
        if spared is not None and _is_even(spared) and (not width or len(spared[0][1]) == width):
            rows = spared
            notes.append(f"{where}: spaces before quotation marks are left out")
    cells = [cell for _, row in rows for cell in row if _SINGLE_CELL.fullmatch(cell)]
    warning = (
        f"{where}: {len(cells)} cell(s) stand in single quotation marks, which stay part of the text: CSV quotes by "
        'double ones ("...")'
    )
    return TableRows(rows, found, "; ".join(notes), warning if len(cells) >= len(rows) else "")


def _separator(first: str, wanted: Sequence[str], width: int) -> str:
    """What separates the cells of a CSV file with this first line."""
    headers = {separator: _header(first, separator) for separator in SEPARATORS}
    fitting = [
        separator for separator, cells in headers.items()
        if ((len(cells) == width) if width else set(wanted) <= set(cells))
    ]  # fmt: skip
    # Where none fits, what makes most cells is what the file means: the error about its header names that.
    return next(iter(fitting), max(headers, key=lambda separator: len(headers[separator])))


def _strict_rows(text: str, separator: str, where: str) -> Cells:
    """The rows of a CSV file. Raises ConfigError at the line that is no CSV."""
    rows: Cells = []
    reader, ended = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 0
    try:
        for cells in reader:
            rows += [(reader.line_num, cells)] if any(cell.strip() for cell in cells) else []
            ended = reader.line_num
    except csv.Error as error:
        raise _invalid_csv(error, where, ended + 1, reader.line_num) from error
    return rows


def _header(line: str, separator: str) -> list[str]:
    """The cells of a line; none where it is no CSV (a line break of another kind in it, a cell of some 100,000
    characters), which the reader of all rows names."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return []


def _invalid_csv(error: csv.Error, where: str, begun: int, at: int) -> ConfigError:
    """The error of a row by the line that it begins in: an open quotation mark swallows lines up to the next one."""
    if "end of data" in str(error):
        return ConfigError(
            f"it is no valid CSV: a quotation mark that is opened here is not closed up to the end, line {at}",
            f"{where}:{begun}", 'close it; one within a quoted cell is doubled: "a ""word"" quoted"',
        )  # fmt: skip
    if "field larger" in str(error):
        return ConfigError(
            f"a cell has more than {_CSV_CELL_CHARACTERS:,} characters", f"{where}:{begun}",
            "shorten the text; if it is not so long, a quotation mark within it is not closed",
        )  # fmt: skip
    far = f" in line {at}" if at > begun else ""
    return ConfigError(
        f"it is no valid CSV: {error}{far}", f"{where}:{begun}",
        'a cell with quotation marks stands in them, and those inside are doubled: "a ""word"" quoted"',
    )  # fmt: skip


def _quoted_rows(text: str, separator: str, spaces: bool = False) -> Cells | None:
    """The rows of a file with quoted cells, None where it is no such file; `spaces`: some stand before the marks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaces)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error:
        return None


def _is_even(rows: Cells) -> bool:
    return len({len(cells) for _, cells in rows}) <= 1


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object in a line of JSONL. Raises ConfigError at `where` for other JSON, and for a key that stands twice.

    Parsers differ on which of two equal keys counts, so a person who checked the file may have seen the other value.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ConfigError(f"the key {brief(twice)} stands twice in one object", where, "keep one of them")
        return found

    try:
        found = json.loads(line, object_pairs_hook=once)
    except ValueError as error:
        raise ConfigError(f"the line is no valid JSON: {error}", where, _json_hint(line)) from error
    except RecursionError as error:
        raise ConfigError("the line nests too deep", where) from error
    if not isinstance(found, dict):
        raise ConfigError("the line holds no JSON object", where, 'a row is an object: {"text": "...", ...}')
    return found


def _json_hint(line: str) -> str | None:
    """What to do with a line that is no JSON, where its look tells."""
    if line[:1] == "[":
        return "a .json file with one list is no JSONL: write one object per line"
    if line.rstrip().endswith(","):
        return "remove the comma at the end of the line: rows of JSONL stand in no list"
    if re.search(r",\s*[}\]]", line):
        return "remove the comma before the closing bracket"
    return None


def keys_of(found: Mapping[str, Any]) -> str:
    """The keys of an object, for a sentence on one that is missing."""
    names = [repr(key[:_SHOWN_CHARACTERS]) for key in list(found)[:_SHOWN_KEYS]]
    more = ", ..." if len(found) > _SHOWN_KEYS else ""
    return f"it has {', '.join(names)}{more}" if names else "it is empty"


def one_label(label: str) -> str:
    """A label in its one form: Unicode's composed form (NFC), runs of white space as one space, none at the ends.

    "café" can be written in two ways that look alike; nobody could tell two such classes apart.
    """
    return " ".join(unicodedata.normalize("NFC", label).split())


def check_text(text: str, what: str, where: str) -> None:
    """Refuse a text that no device can be sent: halves of surrogate pairs, NUL characters. Raises ConfigError.

    JSON can write half of a pair (\\ud83d), which is no character and has no form in UTF-8.
    """
    for character in text:
        if "\ud800" <= character <= "\udfff":
            raise ConfigError(
                f"{what} holds \\u{ord(character):04x}, half of a surrogate pair, which is no character",
                where,
                "write the whole pair, or the character itself in UTF-8; a cut emoji is the usual reason",
            )
    if "\x00" in text:
        raise ConfigError(
            f"{what} holds a NUL character", where, "remove it; a file in UTF-16 without a byte order mark looks so"
        )


def check_name(name: str, what: str, where: str) -> None:
    """Refuse characters that cannot be seen, in a name that is shown and compared. Raises ConfigError."""
    check_text(name, what, where)
    for character in name:
        unseen = unicodedata.category(character) in _UNPRINTABLE and character not in _JOINERS
        if unseen or character in _EMPTY or (character in _JOINERS and character in (name[0], name[-1])):
            shown = f"U+{ord(character):04X} ({unicodedata.name(character, 'a control character').lower()})"
            raise ConfigError(f"{what} {name!r} holds {shown}, which cannot be seen", where, "remove it")
