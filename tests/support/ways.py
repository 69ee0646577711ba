"""The tables of `docs/architecture.md` that follow a request, a package, a desired state, a recipe and a reading
through the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
HEAD = "| hop | module | function | what it does |"
ASKED = "| module | what it is asked for |"
_SECTION = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Hop(NamedTuple):
    """One row: the module's path from the repository's root, and the functions in it as `name` or `Class.name`."""

    number: int
    module: str
    functions: tuple[str, ...]


def hops() -> dict[str, list[Hop]]:
    """The ways by the title of their section."""
    found: dict[str, list[Hop]] = {}
    for title, rows in _tables(HEAD):
        found[title] = [Hop(int(cells[0]), _code(cells[1])[0], _code(cells[2])) for cells in rows]
    return found


def asked_modules() -> set[str]:
    """The modules that are only asked for a value on a request's way."""
    return {module for _, rows in _tables(ASKED) for cells in rows for module in _code(cells[0])}


def _code(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def _tables(head: str) -> list[tuple[str, list[list[str]]]]:
    """The rows of every table with that head, with the title of the section that it stands in."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for start in re.finditer(re.escape(head) + r"\n\|[ :|-]+\n((?:\|.*\n)+)", text):
        titles = _SECTION.findall(text[: start.start()])
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in start[1].splitlines()]
        found.append((titles[-1], rows))
    return found
