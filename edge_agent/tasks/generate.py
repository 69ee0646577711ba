"""Text generation: a prompt or messages in, text out, whole or in parts."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.backends.api import Chunk, Vocabulary
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.tasks import sampling
from edge_agent.tasks.api import Prepared, Reader, Task
from edge_agent.tasks.chat import ChatTemplate

LOGPROB_DIGITS = 5


class Generate(Task):
    """Continues one prompt, with the tokenizer and the chat template in the model's file."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        if vocabulary is None:
            raise BackendError("a generator needs a model that carries its tokenizer (GGUF)", "task")
        super().__init__(None)
        self._vocabulary = vocabulary
        self._chat = ChatTemplate(vocabulary)

    def check(self, params: Mapping[str, Any]) -> None:
        """See `sampling.read`."""
        sampling.read(params, self._vocabulary.context)

    def prepare(self, texts: Sequence[str], params: Mapping[str, Any]) -> Prepared:
        """The single text is the prompt; control tokens that are written out in it are encoded as control tokens."""
        if len(texts) != 1:
            raise RequestError(422, Cause.INVALID, f"one prompt is continued at a time, not {len(texts)}")
        return self._prepare(texts[0], params)

    def prepare_chat(self, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> Prepared:
        """See `Task.prepare_chat`."""
        return self._prepare(self._chat.render(messages), params)

    def probe(self, texts: Sequence[str]) -> Prepared:
        """See `Task.probe`: the texts are prompts; the session gives the logits of the next token as features."""
        rows = [self._vocabulary.encode(text, True) for text in texts]
        return Prepared(rows, [len(row) for row in rows], [False] * len(rows), {})

    def reader(self, prepared: Prepared, params: Mapping[str, Any]) -> Reader | None:
        """See `Task.reader`."""
        wanted = sampling.read(params, self._vocabulary.context)
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

    def _prepare(self, prompt: str, params: Mapping[str, Any]) -> Prepared:
        context = self._vocabulary.context
        wanted = sampling.read(params, context)
        bos = self._vocabulary.special_tokens.get("bos_token", "")
        begins = bool(bos) and prompt.startswith(bos)
        row = self._vocabulary.encode(prompt, not begins)
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
        settings = dict(wanted.session, max_tokens=wanted.max_tokens or min(room, sampling.DEFAULT_TOKENS))
        return Prepared([row], [len(row)], [False], settings)


class TextReader(Reader):
    """The text of one answer, from its tokens."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stream = TextStream(stops)
        self._parts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def complete(self) -> bool:
        """See `Reader.complete`."""
        return self._stream.complete

    def take(self, chunk: Chunk) -> str:
        """See `Reader.take`."""
        pieces = [self._vocabulary.piece(token) for token in chunk.tokens]
        for piece, logprob in zip(pieces, chunk.logprobs, strict=False):
            shown = {"token": piece.decode("utf-8", "replace"), "logprob": round(logprob, LOGPROB_DIGITS)}
            self._logprobs.append(shown)
        return self._keep(self._stream.take(b"".join(pieces)))

    def end(self) -> str:
        """See `Reader.end`."""
        return self._keep(self._stream.end())

    def outputs(self) -> Mapping[str, Any]:
        """See `Reader.outputs`."""
        return {"text": "".join(self._parts), "logprobs": self._logprobs}

    def _keep(self, text: str) -> str:
        self._parts.append(text)
        return text


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
