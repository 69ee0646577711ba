from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import statement
from edge_agent.bundle.statement import IndexRef, Now, Release

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def release(**fields: object) -> Release:
    known: dict[str, object] = {
        "schema": 1,
        "product": "p",
        "channel": "stable",
        "counter": 5,
        "index": IndexRef(digest=DIGEST, size=10),
        "issued_at": "2026-08-01T00:00:00Z",
        "expires": "2027-08-01T00:00:00Z",
    }
    return Release(**{**known, **fields})  # type: ignore[arg-type]


@given(st.integers(0, 4_000_000_000))
def test_moments_round_trip(at_s: int) -> None:
    assert statement.seconds(statement.moment(at_s)) == at_s


EXPIRES_S = statement.seconds("2027-08-01T00:00:00Z")


@pytest.mark.parametrize(
    ("now", "refused"),
    [
        (Now(EXPIRES_S - 1, trusted=True), False),
        (Now(EXPIRES_S, trusted=True), True),
        (Now(EXPIRES_S + 1e9, trusted=False), False),
        (Now(0.0, trusted=False), False),
        (Now(0.0, trusted=False, newest_issued_s=EXPIRES_S), True),
        (Now(0.0, trusted=True, newest_issued_s=EXPIRES_S + 1), True),
    ],
)
def test_expiry_as_far_as_the_time_is_known(now: Now, refused: bool) -> None:
    if refused:
        with pytest.raises(SignatureError, match="expired at 2027-08-01"):
            statement.check_time(release(), now)
    else:
        statement.check_time(release(), now)


def test_what_expired_before_this_code_was_built_has_expired_whatever_the_clock_says() -> None:
    old = release(issued_at="2020-01-01T00:00:00Z", expires="2021-01-01T00:00:00Z")
    with pytest.raises(SignatureError, match="it is at least 2026"):
        statement.check_time(old, Now(0.0, trusted=False))


def test_from_the_future() -> None:
    issued_s = statement.seconds("2026-08-01T00:00:00Z")
    statement.check_time(release(), Now(issued_s - 80_000, trusted=True))
    with pytest.raises(SignatureError, match="in the future"):
        statement.check_time(release(), Now(issued_s - 90_000, trusted=True))
    statement.check_time(release(), Now(issued_s - 90_000, trusted=False))


@pytest.mark.parametrize(
    ("committed", "index", "says"),
    [
        (None, None, None),
        (4, OTHER, None),
        (5, DIGEST, None),
        (5, OTHER, "was committed with other contents"),
        (6, DIGEST, "is older than 6"),
    ],
)
def test_counter(committed: int | None, index: str | None, says: str | None) -> None:
    if says is None:
        statement.check_counter(release(), committed, index)
    else:
        with pytest.raises(SignatureError, match=says):
            statement.check_counter(release(), committed, index)


@pytest.mark.parametrize(
    ("needed", "here", "fits"),
    [
        ("0", "0.1.0", True),
        ("0.1", "0.1.0", True),
        ("0.1.0", "0.1.0", True),
        ("0.1.1", "0.1.0", False),
        ("0.10.0", "0.9.9", False),
        ("0.9.9", "0.10.0", True),
        ("1", "0.99", False),
        ("0.1.0", "0.1.0rc1", True),
        ("1.0.0", "1.0", True),
        ("1.0", "1.0.0", True),
    ],
)
def test_versions_are_numbers(needed: str, here: str, fits: bool) -> None:
    if fits:
        statement.check_agent(release(min_agent=needed), here)
    else:
        with pytest.raises(PackageError, match=f"it needs edge-agent {needed}"):
            statement.check_agent(release(min_agent=needed), here)


def test_hardware() -> None:
    assert statement.matches_hardware((), ())
    assert statement.matches_hardware(("pi4", "pi5"), ("pi5", "aarch64"))
    assert not statement.matches_hardware(("pi4",), ("pi5", "aarch64"))
