"""The task of a model: what comes before and after its backend. Texts become rows, outputs become results.

    task = registry.build(fields, tokenizer_path, vocabulary)
    prepared = task.prepare(texts, params)              rows for the session; refuses bad parameters
    reader = task.reader(prepared, params)              a generator's: turns chunks of tokens into text
    results = task.answer(outputs, prepared, params)    one map per text

A task knows no backend and no message format. It runs in the worker child.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_agent.backends.api import Chunk
from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError, brief
from edge_agent.base.texts import Text, parts_of
from edge_agent.tasks.tokens import Wording, wording

if TYPE_CHECKING:
    from edge_agent.base.context_windows import ContextWindow
    from edge_agent.base.words import TextWord


class Prepared(NamedTuple):
    """Token ids per text (`rows`), the number of tokens before truncation, and whether the text was cut.

    `settings` are the parameters that the session needs; an encoder's needs none. `wording` says per text how the
    tokenizer split it, for statistics about changed input; a generator's is empty. `words`: (text, its words) per text,
    where the task labels words. `windows`: (context, its windows) per question, whose rows are all windows in order.
    """

    rows: list[list[int]]
    tokens: list[int]
    truncated: list[bool]
    settings: Mapping[str, Any]
    wording: Sequence[Wording] = ()
    words: Sequence[tuple[str, Sequence[TextWord]]] = ()
    windows: Sequence[tuple[str, Sequence[ContextWindow]]] = ()


class Reader(abc.ABC):
    """Turns the chunks of one generated answer into text."""

    @property
    @abc.abstractmethod
    def complete(self) -> bool:
        """Whether the answer is complete (a stop string was met), so that no further token is needed."""

    @abc.abstractmethod
    def take(self, chunk: Chunk) -> str:
        """The text that can be shown after this chunk; '' while nothing is certain."""

    @abc.abstractmethod
    def end(self) -> str:
        """The text that was held back, after the last chunk."""

    @abc.abstractmethod
    def outputs(self) -> Mapping[str, Any]:
        """Outputs that `Task.answer` gets in addition to the session's."""


class Task(abc.ABC):
    """One task: classify, slots, answers, embed or generate."""

    def __init__(self, tokenizer: Any, pairs: bool = False) -> None:
        self._tokenizer = tokenizer
        self._pairs = pairs

    def prepare(self, texts: Sequence[Text], params: Mapping[str, Any]) -> Prepared:
        """Rows for a session. Raises RequestError 422 for an empty text, a pair where one text is wanted and the other
        way round, or parameters that do not fit."""
        self.refuse_unfit(texts, params)
        return self._encoded(texts)

    def refuse_unfit(self, texts: Sequence[Text], params: Mapping[str, Any]) -> None:
        """What `prepare` refuses of any task."""
        self.check(params)
        for place, text in enumerate(texts):
            if isinstance(text, str) is self._pairs:
                raise RequestError(422, Cause.TEXT_PAIR, wrong_number(self._pairs))
            if not all(part.strip() for part in parts_of(text)):
                raise RequestError(
                    422, Cause.INVALID, f"text {place + 1} is empty" if len(texts) > 1 else "the text is empty"
                )

    def _encoded(self, texts: Sequence[Text]) -> Prepared:
        encoded = self._tokenizer.encode(texts)
        return Prepared(
            [one.ids for one in encoded],
            [one.tokens for one in encoded],
            [one.truncated for one in encoded],
            {},
            wording(texts, encoded),
        )

    def prepare_chat(self, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> Prepared:
        """Rows for a session from a conversation. Raises RequestError 422."""
        raise RequestError(422, Cause.INVALID, "this model takes texts, not messages")

    def probe(self, texts: Sequence[Text]) -> Prepared:
        """Rows whose raw features are computed, for golden probes. Pairs and single texts alike: what shares a batch
        with the probes, and what an adapter's probes give on the base alone, need not be of the task's form."""
        return self._encoded(texts)

    def try_out(self) -> None:
        """Try what only some requests use, before the model is taken into service. Raises BackendError."""
        return

    def reader(self, prepared: Prepared, params: Mapping[str, Any]) -> Reader | None:
        """The reader of an answer that comes in chunks; None for an encoder's."""
        return None

    @abc.abstractmethod
    def check(self, params: Mapping[str, Any]) -> None:
        """Raise RequestError 422 for a parameter that is unknown or out of range."""

    @abc.abstractmethod
    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One result per text from the session's outputs (and the reader's)."""


def wrong_number(pairs: bool) -> str:
    """The sentence that refuses a text where the task takes `pairs`, or a pair where it takes one text."""
    if pairs:
        return "it takes pairs: give text_pair beside text (text_pairs beside texts)"
    return "it takes one text: leave text_pair (text_pairs) out"


def refuse_unknown(params: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise RequestError 422 that names the first parameter outside `known`."""
    for name in params:
        if name not in known:
            allowed = ", ".join(known) if known else "none"
            raise RequestError(422, Cause.INVALID, f"unknown parameter {brief(name)}; this task takes: {allowed}")
