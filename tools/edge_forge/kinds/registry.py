"""The kinds of recipes by name. A kind is imported when it is asked for, so that the command line starts fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_forge.kinds.api import Kind

DEFAULT = "classify"
KINDS: Mapping[str, str] = {
    DEFAULT: "edge_forge.kinds.classifier",
    "slots": "edge_forge.kinds.slots",
    "answers": "edge_forge.kinds.answers",
    "generate": "edge_forge.kinds.generator",
    "prefer": "edge_forge.kinds.preference",
}
"""By the value of `task.kind`: the module whose `KIND` it is."""


def kind(name: str) -> Kind:
    """The kind of that name."""
    found: Kind = importlib.import_module(KINDS[name]).KIND
    return found


def kind_of(document: Mapping[str, Any]) -> Kind:
    """The kind of a recipe's parsed TOML. Without a known `task.kind`: the default, whose schema refuses others."""
    task = document.get("task")
    name = task.get("kind", DEFAULT) if isinstance(task, dict) else DEFAULT
    return kind(name if isinstance(name, str) and name in KINDS else DEFAULT)
