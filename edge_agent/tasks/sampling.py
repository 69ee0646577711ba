"""The parameters of generation: ranges, defaults, and the settings that the session gets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.tasks.api import refuse_unknown


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
KNOWN = ("max_tokens", *NUMBERS, "seed", "stop", "json_schema", "grammar", "logprobs")


class SamplingParams(NamedTuple):
    """Checked parameters: `session` is for the sampler, `stops` are the texts that end an answer."""

    session: dict[str, Any]
    stops: tuple[str, ...]
    max_tokens: int | None


def read(params: Mapping[str, Any], context: int) -> SamplingParams:
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
            f"temperature is {params['temperature']!r}; 0, or {LEAST_TEMPERATURE:g} and more, is possible",
        )
    session["seed"] = _whole(params["seed"], "seed", 0, SEED_MAX) if "seed" in params else random.randrange(SEED_MAX)
    if "json_schema" in params and "grammar" in params:
        raise RequestError(422, Cause.INVALID, "json_schema and grammar exclude each other: give one of them")
    if "json_schema" in params:
        session["json_schema"] = _schema(params["json_schema"])
    if "grammar" in params:
        session["grammar"] = _text(params["grammar"], "grammar", GRAMMAR_CHARS)
    session["logprobs"] = _truth(params.get("logprobs", False), "logprobs")
    max_tokens = _whole(params["max_tokens"], "max_tokens", 1, context) if "max_tokens" in params else None
    return SamplingParams(session, tuple(_stops(params.get("stop", []))), max_tokens)


def _number(params: Mapping[str, Any], name: str, limits: NumberRange) -> int | float:
    value = params.get(name, limits.default)
    if name in WHOLE:
        return _whole(value, name, int(limits.lowest), int(limits.highest))
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not limits.lowest <= value <= limits.highest:
        raise RequestError(
            422, Cause.INVALID, f"{name} is {value!r}; {limits.lowest:g} to {limits.highest:g} are possible"
        )
    return float(value)


def _whole(value: Any, name: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise RequestError(
            422, Cause.INVALID, f"{name} is {value!r}; whole numbers from {lowest} to {highest} are possible"
        )
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(422, Cause.INVALID, f"{name} is {value!r}; true or false is needed")
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
    if not isinstance(value, dict) or not value:
        raise RequestError(422, Cause.INVALID, "json_schema: an object that is a JSON schema is needed")
    return value
