"""What the host tool reads that a person wrote or downloaded: recipes and rows of data."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_agent.base.errors import ConfigError
from edge_forge.data import classifier_rows, generator_rows
from edge_forge.recipe import classifier_recipe, generator_recipe
from edge_forge.recipe import schema as recipe_form
from tests.fuzz import corpus, mutate
from tests.fuzz.device_targets import TOML
from tests.fuzz.target import Target, placed


def recipe(data: bytes) -> None:
    """A recipe of either kind, with its settings for training, and its errors with their lines."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "recipe.toml"
        path.write_bytes(data)
        kind = generator_recipe if b'"generate"' in data else classifier_recipe
        try:
            found = kind.load(path, {})
        except ConfigError as error:
            raise recipe_form.with_line(error, path) from None
        assert found.training


def classifier_table(data: bytes) -> None:
    """Rows for a classifier behind a line with the format."""
    kind, _, text = data.partition(b"\n")
    form = {b"csv": "csv", b"jsonl": "jsonl"}.get(kind, "tsv")
    section = classifier_recipe.ClassifierDataSection(train="x", format=form)
    with placed(text) as path:
        for row in classifier_rows.read(path, section):
            assert row.text.strip() and row.label.strip()
            (row.text + row.label).encode()


def generator_table(data: bytes) -> None:
    """Rows for a generator behind a line with the format."""
    kind, _, text = data.partition(b"\n")
    forms = ("chat", "completion", "text", "sharegpt", "alpaca")
    form = kind.decode("ascii", "replace") if kind.decode("ascii", "replace") in forms else ""
    section = generator_recipe.GeneratorDataSection(train="x", format=form)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / ("rows.txt" if kind == b"lines" else "rows.jsonl")
        path.write_bytes(text)
        for row in generator_rows.read(path, section):
            assert generator_rows.from_json(generator_rows.as_json(row)) == row
            generator_rows.question(row).encode()


_CELLS = ("\t", ",", ";", '"', '""', "\r", "\r\n", "\n", "\0", "é", "e\u0301", "\ufeff", "\u200b", "\ud800", "text",
          "label", '"a\tb"', " ", "\u2028", "\u202e", "ﬁ", "x" * 300)  # fmt: skip

TARGETS = {
    "recipe": Target(recipe, (ConfigError,), corpus.recipes, mutate.by_text(*TOML)),
    "classifier-rows": Target(
        classifier_table, (ConfigError,), corpus.classifier_tables, mutate.by_text(*_CELLS, '{"text": ', "\\ud83d")
    ),
    "generator-rows": Target(
        generator_table, (ConfigError,), corpus.generator_tables, mutate.then_bytes(mutate.by_json_lines)
    ),
}
