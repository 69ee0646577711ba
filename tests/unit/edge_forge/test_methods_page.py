"""docs/methods.md shows the table of methods as the code has it. REWRITE_DRAWING=1 writes it anew.

A file of its own because it tests a page, not the methods.
"""

import os
from pathlib import Path

from edge_forge.train.generator_settings import settings as generator_settings
from edge_forge.train.methods import METHODS
from edge_forge.train.settings import settings

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
BEGIN, END = "<!-- table of methods -->\n", "<!-- end of the table of methods -->"


def table():
    rows = [
        "| `name` | method | trains | on devices | its update there | step size (encoder, generator) | other values |",
        "| :--- | :--- | :--- | :--- | :--- | :--- | :--- |",
    ]
    for name, one in METHODS.items():
        rates = f"{settings(name).learning_rate:g}, "
        rates += "-" if one.no_generator else f"{generator_settings(name, False, {}, 'm').learning_rate:g}"
        values = ", ".join(f"`{key}` {value:g}" for key, value in one.values.items()) or "-"
        rows.append(f"| `{name}` | {one.title} | {one.scope} | {one.on_devices} | {one.becomes} | {rates} | {values} |")
    return "\n".join(rows) + "\n"


def test_the_page_shows_the_table_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    shown, _, tail = rest.partition(END)
    if os.environ.get("REWRITE_DRAWING"):
        PAGE.write_text(f"{head}{BEGIN}{table()}{END}{tail}", encoding="utf-8")
        return
    assert shown == table()
