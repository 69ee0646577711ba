"""Text to token ids: which places of a text are added tokens, and that no message's content is taken for one.

A tokenizer has tokens that are looked for in the text before anything else: control tokens (`<|im_start|>`) and tokens
that somebody added. `TextEncoder` finds them as the library `tokenizers` does (leftmost, then longest; with the spaces
that a token takes along) and has the rest encoded by a function that is handed in: llama.cpp on a device, `tokenizers`
on the host. So both split the same text at the same places.

In a conversation only the template may open and close turns. `turn_marks` asks the template which added tokens it
writes for that; `ChatEncoder` takes those and the control tokens only where the template itself writes them, and
encodes what contents write as the plain text that it is. Where it cannot tell who writes a mark, it compares with a
prompt of harmless contents. Pure; the tokens of plain text are not this module's affair.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edge_agent.bundle.chat_template import (
    ChatTemplateError,
    Message,
    Prompt,
    Span,
    TemplateRenderer,
    any_of,
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
    """What contents may not write: control tokens, and `marks`, which are texts of other added tokens. `composed` are
    those that the template puts together of pieces, so that where it writes them is not known."""

    def __init__(self, added: Sequence[AddedToken], marks: Iterable[str] = (), composed: Iterable[str] = ()) -> None:
        self.composed = frozenset(composed)
        kept = frozenset(mark for mark in marks if mark.strip())  # line breaks are tokens of some vocabularies
        self.refused = frozenset(one.text for one in added if one.control or one.text in kept)
        self.allowed = any_of([one.text for one in added if one.text not in self.refused])
        # A library finds these in plain text too; control tokens it does not.
        self.broken = any_of([one.text for one in added if not one.control and one.text in kept])


class ContentPlaces(NamedTuple):
    """What of a text is the contents' own: `spans` of it, and of the marks that `guard` refuses all but those that are
    `written` (start to end; None: unknown) by the template."""

    guard: Guard
    spans: Sequence[Span] = ()
    written: Mapping[int, int] | None = None

    def template_writes(self, place: Span, mark: str) -> bool:
        """Whether a refused mark at this place is the template's."""
        if _touches(place, self.spans):
            return False
        return self.written is None or self.written.get(place[0]) == place[1] or mark in self.guard.composed


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
        self._any = any_of(self._by_text)
        self._encode = encode
        self._rules = rules
        self._bos = bos

    def encode(self, text: str, begin: bool, contents: ContentPlaces | None = None) -> list[int]:
        """Ids of a text. `begin`: the token that begins a text comes first, where the tokenizer has it so and the text
        does not begin with it already. No mark that is the contents' own is found. Raises CannotEncode."""
        ids: list[int] = []
        at_start = True
        for piece in self.pieces(text, contents):
            if isinstance(piece, AddedToken):
                ids.append(piece.token)
            else:
                ids += self._plain(piece, at_start, None if contents is None else contents.guard)
            at_start = False
        return [self._bos, *ids] if begin and self._bos is not None and ids[:1] != [self._bos] else ids

    def found(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """The added tokens of a text and where each begins."""
        at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            yield match.start(), self._by_text[match[0]]
            at = match.end()

    def pieces(self, text: str, contents: ContentPlaces | None = None) -> Iterator[AddedToken | str]:
        """The added tokens of a text and the plain text between them."""
        done = at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            held = match[0]
            if contents is not None:
                refused = held in contents.guard.refused
                found = (self._of_template if refused else self._beside_marks)(text, match.start(), held, contents)
                if found is None:
                    at = match.start() + 1
                    continue
                held = found
            token = self._by_text[held]
            end = match.start() + len(held)
            before = text[done : match.start()]
            before = before.rstrip(_SPACES) if token.lstrip else before
            if before:
                yield before
            yield token
            done = at = end
            if token.rstrip:  # tokens of line breaks are found in what it takes along, as `tokenizers` has it
                done = len(text) - len(text[at:].lstrip(_SPACES))
        if done < len(text):
            yield text[done:]

    def _of_template(self, text: str, start: int, held: str, contents: ContentPlaces) -> str | None:
        """The token that begins here when a refused mark is the template's, or a shorter one that may stand here."""
        if contents.template_writes((start, start + len(held)), held):
            return held
        end = (contents.written or {}).get(start, start)
        if text[start:end] in self._by_text and contents.template_writes((start, end), text[start:end]):
            return text[start:end]
        match = None if contents.guard.allowed is None else contents.guard.allowed.match(text, start)
        return None if match is None else match[0]

    def _beside_marks(self, text: str, start: int, held: str, contents: ContentPlaces) -> str | None:
        """A token that is no mark, where it takes no character of the template's marks for one that a content begins or
        ends; else the mark that begins here, if any."""
        written = contents.written or {}
        end = start + len(held)
        if not _touches((start, end), contents.spans) or not any(at in written for at in range(start, end)):
            return held
        return text[start : written[start]] if start in written else None

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
    """A template and a tokenizer together: messages to a prompt, and the prompt to ids. A prompt costs three
    renderings, and two more where the place of a content or the writer of a mark is not certain; a refusal costs ten
    more at most."""

    def __init__(self, renderer: TemplateRenderer, encoder: TextEncoder) -> None:
        self._renderer = renderer
        self._encoder = encoder
        self._guard: Guard | None = None

    @property
    def guard(self) -> Guard:
        """What messages may not write; found out by the template at the first use. Raises ChatTemplateError."""
        if self._guard is None:
            bare = Guard(self._encoder.added, turn_marks(self._renderer, self._encoder))
            composed = {
                piece.text
                for messages, ask, prompt in _trials(self._renderer)
                for piece in self._unwritten(prompt, messages, ask, bare)
            }
            self._guard = Guard(self._encoder.added, bare.refused, composed)
        return self._guard

    def prompt(self, messages: Sequence[Message], ask: bool = True) -> Prompt:
        """The prompt of messages, with the opening of the next answer where `ask` says so.

        Raises ChatTemplateError, and CannotEncode for a message that brings a mark into the prompt at a place where
        nothing tells it from the template's.
        """
        found = self._renderer.prompt(messages, ask)
        written = self._renderer.written(found.text, messages, ask, self.guard.refused)
        prompt = found._replace(written=written)
        if prompt.unplaced or written is None or self.guard.composed:
            self._compare(prompt, messages, ask)
        return prompt

    def encode(self, prompt: Prompt, begin: bool, start: int = 0) -> list[int]:
        """Ids of the prompt from the character `start` on. Raises CannotEncode."""
        try:
            return self._encoder.encode(prompt.text[start:], begin, self._contents(prompt, start))
        except CannotEncode as error:
            places = zip(prompt.owners, prompt.spans, strict=True)
            writers = (owner for owner, (first, end) in places if error.mark in prompt.text[first:end])
            raise CannotEncode(error.mark, next(writers, -1)) from error

    def _contents(self, prompt: Prompt, start: int = 0) -> ContentPlaces:
        spans = [(max(0, first - start), end - start) for first, end in prompt.spans if end > start]
        written = prompt.written and {first - start: end - start for first, end in prompt.written.items()}
        return ContentPlaces(self.guard, spans, written)

    def _unwritten(self, prompt: Prompt, messages: Sequence[Message], ask: bool, guard: Guard) -> Iterator[AddedToken]:
        """Refused marks of a prompt of harmless contents that are not constants of the template."""
        written = self._renderer.written(prompt.text, messages, ask, guard.refused) or {}
        for at, token in self._encoder.found(prompt.text):
            if token.text in guard.refused and at not in written and not _touches((at, at + 1), prompt.spans):
                yield token

    def _compare(self, prompt: Prompt, messages: Sequence[Message], ask: bool) -> None:
        """Raises CannotEncode where the prompt has more marks than one of harmless contents."""
        pieces = self._encoder.pieces(prompt.text, self._contents(prompt))
        more = self._marks(pieces) - self._marks_of([_harmless(message) for message in messages], ask)
        for mark in more:
            raise CannotEncode(mark, self._writer(mark, messages, ask, prompt.unplaced or range(len(messages))))

    def _marks(self, pieces: Iterable[AddedToken | str]) -> Counter[str]:
        texts = (piece.text for piece in pieces if isinstance(piece, AddedToken))
        return Counter(text for text in texts if text in self.guard.refused)

    def _marks_of(self, messages: Sequence[Message], ask: bool) -> Counter[str]:
        """The marks of a prompt whoever writes them; none where the template cannot make it."""
        try:
            return self._marks(self._encoder.pieces(self._renderer.render(messages, ask)))
        except ChatTemplateError:
            return Counter()

    def _writer(self, mark: str, messages: Sequence[Message], ask: bool, numbers: Sequence[int]) -> int:
        """Which of these messages brings a mark, by halves: the last of the fewest first ones that bring it."""
        harmless = [_harmless(message) for message in messages]
        allowed = self._marks_of(harmless, ask)[mark]

        def brings(many: int) -> bool:
            real = set(numbers[:many])
            mixed = [message if at in real else harmless[at] for at, message in enumerate(messages)]
            return self._marks_of(mixed, ask)[mark] > allowed

        return numbers[min(bisect_left(range(1, len(numbers) + 1), True, key=brings), len(numbers) - 1)]


def turn_marks(renderer: TemplateRenderer, encoder: TextEncoder) -> frozenset[str]:
    """Texts of added tokens that open and close turns: all that the template writes around contents in dialogues of
    plain words, less those that also stand inside an answer.

    Such are the `<think>` that a template puts before some answers and not before others: of what stands before an
    answer, marks are the tokens that stand before each one, and the first that the question alone does not end with.
    Raises ChatTemplateError where the template cannot make a prompt of one question.
    """
    if all(one.control for one in encoder.added):
        return frozenset()
    renderer.prompt(trial_dialogue()[1:2])
    marks: set[str] = set()
    openings: list[set[str]] = []
    closing: list[str] = []
    for messages, ask, prompt in _trials(renderer):
        gaps = [[one.text for _, one in encoder.found(gap)] for gap in _around(prompt)]
        answers = [messages[owner]["role"] == "assistant" for owner in prompt.owners]
        for gap, opens in zip(gaps, [*answers, ask], strict=True):
            if not opens:
                marks.update(gap)
            elif prompt.spans:
                openings.append(set(gap))
        if ask:
            marks.update([one for at, one in enumerate(gaps[-1]) if gaps[-1][: at + 1] != closing[: at + 1]][:1])
        closing = gaps[-1]
    return frozenset(marks | (set.intersection(*openings) if openings else set()))


def _trials(renderer: TemplateRenderer) -> Iterator[tuple[Sequence[Message], bool, Prompt]]:
    """Dialogues of plain words with their prompts, as far as the template takes them: up to two questions and two
    answers, with and without a system message; after a question the prompt without an opening, then the one with."""
    system, question, answer, second = trial_dialogue()
    dialogue = [question, answer, second, {**answer, "content": "Good night"}]
    for head in ([], [system]):
        for length in range(1, len(dialogue) + 1):
            messages = [*head, *dialogue[:length]]
            for ask in (False, True)[: 1 + length % 2]:
                prompt = _rendered(renderer, messages, ask)
                if prompt is not None:
                    yield messages, ask, prompt


def _around(prompt: Prompt) -> list[str]:
    """What stands before, between and behind the contents."""
    edges = [0, *(edge for span in prompt.spans for edge in span), len(prompt.text)]
    return [prompt.text[first:end] for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _harmless(message: Message) -> Message:
    """The message with a content of the same length and the same spaces that writes no mark."""
    return {**message, "content": "".join(one if one.isspace() else "x" for one in message["content"])}


def _rendered(renderer: TemplateRenderer, messages: Sequence[Message], ask: bool) -> Prompt | None:
    try:
        return renderer.prompt(messages, ask)
    except ChatTemplateError:
        return None


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
