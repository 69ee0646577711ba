"""The data sets under models/ are what their cards say, and no test line has a twin that was trained on.

Two lines are near-twins when, lower-cased and stripped of punctuation, they share at least three quarters of
their distinct words (Jaccard >= 0.75) or their character trigrams point almost the same way (cosine >= 0.85).
The first catches reordered words, the second typos and endings. Looking-alike lines may say opposite things
("lights on", "lights off"): the measure is about wording, so it ignores the labels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
SPLITS = ("train", "validation", "test")
JACCARD = 0.75
COSINE = 0.85
MIN_ROWS_PER_LABEL_AND_SPLIT = 5


@dataclass(frozen=True)
class Floor:
    utterances: int
    labels: int  # besides the ones named in `must_have`
    must_have: frozenset[str] = frozenset()


FLOORS = {
    "home-intents": Floor(utterances=1500, labels=14, must_have=frozenset({"out_of_scope"})),
    "urgency": Floor(utterances=600, labels=2),
}


@dataclass(frozen=True)
class Row:
    where: str
    split: str
    text: str
    label: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text!r} ({self.label})"


def normalised(text: str) -> str:
    kept = "".join(c if c.isalnum() else ("" if c in "'’" else " ") for c in text.casefold())
    return " ".join(kept.split())


def read(folder: Path) -> list[Row]:
    rows = []
    for split in SPLITS:
        path = folder / f"{split}.tsv"
        raw = path.read_bytes()
        assert b"\r" not in raw, f"{path}: carriage return; lines end with LF alone"
        assert raw.endswith(b"\n"), f"{path}: no newline at the end"
        header, *lines = raw.decode("utf-8")[:-1].split("\n")
        assert header == "text\tlabel", f"{path}:1: header is {header!r}"
        for number, line in enumerate(lines, start=2):
            where = f"{split}.tsv:{number}"
            assert line.count("\t") == 1, f"{where}: want text<TAB>label, got {line!r}"
            text, label = line.split("\t")
            assert label and label == label.strip(), f"{where}: label {label!r}"
            rows.append(Row(where, split, text, label))
    return rows


def unit_trigrams(text: str) -> dict[str, float]:
    padded = f" {normalised(text)} "
    counts = Counter(padded[i : i + 3] for i in range(len(padded) - 2))
    length = math.sqrt(sum(n * n for n in counts.values()))
    return {gram: n / length for gram, n in counts.items()}


def near_twins_across_splits(rows: list[Row]) -> list[str]:
    """Every pair of near-twins whose splits differ; each split is held against an index of the ones before it."""
    by_word: defaultdict[str, list[int]] = defaultdict(list)
    by_trigram: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    words = [set(normalised(row.text).split()) for row in rows]
    grams = [unit_trigrams(row.text) for row in rows]
    found = []
    for split in SPLITS:
        mine = [j for j, row in enumerate(rows) if row.split == split]
        for j in mine:
            shared = Counter(i for word in words[j] for i in by_word[word])
            cosine: defaultdict[int, float] = defaultdict(float)
            for gram, weight in grams[j].items():
                for i, other in by_trigram[gram]:
                    cosine[i] += weight * other
            jaccard = {i: n / (len(words[i]) + len(words[j]) - n) for i, n in shared.items()}
            twins = {i for i, x in jaccard.items() if x >= JACCARD} | {i for i, x in cosine.items() if x >= COSINE}
            found += [
                f"{rows[i]} ~ {rows[j]}: words {jaccard.get(i, 0):.2f}, trigrams {cosine[i]:.2f}" for i in sorted(twins)
            ]
        for j in mine:
            for word in words[j]:
                by_word[word].append(j)
            for gram, weight in grams[j].items():
                by_trigram[gram].append((j, weight))
    return found


@pytest.fixture(scope="module", params=sorted(FLOORS))
def data_set(request: pytest.FixtureRequest) -> tuple[str, list[Row]]:
    folder = MODELS / request.param / "data"
    if not folder.is_dir():
        pytest.skip(f"models/{request.param}/data is not here")
    return request.param, read(folder)


def test_no_text_is_empty_or_repeated(data_set: tuple[str, list[Row]]) -> None:
    seen: dict[str, Row] = {}
    for row in data_set[1]:
        key = normalised(row.text)
        assert key, f"{row} has neither letter nor digit"
        assert key not in seen, f"{seen[key]} is repeated by {row}"
        seen[key] = row


def test_every_label_is_in_every_split(data_set: tuple[str, list[Row]]) -> None:
    counts = Counter((row.label, row.split) for row in data_set[1])
    labels = {row.label for row in data_set[1]}
    thin = {(x, s): counts[x, s] for x in labels for s in SPLITS if counts[x, s] < MIN_ROWS_PER_LABEL_AND_SPLIT}
    assert not thin, f"fewer than {MIN_ROWS_PER_LABEL_AND_SPLIT} rows: {thin}"


def test_there_is_as_much_as_the_card_promises(data_set: tuple[str, list[Row]]) -> None:
    name, rows = data_set
    floor = FLOORS[name]
    labels = {row.label for row in rows}
    assert labels >= floor.must_have
    assert len(labels - floor.must_have) >= floor.labels
    assert len(rows) >= floor.utterances


def test_no_near_twins_lie_in_different_splits(data_set: tuple[str, list[Row]]) -> None:
    found = near_twins_across_splits(data_set[1])
    assert not found, "\n".join([f"{len(found)} near-twins across splits:", *found[:20]])


@pytest.mark.parametrize(
    ("one", "other", "twins"),
    [
        ("turn the kitchen light on", "Kitchen light: turn the on!", True),
        ("switch off the bedroom lamp please", "switch of the bedroom lamp please", True),
        ("lights on", "it's pitch black in the hallway", False),
    ],
)
def test_the_measure_sees_reordering_and_typos(one: str, other: str, twins: bool) -> None:
    rows = [Row("a.tsv:2", "train", one, "x"), Row("b.tsv:2", "test", other, "x")]
    assert bool(near_twins_across_splits(rows)) is twins
