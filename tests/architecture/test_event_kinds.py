"""The kinds of events: each is sent somewhere, and docs/mqtt.md explains each and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from edge_agent.protocol.messages import EVENT_KINDS

ROOT = Path(__file__).resolve().parents[2]
SENDING = ("agent", "app", "protocol/decode.py")


def test_every_kind_is_in_the_manual() -> None:
    page = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8")
    table = re.search(r"^\| kind \| what happened .*?\n\n", page, re.DOTALL | re.MULTILINE)
    assert table is not None
    first = [row.split("|")[1] for row in table[0].splitlines()[2:] if row]
    named = [kind for cell in first for kind in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(EVENT_KINDS)


def test_every_kind_is_sent_by_some_code() -> None:
    said: set[str] = set()
    for place in SENDING:
        path = ROOT / "edge_agent" / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            said |= {
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    assert set(EVENT_KINDS) - said == set(), "a kind that nothing sends"
