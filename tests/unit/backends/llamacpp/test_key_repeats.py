"""Which tokens would repeat a name: those whose text does, and no other."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.key_repeats import JsonText, NameGuard, Repeated

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('ab"\\ {},:[]é'), max_size=4),
    lambda one: (
        st.lists(one, max_size=3) | st.dictionaries(st.text(st.sampled_from('ab"\\,:é'), max_size=3), one, max_size=4)
    ),
    max_leaves=12,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(at)]


@given(JSON, st.lists(st.integers(0, 500), max_size=12), st.sampled_from([None, 1]))
def test_a_text_without_repeats_passes_in_any_pieces(value: object, places: list[int], indent: int | None) -> None:
    text = JsonText()
    for piece in cut(json.dumps(value, ensure_ascii=False, indent=indent).encode(), places):
        text = text.after(piece)
    assert (text.objects, text.text) == ((), None)


@given(
    st.lists(st.sampled_from(["a", "b", 'c"', "d\\", ""]), min_size=1, max_size=5),
    st.lists(st.integers(0, 90), max_size=9),
)
def test_a_name_twice_is_found_in_any_pieces(names: list[str], places: list[int]) -> None:
    body = ", ".join(f'{json.dumps(name)}: [{{"a": 1, "x": "a"}}]' for name in names)
    text, found = JsonText(), False
    try:
        for piece in cut(f"{{{body}}}".encode(), places):
            text = text.after(piece)
    except Repeated:
        found = True
    assert found == (len(set(names)) < len(names))


TWICE = b',"b":1,"b":'
WORDS = [
    b'"',
    b'":',
    b"a",
    b'a"',
    b'ab"',
    b"b",
    b"\\",
    b"u",
    b"u00",
    b"\\u",
    b"\\u0061",
    b'{"',
    b'{"a":',
    b', "ab":',
    b' "a"',
    TWICE,
    b'"ab"',
    b"1",
    b",",
]


@pytest.mark.parametrize(
    ("so_far", "barred"),
    [
        (b'{"a":1,"', [b'a"', b"\\u", b"\\u0061"]),
        (b'{"a":1,"a', [b'"', b'":', b'"ab"', b"\\u", b"\\u0061"]),
        (b'{"ab":1,"a', [b"\\u", b"\\u0061"]),
        (b'{"ab":1,', [b'"ab"', b', "ab":']),
        (b'{"ab":1', [b', "ab":']),
        (b'{"a":1,', [b' "a"']),
        (b'{"a":1', []),
        (b'{"x":{"a":1},"y":', []),
        (b'{"a":"', []),
        (b'[{"a":1},', []),
        (b'{"b":1,"', [b"\\u", b"\\u0061"]),
        (b'{"b\\', [b"u", b"u00", b"\\u", b"\\u0061"]),
        (b'{"b":1', []),
    ],
)
def test_tokens_that_would_repeat_a_name_are_barred(so_far: bytes, barred: list[bytes]) -> None:
    found = NameGuard(WORDS).barred(JsonText().after(so_far))
    assert {WORDS[token] for token in found} - {TWICE} == set(barred)


@pytest.mark.parametrize("so_far", [b'{"a":1', b'{"b":1', b'{"x":{"y":2}'])
def test_a_token_that_repeats_a_name_by_itself_is_barred(so_far: bytes) -> None:
    assert WORDS.index(TWICE) in NameGuard(WORDS).barred(JsonText().after(so_far))
