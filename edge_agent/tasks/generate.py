"""Text generation: a prompt or messages in, text out, whole or in parts.

`ChatTemplate` renders messages to a prompt, `read_sampling_params` checks the parameters, `Generate` is the task, and
`TextReader` makes text of the tokens. The host tool renders with the same `bundle.chat_template`.
"""

from __future__ import annotations

import codecs
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.backends.api import Chunk, Vocabulary
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError, brief
from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.base.texts import Text
from edge_agent.bundle.chat_template import ChatTemplateError, TemplateRenderer
from edge_agent.bundle.prompt_tokens import CannotEncode, ChatEncoder
from edge_agent.tasks.api import Prepared, Reader, Task, refuse_unknown

MESSAGES = 128
PROMPT_CHARS = 4 * MESSAGE_BYTES
DETAIL_CHARS = 160
ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A model's chat template, which is compiled at the first request that has messages."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        source = vocabulary.chat_template
        self._renderer = None if source is None else TemplateRenderer(source, vocabulary.special_tokens, PROMPT_CHARS)
        self._encoder: ChatEncoder | None = None

    def try_out(self) -> None:
        """Make prompts of a few plain messages. Raises BackendError where the template cannot."""
        if self._renderer is not None:
            try:
                self._renderer.try_out()
            except ChatTemplateError as error:
                raise BackendError(
                    f"its chat template makes no prompt of plain messages: {error.sentence()[:DETAIL_CHARS]}",
                    "tokenizer.chat_template",
                    "mend the template in the base's folder and build the package again",
                ) from error

    def tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of the prompt that asks for the next answer. What a message writes is plain text, also where it looks
        like a token that opens a turn. Raises RequestError 422, or 413 for a prompt that is too long."""
        if self._renderer is None:
            raise RequestError(422, Cause.INVALID, "this model's package has no chat template; ask it by `prompt`")
        self._check(messages)
        if self._encoder is None:
            self._encoder = ChatEncoder(self._renderer, self._vocabulary.encoder)
        try:
            return self._encoder.encode(self._encoder.prompt(messages), True)
        except ChatTemplateError as error:
            raise _request_error(error) from error
        except CannotEncode as error:
            place = "a message" if error.message < 0 else f"messages[{error.message}]"
            raise RequestError(
                422, Cause.INVALID, f"{place}: it writes {error.mark!r}, which would count as the template's own"
            ) from error

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not 0 < len(messages) <= MESSAGES:
            raise RequestError(422, Cause.INVALID, f"messages: {len(messages)} given, 1 to {MESSAGES} are possible")
        for place, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise RequestError(
                    422, Cause.INVALID, f"messages[{place}]: role {message['role']!r} is none of {ROLES}"
                )


def _request_error(error: ChatTemplateError) -> RequestError:
    if error.fault == "too long":
        return RequestError(413, Cause.TOO_LARGE, f"the chat template makes {error.detail}")
    if error.fault == "refused":
        return RequestError(
            422, Cause.INVALID, f"the chat template refuses the messages: {error.detail[:DETAIL_CHARS]}"
        )
    text = f"{error.error_type}: {error.detail[:DETAIL_CHARS]}"
    return RequestError(422, Cause.INVALID, f"the chat template cannot make a prompt of these messages: {text}")


class NumberRange(NamedTuple):
    """The range of a number and its default."""

    lowest: float
    highest: float
    default: int | float


# Temperature 0 takes the most probable token: by default the same question gets the same answer.
NUMBERS: dict[str, NumberRange] = {
    "temperature": NumberRange(0.0, 2.0, 0.0),
    "top_k": NumberRange(0, 1000, 40),
    "top_p": NumberRange(0.01, 1.0, 0.95),
    "min_p": NumberRange(0.0, 1.0, 0.05),
    "repeat_penalty": NumberRange(0.5, 2.0, 1.0),
}
LEAST_TEMPERATURE = 0.01
WHOLE = ("top_k",)
SEED_MAX = 2**32 - 2
STOPS = 4
STOP_CHARS = 64
GRAMMAR_CHARS = 16 * 1024
DEFAULT_TOKENS = 256
GRAMMARS = ("json_schema", "regex", "grammar")
"""What an answer may have to follow; one of them."""
KNOWN = ("max_tokens", *NUMBERS, "seed", "stop", *GRAMMARS, "logprobs")


class SamplingParams(NamedTuple):
    """Checked parameters: `session` is for the sampler, `stops` are the texts that end an answer."""

    session: dict[str, Any]
    stops: tuple[str, ...]
    max_tokens: int | None


def read_sampling_params(params: Mapping[str, Any], context: int) -> SamplingParams:
    """The parameters of a request for a context of so many tokens. Raises RequestError 422 that names the first bad."""
    refuse_unknown(params, KNOWN)
    session: dict[str, Any] = {}
    for name, limits in NUMBERS.items():
        session[name] = _number(params, name, limits)
    if 0.0 < session["temperature"] < LEAST_TEMPERATURE:
        # Logits divided by less overflow.
        raise RequestError(
            422,
            Cause.INVALID,
            f"temperature is {brief(params['temperature'])}; 0, or {LEAST_TEMPERATURE:g} and more, is possible",
        )
    session["seed"] = _whole(params["seed"], "seed", 0, SEED_MAX) if "seed" in params else random.randrange(SEED_MAX)
    if len(given := [name for name in GRAMMARS if name in params]) > 1:
        raise RequestError(422, Cause.INVALID, f"{' and '.join(given)} exclude each other: give one of them")
    if "json_schema" in params:
        session["json_schema"] = _schema(params["json_schema"])
    for name in ("regex", "grammar"):
        if name in params:
            session[name] = _text(params[name], name, GRAMMAR_CHARS)
    session["logprobs"] = _truth(params.get("logprobs", False), "logprobs")
    max_tokens = _whole(params["max_tokens"], "max_tokens", 1, context) if "max_tokens" in params else None
    return SamplingParams(session, tuple(_stops(params.get("stop", []))), max_tokens)


def _number(params: Mapping[str, Any], name: str, limits: NumberRange) -> int | float:
    value = params.get(name, limits.default)
    if name in WHOLE:
        return _whole(value, name, int(limits.lowest), int(limits.highest))
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not limits.lowest <= value <= limits.highest:
        raise RequestError(
            422, Cause.INVALID, f"{name} is {brief(value)}; {limits.lowest:g} to {limits.highest:g} are possible"
        )
    return float(value)


def _whole(value: Any, name: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise RequestError(
            422, Cause.INVALID, f"{name} is {brief(value)}; whole numbers from {lowest} to {highest} are possible"
        )
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(422, Cause.INVALID, f"{name} is {brief(value)}; true or false is needed")
    return value


def _text(value: Any, name: str, most: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most or "\0" in value:
        raise RequestError(422, Cause.INVALID, f"{name}: a text of 1 to {most} characters without NUL is needed")
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOPS:
        raise RequestError(422, Cause.INVALID, f"stop: a text, or a list of at most {STOPS}, is needed")
    return [_text(stop, "stop", STOP_CHARS) for stop in stops]


def _schema(value: Any) -> Mapping[str, Any]:
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise RequestError(422, Cause.INVALID, "json_schema: an object that is a JSON schema, or true, is needed")
    return value


LOGPROB_DIGITS = 5


def _prompt(text: Text) -> str:
    if isinstance(text, str):
        return text
    raise RequestError(422, Cause.TEXT_PAIR, "a generator takes one prompt, not a pair of texts")


class Generate(Task):
    """Continues one prompt, with the tokenizer and the chat template in the model's file."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        if vocabulary is None:
            raise BackendError("a generator needs a model that carries its tokenizer (GGUF)", "task")
        super().__init__(None)
        self._vocabulary = vocabulary
        self._chat = ChatTemplate(vocabulary)

    def try_out(self) -> None:
        """See `Task.try_out`: the chat template makes prompts."""
        self._chat.try_out()

    def check(self, params: Mapping[str, Any]) -> None:
        """See `read_sampling_params`."""
        read_sampling_params(params, self._vocabulary.context)

    def prepare(self, texts: Sequence[Text], params: Mapping[str, Any]) -> Prepared:
        """The single text is the prompt; control tokens that are written out in it are encoded as control tokens."""
        if len(texts) != 1:
            raise RequestError(422, Cause.INVALID, f"one prompt is continued at a time, not {len(texts)}")
        return self._prepare(self._vocabulary.encode(_prompt(texts[0]), True), params)

    def prepare_chat(self, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> Prepared:
        """See `Task.prepare_chat`."""
        return self._prepare(self._chat.tokens(messages), params)

    def probe(self, texts: Sequence[Text]) -> Prepared:
        """See `Task.probe`: the texts are prompts; the session gives the logits of the next token as features."""
        rows = [self._vocabulary.encode(_prompt(text), True) for text in texts]
        return Prepared(rows, [len(row) for row in rows], [False] * len(rows), {})

    def reader(self, prepared: Prepared, params: Mapping[str, Any]) -> Reader | None:
        """See `Task.reader`."""
        wanted = read_sampling_params(params, self._vocabulary.context)
        return TextReader(self._vocabulary, wanted.stops)

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`: the whole text, why it ended, and the numbers of tokens."""
        result = {
            "text": outputs["text"],
            "finish_reason": outputs["finish"],
            "usage": {
                "prompt_tokens": outputs["prompt_tokens"],
                "cached_tokens": outputs["cached_tokens"],
                "completion_tokens": outputs["completion_tokens"],
            },
            "seed": prepared.settings["seed"],
        }
        if prepared.settings["logprobs"]:
            result["logprobs"] = outputs["logprobs"]
        return [result]

    def _prepare(self, row: list[int], params: Mapping[str, Any]) -> Prepared:
        context = self._vocabulary.context
        wanted = read_sampling_params(params, context)
        if not row:
            raise RequestError(422, Cause.INVALID, "the prompt is empty")
        room, least = context - len(row), wanted.max_tokens or 1
        if room < least:
            raise RequestError(
                422,
                Cause.INVALID,
                f"the prompt has {len(row)} tokens and {least} are to come, {len(row) + least} in all; "
                f"the context holds {context}: shorten the prompt or lower max_tokens",
            )
        settings = dict(wanted.session, max_tokens=wanted.max_tokens or min(room, DEFAULT_TOKENS))
        return Prepared([row], [len(row)], [False], settings)


class TextReader(Reader):
    """The text of one answer, from its tokens."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stream = TextStream(stops)
        self._parts: list[str] = []
        self._tokens: list[tuple[int, bytes, float]] = []

    @property
    def complete(self) -> bool:
        """See `Reader.complete`."""
        return self._stream.complete

    def take(self, chunk: Chunk) -> str:
        """See `Reader.take`."""
        pieces = [self._vocabulary.piece(token) for token in chunk.tokens]
        if chunk.logprobs:
            self._tokens += zip(chunk.tokens, pieces, chunk.logprobs, strict=True)
        return self._keep(self._stream.take(b"".join(pieces)))

    def end(self) -> str:
        """See `Reader.end`."""
        return self._keep(self._stream.end())

    def outputs(self) -> Mapping[str, Any]:
        """See `Reader.outputs`."""
        text = "".join(self._parts)
        return {"text": text, "logprobs": token_logprobs(self._tokens, text, self.complete)}

    def _keep(self, text: str) -> str:
        self._parts.append(text)
        return text


def token_logprobs(tokens: Sequence[tuple[int, bytes, float]], text: str, stopped: bool) -> list[dict[str, Any]]:
    """The tokens (id, bytes, logprob) of an answer whose text is `text`, with the bytes that stand in it: joined they
    are the text's (where a model wrote no UTF-8, the text has U+FFFD and the bytes what it wrote).

    A token that a stop string, or the end in mid-character, cuts keeps the bytes before the cut. `stopped`: the text
    ended at a stop string; then tokens that begin behind it are left out.
    """
    left = _bytes_of(b"".join(data for _, data, _ in tokens), text)
    found = []
    for token, data, logprob in tokens:
        if stopped and left == 0:
            break
        kept = data[:left]
        left -= len(kept)
        shown = kept.decode("utf-8", "replace")
        found.append({"id": token, "token": shown, "bytes": list(kept), "logprob": round(logprob, LOGPROB_DIGITS)})
    return found


def _bytes_of(data: bytes, text: str) -> int:
    """How many of the bytes make up the text, which is the beginning of what they decode to: no byte of a character
    that is not finished."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    length = at = 0
    while length < len(text) and at < len(data):
        length += len(decoder.decode(data[at : at + 1]))
        at += 1
    if length > len(text):
        return at - 1  # a broken character ends where the text does, and the byte behind it begins another
    return at - len(decoder.getstate()[0])


class TextStream:
    """Decodes the bytes of tokens to text that can be shown. Pure.

    A token may hold a part of a character: no character is cut. Text that may be the beginning of a stop string is held
    back until that is decided: no part of a stop string is shown. `complete` turns true at a stop string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self.complete = False

    def take(self, data: bytes) -> str:
        """The text that is certain after these bytes, '' for none."""
        if self.complete:
            return ""
        text = self._held + self._decoder.decode(data)
        place = min((found for found in map(text.find, self._stops) if found >= 0), default=-1)
        if place >= 0:
            self.complete, self._held = True, ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """The text that was held back, at the end. A character whose last bytes are missing is left out."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`, and shorter than `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
