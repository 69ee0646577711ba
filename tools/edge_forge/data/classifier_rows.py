"""The rows that a classifier is trained and measured on: read, checked, split, counted.

Local files are TSV (tab separated, no quoting), CSV (quoted as RFC 4180 says) or JSONL; a hub data set is loaded by
id where `datasets` is installed. Every error names the file and the line. A text that is in two splits, or that has two
labels, makes figures look better than they are; it is counted and warned of, and kept, since the data is the author's.
This module loads no runtime.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import TEXT_BYTES
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection

SPLITS = ("train", "validation", "test")
_IMBALANCED = 5.0  # the largest class has so many times the rows of the smallest: worth a warning


class Row(NamedTuple):
    """A text with its label's name."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class ClassifierData:
    """Checked splits with the labels in logit order; `test` may be empty. `warnings` are sentences for people."""

    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    statistics: Mapping[str, Any]
    warnings: tuple[str, ...]

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
    if section.hub:
        splits = {split: tuple(rows) for split, rows in _from_hub(section).items()}
        places = {split: f"{section.hub} ({split})" for split in SPLITS}
    else:
        found = files(section, recipe_dir)
        splits = {split: tuple(read(path, section)) for split, path in found.items()}
        places = {split: str(found.get(split, found["train"])) for split in SPLITS}
    labels = _labels(splits["train"], task, places["train"])
    for split in SPLITS[1:]:
        _check_known(splits.get(split, ()), labels, places[split])
    if not splits.get("validation"):
        splits["train"], splits["validation"] = split_rows(
            splits["train"], section.validation_share, section.seed, places["train"]
        )
    if section.max_rows:
        splits = {split: sample(rows, section.max_rows, section.seed) for split, rows in splits.items()}
    train, validation, test = (splits.get(split, ()) for split in SPLITS)
    statistics = _statistics({"train": train, "validation": validation, "test": test}, labels, task.out_of_scope)
    return ClassifierData(labels, train, validation, test, statistics, tuple(_warnings(statistics, places)))


def read(path: Path, section: ClassifierDataSection) -> Iterator[Row]:
    """The rows of one file. Raises ConfigError naming the file and the line."""
    kind = section.format or path.suffix.lstrip(".").lower()
    readers = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}
    if kind not in readers:
        raise ConfigError(
            f"files of type {kind or '(no suffix)'!r} cannot be read",
            str(path),
            "use .tsv, .csv or .jsonl, or name the format: data.format",
        )
    empty = True
    for number, text, label in readers[kind](path, read_text(path), section):
        empty = False
        yield _row(path, number, text, section.label_names.get(label, label))
    if empty:
        raise ConfigError("the file has no rows", str(path))


def read_text(path: Path) -> str:
    """The text of a data file. Raises ConfigError that names the file, and the line that is not UTF-8."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("there is no such data file", str(path), "see [data] of the recipe") from None
    except OSError as error:
        raise ConfigError(f"the data file cannot be read: {error.strerror}", str(path)) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte {raw[error.start]:#04x} is not UTF-8", f"{path}:{line}", "save the file as UTF-8"
        ) from error


def _row(path: Path, number: int, text: str, label: str) -> Row:
    where = f"{path}:{number}"
    if not text.strip():
        raise ConfigError("the text is empty", where)
    if not label.strip():
        raise ConfigError("the label is missing", where)
    if len(text.encode()) > TEXT_BYTES:
        raise ConfigError(f"the text has {len(text.encode())} bytes; a device takes at most {TEXT_BYTES}", where)
    return Row(text.strip(), label.strip())


def _cells(
    path: Path, rows: Iterable[tuple[int, list[str]]], section: ClassifierDataSection
) -> Iterator[tuple[int, str, str]]:
    """Text and label out of rows of cells, by the header or the recipe's columns."""
    columns = list(section.columns)
    for number, cells in rows:
        if not columns:
            columns = [cell.strip() for cell in cells]
            for wanted in (section.text, section.label):
                if wanted not in columns:
                    raise ConfigError(
                        f"the header has no column {wanted!r} (it has {', '.join(map(repr, columns))})",
                        f"{path}:{number}",
                        "name the columns with data.text and data.label, or give data.columns if there is no header",
                    )
            continue
        if len(cells) != len(columns):
            what = "the label is missing" if len(cells) < len(columns) else f"{len(cells)} columns"
            raise ConfigError(f"{what}: {len(columns)} columns are expected", f"{path}:{number}")
        yield number, cells[columns.index(section.text)], cells[columns.index(section.label)]


def _tsv(path: Path, text: str, section: ClassifierDataSection) -> Iterator[tuple[int, str, str]]:
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
    return _cells(path, ((number, line.split("\t")) for number, line in lines if line.strip()), section)


def _csv(path: Path, text: str, section: ClassifierDataSection) -> Iterator[tuple[int, str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from _cells(path, ((reader.line_num, cells) for cells in reader if cells), section)
    except csv.Error as error:
        raise ConfigError(f"it is no valid CSV: {error}", f"{path}:{reader.line_num}") from error


def _jsonl(path: Path, text: str, section: ClassifierDataSection) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = json_object(line, f"{path}:{number}")
        words, label = found.get(section.text, ""), found.get(section.label)
        if not isinstance(words, str) or isinstance(label, (dict, list, float, bool)):
            raise ConfigError(
                f"{section.text!r} must be a string and {section.label!r} a string or a whole number",
                f"{path}:{number}",
            )
        yield number, words, "" if label is None else str(label)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object in a line of JSONL. Raises ConfigError at `where` for other JSON, and for a key that stands twice.

    Parsers differ on which of two equal keys counts, so a person who checked the file may have seen the other value.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ConfigError(f"the key {twice!r} stands twice in one object", where, "keep one of them")
        return found

    try:
        found = json.loads(line, object_pairs_hook=once)
    except ValueError as error:
        raise ConfigError(f"the line is no valid JSON: {error}", where) from error
    except RecursionError as error:
        raise ConfigError("the line nests too deep", where) from error
    if not isinstance(found, dict):
        raise ConfigError("the line holds no JSON object", where)
    return found


def _from_hub(section: ClassifierDataSection) -> dict[str, list[Row]]:
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
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        name = section.hub_splits.get(split, split)
        if name and name in loaded:
            splits[split] = list(_hub_rows(loaded[name], section, f"{section.hub} ({name})"))
        elif split == "train" or section.hub_splits.get(split):
            raise ConfigError(f"it has no split {name!r} (it has {', '.join(loaded)})", where, "see data.hub_splits")
    return splits


def _hub_rows(rows: Any, section: ClassifierDataSection, where: str) -> Iterator[Row]:
    for wanted in (section.text, section.label):
        if wanted not in rows.column_names:
            raise ConfigError(f"it has no column {wanted!r} (it has {', '.join(rows.column_names)})", where)
    names = getattr(rows.features[section.label], "names", None)
    for number, row in enumerate(rows, 1):
        value = row[section.label]
        if isinstance(value, int) and value < 0:
            raise ConfigError("the label is missing (-1): this split is unlabelled", f"{where}:{number}",
                              'leave it out: hub_splits = { test = "" }')  # fmt: skip
        raw = names[value] if names and isinstance(value, int) else str(value)
        yield _row(Path(where), number, str(row[section.text]), section.label_names.get(str(value), raw))


def _labels(train: Sequence[Row], task: ClassifierTaskSection, where: str) -> tuple[str, ...]:
    counts = Counter(row.label for row in train)
    if len(counts) < 2:
        raise ConfigError(
            f"all {len(train)} rows have the label {next(iter(counts))!r}: a classifier needs at least two classes",
            where,
        )
    if task.labels:
        _check_known(train, task.labels, where)
        unseen = [label for label in task.labels if label not in counts]
        if unseen:
            raise ConfigError(f"no training row has the label {unseen[0]!r} of task.labels", where)
    labels = task.labels or tuple(sorted(counts))
    if task.out_of_scope is not None and task.out_of_scope not in labels:
        raise ConfigError(f"no row has the label {task.out_of_scope!r} of task.out_of_scope", where)
    return labels


def _check_known(rows: Sequence[Row], labels: Sequence[str], where: str) -> None:
    known = set(labels)
    for row in rows:
        if row.label not in known:
            raise ConfigError(
                f"the label {row.label!r} (of {row.text[:40]!r}) is not among those of the training data", where,
                f"known labels: {', '.join(labels)}",
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
    """At most `most` rows with the classes' shares kept (at least one of each), in their order."""
    if len(rows) <= most:
        return tuple(rows)
    by_label: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        by_label[row.label].append(position)
    drawn = random.Random(seed)
    taken: list[int] = []
    for label in sorted(by_label):
        positions = by_label[label]
        taken += drawn.sample(positions, max(1, min(len(positions), most * len(positions) // len(rows))))
    return tuple(rows[position] for position in sorted(taken))


def normal(text: str) -> str:
    """The form in which two texts count as the same: case and white space do not matter."""
    return " ".join(text.casefold().split())


def _statistics(splits: Mapping[str, Sequence[Row]], labels: Sequence[str], out_of_scope: str | None) -> dict[str, Any]:
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    texts = {split: {normal(row.text) for row in rows} for split, rows in splits.items()}
    meanings: dict[str, set[str]] = defaultdict(set)
    for rows in splits.values():
        for row in rows:
            meanings[normal(row.text)].add(row.label)
    lengths = sorted(len(row.text) for rows in splits.values() for row in rows)
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


def _warnings(statistics: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    for pair, count in statistics["shared"].items():
        one, other = pair.split("/")
        yield f"{count} text(s) of {places[other]} are also in {one}: figures on {other} look better than they are"
    if statistics["contradictions"]:
        yield f"{statistics['contradictions']} text(s) appear with two labels"
    if statistics["imbalance"] >= _IMBALANCED:
        yield f"the largest class has {statistics['imbalance']:g} times the training rows of the smallest"
    if not statistics["rows"]["test"]:
        yield "there is no test split: figures are those of the validation split, on which training also stopped"
