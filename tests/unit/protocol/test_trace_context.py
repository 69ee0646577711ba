"""`traceparent` and `tracestate` by W3C's Trace Context: what is taken, what counts as absent. The malformed ones are
those of the standard's own test suite (w3c/trace-context, test/test.py), and of its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.protocol.trace_context import STATE_CHARS, trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("given_text", "sent", "sampled"),
    [
        (GOOD, GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00", False),
        # Flags that version 00 does not know are not handed on; the random bit of level 2 is.
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-fc", f"00-{TRACE}-{SPAN}-00", False),
        # A later version is read as far as it begins like this one.
        (f"cc-{TRACE}-{SPAN}-01", GOOD, True),
        (f"01-{TRACE}-{SPAN}-01-what-the-future-will-be-like", GOOD, True),
        (f"cc-{TRACE}-{SPAN}-01-", GOOD, True),
    ],
)
def test_what_is_taken(given_text: str, sent: str, sampled: bool) -> None:
    found = trace_context({"traceparent": given_text})
    assert found is not None
    assert (found.trace_id, found.span_id) == (TRACE, SPAN)
    assert (found.traceparent, found.sampled) == (sent, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f".0-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}1-{SPAN}-01",
        f"00-.{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" {GOOD}",
        f"{GOOD},{GOOD}",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_what_is_malformed_counts_as_absent(text: str) -> None:
    assert trace_context({"traceparent": text}) is None


def test_the_state_comes_along_and_a_bad_one_alone_is_left_out() -> None:
    assert trace_context({"tracestate": "foo=1"}) is None, "a state without a trace"
    for state, kept in (("foo=1,bar=2", "foo=1,bar=2"), ("x" * (STATE_CHARS + 1), ""), ("a=\x00", ""), ("a=ü", "")):
        found = trace_context({"traceparent": GOOD, "tracestate": state})
        assert found is not None and found.state == kept


@given(st.text(max_size=80) | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}-?\Z"))
def test_what_is_sent_on_is_always_well_formed(text: str) -> None:
    found = trace_context({"traceparent": text})
    if found is not None:
        again = trace_context({"traceparent": found.traceparent})
        assert again is not None and again.traceparent == found.traceparent and len(found.traceparent) == 55
