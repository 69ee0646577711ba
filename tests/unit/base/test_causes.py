"""The causes of refusals are words that telemetry carries: the manual names exactly these."""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.base.causes import COUNTED_AS, Cause, telemetry_word

MANUAL = Path(__file__).resolve().parents[3] / "docs" / "mqtt.md"


def test_the_manual_names_every_cause_and_no_other() -> None:
    (line,) = [line for line in MANUAL.read_text(encoding="utf-8").splitlines() if "`refusal_reasons`" in line]
    words = re.findall(r"`([a-z-]+)`", line.split("|")[2])
    assert sorted(words) == sorted({telemetry_word(cause) for cause in Cause})


def test_what_is_about_no_adapter_is_told_apart_and_counted_where_it_always_was() -> None:
    counted = {"model-removed", "impossible-name", "unknown-command", "unknown-topic"}
    assert {cause.value for cause in COUNTED_AS} == counted
    assert {telemetry_word(cause) for cause in COUNTED_AS} == {"unknown-adapter"}
    assert all(telemetry_word(cause) == cause.value for cause in Cause if cause not in COUNTED_AS)
