"""Answers as typed values: what models of each task give, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, UnsetType

from edge_agent.base.causes import Cause
from edge_agent.base.errors import UsageError
from edge_agent.client.refusals import DeviceUnavailable
from edge_agent.protocol.messages import Energy, Reply, StreamChunk, Timing, TokenLogprob, Usage

F = TypeVar("F", bound="Classification | Slots | ExtractedAnswer | Embedding | Generation")


class RawPrompt(str):
    """A prompt for a generator as it stands, without the model's chat template: `ask("tiny", RawPrompt("Once"))`."""

    __slots__ = ()


class TextPair(NamedTuple):
    """Two texts for a classifier of pairs: `ask("minilm", TextPair("It rains.", "The street is wet."))`."""

    text: str
    text_pair: str


class ContextQuestion(NamedTuple):
    """A question and the text that holds its answer: `ask("manual", ContextQuestion("How hot?", "Heat to 80 °C."))`."""

    question: str
    context: str


class RankedLabel(Struct, frozen=True):
    """A class of a classifier with its probability."""

    label: str
    score: float


class Classification(Struct, frozen=True, kw_only=True):
    """What a classifier says of one text. Below the threshold `label` is the model's out-of-scope label, where it has
    one; the best class stays first in `labels`, and `score` is its probability."""

    label: str
    score: float
    labels: list[RankedLabel]
    out_of_scope: bool
    tokens: int
    truncated: bool


class SlotSpan(Struct, frozen=True, kw_only=True):
    """A part of a text: characters (code points) `start` to `end` of it, which read `text`. `score` is the mean
    probability of its words' classes."""

    label: str
    start: int
    end: int
    text: str
    score: float


class Slots(Struct, frozen=True, kw_only=True):
    """The labelled spans of one text, in their order. Of a text that was `truncated` the end was not read."""

    spans: list[SlotSpan]
    tokens: int
    truncated: bool


class ExtractedAnswer(Struct, frozen=True, kw_only=True):
    """The span of a context that answers a question: characters (code points) `start` to `end` of the context, which
    read `answer`; all three are None where there is no answer. `score` is the probability of the likeliest span, which
    is the answer where there is one, `no_answer_score` that of there being none. The context was read in `windows`."""

    answer: str | None
    start: int | None
    end: int | None
    score: float
    no_answer_score: float
    tokens: int
    windows: int


class Embedding(Struct, frozen=True, kw_only=True):
    """A text as a vector of length 1: the dot product of two is their cosine similarity."""

    embedding: list[float]
    tokens: int
    truncated: bool


class Generation(Struct, frozen=True, kw_only=True):
    """What a generator wrote. `finish_reason`: 'stop' (the model's end, or a stop text), 'length' or 'deadline'."""

    text: str
    finish_reason: str
    usage: Usage
    seed: int
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with status 200. `reply` is the message as it came (docs/mqtt.md); the rest reads it.

    The properties of a single result (`label`, `text`, ...) raise UsageError where the model gives another kind, or
    where several texts were asked at once: then use `classifications`, `slots`, `extracted` or `embeddings`.
    """

    reply: Reply

    @property
    def label(self) -> str:
        """A classifier's label."""
        return self.classification.label

    @property
    def score(self) -> float:
        """The probability of a classifier's best class."""
        return self.classification.score

    @property
    def embedding(self) -> list[float]:
        """The vector of a text."""
        return self._single(Embedding).embedding

    @property
    def text(self) -> str:
        """What a generator wrote."""
        return self._single(Generation).text

    @property
    def classification(self) -> Classification:
        """What a classifier says of the one text."""
        return self._single(Classification)

    @property
    def generation(self) -> Generation:
        """What a generator wrote, with how it ended."""
        return self._single(Generation)

    @property
    def spans(self) -> list[SlotSpan]:
        """The labelled spans of the one text."""
        return self._single(Slots).spans

    @property
    def slots(self) -> list[Slots]:
        """The labelled spans of each text, in their order."""
        return [self._as(Slots, one) for one in self._results()]

    @property
    def extraction(self) -> ExtractedAnswer:
        """What a context answers to the one question."""
        return self._single(ExtractedAnswer)

    @property
    def extracted(self) -> list[ExtractedAnswer]:
        """What each context answers to its question, in their order."""
        return [self._as(ExtractedAnswer, one) for one in self._results()]

    @property
    def classifications(self) -> list[Classification]:
        """What a classifier says of each text, in their order."""
        return [self._as(Classification, one) for one in self._results()]

    @property
    def embeddings(self) -> list[Embedding]:
        """The vector of each text, in their order."""
        return [self._as(Embedding, one) for one in self._results()]

    @property
    def id(self) -> str:
        """The request's id."""
        return self.reply.id

    @property
    def variant(self) -> str | None:
        """Which variant of the model answered."""
        return self.reply.variant

    @property
    def timing(self) -> Timing | None:
        """Where the time went, on the device, in milliseconds."""
        return self.reply.timing

    @property
    def energy(self) -> Energy | None:
        """Joules of this request, where the device knows them, and by which method."""
        return self.reply.energy

    def _results(self) -> list[Any]:
        return self.reply.result if isinstance(self.reply.result, list) else [self.reply.result]

    def _single(self, kind: type[F]) -> F:
        if isinstance(self.reply.result, list):
            raise UsageError(f"{len(self.reply.result)} texts were asked: there is an answer to each", "answer")
        return self._as(kind, self.reply.result)

    def _as(self, kind: type[F], result: Any) -> F:
        try:
            return msgspec.convert(result, type=kind)
        except msgspec.ValidationError as error:
            given = next((name for name, other in KINDS.items() if isinstance(result, dict) and name in result), None)
            if given is None or KINDS[given] is kind:
                reason = f"an answer came that this version of edge-agent cannot read: {error}"
                raise DeviceUnavailable(503, Cause.MALFORMED, reason) from error
            what = f"model {self.reply.model!r} gives a {KINDS[given].__name__}, not a {kind.__name__}"
            raise UsageError(what, "answer") from error


KINDS: dict[str, type[Struct]] = {
    "label": Classification,
    "spans": Slots,
    "answer": ExtractedAnswer,
    "embedding": Embedding,
    "finish_reason": Generation,
}
"""The kind of a result by a field that no other kind has."""


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A part of a streamed answer. `answer` comes with the last part, its text the whole. `restarted`: the device began
    anew (its daemon was killed), and what came before this part is void."""

    text: str
    restarted: bool = False
    answer: Answer | None = None


def streamed_answer(last: StreamChunk, text: str) -> Answer:
    """The answer that a stream amounts to: its last chunk with the whole text."""
    result = {
        "text": text,
        "finish_reason": _known(last.finish_reason),
        "usage": None if isinstance(last.usage, UnsetType) else msgspec.to_builtins(last.usage),
        "seed": _known(last.seed),
    }
    if not isinstance(last.logprobs, UnsetType):
        result["logprobs"] = msgspec.to_builtins(last.logprobs)
    reply = Reply(
        id=last.id,
        status=200,
        model=_known(last.model),
        adapter=_known(last.adapter),
        merged=last.merged,
        variant=_known(last.variant),
        result=result,
        timing=_known(last.timing),
        batch=_known(last.batch),
        energy=_known(last.energy),
        temperature_c=_known(last.temperature_c),
    )
    return Answer(reply)


V = TypeVar("V")


def _known(value: V | UnsetType) -> V | None:
    return None if isinstance(value, UnsetType) else value
