"""What a load test makes of answers and refusals; times are given."""

import argparse

import pytest
from msgspec import UNSET

from edge_agent.app.bench import Streams, Tally, bench_text, load_test
from edge_agent.base.errors import UsageError
from edge_agent.protocol.messages import StreamChunk, Timing, Usage


def last(tokens: int = 11, tokens_per_s: float | None = 50.0, finish: str = "length", cached: int = 4) -> StreamChunk:
    timing = Timing(1.0, 0.1, 200.0, 201.0, 10.0, 11.0, UNSET if tokens_per_s is None else tokens_per_s)
    return StreamChunk(
        id="x", seq=1, text="", done=True, finish_reason=finish, usage=Usage(20, cached, tokens), timing=timing
    )


def test_streams_are_counted_in_tokens() -> None:
    tally = Tally(Streams())
    assert tally.streams is not None
    for number in range(1, 21):
        tally.served(number / 10)
        tally.streams.add(number / 100, last(tokens_per_s=float(number)))
    tally.refused(503, "too hot")
    tally.refused(503, "still too hot")
    figures = tally.figures(10.0)
    assert (figures["requests"], figures["per_second"], figures["tokens_per_s"]) == (22, 2.0, 22.0)
    assert (figures["p50_ms"], figures["p95_ms"], figures["p99_ms"]) == (1000.0, 1900.0, 2000.0)
    assert figures["first_token_ms"] == {"p50": 100.0, "p95": 190.0, "p99": 200.0}
    assert figures["decode_tokens_per_s"] == {"p50": 10.0, "p5": 1.0}
    assert (figures["prompt_tokens"], figures["cached_tokens"], figures["completion_tokens"]) == (20.0, 4.0, 11.0)
    assert figures["statuses"] == {"200": 20, "503": 2}
    assert figures["reasons"] == {"503": "too hot"}
    text = bench_text(figures)
    for words in (
        "2.0 answers per second, 22 requests",
        "latency at the client: p50 1000.0 ms, p95 1900.0 ms, p99 2000.0 ms",
        "first token at the client: p50 100.0 ms",
        "22.0 by all clients together; of one answer, after its first token on the device: p50 10.0, p5 1.0",
        "prompts of 20.0 tokens (4.0 of them known already), answers of 11.0, ended by: length 20",
        "503: 2, such as: too hot",
    ):
        assert words in text, words


def test_an_answer_without_a_second_token_has_no_rate() -> None:
    tally = Tally(Streams())
    assert tally.streams is not None
    tally.served(0.1)
    tally.streams.add(None, last(tokens=0, tokens_per_s=None, finish="stop"))
    figures = tally.figures(1.0)
    assert figures["first_token_ms"] == {"p50": None, "p95": None, "p99": None}
    assert figures["decode_tokens_per_s"] == {"p50": None, "p5": None}
    assert "first token at the client: p50 –, p95 –, p99 –" in bench_text(figures)


def test_where_all_was_refused_there_is_no_latency_to_show() -> None:
    for streams in (None, Streams()):
        tally = Tally(streams)
        tally.refused(404, "no model")
        assert bench_text(tally.figures(1.0)) == "0.0 answers per second, 1 requests\n404: 1, such as: no model"


def test_texts_know_nothing_of_tokens() -> None:
    tally = Tally()
    tally.served(0.002)
    assert set(tally.figures(1.0)) == {"requests", "per_second", "p50_ms", "p95_ms", "p99_ms", "statuses", "reasons"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": True, "chat": True}, "not by both"),
        ({"max_tokens": 3}, "add --prompt or --chat"),
        ({"deadline": 0.0}, "--deadline is 0"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_asked(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_test(argparse.Namespace(**{"prompt": False, "chat": False, "deadline": None, **given}))
