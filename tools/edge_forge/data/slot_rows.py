"""The rows that token classes (slots) are trained and measured on: JSONL with spans, read, checked, split, counted.

A line is {"text": "set the kitchen to 21 degrees", "spans": [{"start": 8, "end": 15, "label": "room"}]}; places count
characters (code points) from 0, the end is not in the span. A text without spans has an empty list. Every error names
the file and the line. A row travels through the plan as a `Row` whose label is its spans (`label_of`, `spans_of`).
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import SLOT_LABELS, TEXT_BYTES
from edge_agent.base.texts import characters
from edge_agent.base.words import is_grapheme_boundary
from edge_forge.data.classifier_rows import (
    SPLITS,
    ClassifierData,
    Row,
    check_label,
    check_look_alikes,
    contradictions,
    files,
    normal,
    places_of,
    warnings_of,
)
from edge_forge.data.text_files import check_text, json_object, keys_of, lines_of, one_label, read_text
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection

_KEYS = {"start", "end", "label"}


class LabelledSpan(NamedTuple):
    """Characters `start` to `end` of a text and their label."""

    start: int
    end: int
    label: str


def label_of(spans: Sequence[LabelledSpan]) -> str:
    """Spans as a row's label: JSON, in their order in the text."""
    return json.dumps(sorted(spans), ensure_ascii=False)


def spans_of(row: Row) -> tuple[LabelledSpan, ...]:
    """The spans of a row."""
    return tuple(LabelledSpan(*found) for found in json.loads(row.label))


def each_span(rows: Sequence[Row]) -> list[Row]:
    """(text, label of a span) of every span, and (text, '') of a text without any."""
    return [Row(row.text, label) for row in rows for label in ([span.label for span in spans_of(row)] or [""])]


def load(section: ClassifierDataSection, task: ClassifierTaskSection, recipe_dir: Path) -> ClassifierData:
    """Read and check all splits. Raises ConfigError naming file and line, or what the split lacks."""
    found = files(section, recipe_dir)
    located = {split: list(_located(path, section)) for split, path in found.items()}
    names = {split: str(found.get(split, f"the {split} rows of {found['train']}")) for split in SPLITS}
    places = {split: _span_places(rows) for split, rows in located.items()}
    check_look_alikes({row: where for one in places.values() for row, where in one.items()}, None)
    labels = _labels(places, task.labels, names["train"])
    splits = {split: tuple(row for row, _ in rows) for split, rows in located.items()}
    if not splits.get("validation"):
        splits["train"], splits["validation"] = _split(splits["train"], section, names["train"])
    if section.max_rows:
        splits = {split: _sample(rows, section.max_rows, section.seed) for split, rows in splits.items()}
    train, validation, test = (splits.get(split, ()) for split in SPLITS)
    statistics = _statistics({"train": train, "validation": validation, "test": test}, labels)
    warnings = [*warnings_of(statistics, names), *contradictions(places_of(located))]
    return ClassifierData(labels, train, validation, test, statistics, tuple(warnings))


def _located(path: Path, section: ClassifierDataSection) -> Iterator[tuple[Row, str]]:
    kind = section.format or path.suffix.lstrip(".").lower()
    if kind != "jsonl":
        raise ConfigError(
            f"rows of slots are JSONL, this is {kind or '(no suffix)'!r}", str(path),
            'write a line {"text": "...", "spans": [{"start": 0, "end": 3, "label": "..."}]} for each text',
        )  # fmt: skip
    empty = True
    for number, line in lines_of(read_text(path)):
        empty = False
        where = f"{path}:{number}"
        yield _row(json_object(line, where), section, where), where
    if empty:
        raise ConfigError("the file has no rows", str(path))


def _row(found: Mapping[str, Any], section: ClassifierDataSection, where: str) -> Row:
    for key in (section.text, "spans"):
        if key not in found:
            raise ConfigError(f"the object has no key {key!r} ({keys_of(found)})", where, "add it; [] is no span")
    text, given = found[section.text], found["spans"]
    if not isinstance(text, str) or not isinstance(given, list):
        raise ConfigError(f"{section.text!r} must be a string and 'spans' a list", where)
    if not text.strip():
        raise ConfigError("the text is empty", where)
    check_text(text, "the text", where)
    if len(text.encode()) > TEXT_BYTES:
        raise ConfigError(f"the text has {len(text.encode())} bytes; a device takes at most {TEXT_BYTES}", where)
    spans = sorted(_span(one, text, number, where) for number, one in enumerate(given, 1))
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise ConfigError(f"the spans {_said(one, text)} and {_said(other, text)} overlap", where)
    names = section.label_names
    return Row(text, label_of([one._replace(label=names.get(one.label, one.label)) for one in spans]))


def _span(given: object, text: str, number: int, where: str) -> LabelledSpan:
    what = f"span {number}"
    if not isinstance(given, dict) or set(given) != _KEYS:
        told = keys_of(given) if isinstance(given, dict) else type(given).__name__
        raise ConfigError(f"{what} must have the keys start, end and label, and no others ({told})", where)
    start, end, label = given["start"], given["end"], given["label"]
    if any(not isinstance(at, int) or isinstance(at, bool) for at in (start, end)) or not isinstance(label, str):
        raise ConfigError(f"{what}: start and end must be whole numbers and label a string", where)
    if start >= end:
        raise ConfigError(f"{what} is empty: it goes from {start} to {end}", where, "end counts the next character")
    if start < 0 or end > len(text):
        raise ConfigError(
            f"{what} goes from {start} to {end}, the text has {len(text)} characters", where,
            "places count code points from 0",
        )  # fmt: skip
    span = LabelledSpan(start, end, one_label(label))
    for at in (start, end):
        if not is_grapheme_boundary(text, at):
            raise ConfigError(
                f"{what}, {_said(span, text)}, cuts through a character at {at}", where,
                "places count code points: an accent or an emoji may have several",
            )  # fmt: skip
    if text[start].isspace() or text[end - 1].isspace():
        raise ConfigError(f"{what}, {_said(span, text)}, begins or ends with white space", where)
    if not label.strip():
        raise ConfigError(f"{what} has no label", where)
    check_label(label, where)
    return span


def _said(span: LabelledSpan, text: str) -> str:
    return f"{text[span.start : span.end][:40]!r} ({span.start} to {span.end})"


def _span_places(rows: Sequence[tuple[Row, str]]) -> dict[Row, str]:
    """Where each (text, label of a span) stands first."""
    found: dict[Row, str] = {}
    for row, where in rows:
        for one in each_span([row]):
            if one.label:
                found.setdefault(one, where)
    return found


def _labels(places: Mapping[str, Mapping[Row, str]], named: tuple[str, ...], where: str) -> tuple[str, ...]:
    counted = {row.label for row in places["train"]}
    if not counted:
        raise ConfigError("no training row has a span: there is nothing to learn", where)
    labels = named or tuple(sorted(counted))
    unseen = [label for label in labels if label not in counted]
    if unseen:
        raise ConfigError(f"no training row has the label {unseen[0]!r} of task.labels", where)
    for one in places.values():
        for row, place in one.items():
            if row.label not in labels:
                whose = "task.labels" if named else "the training data"
                raise ConfigError(f"the label {row.label!r} is not among those of {whose}", place)
    if len(labels) > SLOT_LABELS:
        raise ConfigError(f"the spans have {len(labels)} different labels; a device takes at most {SLOT_LABELS}", where)
    return labels


def _split(rows: Sequence[Row], section: ClassifierDataSection, where: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(training, validation) rows; equal texts stay on one side, and the order of the rows does not matter."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows):
        groups[normal(row.text)].append(row)
    texts = sorted(groups)
    if len(texts) < 2:
        raise ConfigError("there is one text only: no validation split can be made of it", where, "add rows")
    random.Random(section.seed).shuffle(texts)
    count = min(max(1, round(len(texts) * section.validation_share)), len(texts) - 1)
    held = tuple(row for text in texts[:count] for row in groups[text])
    return tuple(row for text in texts[count:] for row in groups[text]), held


def _sample(rows: Sequence[Row], most: int, seed: int) -> tuple[Row, ...]:
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), most)))


def _statistics(splits: Mapping[str, Sequence[Row]], labels: Sequence[str]) -> dict[str, Any]:
    """As those of classes (`classifier_rows`); what is counted by label are spans."""
    counts = {split: Counter(row.label for row in each_span(rows)) for split, rows in splits.items()}
    texts = {split: {normal(row.text) for row in rows} for split, rows in splits.items()}
    meanings: dict[str, set[str]] = defaultdict(set)
    for row in (row for rows in splits.values() for row in rows):
        meanings[normal(row.text)].add(row.label)
    lengths = sorted(characters(row.text) for rows in splits.values() for row in rows)
    train = [counts["train"][label] for label in labels]
    shared = {f"{one}/{other}": len(texts[one] & texts[other]) for one, other in (*pairwise(SPLITS), ("train", "test"))}
    repeated = {split: len(rows) - len(texts[split]) for split, rows in splits.items()}
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "labels": {label: {split: counts[split][label] for split in splits} for label in labels},
        "imbalance": round(max(train) / max(1, min(train)), 2),
        "out_of_scope": None,
        "out_of_scope_share": None,
        "duplicates": {split: count for split, count in repeated.items() if count},
        "shared": {pair: count for pair, count in shared.items() if count},
        "contradictions": sum(len(found) > 1 for found in meanings.values()),
        "characters": {"p50": lengths[len(lengths) // 2], "p95": lengths[len(lengths) * 95 // 100], "max": lengths[-1]},
    }
