"""The commented example of a settings file, written from the source of `config.settings` so that both always agree.

Only commands call this; the daemon never imports it (`ast` and `inspect` are memory).
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from edge_agent.config import settings
from edge_agent.config.fields import FieldSpec, specs
from edge_agent.config.settings import Settings

HEAD = """\
Settings of edge-agent. Every key is shown with its default; remove the '#' before a key to change it.
An environment variable EDGE_AGENT__SECTION__KEY (EDGE_AGENT__MQTT__TLS__CA) goes before this file.
Check with `edge-agent check-config FILE`. Relative paths start at this file's folder.
"""
WIDTH = 118


def example_toml(active: bool = False) -> str:
    """A settings file with every key, its meaning and its default.

    With `active` the keys that have a default are not commented out. Keys that are unset by default stay comments.
    """
    lines = [f"# {line}" for line in HEAD.splitlines()]
    _write(Settings, Settings(), "", active, lines)
    return "\n".join(lines) + "\n"


def field_docs(section: type) -> dict[str, str]:
    """The text under each field of a settings class, by field name."""
    tree = ast.parse(inspect.getsource(settings))
    (node,) = (item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == section.__name__)
    docs: dict[str, str] = {}
    for statement, follower in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(follower, ast.Expr)
            and isinstance(follower.value, ast.Constant)
            and isinstance(follower.value.value, str)
        ):
            docs[statement.target.id] = " ".join(follower.value.value.split())
    return docs


def _write(section: type, defaults: Any, prefix: str, active: bool, lines: list[str]) -> None:
    docs = field_docs(section)
    nested: list[FieldSpec] = []
    for spec in specs(section):
        if spec.is_section:
            nested.append(spec)
            continue
        value = getattr(defaults, spec.name)
        lines.extend(textwrap.wrap(docs[spec.name], WIDTH, initial_indent="# ", subsequent_indent="# "))
        sign = "" if active and value is not None else "#"
        lines += [f"{sign}{spec.name} = {_toml(spec.example if value is None else value)}", ""]
    if lines[-1] == "" and nested:
        lines.pop()
    for spec in nested:
        about = [f"# {line}" for line in (inspect.getdoc(spec.kind) or "").splitlines()]
        lines += ["", "", *about, f"[{prefix}{spec.name}]"]
        _write(spec.kind, getattr(defaults, spec.name), f"{prefix}{spec.name}.", active, lines)
    while lines[-1] == "":
        lines.pop()


def _toml(value: Any) -> str:
    """A value as TOML; JSON's texts, numbers, booleans and lists of texts are TOML's too."""
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


if __name__ == "__main__":
    print(example_toml(), end="")
