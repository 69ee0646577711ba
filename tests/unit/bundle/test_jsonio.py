from __future__ import annotations

import contextlib
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle import jsonio


class Point(jsonio.Document, frozen=True, kw_only=True):
    """A document for tests."""

    x: int
    name: str = ""
    more: dict[str, float] = msgspec.field(default_factory=dict)


@given(
    st.builds(
        Point, x=st.integers(-(2**53), 2**53), name=st.text(), more=st.dictionaries(st.text(), st.floats(-1e9, 1e9))
    )
)
def test_what_is_written_is_read(point: Point) -> None:
    assert jsonio.decode(jsonio.encode(point), Point, "point") == point


def test_one_byte_form() -> None:
    assert jsonio.encode({"b": 1, "a": {"d": 2, "c": 3}}) == b'{"a":{"c":3,"d":2},"b":1}'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 13 + b"]" * 13, "nests deeper than 12"),
        (b'{"x":1,"x":1}', "the key 'x' stands twice"),
        (b'{"x":1,"more":{"a":1,"a":2}}', "the key 'a' stands twice"),
        (b'{"x":NaN}', "NaN is no number"),
        (b'{"x":-Infinity}', "-Infinity is no number"),
        (b'{"x":1,"y":2}', "unknown field `y`"),
        (b'{"x":"1"}', "Expected `int`"),
        (b'{"x":true}', "Expected `int`"),
        (b'{"name":"a"}', "missing required field `x`"),
        (b'{"x":1', "no valid JSON"),
        (b'{"x":1}}', "no valid JSON"),
        (b"", "no valid JSON"),
        (b'{"x":1,"name":"\xff"}', "not UTF-8"),
        (b'{"x":1,"name":"\\ud800"}', "point"),
        (b"\xef\xbb\xbf{}", "no valid JSON"),
    ],
)
def test_refused(data: bytes, says: str) -> None:
    with pytest.raises(PackageError) as caught:
        jsonio.decode(data, Point, "point")
    assert says in str(caught.value) and str(caught.value).startswith("point: ")


def test_brackets_in_strings_are_no_depth() -> None:
    assert jsonio.decode(json.dumps({"x": 1, "name": '[[[["{{{{' * 20}).encode(), Point, "point").x == 1


@given(st.text(alphabet='[]{}"\\\\a,', max_size=60))
def test_brackets_are_counted_outside_of_strings_alone(text: str) -> None:
    inside, escaped, level, deepest, opened = False, False, 0, 0, 0
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
        elif not inside and letter in "[{":
            level, opened = level + 1, opened + 1
            deepest = max(deepest, level)
        elif not inside and letter in "]}":
            level -= 1
    data = text.encode()
    jsonio.check_nesting(data, "x", max(0, deepest), opened)
    if opened:
        with pytest.raises(PackageError, match="objects and lists"):
            jsonio.check_nesting(data, "x", 60, opened - 1)
    if deepest > 0:
        with pytest.raises(PackageError, match="nests deeper"):
            jsonio.check_nesting(data, "x", deepest - 1, opened)


def test_size_comes_first() -> None:
    with pytest.raises(PackageError, match="at most 10 B"):
        jsonio.decode(b"\xff" * 11, Point, "point", limit_bytes=10)


@given(st.binary(max_size=200))
def test_noise_is_refused_by_name_only(data: bytes) -> None:
    try:
        jsonio.decode(data, Point, "noise")
    except PackageError as error:
        assert len(str(error)) < 600


def test_depth_limit_is_the_one_of_the_format() -> None:
    assert limits.MANIFEST_DEPTH == 12


def cpu_s(data: bytes) -> float:
    """Processor time of refusing or reading `data`, the least of three."""
    found = []
    for _ in range(3):
        started_s = time.process_time()
        with contextlib.suppress(PackageError):
            jsonio.decode(data, dict, "statement", 1 << 20)
        found.append(time.process_time() - started_s)
    return min(found)


@pytest.mark.parametrize("size_kib", [16, 32, 256])
@pytest.mark.parametrize("opening", [b'{"', b'{"a":1,"', b'"'])
@pytest.mark.parametrize("repeated", [b'\\"', b'\\\\\\"', b"\\", b'"'])
def test_unsigned_bytes_cost_in_proportion_to_their_size(size_kib: int, opening: bytes, repeated: bytes) -> None:
    size = size_kib << 10
    sound = b'{"' + b'\\"' * (size // 2) + b'":1}'
    hostile = opening + repeated * (size // len(repeated))
    assert cpu_s(hostile) < 20 * cpu_s(sound) + 0.05
