"""The rows that extractive answers are trained and measured on: SQuAD's JSON, read, checked, split, counted.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
     "answers": [{"text": ..., "answer_start": ...}], "is_impossible": false}]}]}]}

in v1.1 or v2.0, or JSONL with {"id", "question", "context", "answers": {"text": [...], "answer_start": [...]}} on each
line, as the hub's copies have it. Places count characters (code points) from 0. In v2.0 a question may have no answer.
Every error names the file, the paragraph and the question. A row travels through the plan as a `Row` of the pair
(question, context) whose label is its answers (`label_of`, `answers_of`). This module loads no runtime.
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
from edge_agent.base.limits import TEXT_BYTES
from edge_agent.base.texts import characters, parts_of
from edge_agent.base.words import is_grapheme_boundary
from edge_forge.data.classifier_rows import SPLITS, ClassifierData, Row, files, normal
from edge_forge.data.text_files import check_text, json_object, keys_of, lines_of, read_text
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection

ANSWER, NO_ANSWER = "answer", "no answer"
"""What is counted of a row: whether its context answers it."""
_SHOWN = 40


class GoldAnswer(NamedTuple):
    """An answer of the data: the first character of it in the context, and its text."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """The character after it."""
        return self.start + len(self.text)


class _Located(NamedTuple):
    row: Row
    where: str


def label_of(answers: Sequence[GoldAnswer]) -> str:
    """Answers as a row's label: JSON, each once and in their order; [] for a question without one."""
    return json.dumps(list(dict.fromkeys(answers)), ensure_ascii=False)


def answers_of(row: Row) -> tuple[GoldAnswer, ...]:
    """The answers of a row; empty where its context has none."""
    return tuple(GoldAnswer(*found) for found in json.loads(row.label))


def question_of(row: Row) -> tuple[str, str]:
    """(question, context) of a row."""
    question, context = parts_of(row.text)
    return question, context


def by_answer(row: Row) -> Row:
    """The same with `ANSWER` or `NO_ANSWER` as its label."""
    return Row(row.text, ANSWER if answers_of(row) else NO_ANSWER)


def load(section: ClassifierDataSection, _: ClassifierTaskSection, recipe_dir: Path) -> ClassifierData:
    """Read and check all splits. Raises ConfigError naming file, paragraph and question, or what the split lacks."""
    found = files(section, recipe_dir)
    located = {split: list(_located(path, section)) for split, path in found.items()}
    names = {split: str(found.get(split, f"the {split} questions of {found['train']}")) for split in SPLITS}
    splits = {split: tuple(one.row for one in rows) for split, rows in located.items()}
    if not any(answers_of(row) for row in splits["train"]):
        raise ConfigError("no training question has an answer: there is nothing to learn", names["train"])
    if not splits.get("validation"):
        splits["train"], splits["validation"] = _split(splits["train"], section, names["train"])
    if section.max_rows:
        splits = {split: _sample(rows, section.max_rows, section.seed) for split, rows in splits.items()}
    train, validation, test = (splits.get(split, ()) for split in SPLITS)
    counted = {"train": train, "validation": validation, "test": test}
    unanswered = any(not answers_of(row) for row in train)
    labels = (ANSWER, NO_ANSWER) if unanswered else (ANSWER,)
    statistics = _statistics(counted, labels)
    warnings = [*_warnings(statistics, names), *_contradictions(located)]
    for split, rows in counted.items():
        without = sum(not answers_of(row) for row in rows)
        if without and not unanswered:
            warnings.append(
                f"{without} of {len(rows)} questions of {names[split]} have no answer, and those of {names['train']} "
                "all have one: the model will always answer"
            )
    return ClassifierData(labels, train, validation, test, statistics, tuple(warnings))


def _located(path: Path, section: ClassifierDataSection) -> Iterator[_Located]:
    kind = section.format or path.suffix.lstrip(".").lower()
    if kind not in ("json", "squad", "jsonl"):
        raise ConfigError(
            f"rows of answers are SQuAD's JSON or JSONL, this is {kind or '(no suffix)'!r}", str(path),
            'use .json or .jsonl, or name the format: data.format = "squad"',
        )  # fmt: skip
    text = read_text(path)
    seen: dict[str, str] = {}
    for row, name, where in _lines(path, text) if kind == "jsonl" else _articles(path, text):
        if name in seen:
            raise ConfigError(
                f"the question's id is that of {seen[name]}", where, "give each question an id of its own"
            )
        if name:
            seen[name] = where
        yield _Located(row, where)
    if not text.strip():
        raise ConfigError("the file has no questions", str(path))


def _articles(path: Path, text: str) -> Iterator[tuple[Row, str, str]]:
    """(row, id, where) of every question of a file in SQuAD's form."""
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise ConfigError(f"it is no JSON: {error}", at, "SQuAD's form is one JSON object") from error
    asked = 0
    for number, article in enumerate(_list(document, "data", str(path)), 1):
        title = article.get("title") if isinstance(article, dict) else None
        named = f"article {number}" + (f" ({str(title)[:_SHOWN]})" if title else "")
        for place, paragraph in enumerate(_list(article, "paragraphs", f"{path}: {named}"), 1):
            where = f"{path}: {named}, paragraph {place}"
            for count, question in enumerate(_list(paragraph, "qas", where), 1):
                asked += 1
                name = str(question.get("id", "")) if isinstance(question, dict) else ""
                here = f"{where}, question {name[:_SHOWN] or count}"
                yield _row(question, paragraph.get("context"), here), name, here
    if not asked:
        raise ConfigError("the file has no questions", str(path))


def _lines(path: Path, text: str) -> Iterator[tuple[Row, str, str]]:
    for number, line in lines_of(text):
        found = json_object(line, f"{path}:{number}")
        name = str(found.get("id", ""))
        where = f"{path}:{number}" + (f", question {name[:_SHOWN]}" if name else "")
        listed = found.get("answers")
        if isinstance(listed, dict):
            texts, starts = listed.get("text"), listed.get("answer_start")
            if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
                raise ConfigError("answers must have as many in 'text' as in 'answer_start'", where)
            listed = [{"text": one, "answer_start": at} for one, at in zip(texts, starts, strict=True)]
            found = {**found, "answers": listed, "is_impossible": not listed}
        yield _row(found, found.get("context"), where), name, where


def _list(given: object, key: str, where: str) -> list[Any]:
    if not isinstance(given, dict) or not isinstance(given.get(key), list):
        told = keys_of(given) if isinstance(given, dict) else f"it is {type(given).__name__}"
        raise ConfigError(
            f"an object with a list {key!r} is needed; {told}", where, "see SQuAD's form in docs/recipe.md"
        )
    found: list[Any] = given[key]
    return found


def _row(found: object, context: object, where: str) -> Row:
    if not isinstance(found, dict) or not isinstance(found.get("question"), str) or not isinstance(context, str):
        told = keys_of(found) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"'question' and the paragraph's 'context' must be strings ({told})", where)
    for part, what in ((found["question"], "the question"), (context, "the context")):
        if not part.strip():
            raise ConfigError(f"{what} is empty", where)
        check_text(part, what, where)
        if len(part.encode()) > TEXT_BYTES:
            raise ConfigError(f"{what} has {len(part.encode())} bytes; a device takes at most {TEXT_BYTES}", where)
    listed, impossible = found.get("answers", []), found.get("is_impossible", False)
    if not isinstance(listed, list) or not isinstance(impossible, bool):
        raise ConfigError("'answers' must be a list and 'is_impossible' true or false", where)
    if impossible and listed:
        raise ConfigError(f"is_impossible is true, and there are {len(listed)} answers", where, "leave one of them out")
    if not impossible and not listed:
        raise ConfigError(
            "there is no answer", where, 'a question that its context does not answer has "is_impossible": true (v2.0)'
        )
    answers = [_answer(one, context, number, where) for number, one in enumerate(listed, 1)]
    return Row((found["question"].strip(), context), label_of(answers))


def _answer(given: object, context: str, number: int, where: str) -> GoldAnswer:
    what = f"answer {number}"
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        told = keys_of(given) if isinstance(given, dict) else type(given).__name__
        raise ConfigError(f"{what} must have the keys text and answer_start ({told})", where)
    text, start = given["text"], given.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise ConfigError(f"{what}: answer_start must be a whole number, not {start!r}", where)
    if not text.strip():
        raise ConfigError(f"{what} is empty", where)
    said = f"{what}, {text[:_SHOWN]!r} at {start},"
    if start < 0 or start + len(text) > len(context):
        raise ConfigError(
            f"{said} does not lie within the {len(context)} characters of the context", where,
            "places count code points from 0",
        )  # fmt: skip
    if context[start : start + len(text)] != text:
        at = context.find(text)
        raise ConfigError(
            f"{said} is not what stands there: {context[start : start + len(text)][:_SHOWN]!r}", where,
            f"it stands at {at}" if at >= 0 else "the context does not hold it",
        )  # fmt: skip
    start += len(text) - len(text.lstrip())
    answer = GoldAnswer(start, text.strip())
    for at in (answer.start, answer.end):
        if not is_grapheme_boundary(context, at):
            raise ConfigError(
                f"{said} cuts through a character at {at}", where,
                "places count code points: an accent or an emoji may have several",
            )  # fmt: skip
    return answer


def _split(rows: Sequence[Row], section: ClassifierDataSection, where: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(training, validation) rows; questions about one context stay on one side, and the order does not matter."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows):
        groups[normal(question_of(row)[1])].append(row)
    contexts = sorted(groups)
    if len(contexts) < 2:
        raise ConfigError("there is one context only: no validation split can be made of it", where, "add paragraphs")
    random.Random(section.seed).shuffle(contexts)
    count = min(max(1, round(len(contexts) * section.validation_share)), len(contexts) - 1)
    # All training questions without an answer, and a validation split of others, would measure nothing.
    held = tuple(row for context in contexts[:count] for row in groups[context])
    kept = tuple(row for context in contexts[count:] for row in groups[context])
    if not any(answers_of(row) for row in kept) or not any(answers_of(row) for row in held):
        raise ConfigError(
            "the split that seed draws leaves one side without an answer", where, "set another data.seed, or validation"
        )
    return kept, held


def _sample(rows: Sequence[Row], most: int, seed: int) -> tuple[Row, ...]:
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), most)))


def _statistics(splits: Mapping[str, Sequence[Row]], labels: Sequence[str]) -> dict[str, Any]:
    """As those of classes (`classifier_rows`); the labels are whether there is an answer, shared are contexts."""
    counts = {split: Counter(by_answer(row).label for row in rows) for split, rows in splits.items()}
    asked = {split: {normal(row.text) for row in rows} for split, rows in splits.items()}
    contexts = {split: {normal(question_of(row)[1]) for row in rows} for split, rows in splits.items()}
    lengths = sorted(characters(row.text) for rows in splits.values() for row in rows)
    train = [counts["train"][label] for label in labels]
    shared = {
        f"{one}/{other}": len(contexts[one] & contexts[other]) for one, other in (*pairwise(SPLITS), ("train", "test"))
    }
    repeated = {split: len(rows) - len(asked[split]) for split, rows in splits.items()}
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "contexts": {split: len(found) for split, found in contexts.items()},
        "labels": {label: {split: counts[split][label] for split in splits} for label in labels},
        "imbalance": round(max(train) / max(1, min(train)), 2),
        "out_of_scope": None,
        "out_of_scope_share": None,
        "duplicates": {split: count for split, count in repeated.items() if count},
        "shared": {pair: count for pair, count in shared.items() if count},
        "contradictions": 0,
        "characters": {"p50": lengths[len(lengths) // 2], "p95": lengths[len(lengths) * 95 // 100], "max": lengths[-1]},
    }


def _warnings(statistics: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    for pair, count in statistics["shared"].items():
        one, other = pair.split("/")
        yield f"{count} context(s) of {names[other]} are also in {one}: figures on {other} look better than they are"
    if statistics["duplicates"].get("train"):
        yield f"{statistics['duplicates']['train']} question(s) of {names['train']} are asked twice of the same context"
    if not statistics["rows"]["test"]:
        yield "there is no test split: figures are those of the validation split, on which training also stopped"


def _contradictions(located: Mapping[str, Sequence[_Located]]) -> Iterator[str]:
    """A sentence on questions that are asked twice with different answers."""
    meanings: dict[str, dict[str, str]] = defaultdict(dict)
    for rows in located.values():
        for row, where in rows:
            meanings[normal(row.text)].setdefault(row.label, where)
    two = [list(found.values()) for found in meanings.values() if len(found) > 1]
    if two:
        yield f"{len(two)} question(s) are asked of one context with different answers: {two[0][0]} and {two[0][1]}"
