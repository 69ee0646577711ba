"""The causes of refusals are words that telemetry carries: the manual names exactly these."""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.base.causes import Cause

MANUAL = Path(__file__).resolve().parents[3] / "docs" / "mqtt.md"


def test_the_manual_names_every_cause_and_no_other() -> None:
    (line,) = [line for line in MANUAL.read_text(encoding="utf-8").splitlines() if "`refusal_reasons`" in line]
    words = re.findall(r"`([a-z-]+)`", line.split("|")[2])
    assert sorted(words) == sorted(cause.value for cause in Cause)
