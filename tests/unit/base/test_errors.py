"""Errors say what, where and what to do, and their tree is the one in the docstring."""

from __future__ import annotations

import re

import pytest

from edge_agent.base import errors
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendMissing, BrokerError, EdgeError, PackageError, RequestError, SignatureError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "'a'"),
        ("é\n", "'é\\n'"),
        ("x" * 81, "'" + "x" * 79 + "..."),
        (1.5, "1.5"),
        (None, "None"),
        (10**100, "1" + "0" * 79 + "..."),
        ([1, 2], "a list"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_value_in_a_sentence_is_short(value: object, shown: str) -> None:
    assert errors.brief(value) == shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EdgeError("no such key"), "no such key"),
        (EdgeError("no such key", "edge.toml"), "edge.toml: no such key"),
        (EdgeError("no such key", None, "remove it"), "no such key (remove it)"),
        (EdgeError("no such key", "edge.toml", "remove it"), "edge.toml: no such key (remove it)"),
    ],
)
def test_the_sentence(error: EdgeError, text: str) -> None:
    assert str(error) == text


def test_the_parts_are_kept_apart() -> None:
    error = BackendMissing("onnxruntime is not installed", "onnx", "install edge-agent with its extra onnx")
    assert (error.what, error.where, error.remedy) == (
        "onnxruntime is not installed",
        "onnx",
        "install edge-agent with its extra onnx",
    )


def test_a_request_error_carries_the_reply() -> None:
    error = RequestError(429, Cause.QUEUE_FULL, "queue full: 5 of 5", 1.5)
    assert (error.status, error.reason, error.retry_after_s, str(error)) == (
        429,
        "queue full: 5 of 5",
        1.5,
        "queue full: 5 of 5",
    )
    assert RequestError(404, Cause.UNKNOWN_MODEL, "no").retry_after_s is None


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w*(?:Error|Missing|Refused)\b", (errors.__doc__ or "").split("Importable")[0]))
    real = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, EdgeError)}
    assert drawn == real


def test_specific_errors_are_caught_by_their_kind() -> None:
    assert issubclass(SignatureError, PackageError)
    assert not issubclass(BrokerError, PackageError)
    assert all(
        value.__doc__ for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EdgeError)
    )
