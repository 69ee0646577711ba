"""The end of `edge-forge build`: commands that serve what was built and ask it, to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHARACTERS = 80
"""A longer text of the data is shown where there is no shorter one."""


def shown(texts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Of the rows, each a text or several, the first that is short and can be pasted as it stands; where there is none,
    the shortest, with other characters than printable ones left out. Empty where no row has a text."""
    rest: list[tuple[str, ...]] = []
    for row in texts:
        plain = tuple(pasteable(text) for text in row)
        if not all(plain):
            continue
        if plain == tuple(row) and sum(map(len, plain)) <= CHARACTERS:
            return plain
        rest.append(plain)
    return min(rest, key=lambda row: sum(map(len, row)), default=())


def pasteable(text: str) -> str:
    """A text on one line, without what moves a terminal's cursor; a leading '-' would be an option."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split()).lstrip("- ")


def serve_line(recipes: Sequence[Path], build: Path) -> str:
    """The command that serves these recipes from their build folder until Ctrl-C."""
    words = ["edge-agent", "demo", *_build_option(build)]
    for recipe in recipes:
        words += ["--recipe", str(recipe)]
    return shlex.join([*words, "--stay"])


def ask_line(build: Path, packages: Sequence[Mapping[str, Any]], question: Sequence[str]) -> str:
    """The command that asks it. `packages` are those of one recipe, `question` is as in `kinds.api.Kind.question`.

    It names what `edge-agent demo` installs: no merged model beside an adapter (`edge_agent.demo.device.built_by`).
    """
    named = {one["what"]: one["file"].rpartition("-")[0] for one in packages}
    adapter = named.get("adapter")
    model = named["merged model"] if adapter is None and "merged model" in named else named["base"]
    words = ["edge-agent", "infer", "--config", str(_near(build) / "demo" / "edge-agent.toml"), model, *question]
    return shlex.join([*words, *(() if adapter is None else ("--adapter", adapter))])


def _build_option(build: Path) -> tuple[str, ...]:
    """Nothing where it is the demo's own default."""
    near = _near(build)
    return () if near == Path("build") else ("--build", str(near))


def _near(build: Path) -> Path:
    """From where the user stands, if it is below."""
    whole = build.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole
