"""The rows that a classifier is trained and measured on: read, checked, split, counted.

Local files are TSV, CSV or JSONL (`text_files`); a hub data set is loaded by id where `datasets` is installed. Every
error names the file and the line. A text that is in two splits, or that has two labels, makes figures look better than
they are; it is counted and warned of, and kept, since the data is the author's. Labels that differ only by case are
refused, those that differ by white space or by the form of accents are one. This module loads no runtime.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import LABEL_CHARACTERS, LABELS, TEXT_BYTES
from edge_agent.base.texts import Text, beginning, characters, parts_of
from edge_forge.data.text_files import (
    SEPARATORS,
    TableRows,
    check_name,
    check_text,
    csv_rows,
    json_object,
    keys_of,
    lines_of,
    one_label,
    read_text,
    tsv_rows,
)
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection

SPLITS = ("train", "validation", "test")
_IMBALANCED = 5.0  # the largest class has so many times the rows of the smallest: worth a warning
_SHOWN_CONTRADICTIONS = 3
_SHOWN_LABELS = 12
_SECOND = "text_pair"


class Row(NamedTuple):
    """A text, or a pair of texts, with its label's name."""

    text: Text
    label: str


@dataclass(frozen=True, slots=True)
class ClassifierData:
    """Checked splits with the labels in logit order; `test` may be empty.

    `warnings` are sentences for people to act on; `notes` say what was recognised, where nothing is to be done.
    """

    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    statistics: Mapping[str, Any]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, tuple[Row, ...]]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def measured(self) -> tuple[str, tuple[Row, ...]]:
        """The split that figures are given for: the test split, or the validation split where there is none."""
        return ("test", self.test) if self.test else ("validation", self.validation)


def files(section: ClassifierDataSection, recipe_dir: Path) -> dict[str, Path]:
    """The local files by split; empty for a hub data set."""
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    return {split: recipe_dir / Path(name).expanduser() for split, name in named.items() if name}


def load(section: ClassifierDataSection, task: ClassifierTaskSection, recipe_dir: Path) -> ClassifierData:
    """Read and check all splits. Raises ConfigError naming file and line, or what the split lacks."""
    tables: list[TableRows] = []
    cut: list[str] = []
    if section.hub:
        located = {split: list(rows) for split, rows in _from_hub(section).items()}
        names = {split: f"{section.hub} ({split})" for split in SPLITS}
    else:
        found = files(section, recipe_dir)
        located = {split: list(_located(path, section, tables)) for split, path in found.items()}
        names = {split: str(found.get(split, f"the {split} rows of {found['train']}")) for split in SPLITS}
    places = places_of(located)
    check_look_alikes(places, task.out_of_scope)
    splits = {split: tuple(row for row, _ in rows) for split, rows in located.items()}
    labels = _labels(splits["train"], task, names["train"], places)
    for split in SPLITS[1:]:
        _check_known(splits.get(split, ()), labels, places, "the training data")
    if not splits.get("validation"):
        splits["train"], splits["validation"] = split_rows(
            splits["train"], section.validation_share, section.seed, names["train"]
        )
    if section.max_rows:
        if section.max_rows < len(labels):
            cut.append(f"max_rows = {section.max_rows} is less than the {len(labels)} classes: one row of each is used")
        splits = {split: sample(rows, section.max_rows, section.seed) for split, rows in splits.items()}
    train, validation, test = (splits.get(split, ()) for split in SPLITS)
    statistics = _statistics({"train": train, "validation": validation, "test": test}, labels, task.out_of_scope)
    said = [table.warning for table in tables if table.warning]
    warnings = [*said, *cut, *warnings_of(statistics, names), *near_alikes(places), *contradictions(places)]
    return ClassifierData(
        labels,
        train,
        validation,
        test,
        statistics,
        tuple(warnings),
        tuple(table.note for table in tables if table.note),
    )


Places = Mapping[Row, str]
"""Where each row stands first: 'data/train.tsv:7'."""


def places_of(located: Mapping[str, Sequence[tuple[Row, str]]]) -> Places:
    """Where each row stands first."""
    places: dict[Row, str] = {}
    for rows in located.values():
        for row, where in rows:
            places.setdefault(row, where)
    return places


def check_look_alikes(places: Places, out_of_scope: str | None) -> None:
    """Refuse labels that differ only by case, or by characters that Unicode calls compatible (a ligature, full width).

    They are either one class by mistake, or two that no person could tell apart; the author has to say which.
    """
    first: dict[str, tuple[str, str]] = {}
    for row, where in places.items():
        label, seen = first.setdefault(_alike(row.label), (row.label, where))
        if label != row.label:
            raise ConfigError(
                f"the label {row.label!r} and {label!r} ({_short(seen)}) differ only by case or by form",
                where,
                f"write them alike, or join them: data.label_names = {{ {json.dumps(row.label, ensure_ascii=False)} = "
                f"{json.dumps(label, ensure_ascii=False)} }}",
            )
    label, seen = first.get(_alike(out_of_scope or ""), ("", ""))
    if label not in ("", out_of_scope):
        raise ConfigError(
            f"{out_of_scope!r} and the label {label!r} ({_short(seen)}) differ only by case or by form",
            "task.out_of_scope",
            f"write it as the rows do: out_of_scope = {json.dumps(label, ensure_ascii=False)}",
        )


def _alike(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold()


def near_alikes(places: Places) -> Iterator[str]:
    """A sentence on labels that look alike, with the lines of the first few: they differ by accents, by what joins
    their words (`turn_on`, `turn-on`), by a stop or quotation marks around them, by typographic signs, joiners that
    are not seen, digits or letters of another script (Cyrillic `а`). They may be meant; refused they are not."""
    first: dict[str, tuple[str, str]] = {}
    found: dict[str, str] = {}
    for row, where in places.items():
        label, seen = first.setdefault(_bare(row.label), (row.label, where))
        if label != row.label:
            found.setdefault(row.label, f"{row.label!r} ({_short(where)}) and {label!r} ({_short(seen)})")
    if found:
        shown, more = "; ".join([*found.values()][:_SHOWN_CONTRADICTIONS]), len(found) > _SHOWN_CONTRADICTIONS
        yield f"labels that differ only by accents or signs, or look alike, are classes of their own: {shown}" + (
            "; ..." if more else ""
        )


_JOINTS = re.compile(r"(?<=\w)[\s_.-]+(?=\w)|(?<=\w)[.!?]+$|_+|(?<=\w) ?(/) ?(?=\w)")
# Letters of Greek and Cyrillic that are drawn like Latin ones (of Unicode's confusables those of modern languages), and
# typographic signs beside what keyboards have.
_DRAWN_ALIKE = str.maketrans(
    "\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425"
    "\u0430\u0435\u0455\u0456\u0458\u043e\u0440\u0441\u0443\u0445\u04bb\u0501\u051b\u051d\u04cf"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf\u03bd\u03c1"
    "\u2010\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u201a\u201b\u2032\u201c\u201d\u201e\u00ab\u00bb",
    "ABESIJKMHOPCTYXaesijopcyxhdqwlABEZHIKMNOPTYXovp------'''''\"\"\"\"\"",
)
_AROUND = re.compile(r"(['\"])(.+)\1")


def _bare(label: str) -> str:
    """The label in a form that all have that look like it; of numbers 01 is 1."""
    plain = "".join(
        sign for sign in unicodedata.normalize("NFKD", label) if unicodedata.category(sign) not in ("Mn", "Cf")
    ).translate(_DRAWN_ALIKE)
    plain = "".join(str(unicodedata.decimal(sign, sign)) for sign in plain)
    around = _AROUND.fullmatch(plain)
    plain = around[2] if around else plain
    number = re.fullmatch(r"([+-]?)0*([0-9]+)(?:\.0*)?", plain)
    return f"{number[1]}{number[2]}" if number else _JOINTS.sub(r"\1", plain).casefold()


def _short(where: str) -> str:
    """A place for a sentence that names several: the file's own name and the line."""
    return where.rpartition("/")[2]


def contradictions(places: Places) -> Iterator[str]:
    """A sentence on texts that stand with two labels, with the lines of the first few."""
    meanings: dict[str, dict[str, str]] = defaultdict(dict)
    for row, where in places.items():
        meanings[normal(row.text)].setdefault(row.label, where)
    two = [found for found in meanings.values() if len(found) > 1]
    if two:
        shown = "; ".join(
            " and ".join(f"{_short(where)} {label!r}" for label, where in list(found.items())[:2])
            for found in two[:_SHOWN_CONTRADICTIONS]
        )
        more = "; ..." if len(two) > _SHOWN_CONTRADICTIONS else ""
        yield f"{len(two)} text(s) appear with two labels: {shown}{more}"


def read(path: Path, section: ClassifierDataSection) -> Iterator[Row]:
    """The rows of one file. Raises ConfigError naming the file and the line."""
    return (row for row, _ in _located(path, section, []))


def _located(path: Path, section: ClassifierDataSection, tables: list[TableRows]) -> Iterator[tuple[Row, str]]:
    """The rows of one file with their places; `tables` gets the table that it was read as, if it is one."""
    kind = section.format or path.suffix.lstrip(".").lower()
    text = read_text(path) if kind in ("tsv", "csv", "jsonl") else ""
    if kind == "jsonl":
        rows = _jsonl(path, text, section)
    elif kind == "tsv":
        rows = _cells(path, tsv_rows(text, str(path)), section, tables)
    elif kind == "csv":
        table = csv_rows(text, _wanted(section), len(section.columns), str(path))
        rows = _cells(path, table, section, tables)
    else:
        raise ConfigError(
            f"files of type {kind or '(no suffix)'!r} cannot be read",
            str(path),
            "use .tsv, .csv or .jsonl, or name the format: data.format",
        )
    empty = True
    for number, words, label in rows:
        empty = False
        names = section.label_names
        where = f"{path}:{number}"
        yield _row(words, names.get(label, names.get(one_label(label), label)), where), where
    if empty:
        raise ConfigError("the file has no rows", str(path))


def _row(text: Text, label: str, where: str) -> Row:
    given = parts_of(text)
    for part, what in zip(given, ("the text", "the second text of the pair"), strict=False):
        if not part.strip():
            raise ConfigError(f"{what} is empty", where)
        check_text(part, what, where)
        if len(part.encode()) > TEXT_BYTES:
            raise ConfigError(f"{what} has {len(part.encode())} bytes; a device takes at most {TEXT_BYTES}", where)
    if not label.strip():
        raise ConfigError("the label is missing", where)
    check_label(label, where)
    first, *second = (part.strip() for part in given)
    return Row((first, second[0]) if second else first, one_label(label))


def _wanted(section: ClassifierDataSection) -> tuple[str, ...]:
    """The columns or keys that are read: text, label, and the second text of pairs."""
    return (section.text, section.label, *([section.text_pair] if section.text_pair else []))


def check_label(label: str, where: str) -> None:
    """Refuse a label that is too long for a device, or holds what cannot be seen. Raises ConfigError."""
    name = one_label(label)
    check_name(label.strip(" \t\r\n"), "the label", where)
    if len(name) > LABEL_CHARACTERS:
        raise ConfigError(
            f"the label {name[:40] + '...'!r} has {len(name)} characters; a device takes at most {LABEL_CHARACTERS}",
            where,
            "shorten it, or give it a short name in data.label_names",
        )


def _cells(
    path: Path, table: TableRows, section: ClassifierDataSection, tables: list[TableRows]
) -> Iterator[tuple[int, Text, str]]:
    """Text and label out of rows of cells, by the header or the recipe's columns."""
    tables.append(table)
    columns = list(section.columns)
    by = f"separated by {SEPARATORS[table.separator]}"
    for number, cells in table.rows:
        where = f"{path}:{number}"
        if not columns:
            columns = [cell.strip() for cell in cells]
            _check_header(columns, section, by, where)
            continue
        if len(cells) != len(columns):
            what = "the label is missing" if len(cells) < len(columns) else f"{len(cells)} columns"
            raise ConfigError(
                f"{what}: {len(columns)} columns are expected, {by}", where, _remedy(table, columns, cells)
            )
        text, label, *pair = (cells[columns.index(name)] for name in _wanted(section))
        yield number, (text, pair[0]) if pair else text, label


def _remedy(table: TableRows, columns: Sequence[str], cells: Sequence[str]) -> str | None:
    """What to do with a row of more cells than columns; None where it has fewer."""
    if len(cells) < len(columns):
        return None
    if table.separator == "\t":
        return "remove the tab within a cell, or leave the row's last cells out"
    name = SEPARATORS[table.separator].removesuffix("s")
    return f'a cell that holds a {name} stands in quotation marks: "one{table.separator} two"'


def _check_header(columns: Sequence[str], section: ClassifierDataSection, by: str, where: str) -> None:
    _check_unnamed(columns, section, where)
    for wanted in _wanted(section):
        if wanted not in columns:
            names = "data.text, data.text_pair and data.label" if section.text_pair else "data.text and data.label"
            raise ConfigError(
                f"the header has no column {wanted!r} ({keys_of(dict.fromkeys(columns))}, {by})",
                where,
                f"name the columns with {names}, or give data.columns if there is no header",
            )
        if columns.count(wanted) > 1:
            raise ConfigError(f"the header has the column {wanted!r} twice", where, "rename one of the two")


def _check_unnamed(names: Iterable[str], section: ClassifierDataSection, where: str) -> None:
    """Refuse rows with a second text that the recipe does not ask for: half of each would be left out silently."""
    if not section.text_pair and _SECOND in names and _SECOND not in (section.text, section.label):
        raise ConfigError(
            f"the rows have {_SECOND!r}, and the recipe takes one text", where,
            f'set data.text_pair = "{_SECOND}", or rename it where it is something else',
        )  # fmt: skip


def _jsonl(path: Path, text: str, section: ClassifierDataSection) -> Iterator[tuple[int, Text, str]]:
    for number, line in lines_of(text):
        found = json_object(line, f"{path}:{number}")
        _check_unnamed(found, section, f"{path}:{number}")
        for key, what in zip(_wanted(section), ("text", "label", "second text"), strict=False):
            if key not in found:
                raise ConfigError(
                    f"the {what} is missing: the object has no key {key!r} ({keys_of(found)})", f"{path}:{number}",
                    "add it, or name the keys with data.text and data.label"
                    + (" (data.text_pair for the second text)" if section.text_pair else ""),
                )  # fmt: skip
        yield number, *_values(found, section, f"{path}:{number}")


def _values(found: Mapping[str, Any], section: ClassifierDataSection, where: str) -> tuple[Text, str]:
    """Text (or pair) and label out of an object's values. Raises ConfigError for values that are none."""
    words, label, *pair = (found[key] for key in _wanted(section))
    if pair and not isinstance(pair[0], str):
        raise ConfigError(f"{section.text_pair!r} must be a string", where)
    if not isinstance(words, str) or isinstance(label, (dict, list, float, bool)):
        raise ConfigError(
            f"{section.text!r} must be a string and {section.label!r} a string or a whole number", where,
            "a row has one class, by name or number" if isinstance(words, str) else None,
        )  # fmt: skip
    return (words, pair[0]) if pair else words, "" if label is None else str(label)


def _from_hub(section: ClassifierDataSection) -> dict[str, list[tuple[Row, str]]]:
    where = f"data.hub = {section.hub!r}"
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError(
            "a hub data set needs the package `datasets`, which is not installed", where, "pip install datasets"
        ) from None
    try:
        loaded = datasets.load_dataset(section.hub, section.hub_config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"the data set could not be loaded: {reason}",
            where,
            "check the id, or reach the hub once to fill the cache",
        ) from error
    splits: dict[str, list[tuple[Row, str]]] = {}
    for split in SPLITS:
        name = section.hub_splits.get(split, split)
        if name and name in loaded:
            splits[split] = list(_hub_rows(loaded[name], section, f"{section.hub} ({name})"))
        elif split == "train" or section.hub_splits.get(split):
            raise ConfigError(f"it has no split {name!r} (it has {', '.join(loaded)})", where, "see data.hub_splits")
    return splits


def _hub_rows(rows: Any, section: ClassifierDataSection, where: str) -> Iterator[tuple[Row, str]]:
    for wanted in _wanted(section):
        if wanted not in rows.column_names:
            raise ConfigError(f"it has no column {wanted!r} (it has {', '.join(rows.column_names)})", where)
    names = getattr(rows.features[section.label], "names", None)
    for number, row in enumerate(rows, 1):
        place = f"{where}:{number}"
        words, label = _values(row, section, place)
        value = row[section.label]
        if isinstance(value, int) and value < 0:
            raise ConfigError("the label is missing (-1): this split is unlabelled", place,
                              'leave it out: hub_splits = { test = "" }')  # fmt: skip
        raw = names[value] if names and isinstance(value, int) else label
        yield _row(words, section.label_names.get(label, raw), place), place


def _labels(train: Sequence[Row], task: ClassifierTaskSection, where: str, places: Places) -> tuple[str, ...]:
    counts = Counter(row.label for row in train)
    if len(counts) < 2:
        raise ConfigError(
            f"all {len(train)} rows have the label {next(iter(counts))!r}: a classifier needs at least two classes",
            where,
        )
    named = task.labels
    if len(set(named)) < len(named):
        twice = next(label for label in named if named.count(label) > 1)
        raise ConfigError(
            f"the label {twice!r} is named twice, in two forms of its characters or spaces", "task.labels"
        )
    if named:
        _check_known(train, named, places, "task.labels")
        unseen = [label for label in named if label not in counts]
        if unseen:
            raise ConfigError(f"no training row has the label {unseen[0]!r} of task.labels", where)
    labels = named or tuple(sorted(counts))
    if task.out_of_scope is not None and task.out_of_scope not in labels and not task.threshold:
        raise ConfigError(
            f"no row has the label {task.out_of_scope!r} of task.out_of_scope: no text would be answered with it",
            where,
            "add rows with it, or set task.threshold: answers with a lower probability then have this label",
        )
    if len(labels) > LABELS:
        raise ConfigError(f"the rows have {len(labels)} different labels; a device takes at most {LABELS}", where)
    return labels


def _check_known(rows: Sequence[Row], labels: Sequence[str], places: Places, whose: str) -> None:
    known = set(labels)
    for row in rows:
        if row.label not in known:
            shown = ", ".join(labels[:_SHOWN_LABELS]) + (", ..." if len(labels) > _SHOWN_LABELS else "")
            raise ConfigError(
                f"the label {row.label!r} (of {beginning(row.text)}) is not among those of {whose}", places[row],
                f"known labels: {shown}",
            )  # fmt: skip


def split_rows(rows: Sequence[Row], share: float, seed: int, where: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows split into (training, validation), each class by its share, at least one row of it on each side.

    Equal texts stay on one side. The same rows and seed give the same split, whatever their order.
    """
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows):
        groups[row.label][normal(row.text)].append(row)
    drawn = random.Random(seed)
    kept: list[Row] = []
    held: list[Row] = []
    for label in sorted(groups):
        texts = sorted(groups[label])
        if len(texts) < 2:
            raise ConfigError(
                f"the class {label!r} has one text only: no validation split can be made of it", where,
                "add rows, or name a validation file",
            )  # fmt: skip
        drawn.shuffle(texts)
        count = min(max(1, round(len(texts) * share)), len(texts) - 1)
        for position, text in enumerate(texts):
            (held if position < count else kept).extend(groups[label][text])
    return tuple(kept), tuple(held)


def sample(rows: Sequence[Row], most: int, seed: int) -> tuple[Row, ...]:
    """At most `most` rows with the classes' shares kept, in their order; one of each class, where `most` is less."""
    if len(rows) <= most:
        return tuple(rows)
    by_label: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        by_label[row.label].append(position)
    counts = {label: max(1, most * len(positions) // len(rows)) for label, positions in by_label.items()}
    # The one row of a small class is more than its share: the largest classes give it.
    while sum(counts.values()) > max(most, len(counts)):
        counts[max(sorted(counts), key=counts.__getitem__)] -= 1
    drawn = random.Random(seed)
    taken: list[int] = []
    for label in sorted(by_label):
        taken += drawn.sample(by_label[label], counts[label])
    return tuple(rows[position] for position in sorted(taken))


def normal(text: Text) -> str:
    """The form in which two texts, or two pairs, count as the same: case and white space do not matter."""
    return "\n".join(" ".join(part.casefold().split()) for part in parts_of(text))


def _statistics(splits: Mapping[str, Sequence[Row]], labels: Sequence[str], out_of_scope: str | None) -> dict[str, Any]:
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    texts = {split: {normal(row.text) for row in rows} for split, rows in splits.items()}
    meanings: dict[str, set[str]] = defaultdict(set)
    for rows in splits.values():
        for row in rows:
            meanings[normal(row.text)].add(row.label)
    lengths = sorted(characters(row.text) for rows in splits.values() for row in rows)
    train = [counts["train"][label] for label in labels]
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "labels": {label: {split: counts[split][label] for split in splits} for label in labels},
        "imbalance": round(max(train) / max(1, min(train)), 2),
        "out_of_scope": out_of_scope,
        "out_of_scope_share": round(counts["train"][out_of_scope] / sum(train), 4) if out_of_scope else None,
        "duplicates": {
            split: len(rows) - len(texts[split]) for split, rows in splits.items() if len(rows) > len(texts[split])
        },
        "shared": {
            f"{one}/{other}": len(texts[one] & texts[other])
            for one, other in [*pairwise(SPLITS), ("train", "test")]
            if texts[one] & texts[other]
        },
        "contradictions": sum(len(found) > 1 for found in meanings.values()),
        "characters": {"p50": lengths[len(lengths) // 2], "p95": lengths[len(lengths) * 95 // 100], "max": lengths[-1]},
    }


def warnings_of(statistics: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    """Sentences on what makes figures look better than they are, or cannot be measured."""
    for pair, count in statistics["shared"].items():
        one, other = pair.split("/")
        yield f"{count} text(s) of {places[other]} are also in {one}: figures on {other} look better than they are"
    for split in SPLITS[1:]:
        absent = [label for label, counts in statistics["labels"].items() if not counts[split]]
        if absent and statistics["rows"][split]:
            shown = ", ".join(map(repr, absent[:_SHOWN_LABELS])) + (", ..." if len(absent) > _SHOWN_LABELS else "")
            yield f"{places[split]} has no row of {len(absent)} class(es), whose figures are missing there: {shown}"
    if statistics["duplicates"].get("train"):
        yield f"{statistics['duplicates']['train']} row(s) of {places['train']} repeat the text of another one"
    if statistics["imbalance"] >= _IMBALANCED:
        yield f"the largest class has {statistics['imbalance']:g} times the training rows of the smallest"
    if not statistics["rows"]["test"]:
        yield "there is no test split: figures are those of the validation split, on which training also stopped"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write checked rows as JSONL with the keys text, perhaps text_pair, and label."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            text, *pair = parts_of(row.text)
            second = {"text_pair": pair[0]} if pair else {}
            file.write(json.dumps({"text": text, **second, "label": row.label}, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> Sequence[Row]:
    """The rows that `write_rows` wrote."""
    with path.open(encoding="utf-8") as file:
        return [
            Row((found["text"], found["text_pair"]) if "text_pair" in found else found["text"], found["label"])
            for found in map(json.loads, file)
        ]
