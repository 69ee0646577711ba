"""The figures of a load: a 99th percentile only where it can be another one than the slowest."""

from __future__ import annotations

from bench.generate_server import P99_REQUESTS, summary


def test_of_few_requests_the_slowest_is_named_and_no_percentile() -> None:
    found = summary(640, 2.0, [float(number) for number in range(10, 0, -1)])
    assert (found.tokens_per_s, found.requests, found.p50_s, found.worst_s) == (320.0, 10, 6.0, 10.0)
    assert found.p99_s is None
    assert str(found) == "320.0; p50 6.00, no p99 of 10, slowest of 10 10.00"


def test_of_a_hundred_the_ninety_ninth_by_rank_is_the_p99() -> None:
    found = summary(1, 1.0, [float(number) for number in range(1, P99_REQUESTS + 1)])
    assert (found.p50_s, found.p99_s, found.worst_s) == (51.0, 99.0, 100.0)
    assert "p99 99.00, slowest of 100 100.00" in str(found)
