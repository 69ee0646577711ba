"""Files beside a recipe's rows: sentence pairs with a score and good and bad sentences, which ask what a base still
knows after tuning, and texts without labels.

Columns are found by name, whatever their order and whatever else the file holds. No recipe describes such a file, which
is why its columns have fixed names; those of GLUE's and MTEB's files are taken too. Every error is a ConfigError that
names the file and the line. This module loads no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from edge_agent.base.errors import ConfigError, brief
from edge_agent.base.texts import Text
from edge_forge.data.text_files import (
    Cells,
    check_text,
    csv_rows,
    json_object,
    keys_of,
    lines_of,
    read_text,
    tsv_rows,
)

_NAMES = {
    "text_a": ("text_a", "sentence1", "text"),
    "text_b": ("text_b", "sentence2", "text_pair"),
    "score": ("score",),
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "text": ("text", "sentence"),
    "text_pair": ("text_pair",),
}
T = TypeVar("T")


class AlikePair(NamedTuple):
    """Two texts, and how alike people find them, on any scale that rises."""

    one: str
    other: str
    score: float


class SentencePair(NamedTuple):
    """A sentence that a language model should find likelier than the other."""

    good: str
    bad: str


class ExactQuestion(NamedTuple):
    """A question, and the answers that are right."""

    prompt: str
    answers: tuple[str, ...]


SHOWN = 3
"""Questions of a set, its first ones, that are shown with their answers and not asked."""
EXACT_SETS = ("maths", "code")
"""The sets of questions that come with the forge; they were written for it."""


def exact_file(name: str, folder: Path) -> Path:
    """Where a set of questions is: one of `EXACT_SETS` by its name, else a file beside a recipe in `folder`."""
    if name in EXACT_SETS:
        return Path(__file__).parent / "questions" / f"{name}.jsonl"
    return folder / Path(name).expanduser()


def exact_questions(path: Path) -> list[ExactQuestion]:
    """The rows of a JSONL file with `prompt` and `answer`: a text, or a list of texts that are all right."""
    if path.suffix != ".jsonl":
        raise ConfigError(
            f"files of type {path.suffix or '(no suffix)'!r} hold no questions", str(path),
            f"use .jsonl with prompt and answer, or {' or '.join(EXACT_SETS)}",
        )  # fmt: skip
    found = []
    for number, line in lines_of(read_text(path)):
        where = f"{path}:{number}"
        row = json_object(line, where)
        answers = row.get("answer")
        texts = [row.get("prompt"), *(answers if isinstance(answers, list) else [answers])]
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(
                "a question needs 'prompt', a text, and 'answer', a text or a list of texts, and none empty", where
            )
        for text in texts:
            check_text(str(text), "a question", where)
        found.append(ExactQuestion(str(texts[0]).strip(), tuple(str(text).strip() for text in texts[1:])))
    if len(found) <= SHOWN:
        raise ConfigError(
            f"{len(found)} questions are too few: the first {SHOWN} are shown with their answers and not asked",
            str(path),
        )
    return found


def alike_pairs(path: Path) -> list[AlikePair]:
    """The rows of a file with text_a, text_b and score (STS-B's form). At least three, with different scores."""
    found = []
    for where, (one, other, score) in _rows(path, ("text_a", "text_b", "score")):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"the score {brief(score)} is no number", where)
        found.append(AlikePair(one, other, value))
    if len(found) < 3 or len({pair.score for pair in found}) < 2:
        raise ConfigError("a correlation needs three rows or more, and different scores", str(path))
    return found


def sentence_pairs(path: Path) -> list[SentencePair]:
    """The rows of a file with good and bad (BLiMP's form)."""
    return [SentencePair(good, bad) for _, (good, bad) in _rows(path, ("good", "bad"))]


def texts(path: Path, pairs: bool) -> list[Text]:
    """The texts of a file without labels (`text`), of a task that takes pairs with `text_pair`; each once."""
    found: list[Text] = []
    for _, cells in _rows(path, ("text", "text_pair") if pairs else ("text",)):
        found.append((cells[0], cells[1]) if pairs else cells[0])
    return list(dict.fromkeys(found))


def spread_over(rows: Sequence[T], most: int) -> list[T]:
    """At most `most` rows, at even distances: files are often sorted by subject, and each is to be asked."""
    if len(rows) <= most:
        return list(rows)
    return [rows[place * len(rows) // most] for place in range(most)]


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where, the wanted cells) of each row."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("tsv", "csv", "jsonl"):
        raise ConfigError(
            f"files of type {kind or '(no suffix)'!r} cannot be read", str(path), "use .tsv, .csv or .jsonl"
        )
    text = read_text(path)
    rows = _objects(path, text, wanted) if kind == "jsonl" else _cells(path, text, kind, wanted)
    empty = True
    for where, cells in rows:
        empty = False
        for name, cell in zip(wanted, cells, strict=True):
            if not cell.strip():
                raise ConfigError(f"{name} is empty", where)
            check_text(cell, name, where)
        yield where, [cell.strip() for cell in cells]
    if empty:
        raise ConfigError("the file has no rows", str(path))


def _cells(path: Path, text: str, kind: str, wanted: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    read: Cells = (tsv_rows(text, str(path)) if kind == "tsv" else csv_rows(text, wanted, 0, str(path))).rows
    if not read:
        return
    header = [cell.strip() for cell in read[0][1]]
    places = [_place(header, name, f"{path}:{read[0][0]}") for name in wanted]
    for number, cells in read[1:]:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise ConfigError(f"{len(cells)} columns, where the header has {len(header)}", where)
        yield where, [cells[place] for place in places]


def _place(header: Sequence[str], name: str, where: str) -> int:
    found = next((one for one in _NAMES[name] if one in header), None)
    if found is None:
        raise _missing(name, keys_of(dict.fromkeys(header)), where)
    if header.count(found) > 1:
        raise ConfigError(f"the header has the column {found!r} twice", where, "rename one of the two")
    return header.index(found)


def _objects(path: Path, text: str, wanted: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for number, line in lines_of(text):
        where = f"{path}:{number}"
        found, cells = json_object(line, where), []
        for name in wanted:
            key = next((one for one in _NAMES[name] if one in found), None)
            if key is None:
                raise _missing(name, keys_of(found), where)
            value = found[key]
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise ConfigError(f"{key!r} must be a text or a number", where)
            cells.append(str(value))
        yield where, cells


def _missing(name: str, has: str, where: str) -> ConfigError:
    return ConfigError(f"there is no {name}: {has}", where, f"name the column {' or '.join(_NAMES[name])}")
