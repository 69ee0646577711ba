"""docs/conformance.md is what docs/conformance.json says, and a row stays until it is tried again."""

from __future__ import annotations

import msgspec

from tests.conformance.__main__ import CHECKS, Row, merged, page
from tests.conformance.outcome import ROOT, Outcome

THERE, HERE = "aarch64, Python 3.13.5", "x86_64, Python 3.11.7"


def test_the_page_is_made_from_the_rows_beside_it() -> None:
    kept = msgspec.json.decode((ROOT / "docs" / "conformance.json").read_bytes(), type=list[Row])
    assert {row.check for row in kept} <= set(CHECKS)
    assert (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8") == page(kept), "run: make conformance"


def test_a_row_that_is_skipped_or_not_asked_for_keeps_its_day() -> None:
    broker, other = Outcome("a", "mosquitto", "2.0", 5), Outcome("a", "aedes", "1.2", 5)
    rows = merged([], "brokers", [broker, other], "2026-01-01", THERE)
    rows = merged(rows, "debian", [Outcome("deb", "lintian", note="apt install lintian")], "2026-02-02", HERE)
    rows = merged(
        rows, "brokers", [Outcome("a", "mosquitto", note="apt install mosquitto"), Outcome("a", "aedes", "1.3", 5)],
        "2026-02-02", HERE,
    )  # fmt: skip
    said = page(rows)
    assert "| a | mosquitto | 2.0 | 2026-01-01 | 5 | 0 |  |" in said
    assert "| a | aedes | 1.3 | 2026-02-02 | 5 | 0 |  |" in said
    assert "- lintian (deb): apt install lintian" in said and "- clients: was not run" in said
    assert f"on {THERE} and {HERE}." in said


def test_what_a_check_does_not_try_any_more_goes() -> None:
    rows = merged([], "brokers", [Outcome("a", "one", "1", 1), Outcome("a", "two", "1", 1)], "2026-01-01", HERE)
    rows = merged(rows, "brokers", [Outcome("a", "two", "2", 1)], "2026-01-02", HERE)
    assert [(row.outcome.against, row.outcome.version) for row in rows] == [("two", "2")]
