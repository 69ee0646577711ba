"""The matrix of tasks one after another: rows grow, the last one is of each task alone."""

import argparse

import pytest

from edge_agent.base.errors import UsageError
from edge_forge.report import sequence_report
from edge_forge.sequence import sequence

FOUND = {
    "tasks": ["a", "b", "c"],
    "methods": ["lora", "lora", "full"],
    "after": [[0.9], [0.8, 0.95], [0.5, 0.96, 0.7]],
    "apart": [0.9, 0.94, 0.72],
}


def test_the_matrix_has_a_row_after_each_task_and_one_for_each_alone():
    table = sequence_report.table(FOUND)
    assert table.columns == ("accuracy", "a", "b", "c")
    assert [row[1:] for row in table.rows] == [
        ["0.9000", "", ""], ["0.8000", "0.9500", ""], ["0.5000", "0.9600", "0.7000"], ["0.9000", "0.9400", "0.7200"],
    ]  # fmt: skip


def test_what_is_lost_is_told_beside_what_adapters_apart_keep():
    said = sequence_report.said(FOUND)
    assert "a +40.0, b -1.0" in said and "Most was lost of a" in said and "it has +40.0 points" in said
    kept = {**FOUND, "after": [[0.9], [0.9, 0.95], [0.9, 0.96, 0.7]]}
    assert "forgot nothing" in sequence_report.said(kept)


def test_a_recipe_that_makes_a_base_of_its_own_is_no_part_of_a_sequence(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'name = "a"\n[base]\nname = "b"\nsource = "./base"\n[data]\ntrain = "t.tsv"\n[compress]\nlayers = 3\n'
    )
    given = argparse.Namespace(
        recipe=[tmp_path, tmp_path], build=tmp_path / "build", overlay=[], quiet=True, json=False
    )
    with pytest.raises(UsageError, match="a makes a base of its own") as refused:
        sequence(given)
    assert refused.value.remedy == "leave its compression out: --set compress.layers=0"
