"""`docs/architecture.md` follows the code: every module and function that its tables name exists."""

from __future__ import annotations

import ast

import pytest

from tests.support import ways
from tests.support.ways import ROOT, Hop

WAYS = ways.hops()
REQUEST_MODULES = 25


def defined(module: str) -> set[str]:
    """The functions, classes and methods of a module, as `name` and `Class.name`."""
    found = set()
    for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_the_five_ways_are_there() -> None:
    assert list(WAYS) == ["A request", "A package", "A desired state", "A recipe", "A reading"]


@pytest.mark.parametrize(("title", "hop"), [(title, hop) for title, way in WAYS.items() for hop in way], ids=str)
def test_a_hop_exists(title: str, hop: Hop) -> None:
    assert (ROOT / hop.module).is_file()
    assert hop.functions
    assert set(hop.functions) - defined(hop.module) == set()


@pytest.mark.parametrize("title", WAYS)
def test_hops_are_numbered(title: str) -> None:
    assert [hop.number for hop in WAYS[title]] == list(range(1, len(WAYS[title]) + 1))


def test_a_request_goes_through_few_modules() -> None:
    assert len({hop.module for hop in WAYS["A request"]}) <= REQUEST_MODULES


def test_modules_that_are_asked_exist() -> None:
    assert ways.asked_modules()
    assert [module for module in ways.asked_modules() if not (ROOT / module).is_file()] == []


def test_the_page_counts_the_modules_of_a_request_as_its_tables_do() -> None:
    hops, asked = {hop.module for hop in ways.hops()["A request"]}, ways.asked_modules()
    text = " ".join(ways.PAGE.read_text(encoding="utf-8").split())
    assert f"passes through {len(hops)} modules. {len(asked)} more run" in text
    assert f"{len(hops | asked)} modules of `edge_agent` run in all" in text
