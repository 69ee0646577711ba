"""OpenAI's bodies to questions for a device, and answers back. Pure: no HTTP, no MQTT.

A field that would change the answer and is not followed is refused by name; fields that only describe the caller
(`user`, `metadata`, ...) are passed over. The form is the one that the `openai` package writes and reads.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.base.causes import Cause
from edge_agent.base.errors import brief
from edge_agent.client import Answer, Embedding, InvalidRequest, RequestError
from edge_agent.protocol.messages import Models, TokenLogprob

PASSED_OVER = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields that change no answer."""
OWN = ("top_k", "min_p", "repeat_penalty", "regex", "grammar", "json_schema")
"""Parameters of ours that OpenAI does not have; the library sends them by `extra_body`."""
SAME = ("temperature", "top_p", "seed", "stop")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "top_logprobs": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Fields that are not followed, with the values that ask for nothing."""
ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
FINISHED: Mapping[str, str] = {"stop": "stop", "length": "length", "deadline": "length"}
"""OpenAI has no word for an answer that time has cut."""
EMBED_INPUTS = 2048
"""As many as OpenAI takes."""


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """What a chat completion asks of a device."""

    model: str
    messages: list[dict[str, str]]
    params: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    deadline_s: float | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class EmbedQuestion:
    """What is to be embedded, and in which form the vectors go back."""

    model: str
    texts: list[str]
    base64: bool = False
    deadline_s: float | None = None
    priority: int | None = None


def chat_question(body: Any) -> ChatQuestion:
    """A body of /v1/chat/completions. Raises InvalidRequest that names the field."""
    fields = _Fields(body)
    params: dict[str, Any] = {}
    for name in (*SAME, *OWN):
        if (value := fields.take(name)) is not None:
            params[name] = value
    tokens = [value for name in ("max_completion_tokens", "max_tokens") if (value := fields.take(name)) is not None]
    if tokens:
        params["max_tokens"] = tokens[0]
    if fields.flag("logprobs"):
        params["logprobs"] = True
    params.update(_format(fields.take("response_format")))
    options = fields.take("stream_options") or {}
    found = ChatQuestion(
        model=fields.text("model"),
        messages=_messages(fields.take("messages")),
        params=params,
        stream=fields.flag("stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        deadline_s=fields.number("deadline_s"),
        priority=fields.whole("priority"),
    )
    fields.end()
    return found


def embed_question(body: Any) -> EmbedQuestion:
    """A body of /v1/embeddings. Raises InvalidRequest that names the field."""
    fields = _Fields(body)
    given = fields.take("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        said = "a text or a list of texts is needed; tokens are not taken (LangChain: check_embedding_ctx_length=False)"
        raise _wrong("input", said)
    if len(texts) > EMBED_INPUTS:
        raise _wrong("input", f"{len(texts)} texts; at most {EMBED_INPUTS} are possible")
    form = fields.take("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise _wrong("encoding_format", f"{brief(form)}; float and base64 are possible")
    if fields.take("dimensions") is not None:
        raise _wrong("dimensions", "a model here has the dimensions that it was trained with")
    found = EmbedQuestion(
        fields.text("model"), texts, form == "base64", fields.number("deadline_s"), fields.whole("priority")
    )
    fields.end()
    return found


def chat_completion(answer: Answer, model: str, created_s: int) -> dict[str, Any]:
    """An answer as a whole."""
    generation = answer.generation
    message = {"role": "assistant", "content": generation.text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": FINISHED.get(generation.finish_reason, "stop"),
        "logprobs": _logprobs(generation.logprobs),
    }
    return _head(answer.id, "chat.completion", model, created_s, answer.variant) | {
        "choices": [choice],
        "usage": _usage(answer),
    }


@dataclass(slots=True)
class ChunkWriter:
    """The chunks of one streamed completion. `begin` once, `text` per part, `end` once."""

    request_id: str
    model: str
    created_s: int
    include_usage: bool = False

    def begin(self) -> dict[str, Any]:
        """The first chunk names the role."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> dict[str, Any]:
        """A part of the text."""
        return self._chunk({"content": text})

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        """How it ended; and what it took, where that was asked for."""
        generation = answer.generation
        ended = FINISHED.get(generation.finish_reason, "stop")
        last = self._chunk({}, ended, _logprobs(generation.logprobs))
        if not self.include_usage:
            return [last]
        return [last, {**self._head(), "choices": [], "usage": _usage(answer)}]

    def _chunk(self, delta: dict[str, Any], ended: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        usage = {"usage": None} if self.include_usage else {}
        choice = {"index": 0, "delta": delta, "finish_reason": ended, "logprobs": logprobs}
        return {**self._head(), "choices": [choice], **usage}

    def _head(self) -> dict[str, Any]:
        return _head(self.request_id, "chat.completion.chunk", self.model, self.created_s, None)


def embeddings(found: Sequence[Embedding], model: str, as_base64: bool) -> dict[str, Any]:
    """Vectors, as lists or as base64 of little-endian float32, which the `openai` package asks for by itself."""
    data = [
        {"object": "embedding", "index": at, "embedding": _packed(one.embedding) if as_base64 else one.embedding}
        for at, one in enumerate(found)
    ]
    tokens = sum(one.tokens for one in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def model_list(every: Mapping[str, Models], alone: str | None) -> list[dict[str, Any]]:
    """What can be asked: `device/model` and `device/model/adapter`; without the device where there is one `alone`."""
    found = []
    for device, models in sorted(every.items()):
        prefix = "" if device == alone else f"{device}/"
        for model in models.models:
            names = [f"{prefix}{model.name}", *(f"{prefix}{model.name}/{adapter.name}" for adapter in model.adapters)]
            found += [
                {"id": name, "object": "model", "created": int(models.ts), "owned_by": device, "task": model.task}
                for name in names
            ]
    return found


def split_model(name: str, alone: str | None) -> tuple[str, str | None]:
    """(the client library's name of the model, the adapter) of a name as `model_list` gives it.

    With one device `alone`, a first level that is its name is taken for it. Raises InvalidRequest.
    """
    levels = name.split("/")
    if alone is not None and levels[0] != alone:
        levels.insert(0, alone)
    if len(levels) not in (2, 3) or not all(levels):
        form = "MODEL or MODEL/ADAPTER" if alone is not None else "DEVICE/MODEL or DEVICE/MODEL/ADAPTER"
        raise _wrong("model", f"{brief(name)} is not of the form {form}; /v1/models lists what there is")
    return "/".join(levels[:2]), levels[2] if len(levels) == 3 else None


STATUSES: Mapping[int, tuple[int, str]] = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    404: (404, "invalid_request_error"),
    408: (504, "timeout_error"),
    413: (413, "invalid_request_error"),
    415: (400, "invalid_request_error"),
    422: (400, "invalid_request_error"),
    429: (429, "rate_limit_error"),
    499: (409, "invalid_request_error"),
    500: (500, "server_error"),
    503: (503, "server_error"),
}
"""By status of the device: the status of HTTP and the `type` of OpenAI's error. 504: the device was not in time."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error in OpenAI's form."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def http_error(error: RequestError, param: str | None = None) -> HttpError:
    """A refusal in OpenAI's form, with Retry-After in whole seconds where the device named a time to come back."""
    status, kind = STATUSES.get(error.status, (503, "server_error"))
    param = param or getattr(error, "param", None)
    body = error_body(error.reason, kind, error.cause.value, param)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["Retry-After-Ms"] = str(max(1, math.ceil(error.retry_after_s * 1000)))
    return HttpError(status, body, headers)


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error: the sentence, OpenAI's `type`, the word to decide by, and the field that it is about."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class WrongField(InvalidRequest):
    """A field of a body is wrong; `param` is its name."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(422, Cause.INVALID, reason)
        self.param = param


def _wrong(name: str, why: str) -> WrongField:
    return WrongField(name, f"{name}: {why}")


class _Fields:
    """The fields of a body, taken one by one; `end` refuses what nobody took."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise InvalidRequest(400, Cause.MALFORMED, "the body is not a JSON object")
        self._left = dict(body)

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not value:
            raise _wrong(name, "a text is needed" if value is None else f"{brief(value)} is not a text")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        # Not `in (True, False)`: 1 == True, and would be taken for false below.
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, f"{brief(value)}; true or false is needed")
        return value is True

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise _wrong(name, f"{brief(value)}; a number above 0 is needed")
        return value

    def whole(self, name: str) -> int | None:
        value = self.take(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise _wrong(name, f"{brief(value)}; a whole number is needed")
        return value

    def end(self) -> None:
        """Raises InvalidRequest for the first field that was not taken and asks for something."""
        for name, value in self._left.items():
            if name in PASSED_OVER or (name in NEUTRAL and any(_same(value, one) for one in NEUTRAL[name])):
                continue
            why = f"{brief(value)} is not followed here" if name in NEUTRAL else "no such field is known here"
            raise _wrong(name, why)


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise _wrong("messages", "a list of messages is needed")
    return [_message(at, one) for at, one in enumerate(given)]


def _message(at: int, given: Any) -> dict[str, str]:
    place = f"messages[{at}]"
    if not isinstance(given, dict):
        raise _wrong(place, f"{brief(given)} is not a message")
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES or given.get("tool_calls") or given.get("function_call"):
        raise _wrong(f"{place}.role", f"{brief(role)}; system, developer, user and assistant are followed, no tools")
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(f"{place}.content[{number}]", part) for number, part in enumerate(content))
    if not isinstance(content, str):
        raise _wrong(f"{place}.content", f"{brief(content)} is not a text")
    return {"role": ROLES[role], "content": content}


def _text_part(place: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _wrong(place, "only parts of the type text are taken")
    text: str = part["text"]
    return text


def _format(given: Any) -> dict[str, Any]:
    """`response_format` as the schema that the device follows."""
    if given is None:
        return {}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    if kind == "json_schema" and isinstance(given.get("json_schema"), dict) and "schema" in given["json_schema"]:
        return {"json_schema": given["json_schema"]["schema"]}
    raise _wrong("response_format", "text, json_object, or json_schema with a schema are possible")


def _head(request_id: str, kind: str, model: str, created_s: int, variant: str | None) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{request_id}", "object": kind, "created": created_s, "model": model}
    return {**head, "system_fingerprint": variant}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.generation.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [{"token": one.token, "logprob": one.logprob, "bytes": one.bytes, "top_logprobs": []} for one in tokens]
    return {"content": content, "refusal": None}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
