"""Every attack that the package format closes names tests, and these exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.attacks.test_packages import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`|`\[(?P<attack>[a-z0-9-]+)\]`")


def rows(text: str) -> Iterator[tuple[str, str]]:
    """The rule and the tests of every row of the table."""
    section = text.split("\n## What a reader MUST do")[1].split("\n## ", maxsplit=1)[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "rule":
            yield cells[0], cells[2] if len(cells) == 3 else ""


@functools.cache
def functions(file: str) -> frozenset[str]:
    path = ROOT / file
    tree = ast.parse(path.read_bytes()) if path.is_file() else ast.parse("")
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def wrong(text: str) -> list[str]:
    """What is missing: rows without tests, tests without a function, attacks that are not carried out."""
    found = []
    for rule, tests in rows(text):
        named = list(NAMED.finditer(tests))
        if not named or len(named) != tests.count("`") // 2:
            found.append(rule)
        for one in named:
            there = one["attack"] in ATTACKS if one["attack"] else one["name"] in functions(one["file"])
            if not there:
                found.append(one[0])
    return found


def test_every_attack_of_the_format_has_tests_that_exist() -> None:
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    assert len(list(rows(text))) > 20
    assert wrong(text) == []


def test_a_missing_test_is_found() -> None:
    head = "x\n## What a reader MUST do\n| rule | closes | tests |\n|---|---|---|\n"
    assert wrong(head + "| a rule | an attack | `[symlink]` |\n") == []
    assert wrong(head + "| a rule | an attack |\n") == ["a rule"]
    assert wrong(head + "| a rule | an attack | `[no-such-attack]` |\n") == ["`[no-such-attack]`"]
    gone = "`tests/attacks/test_packages.py::test_gone`"
    assert wrong(head + f"| a rule | an attack | {gone} |\n") == [gone]
