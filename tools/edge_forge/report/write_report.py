"""Write a report's blocks to files: `<name>.md` with its drawings beside it, `<name>.html` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_forge.report.blocks import Block, Figure, Heading, markdown, page


def write(folder: Path, name: str, blocks: Sequence[Block]) -> tuple[Path, Path]:
    """The two files; each is replaced whole."""
    figures = folder / f"{name}-figures"
    figures.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Figure):
            _replace(figures / f"{block.name}.svg", block.svg)
    title = next((block.text for block in blocks if isinstance(block, Heading)), name)
    texts = folder / f"{name}.md", folder / f"{name}.html"
    _replace(texts[0], markdown(blocks, figures.name))
    _replace(texts[1], page(title, blocks))
    return texts


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
