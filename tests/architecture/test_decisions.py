"""The index of decisions is complete, and each decision states its status and its date as the index does."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "decisions"
FILES = sorted(FOLDER.glob("[0-9]*.md"))
NUMBERS = {path.name[:4] for path in FILES}
HEAD = re.compile(r"# (\d{4}) (.+)\n\nStatus: (.+)\nDate: (\d{4}-\d{2}-\d{2})\n\n")
STATUS = re.compile(r"accepted|superseded by (\d{4})|changed(?: by (\d{4}))?")
ROW = re.compile(r"\| \[(\d{4})\]\(([^)]+)\) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|")


class Row(NamedTuple):
    """One line of the index."""

    number: str
    file: str
    title: str
    status: str
    date: str
    subject: str


INDEX = [Row(*found) for found in ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8"))]


def test_every_decision_is_in_the_index_once_and_in_order() -> None:
    assert [row.file for row in INDEX] == [path.name for path in FILES]


@pytest.mark.parametrize("row", INDEX, ids=lambda row: row.number)
def test_a_decision_has_the_head_that_the_index_shows(row: Row) -> None:
    head = HEAD.match((FOLDER / row.file).read_text(encoding="utf-8"))
    assert head is not None
    assert head.groups() == (row.number, row.title, row.status, row.date)
    assert row.file.startswith(row.number)


@pytest.mark.parametrize("row", INDEX, ids=lambda row: row.number)
def test_a_status_is_a_known_one_and_names_an_existing_later_decision(row: Row) -> None:
    status = STATUS.match(row.status)
    assert status is not None
    named = status[1] or status[2]
    assert named is None or (named in NUMBERS and named > row.number)
