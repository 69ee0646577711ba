"""Depth and repeated keys, compared with a parser that is slow and sure."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.protocol.json_guard import quoted, repeated_key, too_deep, too_many_parts

KEYS = st.sampled_from(["a", "b", 'q"', "\\", "[{", 'a"', "ä", ""])
JSON = st.recursive(
    st.integers() | st.text(st.sampled_from('[]{}":,\\ax')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


def depth(body: Any) -> int:
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(JSON, st.integers(0, 6))
def test_depth_is_that_of_the_parsed_text(body: Any, most: int) -> None:
    assert too_deep(json.dumps(body).encode(), most) == (depth(body) > most)


@given(st.binary())
def test_depth_of_nonsense_is_harmless(payload: bytes) -> None:
    assert too_deep(payload, 3) in (True, False)


def test_a_string_that_never_ends_hides_what_follows_it() -> None:
    assert not too_deep(b'"' + b"[" * 9, 3)
    assert not too_deep(b'[["' + b'\\"[' * 9, 3)
    assert too_deep(b'[[[["' + b'\\"' * 9, 3)


def parts(body: Any) -> tuple[int, int]:
    """(texts, keys among them; commas and opening brackets)."""
    if isinstance(body, str):
        return 1, 0
    if not isinstance(body, (dict, list)):
        return 0, 0
    found = [parts(one) for one in (body.values() if isinstance(body, dict) else body)]
    keys = len(body) if isinstance(body, dict) else 0
    return sum(texts for texts, _ in found) + keys, sum(marks for _, marks in found) + 1 + max(0, len(found) - 1)


@given(JSON, st.integers(0, 12))
def test_parts_are_those_of_the_parsed_text(body: Any, most: int) -> None:
    assert too_many_parts(json.dumps(body).encode(), most) == (max(parts(body)) > most)


@given(st.binary())
def test_parts_of_nonsense_are_harmless(payload: bytes) -> None:
    assert too_many_parts(payload, 3) in (True, False)


@given(JSON)
def test_no_parsed_text_repeats_a_key(body: Any) -> None:
    for ascii_only in (True, False):
        assert repeated_key(json.dumps(body, ensure_ascii=ascii_only).encode()) is None


@given(JSON, KEYS)
def test_a_repeated_key_is_found_wherever_it_is(body: Any, key: str) -> None:
    name, value = json.dumps(key), json.dumps(body)
    inner = f"{{{name}: {value}, {name} : {value}}}"
    assert repeated_key(inner.encode()) == key
    assert repeated_key(f'[{value}, {{"x": {inner}}}]'.encode()) == key


@given(st.text(), st.integers(10, 50))
def test_quoted_text_is_short_and_printable(text: str, most: int) -> None:
    shown = quoted(text, most)
    assert len(shown) <= most
    assert shown.isascii()
    assert shown.isprintable()
