"""The causes of refusals are words that telemetry carries: the manual names exactly these."""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.base.causes import COUNTED_AS, OF_ORDERS, Cause, telemetry_word

MANUAL = Path(__file__).resolve().parents[3] / "docs" / "mqtt.md"


def test_the_manual_names_every_cause_and_no_other() -> None:
    (line,) = [line for line in MANUAL.read_text(encoding="utf-8").splitlines() if "`refusal_reasons`" in line]
    words = re.findall(r"`([a-z-]+)`", line.split("|")[2])
    assert sorted(words) == sorted({telemetry_word(cause) for cause in set(Cause) - OF_ORDERS})


def test_answers_carry_finer_words_than_telemetry_counts_by() -> None:
    finer = {"unknown-adapter": {"model-removed", "impossible-name", "unknown-command", "unknown-topic"}}
    finer["invalid"] = {"wrong-form", "text-pair"}
    assert {cause.value for cause in COUNTED_AS} == set().union(*finer.values())
    assert all(cause.value in finer[telemetry_word(cause)] for cause in COUNTED_AS)
    assert all(telemetry_word(cause) == cause.value for cause in Cause if cause not in COUNTED_AS)


def test_the_manual_names_the_finer_words_of_answers() -> None:
    text = MANUAL.read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if "stands its `cause`" in part)
    assert {cause.value for cause in COUNTED_AS} <= set(re.findall(r"`([a-z-]+)`", paragraph))


def test_the_manual_names_the_causes_of_orders() -> None:
    text = MANUAL.read_text(encoding="utf-8").split("## Orders", 1)[1].split("\n## ", 1)[0]
    assert {cause.value for cause in OF_ORDERS} <= set(re.findall(r"`([a-z-]+)`", text))
