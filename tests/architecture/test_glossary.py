"""Every name in the last column of the glossary exists in the code."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
HEAD = "| term | meaning | in the code |"


def named() -> list[str]:
    """The names in backticks in the last column of every table of terms."""
    rows = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" |")[2])]


@functools.cache
def names() -> frozenset[str]:
    """Modules, packages, classes, functions, attributes and constants of the two packages."""
    found: set[str] = set()
    for path in [*(ROOT / "edge_agent").rglob("*.py"), *(ROOT / "tools" / "edge_forge").rglob("*.py")]:
        found |= {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return frozenset(found)


def test_the_glossary_names_code() -> None:
    assert HEAD in GLOSSARY.read_text(encoding="utf-8")
    assert len(named()) > 50


@pytest.mark.parametrize("name", sorted(set(named())))
def test_a_name_exists(name: str) -> None:
    assert set(name.split(".")) <= names()


def test_terms_are_listed_once() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    terms = re.findall(r"^\| (.+?) \| ", text, re.MULTILINE)
    plain = [term for term in terms if term != "term" and not term.startswith(":")]
    assert sorted(plain) == sorted(set(plain))
