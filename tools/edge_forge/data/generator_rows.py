"""The rows that a generator is trained and measured on: dialogues, questions with answers, or plain texts.

Local files: chat JSONL (`messages`: a list of {role, content}), completion JSONL (`prompt`, `completion`), texts (.txt
with empty lines between them, or JSONL), and two forms that data sets are published in: ShareGPT (`conversations`: a
list of {from, value}) and Alpaca (`instruction`, `input`, `output`), each with `system`, Alpaca with `history`.
Preferences are JSONL too: `prompt` or `messages`,
`chosen` and `rejected`, each of them a text or a list of messages. Every error names the file and the line. This module
loads no runtime.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError, brief
from edge_forge.data.classifier_rows import SPLITS, normal
from edge_forge.data.text_files import check_text, json_object, keys_of, lines_of, read_text
from edge_forge.recipe.generator_recipe import GeneratorDataSection

ROLES = ("system", "user", "assistant")
TEXT = "text"
"""The role of a row that is no dialogue."""
REJECTED = "rejected"
"""The role of the last turn of a preference: an answer that is worse than the assistant's turn before it."""


class Turn(NamedTuple):
    """One message. `role` is one of ROLES, TEXT, or REJECTED."""

    role: str
    text: str


Row = tuple[Turn, ...]
"""A dialogue that ends with the assistant's turn, the same with a REJECTED turn behind it, or one TEXT turn."""


@dataclass(frozen=True, slots=True)
class GeneratorData:
    """Checked splits; `test` may be empty.

    `warnings` are sentences for people to act on; `notes` say what was recognised, where nothing is to be done.
    """

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

    @property
    def answers(self) -> bool:
        """True for dialogues, whose answers can be compared; False for plain texts."""
        return self.train[0][-1].role != TEXT

    @property
    def preferences(self) -> bool:
        """True where every row has a chosen and a rejected answer."""
        return self.train[0][-1].role == REJECTED


def chosen(row: Row) -> Row:
    """The dialogue of a preference with the chosen answer; any other row as it is."""
    return row[:-1] if row[-1].role == REJECTED else row


def rejected(row: Row) -> Row:
    """The dialogue of a preference with the rejected answer."""
    return (*row[:-2], Turn("assistant", row[-1].text))


def files(section: GeneratorDataSection, recipe_dir: Path) -> dict[str, Path]:
    """The local files by split."""
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    return {split: recipe_dir / Path(name).expanduser() for split, name in named.items() if name}


def load(section: GeneratorDataSection, recipe_dir: Path) -> GeneratorData:
    """Read and check all splits. Raises ConfigError naming file and line."""
    found = files(section, recipe_dir)
    notes: list[str] = []
    splits: dict[str, tuple[Row, ...]] = {split: tuple(_read(path, section, notes)) for split, path in found.items()}
    kinds = {split: rows[0][-1].role for split, rows in splits.items()}
    for split, kind in kinds.items():
        if kind != kinds["train"]:
            raise ConfigError(f"its rows are not of the kind of {found['train'].name}", str(found[split]))
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_rows(splits["train"], section, str(found["train"]))
    if section.max_rows:
        splits = {split: rows[: section.max_rows] for split, rows in splits.items()}
    train, validation, test = (splits.get(split, ()) for split in SPLITS)
    statistics = _statistics({"train": train, "validation": validation, "test": test})
    return GeneratorData(train, validation, test, statistics, tuple(_warnings(statistics)), tuple(notes))


def read(path: Path, section: GeneratorDataSection) -> Iterator[Row]:
    """The rows of one file. Raises ConfigError naming the file and the line."""
    return _read(path, section, [])


def with_places(path: Path, section: GeneratorDataSection) -> Iterator[tuple[str, Row]]:
    """('FILE:LINE', row) of a file of JSON lines that was read before."""
    text = read_text(path)
    return _lines(path, text, section.format or _kind(path, text, section), section)


def _read(path: Path, section: GeneratorDataSection, notes: list[str]) -> Iterator[Row]:
    """As `read`; `notes` gets a sentence on a form that was recognised by its keys."""
    text = read_text(path)
    kind = section.format or _kind(path, text, section)
    if kind in _PUBLISHED and not section.format:
        notes.append(f"{path}: read as {_PUBLISHED[kind]}")
    empty = True
    found = _texts(path, text) if path.suffix == ".txt" else (row for _, row in _lines(path, text, kind, section))
    for row in found:
        empty = False
        yield row
    if empty:
        raise ConfigError("the file has no rows", str(path))


def split_rows(
    rows: Sequence[Row], section: GeneratorDataSection, where: str
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(training, validation); rows with equal questions stay on one side. The order of the rows plays no part."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows):
        groups.setdefault(question(row), []).append(row)
    if len(groups) < 2:
        raise ConfigError("no validation split can be made of one row", where, "add rows, or name a validation file")
    names = sorted(groups)
    random.Random(section.seed).shuffle(names)
    count = min(max(1, round(len(names) * section.validation_share)), len(names) - 1)
    held = tuple(row for name in names[:count] for row in groups[name])
    return tuple(row for name in names[count:] for row in groups[name]), held


def question(row: Row) -> str:
    """What a row asks, in the form in which two count as the same."""
    asked = chosen(row)[:-1] if len(row) > 1 else row
    return normal("\n".join(turn.text for turn in asked))


def as_json(row: Row) -> list[list[str]]:
    """A row as plain values."""
    return [[turn.role, turn.text] for turn in row]


def from_json(found: Sequence[Sequence[str]]) -> Row:
    """What `as_json` wrote."""
    return tuple(Turn(role, text) for role, text in found)


_PUBLISHED = {
    "sharegpt": "ShareGPT: `conversations` are the messages, human asks and gpt answers",
    "alpaca": "Alpaca: `instruction`, an empty line and `input` where there is one ask, `output` answers",
}
# Who speaks in ShareGPT's rows, by the names in use.
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
}


def _kind(path: Path, text: str, section: GeneratorDataSection) -> str:
    if path.suffix == ".txt":
        return TEXT
    if path.suffix != ".jsonl":
        listed = text.lstrip()[:1] == "["
        raise ConfigError(
            f"files of type {path.suffix or '(no suffix)'!r} cannot be read",
            str(path),
            "write one object per line: jq -c '.[]' FILE.json > FILE.jsonl" if listed else "use .jsonl or .txt",
        )
    first = next((line for _, line in lines_of(text)), "{}")
    try:
        found = json_object(first, str(path))
    except ConfigError:  # said with its line when the lines are read
        return "completion"
    if {section.chosen, section.rejected} <= set(found):
        return "preference"
    if section.messages in found:
        return "chat"
    if "conversations" in found:
        return "sharegpt"
    if {"instruction", "output"} <= set(found) and section.completion not in found:
        return "alpaca"
    return "text" if set(found) == {section.text} else "completion"


def _texts(path: Path, text: str) -> Iterator[Row]:
    part: list[str] = []
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            part.append(line)
        elif part:
            check_text("\n".join(part), "the text", f"{path}:{number - len(part)}")
            yield (Turn(TEXT, "\n".join(part)),)
            part = []


def _lines(path: Path, text: str, kind: str, section: GeneratorDataSection) -> Iterator[tuple[str, Row]]:
    """('FILE:LINE', row) of each line."""
    readers = {
        "chat": _chat, "completion": _completion, "text": _text, "sharegpt": _sharegpt, "alpaca": _alpaca,
        "preference": _preference,
    }  # fmt: skip
    for number, line in lines_of(text):
        where = f"{path}:{number}"
        found = json_object(line, where)
        if kind in _DIALOGUES:
            _check_beside(found, _BESIDE_DIALOGUE, "the row", where)
        yield where, readers[kind](found, section, where)


_DIALOGUES = ("chat", "sharegpt", "preference")
# What published dialogues have beside roles and contents, and the model would be shown or not be taught.
_BESIDE_DIALOGUE = ("tools", "functions", "documents")
_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking")


def _check_beside(found: Mapping[str, Any], keys: Sequence[str], whose: str, where: str) -> None:
    """Refuse a key that changes what is learned, unless it is empty: to leave it out would be another dialogue."""
    for key in keys:
        if found.get(key) not in (None, "", "[]", [], {}):
            raise ConfigError(
                f"{whose} has {key!r}, which is not taught here: rows are texts by role", where,
                "write it into a message as the model is to read it, or remove it",
            )  # fmt: skip
    if found.get("weight", 1) not in (None, 1):  # tables fill messages without a weight with null
        raise ConfigError(
            f"{whose} has the weight {brief(found['weight'])}: every answer is learned alike here", where,
            "remove the key, or the message",
        )  # fmt: skip


def _sharegpt(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    told = found.get("conversations")
    messages = []
    for place, one in enumerate(told if isinstance(told, list) else (), 1):
        speaker = one.get("from") if isinstance(one, dict) else None
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise ConfigError(
                f"message {place} is from {brief(speaker)}", where, f"speakers are {', '.join(_SPEAKERS)}"
            )
        _check_beside(one, _BESIDE_CONTENT, f"message {place}", where)
        messages.append({"role": _SPEAKERS[speaker], "content": one.get("value")})
    system = _system(found, where)
    if system and messages and messages[0]["role"] == "system":
        raise ConfigError("'system' stands beside a message from 'system'", where, "keep one of them")
    return (*system, *_chat({section.messages: messages}, section, where))


def _alpaca(found: Mapping[str, Any], _: GeneratorDataSection, where: str) -> Row:
    more = found.get("input") or ""
    if not isinstance(more, str):
        raise ConfigError("'input' must be a text", where)
    check_text(more, "'input'", where)
    asked = _string(found, "instruction", where) + (f"\n\n{more}" if more.strip() else "")
    turns = (Turn("user", asked), Turn("assistant", _string(found, "output", where)))
    return (*_system(found, where), *_history(found.get("history") or [], where), *turns)


def _system(found: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    """The system's message that a published row has beside its messages; none where it is empty."""
    return (Turn("system", _string(found, "system", where)),) if found.get("system") not in (None, "") else ()


def _history(history: Any, where: str) -> Iterator[Turn]:
    """The dialogue before an Alpaca row: a list of [question, answer]."""
    for place, one in enumerate(history if isinstance(history, list) else [None], 1):
        if not isinstance(one, list) or len(one) != 2 or not all(isinstance(part, str) and part for part in one):
            raise ConfigError(f"turn {place} of 'history' is no [question, answer]", where)
        for role, text in zip(("user", "assistant"), one, strict=True):
            check_text(text, "'history'", where)
            yield Turn(role, text)


def _preference(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    """A prompt (a text or messages) and two answers to it. An answer is a text, or messages as published sets have
    them: the assistant's alone, or the whole dialogue, which then must begin with the prompt where there is one."""
    prompt = _prompt(found, section, where)
    answers = []
    for key in (section.chosen, section.rejected):
        if not isinstance(found.get(key), list):
            answers.append((prompt, _string(found, key, where)))
            continue
        turns = _turns(found[key], repr(key), where)
        if turns[-1].role != "assistant":
            raise ConfigError(f"the last message of {key!r} must be the assistant's", where)
        before = turns[:-1] or prompt
        if prompt and before != prompt:
            raise ConfigError(f"the messages of {key!r} do not begin with the prompt", where)
        answers.append((before, turns[-1].text))
    (asked, good), (other, bad) = answers
    if not asked or asked[-1].role == "assistant":
        raise ConfigError(
            "there is no prompt that is to be answered", where,
            f"add {section.prompt!r} (a text), or {section.messages!r} that end with the user's",
        )  # fmt: skip
    if asked != other:
        raise ConfigError(f"{section.chosen!r} and {section.rejected!r} answer different prompts", where)
    if good.strip() == bad.strip():
        raise ConfigError(
            f"{section.chosen!r} and {section.rejected!r} are equal, so nothing is preferred", where, "remove the row"
        )
    return (*asked, Turn("assistant", good), Turn(REJECTED, bad))


def _prompt(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    """The turns of a preference's prompt; none where its answers are whole dialogues."""
    if section.messages in found:
        return _turns(found[section.messages], repr(section.messages), where)
    if isinstance(found.get(section.prompt), list):
        return _turns(found[section.prompt], repr(section.prompt), where)
    if section.prompt in found or not isinstance(found.get(section.chosen), list):
        return (Turn("user", _string(found, section.prompt, where)),)
    return ()


def _chat(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    turns = _turns(found.get(section.messages), repr(section.messages), where)
    if turns[-1].role != "assistant" or len(turns) < 2:
        raise ConfigError("the last message must be the assistant's answer to another one", where)
    return turns


def _turns(messages: object, what: str, where: str) -> Row:
    """A list of {role, content}."""
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{what} must be a list of messages, and not empty", where)
    turns = []
    for place, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ConfigError(f"message {place} has the role {brief(role)}", where, f"roles are {', '.join(ROLES)}")
        if role == "system" and place > 1:
            raise ConfigError(f"message {place} is of the system; only the first one may be", where)
        _check_beside(message, _BESIDE_CONTENT, f"message {place}", where)
        turns.append(Turn(role, _string(message, "content", where)))
    return tuple(turns)


def _completion(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    prompt, answer = _string(found, section.prompt, where), _string(found, section.completion, where)
    return (Turn("user", prompt), Turn("assistant", answer))


def _text(found: Mapping[str, Any], section: GeneratorDataSection, where: str) -> Row:
    return (Turn(TEXT, _string(found, section.text, where)),)


def _string(found: Mapping[str, Any], key: str, where: str) -> str:
    if key not in found:
        raise ConfigError(
            f"the object has no key {key!r} ({keys_of(found)})", where,
            "add it, or name the keys in [data], see docs/recipe.md",
        )  # fmt: skip
    value = found[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key!r} must be a text, and not empty", where)
    check_text(value, repr(key), where)
    return value


def _statistics(splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    asked = {split: {question(row) for row in rows} for split, rows in splits.items()}
    lengths = sorted(sum(len(turn.text) for turn in row) for rows in splits.values() for row in rows)
    pairs = (("train", "validation"), ("validation", "test"), ("train", "test"))
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "kind": {"assistant": "dialogues", REJECTED: "preferences"}.get(splits["train"][0][-1].role, "texts"),
        "shared": {
            f"{one}/{other}": len(asked[one] & asked[other]) for one, other in pairs if asked[one] & asked[other]
        },
        "characters": {"p50": lengths[len(lengths) // 2], "p95": lengths[len(lengths) * 95 // 100], "max": lengths[-1]},
    }


def _warnings(statistics: Mapping[str, Any]) -> Iterator[str]:
    for pair, count in statistics["shared"].items():
        one, other = pair.split("/")
        yield f"{count} question(s) of {other} are also in {one}: figures on {other} look better than they are"
    if not statistics["rows"]["test"]:
        yield "there is no test split: figures are those of the validation split, on which training also stopped"
