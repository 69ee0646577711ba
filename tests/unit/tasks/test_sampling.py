from __future__ import annotations

from typing import Any

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.tasks import generate


def test_what_is_not_said_is_the_best_token_every_time() -> None:
    sampling = generate.read_sampling_params({}, 512)
    assert (sampling.session["temperature"], sampling.stops, sampling.max_tokens) == (0.0, (), None)
    assert 0 <= sampling.session["seed"] <= generate.SEED_MAX


@pytest.mark.parametrize("name", [*generate.NUMBERS, "seed", "max_tokens", "logprobs"])
@pytest.mark.parametrize("value", ["x" * 100_000, [2**63] * 1000, {"a": [[[]]]}, float("nan"), 2**62])
def test_a_wrong_value_is_refused_in_few_words(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        generate.read_sampling_params({name: value}, 512)
    assert name in caught.value.reason
    assert len(caught.value.reason) <= 200


def test_what_is_said_goes_to_the_session() -> None:
    params = {"temperature": 1, "top_k": 7, "seed": 3, "stop": "x", "max_tokens": 512, "json_schema": {"type": "null"}}
    sampling = generate.read_sampling_params(params, 512)
    assert sampling.session["temperature"] == 1.0
    assert (sampling.session["top_k"], sampling.session["seed"]) == (7, 3)
    assert sampling.session["json_schema"] == {"type": "null"}
    assert (sampling.stops, sampling.max_tokens) == (("x",), 512)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; 0 to 2"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 1001}, "top_k is 1001; whole numbers from 0 to 1000"),
        ({"top_k": 2.0}, "top_k"),
        ({"top_p": 0}, "top_p is 0; 0.01 to 1"),
        ({"min_p": 1.5}, "min_p"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32 - 1}, "seed"),
        ({"max_tokens": 0}, "max_tokens is 0; whole numbers from 1 to 512"),
        ({"max_tokens": 513}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop: a text, or a list of at most 4"),
        ({"stop": [""]}, "stop: a text of 1 to 64"),
        ({"stop": [1]}, "stop"),
        ({"stop": "x" * 65}, "stop"),
        ({"grammar": ""}, "grammar: a text"),
        ({"grammar": "a\0b"}, "without NUL"),
        ({"json_schema": []}, "json_schema: an object"),
        ({"json_schema": False}, "json_schema: an object"),
        ({"regex": ""}, "regex: a text"),
        ({"regex": "a", "grammar": "x"}, "regex and grammar exclude each other"),
        ({"json_schema": {"type": "null"}, "grammar": "x"}, "exclude each other"),
        ({"logprobs": 3}, "logprobs is 3; true or false"),
        ({"beams": 2}, "unknown parameter 'beams'; this task takes: max_tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(params: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        generate.read_sampling_params(params, 512)
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)
