"""What a request's grammar may be: bounded before llama.cpp's parser, which recurses, and the converter see it."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp import grammar
from edge_agent.base.errors import BackendError
from tests.support.needs import need


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "maxLength": 20_000}, "json_schema.maxLength is 20000; at most 1000"),
        ({"type": "string", "minLength": 2_000_000_000}, "json_schema.minLength is 2e+09"),
        ({"type": "array", "items": {"type": "array", "maxItems": 1001}}, "json_schema.items.maxItems is 1001"),
        ({"anyOf": [{}, {"minItems": 5000}]}, "json_schema.anyOf[1].minItems is 5000"),
        ({"type": "string", "pattern": "^" + "a{999999999}" * 600}, "pattern repeats more than 10000 times"),
        ({"type": "string", "pattern": "^((a{0,99}){99}){0,99}$"}, "json_schema.pattern repeats more than 10000 times"),
    ],
)
def test_counts_that_would_be_written_out_are_refused_by_name(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=r"at most|more than") as caught:
        grammar.check_schema(schema)
    assert reason in str(caught.value)


def test_usual_schemas_pass() -> None:
    grammar.check_schema(
        {
            "type": "object",
            "properties": {"maxLength": {"type": "string", "maxLength": 1000, "pattern": "^[a-z]{2,8}$"}},
            "required": ["maxLength"],
        }
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("root ::= " + "(" * 2001 + '"a"' + ")" * 2001, "nested 2001 deep; at most 2000"),
        ("root ::= " + "|".join(['"a"'] * 514), "has 513 alternatives; at most 512"),
        ("root ::= " + "[a-z]{0,2000} " * 3, "add up to more than 5000 repetitions"),
        ("root ::= " + '"' + "a" * 70_000 + '"', "has 70011 characters; at most 65536"),
    ],
)
def test_grammars_beyond_what_the_parser_stands_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BackendError, match=r"at most|more than") as caught:
        grammar.check(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "quoted", ['"' + "(|" * 3000 + '"', "[" + "(|" * 3000 + "]", "# " + "(|" * 3000, r'"\"((" "|"']
)
def test_what_is_quoted_opens_and_parts_nothing(quoted: str) -> None:
    grammar.check(f"root ::= {quoted}")


@pytest.mark.parametrize("piece", ["[", '"', '["', '["\\', "[\\", "#", "[^", "(["])
def test_text_that_never_ends_is_read_once(piece: str) -> None:
    """Looked at again from every place 16,000 signs would take eight seconds, these an hour."""
    text = "root ::= " + piece * ((grammar.GBNF_CHARS - 10) // len(piece))
    began_s = time.process_time()
    with contextlib.suppress(BackendError):
        grammar.check(text)
    assert time.process_time() - began_s < 10.0


@given(st.text(max_size=300))
def test_any_text_is_checked_without_another_error(text: str) -> None:
    grammar.check(text)


KEYS = st.sampled_from(["pattern", "maxLength", "items", "anyOf", "minItems"])
SCHEMAS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(KEYS, one, max_size=4),
    max_leaves=20,
)


@given(SCHEMAS)
def test_any_schema_is_checked_without_another_error(schema: Any) -> None:
    try:
        grammar.check_schema({"x": schema})
    except BackendError as error:
        assert "at most" in str(error) or "more than" in str(error)


def test_what_the_parser_says_is_the_reason_and_does_not_reach_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    result, said = grammar._listening(lambda: os.write(2, b"parse: expecting a name\n\nroot ::= ...\n"))
    assert (result, said) == (38, "expecting a name")
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_a_long_schema_that_llama_cpp_can_follow_is_followed() -> None:
    need("llama_cpp")
    text = grammar.schema_grammar({"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 100})
    grammar.check(text)
