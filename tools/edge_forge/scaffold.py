"""`edge-forge init`: a folder with a commented recipe and a small data set that already builds."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from edge_agent.base.errors import UsageError
from edge_forge.recipe import METHOD_KEYS
from edge_forge.training.settings import TrainSettings

_TEMPLATES = Path(__file__).parent / "templates"


def init(arguments: argparse.Namespace) -> int:
    """Write NAME/recipe.toml and NAME/data/train.tsv; an existing folder is left alone."""
    name: str = arguments.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        raise UsageError(
            f"{name!r} cannot be a name", "init", "use lower-case letters, digits, '.', '_' and '-', 63 at most"
        )
    folder: Path = arguments.dir / name
    if folder.exists():
        raise UsageError("it exists already", str(folder), "choose another name, or --dir DIR")
    try:
        (folder / "data").mkdir(parents=True)
        (folder / "recipe.toml").write_text(recipe_text(name), encoding="utf-8")
        (folder / "data" / "train.tsv").write_bytes((_TEMPLATES / "train.tsv").read_bytes())
    except OSError as error:
        raise UsageError(f"it cannot be written: {error.strerror}", str(folder), "name another place: --dir") from error
    print(f"wrote {folder}/recipe.toml and a small {folder}/data/train.tsv")
    print(f"next: put your own rows there, then  edge-forge build {folder}")
    return 0


def recipe_text(name: str) -> str:
    """The commented recipe; the keys of [train] come from `TrainSettings`, so none is forgotten."""
    template = (_TEMPLATES / "recipe.toml").read_text(encoding="utf-8")
    lines = [
        f"# {field.name} = {_toml(field.default)}"
        for field in dataclasses.fields(TrainSettings)
        if field.name not in ("method", "preset", "max_tokens", *METHOD_KEYS)
    ]
    return template.format(name=name, train="\n".join(lines) + "\n")


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
