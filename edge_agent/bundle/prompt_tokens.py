"""Text to token ids: which places of a text are added tokens, and that no message's content is taken for one.

A tokenizer has tokens that are looked for in the text before anything else: control tokens (`<|im_start|>`) and tokens
that somebody added. `TextEncoder` finds them as the library `tokenizers` does (leftmost, then longest; with the spaces
that a token takes along) and has the rest encoded by a function that is handed in: llama.cpp on a device, `tokenizers`
on the host. So both split the same text at the same places.

In a conversation only the template may open and close turns. `turn_marks` asks the template which added tokens it
writes for that; `ChatEncoder` encodes those and the control tokens where they stand in a message's content as the plain
text that they are. Pure; the tokens of plain text are not this module's affair.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edge_agent.bundle.chat_template import (
    ChatTemplateError,
    Message,
    Prompt,
    Span,
    TemplateRenderer,
    trial_dialogue,
)

_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space, which `tokenizers` strips; Python's own `isspace` takes four control characters more."""
_LEAD = "\x01"
"""Put before a piece that may get no space of the tokenizer's own, and its tokens taken off again. No token merges it
with others: tokenizers that put spaces before texts write such a character as a byte."""


class AddedToken(NamedTuple):
    """A token that is found in the text itself. `control`: llama.cpp and `tokenizers` call it special; `lstrip`,
    `rstrip`: it takes the spaces before or behind it along."""

    token: int
    text: str
    control: bool
    lstrip: bool = False
    rstrip: bool = False


class TextRules(NamedTuple):
    """What a tokenizer does with plain text before it is split. `space_prefix`: a space is put before 'never' a text,
    'always' before each piece between added tokens, or only the 'first'; `spares_spaces`: not before a piece that
    begins with a space; `nfc`: Unicode is composed."""

    space_prefix: str = "never"
    spares_spaces: bool = False
    nfc: bool = False


NO_RULES = TextRules()


class CannotEncode(Exception):
    """A message holds a text that can only be encoded as the mark that it must not be. `message` is its number, -1
    where that is not known."""

    def __init__(self, mark: str, message: int = -1) -> None:
        super().__init__(mark)
        self.mark = mark
        self.message = message


class Guard:
    """What contents may not write: control tokens, and `marks`, which are texts of other added tokens."""

    def __init__(self, added: Sequence[AddedToken], marks: Iterable[str] = ()) -> None:
        kept = frozenset(mark for mark in marks if mark.strip())  # line breaks are tokens of some vocabularies
        self.refused = frozenset(one.text for one in added if one.control or one.text in kept)
        self.allowed = _pattern(one.text for one in added if one.text not in self.refused)
        # A library finds these in plain text too; control tokens it does not.
        self.broken = _pattern(one.text for one in added if not one.control and one.text in kept)


class TextEncoder:
    """Token ids of texts. `encode` gives those of plain text, without control tokens and without bos."""

    def __init__(
        self,
        added: Sequence[AddedToken],
        encode: Callable[[str], list[int]],
        rules: TextRules = NO_RULES,
        bos: int | None = None,
    ) -> None:
        self.added = tuple(added)
        self._by_text: Mapping[str, AddedToken] = {one.text: one for one in self.added}
        self._any = _pattern(self._by_text)
        self._encode = encode
        self._rules = rules
        self._bos = bos

    def encode(self, text: str, begin: bool, spans: Sequence[Span] = (), guard: Guard | None = None) -> list[int]:
        """Ids of a text. `begin`: the token that begins a text comes first, where the tokenizer has it so and the text
        does not begin with it already. Inside of `spans` nothing that `guard` refuses is found. Raises CannotEncode."""
        ids: list[int] = []
        at_start = True
        for piece in self._pieces(text, spans, guard):
            if isinstance(piece, AddedToken):
                ids.append(piece.token)
            else:
                ids += self._plain(piece, at_start, guard)
            at_start = False
        return [self._bos, *ids] if begin and self._bos is not None and ids[:1] != [self._bos] else ids

    def found(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """The added tokens of a text and where each begins."""
        at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            yield match.start(), self._by_text[match[0]]
            at = match.end()

    def _pieces(self, text: str, spans: Sequence[Span], guard: Guard | None) -> Iterator[AddedToken | str]:
        done = at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            if guard is not None and match[0] in guard.refused and _touches(match.span(), spans):
                at = match.start() + 1
                match = None if guard.allowed is None else guard.allowed.match(text, at - 1)
                if match is None:
                    continue
            token = self._by_text[match[0]]
            before = text[done : match.start()]
            before = before.rstrip(_SPACES) if token.lstrip else before
            if before:
                yield before
            yield token
            done = at = match.end()
            if token.rstrip:  # tokens of line breaks are found in what it takes along, as `tokenizers` has it
                done = len(text) - len(text[at:].lstrip(_SPACES))
        if done < len(text):
            yield text[done:]

    def _plain(self, text: str, at_start: bool, guard: Guard | None) -> list[int]:
        """Ids of a piece between added tokens. A mark in it is cut behind its first character, so that no library finds
        it."""
        ids: list[int] = []
        rules = self._rules
        continues = (not at_start and rules.space_prefix == "first") or (
            rules.space_prefix != "never" and rules.spares_spaces and text[:1] == " "
        )
        text = unicodedata.normalize("NFC", text) if rules.nfc else text
        while text:
            match = guard.broken.search(text) if guard is not None and guard.broken is not None else None
            end = len(text) if match is None else match.start() + 1
            if match is not None and match.end() == end:
                raise CannotEncode(match[0])
            ids += self._continued(text[:end]) if continues else self._encode(text[:end])
            text, continues = text[end:], rules.space_prefix != "never"
        return ids

    def _continued(self, text: str) -> list[int]:
        """Ids of a piece that gets no space before it."""
        lead, ids = self._encode(_LEAD), self._encode(_LEAD + text)
        if ids[: len(lead)] != lead:
            raise CannotEncode(text[:16])
        return ids[len(lead) :]


class ChatEncoder:
    """A template and a tokenizer together: messages to a prompt, and the prompt to ids."""

    def __init__(self, renderer: TemplateRenderer, encoder: TextEncoder) -> None:
        self._renderer = renderer
        self._encoder = encoder
        self._guard: Guard | None = None

    @property
    def guard(self) -> Guard:
        """What messages may not write; found out by the template at the first use. Raises ChatTemplateError."""
        if self._guard is None:
            self._guard = Guard(self._encoder.added, turn_marks(self._renderer, self._encoder))
        return self._guard

    def prompt(self, messages: Sequence[Message], ask: bool = True) -> Prompt:
        """The prompt of messages, with the opening of the next answer where `ask` says so.

        Raises ChatTemplateError, and CannotEncode for a message that the template takes apart and that brings a mark
        into the prompt.
        """
        prompt = self._renderer.prompt(messages, ask)
        for number in prompt.unplaced:
            held = [mark for mark in self.guard.refused if mark in messages[number]["content"]]
            if held:
                bare = [*messages]
                bare[number] = {**messages[number], "content": _without(messages[number]["content"], held)}
                left = self._renderer.render(bare, ask)
                for mark in held:
                    if prompt.text.count(mark) > left.count(mark):
                        raise CannotEncode(mark, number)
        return prompt

    def encode(self, prompt: Prompt, begin: bool, start: int = 0) -> list[int]:
        """Ids of the prompt from the character `start` on. Raises CannotEncode."""
        spans = [(max(0, first - start), end - start) for first, end in prompt.spans if end > start]
        return self._encoder.encode(prompt.text[start:], begin, spans, self.guard)


def turn_marks(renderer: TemplateRenderer, encoder: TextEncoder) -> frozenset[str]:
    """Texts of added tokens that open and close turns: those that the template writes around questions and system
    messages, the first that opens an answer, and those behind one.

    Others (the `<think>` that a template puts before an answer) are what a model may write, too. Raises
    ChatTemplateError where the template cannot make a prompt of one question.
    """
    if all(one.control for one in encoder.added):
        return frozenset()
    system, question, answer, _ = trial_dialogue()
    asked = _rendered(renderer, [question], ask=False)
    opened = renderer.prompt([question], True)
    begins = len(asked.text) if asked is not None and opened.text.startswith(asked.text) else opened.spans[-1][1]
    marks = {token.text for _, token in [*encoder.found(opened.text[begins:])][:1]}
    marks |= {token.text for at, token in encoder.found(opened.text) if at < begins}
    instructed = _rendered(renderer, [system, question], ask=False)
    if instructed is not None:
        marks |= {token.text for _, token in encoder.found(instructed.text)}
    answered = _rendered(renderer, [question, answer], ask=False)
    if answered is not None and answered.spans:
        marks |= {token.text for _, token in encoder.found(answered.text[answered.spans[-1][1] :])}
    return frozenset(marks)


def _rendered(renderer: TemplateRenderer, messages: Sequence[Message], ask: bool) -> Prompt | None:
    try:
        return renderer.prompt(messages, ask)
    except ChatTemplateError:
        return None


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the texts; of those that begin at one place the longest."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _touches(place: Span, spans: Sequence[Span]) -> bool:
    """Whether a place shares a character with one of the spans, which are in order."""
    before = bisect_left(spans, place[1], key=lambda span: span[0]) - 1
    return before >= 0 and spans[before][1] > place[0]


def _without(content: str, marks: Sequence[str]) -> str:
    """The content without these texts, also those that their removal makes."""
    before = None
    while content != before:
        before = content
        for mark in marks:
            content = content.replace(mark, "")
    return content
