"""Checks of the fields of a well-typed body. Each raises `BadField` with the status and the sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from edge_agent.base.causes import Cause
from edge_agent.base.limits import PRIORITY_DEFAULT, PRIORITY_HIGHEST, PRIORITY_LOWEST
from edge_agent.base.units import bytes_text
from edge_agent.protocol.json_guard import quoted
from edge_agent.protocol.messages import ChatMessage, InferRequest
from edge_agent.protocol.topics import NAME

FORMS = ("text", "texts", "prompt", "messages")
PARAMS = 16
PARAM_ITEMS = 32
# All values of all parameters, nested ones included: an empty list is three bytes on the wire and 64 in memory.
PARAM_VALUES = 1024
_PARAM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class BadField(Exception):
    """A message is refused with `status`, for `cause`, with the sentence `reason`. Never leaves this package."""

    def __init__(self, status: int, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.cause = cause
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: by `form`, one of `FORMS`, as texts, or as messages whose contents stand joined in `texts`."""

    form: str
    texts: tuple[str, ...]
    messages: tuple[ChatMessage, ...] = ()


def check_question(body: InferRequest, max_texts: int, max_bytes: int) -> Question:
    """What a request asks: exactly one way to ask, nothing empty, nothing too long."""
    given = [name for name in FORMS if getattr(body, name) is not UNSET]
    if len(given) != 1:
        raise BadField(
            422, Cause.INVALID, f"give exactly one of {', '.join(FORMS)}; here: {', '.join(given) or 'none'}"
        )
    form = given[0]
    if body.stream and form in {"text", "texts"}:
        raise BadField(422, Cause.INVALID, "stream: only the answer to a prompt or to messages comes in parts")
    if isinstance(body.messages, list):
        return _conversation(body.messages, max_texts, max_bytes)
    found = getattr(body, form)
    texts: tuple[str, ...] = tuple(found) if form == "texts" else (found,)
    if not texts:
        raise BadField(422, Cause.INVALID, "texts: the list is empty")
    if len(texts) > max_texts:
        raise BadField(413, Cause.TOO_LARGE, f"texts: {len(texts)} texts, at most {max_texts} in one request")
    for index, text in enumerate(texts):
        _check_text(f"texts[{index}]" if form == "texts" else form, text, max_bytes)
    return Question(form, texts)


def _conversation(messages: list[ChatMessage], most: int, max_bytes: int) -> Question:
    if not messages:
        raise BadField(422, Cause.INVALID, "messages: the list is empty")
    if len(messages) > most:
        raise BadField(413, Cause.TOO_LARGE, f"messages: {len(messages)} messages, at most {most} in one request")
    for index, message in enumerate(messages):
        _check_text(f"messages[{index}].content", message.content, max_bytes)
    return Question("messages", ("\n".join(message.content for message in messages),), tuple(messages))


def _check_text(field: str, text: str, max_bytes: int) -> None:
    if not text.strip():
        raise BadField(422, Cause.INVALID, f"{field}: the text is empty")
    if len(text) > max_bytes or len(text.encode()) > max_bytes:
        raise BadField(413, Cause.TOO_LARGE, f"{field}: longer than {bytes_text(max_bytes)}")


def check_priority(priority: int | UnsetType) -> int:
    """0 (first) to 9 (last)."""
    if isinstance(priority, UnsetType):
        return PRIORITY_DEFAULT
    if not PRIORITY_HIGHEST <= priority <= PRIORITY_LOWEST:
        raise BadField(
            422, Cause.INVALID, f"priority: {quoted(str(priority), 20)} is not in {PRIORITY_HIGHEST}..{PRIORITY_LOWEST}"
        )
    return priority


def check_name(field: str, name: str) -> None:
    """A model or adapter name that no package could carry does not exist."""
    if not NAME.fullmatch(name):
        raise BadField(404, Cause.UNKNOWN_ADAPTER, f"no such {field}: {quoted(name, 80)}")


def check_params(params: Mapping[str, Any] | UnsetType) -> dict[str, Any]:
    """Parameters by plain name with plain values; what they mean is checked by the task that takes them."""
    if isinstance(params, UnsetType):
        return {}
    if len(params) > PARAMS:
        raise BadField(422, Cause.INVALID, f"params: {len(params)} parameters, at most {PARAMS}")
    for name, value in params.items():
        if not _PARAM_NAME.fullmatch(name):
            raise BadField(422, Cause.INVALID, f"params: {quoted(name, 40)} is not a parameter name")
        if not _plain(value):
            raise BadField(
                422,
                Cause.INVALID,
                f"params.{name}: a number, text, truth value, list or object of those is needed"
                " (null only inside of one)",
            )
    if _count(params) > PARAM_VALUES:
        raise BadField(422, Cause.INVALID, f"params: more than {PARAM_VALUES} values")
    return dict(params)


def check_deadline(field: str, seconds: float | UnsetType, max_s: float) -> float | None:
    """A deadline from a body in seconds, cut to the longest that is kept; None where none is given."""
    if isinstance(seconds, UnsetType):
        return None
    if not math.isfinite(seconds) or seconds < 0:
        raise BadField(422, Cause.INVALID, f"{field}: seconds from now are needed, not {seconds}")
    return min(seconds, max_s)


def _count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, inner))


def _plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, list):
        return len(value) <= PARAM_ITEMS and all(item is None or _plain(item) for item in value)
    if isinstance(value, dict):
        return len(value) <= PARAM_ITEMS and all(item is None or _plain(item) for item in value.values())
    return isinstance(value, str)
