"""The blocks of a report, their Markdown and HTML forms, and `write`, which writes both forms to files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.shown_text import html_text, one_line


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph. `code` spans may stand in backquotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; columns whose cells are numbers stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing as SVG text with a caption that says what to see; `name` is its file's stem."""

    name: str
    caption: str
    svg: str


Block = Heading | Paragraph | Items | Table | Drawing

_NUMBER = re.compile(r"^[-+−<>~]?[\d.,]+ ?(%|×|ms|s|min.*|h.*|B|KiB|MiB|GiB|points?|rows)?$|^[-–—]?$")
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.7rem}h2{font-size:1.25rem;margin-top:2.2rem;border-bottom:1px solid #d0d7de;padding-bottom:.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.8rem 0;font-size:.92rem}
th,td{border:1px solid #d0d7de;padding:.25rem .6rem;text-align:left;vertical-align:top}th{background:#f3f5f7}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{background:#f3f5f7;padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto;background:#fff}figcaption{font-size:.9rem;color:#57606a}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#dfe3e8}th,code{background:#22272d}
th,td{border-color:#39414a}h2{border-color:#39414a}figcaption{color:#9aa4af}}
"""


def markdown(blocks: Sequence[Block], figures: str = "figures") -> str:
    """Markdown; drawings are linked as `<figures>/<name>.svg`."""
    return "\n\n".join(_markdown(block, figures) for block in blocks) + "\n"


def _markdown(block: Block, figures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Drawing):
        return f"![{_plain(block.caption)}]({figures}/{block.name}.svg)\n\n*{_plain(block.caption)}*"
    lines = [
        _row([_cell(column) for column in block.columns]),
        _row([":---" if not right else "---:" for right in numeric(block)]),
    ]
    return "\n".join([*lines, *(_row([_cell(cell) for cell in row]) for row in block.rows)])


def _plain(text: str) -> str:
    """Text of a page in Markdown: one line, and no tag outside of `code`, which shows what it holds as it is."""
    parts = re.split(r"(`[^`]+`)", one_line(text))
    return "".join(
        part if part.startswith("`") and at % 2 else part.replace("<", "&lt;") for at, part in enumerate(parts)
    )


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def numeric(table: Table) -> list[bool]:
    """Which columns hold numbers only."""
    return [
        bool(table.rows) and all(_NUMBER.match(row[column].replace("**", "")) for row in table.rows)
        for column in range(len(table.columns))
    ]


def page(title: str, blocks: Sequence[Block]) -> str:
    """One HTML page that needs no other file and no network."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Drawing):
        drawing = block.svg[block.svg.index("<svg") :]
        return f"<figure>{drawing}<figcaption>{_inline(block.caption)}</figcaption></figure>"
    right = numeric(block)
    head = "".join(f"<th>{_inline(column)}</th>" for column in block.columns)
    opening = ["<td class=n>" if number else "<td>" for number in right]
    rows = "".join(
        f"<tr>{''.join(f'{opening[at]}{_inline(cell)}</td>' for at, cell in enumerate(row))}</tr>" for row in block.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _inline(text: str) -> str:
    """Escaped text with `code` and **bold** spans."""
    escaped = html_text(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)


def write(folder: Path, name: str, blocks: Sequence[Block]) -> tuple[Path, Path]:
    """The two files; each is replaced whole."""
    figures = folder / f"{name}-figures"
    figures.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Drawing):
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
