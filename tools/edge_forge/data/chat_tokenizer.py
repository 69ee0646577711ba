"""Tokens of a generator's rows: prompts that are not learned, answers that are, and several rows packed into one.

A dialogue is tokenised turn by turn, split where an answer begins, since a device tokenises a prompt as a whole and
then goes on token by token. Prompts come from the renderer that the device uses (`edge_agent.bundle.chat_template`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from edge_agent.base.errors import ConfigError
from edge_agent.bundle.chat_template import ChatTemplateError, Prompt, TemplateRenderer
from edge_agent.bundle.prompt_tokens import CannotEncode, ChatEncoder, TextEncoder
from edge_forge.data.generator_rows import TEXT, Row, Turn, chosen, rejected
from edge_forge.export.gguf.vocabulary import (
    added_tokens,
    chat_template,
    end_tokens,
    first_token,
    plain_library,
    special_tokens,
    text_rules,
)

TRAINING_TIME = datetime(2025, 1, 1)  # noqa: DTZ001 - a template writes the local time of a device
"""What `strftime_now` of a chat template writes in prompts of the host: a fixed date, so that a build can be repeated.
A device writes its own date."""
NOT_LEARNED = -100
"""What torch's cross entropy leaves out."""


class EncodedRow(NamedTuple):
    """A tokenised row: `ids`, `labels` (the id where learned, else NOT_LEARNED), where the last answer begins."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    answer: int


class EncodedPair(NamedTuple):
    """A tokenised preference: the prompt, and each answer with the token that ends it."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two dialogues."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PackedRows:
    """Rows of exactly one length for training. `places` restart at 0 with every row, which bounds its attention."""

    ids: list[list[int]]
    labels: list[list[int]]
    places: list[list[int]]
    left_out: int


class ChatTokenizer:
    """A model folder's tokenizer and template."""

    def __init__(self, folder: Path, chat: str) -> None:
        # Added tokens are found by the code that devices run.
        self._library = plain_library(folder)
        self._encoder = TextEncoder(added_tokens(folder), self._plain, text_rules(folder), first_token(folder))
        self.template: TemplateRenderer | None = usable_template(folder) if chat != "no" else None
        self._chat = None if self.template is None else ChatEncoder(self.template, self._encoder)
        self._where = str(folder)
        if chat == "yes" and self.template is None:
            raise ConfigError("the model has no chat template", "task.chat", 'use chat = "no", or another model')
        self.ends = end_tokens(folder)
        if not self.ends:
            raise ConfigError("the model names no token that ends a text (eos)", str(folder))

    def prompt(self, row: Row) -> str:
        """The prompt of the last answer, as a device renders it; empty for a plain text."""
        if row[-1].role == TEXT:
            return ""
        turns = row[:-1]
        return turns[-1].text if self._chat is None else self._render(self._chat, turns, ask=True).text

    def encode(self, row: Row) -> EncodedRow:
        """The tokens of a row, the end token included."""
        if row[-1].role == TEXT:
            ids = (*self.ids(row[-1].text, begins=True), self.ends[0])
            return EncodedRow(ids, ids, 0)
        if self._chat is None:
            if len(row) != 2:
                raise ConfigError(
                    "a dialogue of several turns needs a chat template", "task.chat", "use a model that has one"
                )
            asked, said = self.ids(row[0].text, begins=True), (*self.ids(row[1].text), self.ends[0])
            return EncodedRow((*asked, *said), (NOT_LEARNED,) * len(asked) + said, len(asked))
        return self._dialogue(self._chat, row)

    def encode_pair(self, row: Row) -> EncodedPair:
        """The tokens of a preference. The prompt is tokenised alone, as a device does, so both answers follow it."""
        good, bad = self.encode(chosen(row)), self.encode(rejected(row))
        return EncodedPair(good.ids[: good.answer], good.ids[good.answer :], bad.ids[bad.answer :])

    def ids(self, text: str, begins: bool = False) -> tuple[int, ...]:
        """Ids of a text; `begins`: with what the tokenizer puts before a text, but never behind it."""
        return tuple(self._encoder.encode(text, begins))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without control tokens."""
        found: str = self._library.decode(list(ids), skip_special_tokens=True)
        return found

    def _plain(self, text: str) -> list[int]:
        found: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return found

    def _render(self, chat: ChatEncoder, turns: Sequence[Turn], ask: bool) -> Prompt:
        """The prompt of turns; `ask`: up to where the assistant's answer begins."""
        try:
            return chat.prompt([{"role": role, "content": text} for role, text in turns], ask)
        except ChatTemplateError as error:
            raise _config_error(error, self._where) from error
        except CannotEncode as error:
            raise _mark_in_row(error, turns) from error

    def _dialogue(self, chat: ChatEncoder, row: Sequence[Turn]) -> EncodedRow:
        try:
            return self._turns(chat, row)
        except CannotEncode as error:
            raise _mark_in_row(error, row) from error

    def _turns(self, chat: ChatEncoder, row: Sequence[Turn]) -> EncodedRow:
        ids: list[int] = []
        labels: list[int] = []
        done, answer = "", 0
        for place, turn in enumerate(row):
            if turn.role != "assistant":
                continue
            asked = self._render(chat, row[:place], ask=True)
            said = self._render(chat, row[: place + 1], ask=False)
            if not (asked.text.startswith(done) and said.text.startswith(asked.text)):
                raise ConfigError(
                    "the chat template changes what it wrote before when a turn is added", "task.chat",
                    'train on single turns, or use chat = "no"',
                )  # fmt: skip
            before = chat.encode(asked, not done, len(done))
            learned = chat.encode(said, False, len(asked.text))
            answer = len(ids) + len(before)
            ids += [*before, *learned]
            labels += [*(NOT_LEARNED for _ in before), *learned]
            done = said.text
        return EncodedRow(tuple(ids), tuple(labels), answer)


def usable_template(folder: Path) -> TemplateRenderer | None:
    """The chat template of a model folder, None where it has none. Raises ConfigError where it makes no prompt."""
    text = chat_template(folder)
    if text is None:
        return None
    renderer = TemplateRenderer(text, special_tokens(folder), now=lambda: TRAINING_TIME)
    try:
        renderer.try_out()
    except ChatTemplateError as error:
        raise ConfigError(
            f"the chat template makes no prompt of plain messages: {error.sentence()}", str(folder),
            "mend it, or remove it from the base's folder: devices refuse a package that carries it",
        ) from error  # fmt: skip
    return renderer


def _mark_in_row(error: CannotEncode, turns: Sequence[Turn]) -> ConfigError:
    number = (
        error.message
        if error.message >= 0
        else next((at for at, turn in enumerate(turns) if error.mark in turn.text), 0)
    )
    return ConfigError(
        f"the message {turns[number].text[:60]!r} writes {error.mark!r}, which would count as the template's own",
        "data",
        "take it out of the row",
    )  # fmt: skip


def _config_error(error: ChatTemplateError, where: str) -> ConfigError:
    return ConfigError(f"the chat template makes no prompt of these messages: {error.sentence()}", where)


def pack(rows: Iterable[EncodedRow], length: int, pad: int, seed: int) -> PackedRows:
    """Rows packed into rows of `length`, first fit in random order; texts are cut to fit, longer dialogues left out."""
    parts, left_out = [], 0
    for row in rows:
        if len(row.ids) <= length:
            parts.append(row)
        elif row.answer == 0:
            parts += cut(row, length)
        else:
            left_out += 1
    if not parts:
        raise ConfigError(f"no row fits into {length} tokens", "task.max_tokens", "raise it, or shorten the rows")
    random.Random(seed).shuffle(parts)
    bins: list[list[EncodedRow]] = []
    open_bins: list[tuple[int, int]] = []
    for part in parts:
        place = next((at for at, (_, room) in enumerate(open_bins) if room >= len(part.ids)), None)
        if place is None:
            open_bins = [*open_bins[-_OPEN_BINS:], (len(bins), length)]
            bins.append([])
            place = len(open_bins) - 1
        number, room = open_bins[place]
        bins[number].append(part)
        open_bins[place] = (number, room - len(part.ids))
    found = PackedRows([], [], [], left_out)
    for members in bins:
        ids = [one for part in members for one in part.ids]
        labels = [one for part in members for one in (NOT_LEARNED, *part.labels[1:])]
        places = [place for part in members for place in range(len(part.ids))]
        missing = length - len(ids)
        found.ids.append(ids + [pad] * missing)
        found.labels.append(labels + [NOT_LEARNED] * missing)
        found.places.append(places + list(range(missing)))
    return found


_OPEN_BINS = 64


def cut(row: EncodedRow, length: int) -> Iterator[EncodedRow]:
    """A long text in parts of `length`; the last token of one is the first of the next, so that each is learned."""
    for start in range(0, len(row.ids) - 1, length - 1):
        yield EncodedRow(row.ids[start : start + length], row.labels[start : start + length], 0)


def tokens_of_row(tokenizer: ChatTokenizer, row: Row) -> int:
    """Tokens that training reads of a row."""
    return len(tokenizer.encode(row).ids)


def tokens_of_pair(tokenizer: ChatTokenizer, row: Row) -> int:
    """Tokens that training reads of a preference: its prompt with either answer."""
    pair = tokenizer.encode_pair(row)
    return 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def pairs_within(tokenizer: ChatTokenizer, rows: Sequence[Row], length: int) -> tuple[list[Row], list[EncodedPair]]:
    """The preferences that fit into `length` tokens, and their tokens. Raises ConfigError where none does."""
    encoded = [(row, tokenizer.encode_pair(row)) for row in rows]
    kept = [(row, pair) for row, pair in encoded if pair.length <= length]
    if not kept:
        raise ConfigError(f"no row fits into {length} tokens", "task.max_tokens", "raise it, or shorten the rows")
    return [row for row, _ in kept], [pair for _, pair in kept]


def to_score(tokenizer: ChatTokenizer, rows: Sequence[Row], length: int) -> tuple[list[Row], list[EncodedRow]]:
    """What is scored of `rows`: dialogues that fit into `length` tokens, or texts in parts of it (then no rows).

    Raises ConfigError when nothing is left.
    """
    encoded = [tokenizer.encode(row) for row in rows]
    if rows and rows[0][-1].role == TEXT:
        return [], [part for row in encoded for part in cut(row, length)]
    kept = [(row, one) for row, one in zip(rows, encoded, strict=True) if len(one.ids) <= length]
    if not kept:
        raise ConfigError(f"no row that is to be scored fits into {length} tokens", "task.max_tokens", "raise it")
    return [row for row, _ in kept], [one for _, one in kept]
