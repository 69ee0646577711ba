"""Who may write the state of a model, and whether the drawing in docs/architecture.md is the table's.

`REWRITE_DRAWING=1 python -m pytest tests/architecture/test_lifecycle.py` puts the table's drawing into the page.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re

import pytest

from edge_agent.core import model_lifecycle

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(
    r"(<!-- lifecycle drawing -->\n```mermaid\n).*?(```\n<!-- end of lifecycle drawing -->\n)", re.DOTALL
)
OWNERS = {
    "ServedModel": "edge_agent/agent/served_model.py",
    "WorkerHandle": "edge_agent/agent/worker_handle.py",
    "ModelLifecycle": "edge_agent/core/model_lifecycle.py",
    "VariantFallback": "edge_agent/core/variant_fallback.py",
}
WRITING = {
    "append",
    "clear",
    "discard",
    "pop",
    "popitem",
    "remove",
    "add",
    "update",
    "move_to_end",
    "setdefault",
    "set",
}


def fields(owner: str) -> set[str]:
    """The attributes of a class: its dataclass fields, and what its methods assign to `self`."""
    tree = ast.parse((ROOT / OWNERS[owner]).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    names = {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return names | {
        node.attr
        for node in ast.walk(found)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and getattr(node.value, "id", "") == "self"
    }


def writes(tree: ast.Module, names: set[str], in_place: set[str], holders: set[str]) -> list[tuple[int, str]]:
    """Where an attribute of another object is assigned, deleted or (`in_place`) changed: (line, attribute).

    A change in place counts where the object is held by one of the names `holders`: elsewhere `x.running.clear()` may
    be another class's.
    """
    found = []
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
        if stored and node.attr in names and getattr(node.value, "id", "") not in {"self", "cls"}:
            found.append((node.lineno, node.attr))
        place = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            place = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITING:
            place = node.func.value
        if isinstance(place, ast.Attribute) and place.attr in in_place and _holder(place.value) in holders:
            found.append((node.lineno, place.attr))
    return found


def _holder(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize(
    ("owner", "holders"),
    [
        ("ServedModel", {"served", "merged", "leaving", "other", "one"}),
        ("WorkerHandle", {"worker", "handle"}),
        ("ModelLifecycle", {"lifecycle", "model"}),
        ("VariantFallback", {"fallback"}),
    ],
)
def test_nobody_else_writes_what_a_model_s_state_is_made_of(owner: str, holders: set[str]) -> None:
    names = fields(owner)
    assert len(names) > 6, "the class is there"
    # Others hold the lock and take from the queue. Only ServedModel adds to the queue and sets or clears the events.
    in_place = names - {"lock"}
    offenders = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / "edge_agent" / "agent").glob("*.py"))
        if path.relative_to(ROOT).as_posix() != OWNERS[owner]
        for line, name in writes(ast.parse(path.read_text(encoding="utf-8")), names, in_place, holders)
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "written",
    [
        "served.worker = None",
        "served.lifecycle.state = x",
        "a, served.running = 1, {}",
        "served.running[1] = job",
        "del served.running[1]",
        "served.running.clear()",
        "served.running.set()",
        "self._served.worker += 1",
    ],
)
def test_a_write_is_found(written: str) -> None:
    assert writes(ast.parse(written), {"worker", "state", "running"}, {"running"}, {"served"})


def test_reading_and_other_objects_are_no_writes() -> None:
    code = "self.worker = 1\nx = served.worker\nserved.running.get(1)\nsomething.running.clear()\n"
    assert writes(ast.parse(code), {"worker", "running"}, {"running"}, {"served"}) == []


def test_the_drawing_in_the_architecture_page_is_the_table_s() -> None:
    text = PAGE.read_text(encoding="utf-8")
    drawn, blocks = BLOCK.subn(lambda found: found[1] + model_lifecycle.drawing() + found[2], text)
    assert blocks == 1
    if os.environ.get("REWRITE_DRAWING"):
        PAGE.write_text(drawn, encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
    assert drawn == text, "run it with REWRITE_DRAWING=1"
