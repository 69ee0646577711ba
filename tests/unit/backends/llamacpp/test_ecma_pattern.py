"""A schema's pattern in Rust's words: the same texts fit. Python's `re` reads these patterns as ECMA-262 does."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.ecma_pattern import CHARS, PatternRefused, rust_pattern
from edge_agent.backends.llamacpp.grammar_process import GrammarRefused, Grammars
from tests.support.derivable import follows, grammars
from tests.support.needs import need


@pytest.fixture(scope="module")
def found() -> Grammars:
    need("llguidance")
    return grammars()


@pytest.mark.parametrize(
    ("pattern", "rust"),
    [
        ("^[a-z]+$", "^[a-z]+$"),
        ("a.b", r"a[^\n\r\x{2028}\x{2029}]b"),
        (r"\.\-\/", r"\x{2e}\x{2d}\x{2f}"),
        ("[]-]]"[1:], r"\x{5d}\x{2d}\x{5d}\x{5d}"),
        (r"[\w-]", r"[0-9A-Za-z_\x{2d}]"),
        (r"[\D]", "[[^0-9]]"),
        (r"[^\W_]", r"[^[^0-9A-Za-z_]\x{5f}]"),
        (r"\u{1F6AA}\uD83D\uDEAA", r"\x{1f6aa}\x{1f6aa}"),
        ("(?<year>[0-9]{4})(x)", "(?:[0-9]{4})(?:x)"),
        ("x{2,}?y??", "x{2,}y?"),
        (r"\p{L}\P{Nd}", r"[\p{L}&&[^\x{0}]][\P{Nd}&&[^\x{0}]]"),
        ("[^]", "(?s:.)"),
        (r"\cJ\x41[\0a]", r"\x{a}A[\x{0}a&&[^\x{0}]]"),
    ],
)
def test_words_of_rust(pattern: str, rust: str) -> None:
    assert rust_pattern(pattern) == rust


@pytest.mark.parametrize(
    "pattern",
    [
        "(?!a)",
        "(?<=a)",
        r"\1",
        r"\bA",
        r"\k<a>",
        "a++",
        "x{,3}",
        "[b-a]",
        "[]",
        "\\",
        "[a",
        r"\u12",
        r"\ud800",
        "(?s:a)",
        "a" * (CHARS + 1),
    ],
)
def test_what_has_no_equal_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        rust_pattern(pattern)


PIECES = st.sampled_from(
    ["a", "b", "[ab]", "[^a]", "[a-c]", "[.]", r"\.", r"\d", "[b&&c]", "[a[]", "{", "}", "(a|b)", "(?:c|)"]
)
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "+?"])
ANSWERS = st.text(st.sampled_from("abc.&[{}1"), max_size=5)


def _repeated(piece: str, repeat: str) -> str:
    return piece + ("" if piece in "{}" else repeat)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(_repeated, PIECES, REPEATS), min_size=1, max_size=5), st.lists(ANSWERS, max_size=8))
def test_the_same_texts_fit_as_in_python(found: Grammars, pieces: list[str], answers: list[str]) -> None:
    pattern = "^" + "".join(pieces) + "$"
    python = re.compile(pattern.replace("[a[]", r"[a\[]").replace("[b&&c]", "[b&c]").replace("{}", r"\{\}"))
    for answer in answers:
        try:
            fits = follows(found, {"type": "string", "pattern": pattern}, json.dumps(answer))
        except GrammarRefused as error:
            assert "no text fits it" in str(error)
            fits = False
        assert fits == bool(python.search(answer)), f"{pattern!r} and {answer!r}"


@given(st.text(max_size=60))
def test_any_text_is_translated_or_refused(text: str) -> None:
    try:
        rust_pattern(text)
    except PatternRefused as error:
        assert str(error)
