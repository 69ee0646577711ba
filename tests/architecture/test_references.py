"""Nothing in the repository refers to a document that a clone does not have."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOPS = ("edge_agent", "tools", "tests", "docs", "models", "systemd", ".ci")
ENDINGS = {".py", ".md", ".toml", ".yaml", ".service", ".conf", ""}
# Names of planning documents, and of notes with facts, that stood beside the repository while it was written.
OUTSIDE = re.compile(r"\b(?:DESIGN|MISSION|HABITS|HOUSE)\b|\bfacts/\w|\bfacts [A-G]\d?\b")


def texts() -> list[pathlib.Path]:
    """Every text file of the repository but this one."""
    found = [path for top in TOPS for path in (ROOT / top).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    outside = {"__pycache__", "build"}
    return [
        path
        for path in found
        if path.suffix in ENDINGS and path != pathlib.Path(__file__).resolve() and not outside & set(path.parts)
    ]


def test_no_reference_leads_out_of_the_repository() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if OUTSIDE.search(line)
    ]
    assert found == []


def test_the_pattern_finds_what_it_is_for() -> None:
    for text in ("(DESIGN 8)", "facts/boards.md A1", "MISSION rows 20", "see HOUSE item 2", "HABITS.md", "(facts B1)"):
        assert OUTSIDE.search(text), text
    for text in ("design", "housekeeping", "the facts of a runtime", "facts", "doctor_facts/x"):
        assert not OUTSIDE.search(text), text
