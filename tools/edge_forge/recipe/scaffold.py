"""`edge-forge init`: a folder with a commented recipe and a small data set that already builds."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from edge_agent.base.errors import UsageError
from edge_forge.kinds import registry
from edge_forge.kinds.api import Kind
from edge_forge.recipe.schema import MERGED, check_name

_TEMPLATES = Path(__file__).parent / "templates"


def init(arguments: argparse.Namespace) -> int:
    """Write NAME/recipe.toml and NAME/data/train.*; an existing folder is left alone."""
    name: str = arguments.name
    problem = check_name(name, MERGED)
    if problem:
        raise UsageError(problem, "init", "--dir says where the folder goes")
    folder: Path = arguments.dir / name
    if folder.exists():
        raise UsageError("it exists already", str(folder), "choose another name, or --dir DIR")
    kind = registry.kind(arguments.task)
    data, text = kind.recipe.sample, recipe_text(kind, name)
    try:
        (folder / "data").mkdir(parents=True)
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        (folder / "data" / data).write_bytes((_TEMPLATES / data).read_bytes())
    except OSError as error:
        raise UsageError(f"it cannot be written: {error.strerror}", str(folder), "name another place: --dir") from error
    print(f"wrote {folder}/recipe.toml and a small {folder}/data/{data}")
    print(f"next: put your own rows there, then  edge-forge build {shlex.quote(str(folder))}")
    return 0


def recipe_text(kind: Kind, name: str) -> str:
    """The commented recipe; the keys of [train] come from the kind's settings, so none is forgotten."""
    defaults = kind.recipe.defaults
    lines = [f"# {key} = {_toml(getattr(defaults, key))}" for key in kind.recipe.schema.keys("train")]
    text = (_TEMPLATES / kind.recipe.template).read_text(encoding="utf-8")
    return text.format(name=name, train="\n".join(lines) + "\n")


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
