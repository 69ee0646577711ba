from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.tasks.generate import TextStream

TEXTS = st.text(alphabet="aäb€c😀 \n", max_size=40)
STOPS = st.lists(st.text(alphabet="aäb€😀", min_size=1, max_size=4), max_size=3)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes in pieces, cut anywhere, characters included."""
    marks = sorted({place % (len(data) + 1) for place in places})
    return [data[start:stop] for start, stop in zip([0, *marks], [*marks, len(data)], strict=True)]


def until(text: str, stops: Sequence[str]) -> str:
    """What is to be seen: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@given(text=TEXTS, places=st.lists(st.integers(0, 200), max_size=20))
def test_whatever_the_cuts_the_text_is_the_same_and_no_character_is_broken(text: str, places: list[int]) -> None:
    stream = TextStream()
    shown = [stream.take(piece) for piece in cut(text.encode(), places)]
    assert "".join([*shown, stream.end()]) == text
    assert not any("\ufffd" in part for part in shown)


@given(text=TEXTS, stops=STOPS, places=st.lists(st.integers(0, 200), max_size=20))
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stops: list[str], places: list[int]) -> None:
    stream = TextStream(stops)
    shown = ""
    wanted = None
    seen = b""
    for piece in cut(text.encode(), places):
        seen += piece
        before = seen.decode(errors="ignore")
        if wanted is None and any(stop in before for stop in stops):
            wanted = before[: min(before.find(stop) for stop in stops if stop in before)]
        shown += stream.take(piece)
        assert (text if wanted is None else wanted).startswith(shown)
    assert stream.complete == any(stop in text for stop in stops)
    assert shown + stream.end() == (text if wanted is None else wanted)


@given(text=TEXTS, stops=STOPS)
def test_byte_by_byte_the_first_complete_stop_string_counts(text: str, stops: list[str]) -> None:
    stream = TextStream(stops)
    shown = "".join(stream.take(bytes([byte])) for byte in text.encode())
    assert shown + stream.end() == until(text, stops)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.take(b"a\xffb") == "a\ufffdb"


def test_half_a_character_at_the_end_is_left_out() -> None:
    stream = TextStream()
    assert (stream.take("ä".encode()[:1]), stream.end()) == ("", "")


def test_what_might_become_a_stop_string_is_given_out_when_it_did_not() -> None:
    stream = TextStream(["END"])
    assert [stream.take(b"xEN"), stream.take(b"x"), stream.take(b"E"), stream.end()] == ["x", "ENx", "", "E"]


def test_an_end_is_given_once() -> None:
    stream = TextStream(["stop"])
    stream.take(b"st")
    assert (stream.end(), stream.end()) == ("st", "")
