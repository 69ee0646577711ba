"""Data files: every way a row can be wrong names its file and line; splits are stable and fair."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_forge.data.classifier_rows import Row, load, normal, read, sample, split_rows
from edge_forge.data.text_files import csv_rows
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection

TRAIN = "text\tlabel\nlamp on\ton\nlight on\ton\nplease on\ton\nlamp off\toff\nlight off\toff\nstop\toff\n"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("turn_on", "turn-on", True), ("turn on", "turn_on", True), ("on", "on.", True), ("élan", "elan", True),
        ("❤", "❤\ufe0f", True), ("1", "1.0", True), ("01", "1", True), ("kilit", "K\u0130L\u0130T", True),
        ("-1", "1", False), ("a+", "a-", False), ("1.5", "15", True), ("on", "off", False), ("10", "1", False),
        ("c++", "c", False), ("好", "坏", False), ("pause", "\u0440\u0430use", True), ("OK", "\u039f\u039a", True),
        ("a-b", "a\u2013b", True), ("don't", "don\u2019t", True), ("stop", "\u201cstop\u201d", True),
        ("on", "on!", True),
        ("1", "\u0661", True), ("a b", "a\u200c b", True), ("on/off", "on / off", True), ("<5", ">5", False),
        ("light", "lights", False), ("\u0442\u043e\u043a", "\u0442\u043e\u043b", False),
    ],
)  # fmt: skip
def test_labels_that_look_alike_are_warned_of(tmp_path, one, other, said):
    rows = "".join(f"{text} {place}\t{label}\n" for place in range(4) for text, label in (("x", one), ("y", other)))
    write(tmp_path, "train.tsv", "text\tlabel\n" + rows)
    found = [words for words in loaded(tmp_path).warnings if words.startswith("labels that differ only by")]
    assert bool(found) == said
    if said:
        assert f"{other!r} (train.tsv:3) and {one!r} (train.tsv:2)" in found[0]


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(folder, task=None, **section):
    return load(ClassifierDataSection(train="train.tsv", **section), task or ClassifierTaskSection(), folder)


def test_tsv_csv_and_jsonl_hold_the_same_rows(tmp_path):
    rows = [Row("lamp, on", "on"), Row('say "off"', "off")]
    section = ClassifierDataSection(train="x")
    tsv = write(tmp_path, "a.tsv", 'text\tlabel\r\nlamp, on\ton\r\nsay "off"\toff\r\n')
    csv = write(tmp_path, "a.csv", 'label,text\non,"lamp, on"\noff,"say ""off"""\n')
    jsonl = write(tmp_path, "a.jsonl", '{"text":"lamp, on","label":"on"}\n\n{"label":"off","text":"say \\"off\\""}\n')
    assert list(read(tsv, section)) == list(read(csv, section)) == list(read(jsonl, section)) == rows


def test_files_without_header_and_with_raw_labels(tmp_path):
    path = write(tmp_path, "a.tsv", "fine\t1\nbad\t0\n")
    section = ClassifierDataSection(
        train="x", columns=("text", "label"), label_names={"0": "negative", "1": "positive"}
    )
    assert list(read(path, section)) == [Row("fine", "positive"), Row("bad", "negative")]


PAIRS = ClassifierDataSection(train="x", text="first", text_pair="second")


def test_tsv_csv_and_jsonl_hold_the_same_pairs(tmp_path):
    rows = [Row(("it rains, again", "the street is wet"), "yes"), Row(("it rains", "it is dry"), "no")]
    cells = "yes\tit rains, again\t the street is wet\nno\tit rains\tit is dry\n"
    tsv = write(tmp_path, "a.tsv", "label\tfirst\tsecond\n" + cells)
    quoted = '"it rains, again",the street is wet,yes\nit rains,it is dry,no\n'
    csv = write(tmp_path, "a.csv", "first,second,label\n" + quoted)
    objects = [{"first": row.text[0], "second": row.text[1], "label": row.label} for row in rows]
    jsonl = write(tmp_path, "a.jsonl", "".join(json.dumps(one) + "\n" for one in objects))
    assert list(read(tsv, PAIRS)) == list(read(csv, PAIRS)) == list(read(jsonl, PAIRS)) == rows


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("a.tsv", "first\tlabel\na\tyes\n", 1, "no column 'second'"),
        ("a.tsv", "first\tsecond\tlabel\na\t \tyes\n", 2, "the second text of the pair is empty"),
        ("a.tsv", "first\tsecond\tlabel\na\tyes\n", 2, "the label is missing: 3 columns are expected"),
        ("a.tsv", f"first\tsecond\tlabel\na\t{'x' * 40_000}\tyes\n", 2, "second text of the pair has 40000 bytes"),
        ("a.jsonl", '{"first":"a","label":"yes"}\n', 1, "the second text is missing: the object has no key 'second'"),
        ("a.jsonl", '{"first":"a","second":1,"label":"yes"}\n', 1, "'second' must be a string"),
    ],
)
def test_pairs_that_do_not_fit_are_named_by_file_and_line(tmp_path, name, text, line, words):
    with pytest.raises(ConfigError) as error:
        list(read(write(tmp_path, name, text), PAIRS))
    assert words in error.value.what
    assert error.value.where == f"{tmp_path / name}:{line}"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.tsv", "text\ttext_pair\tlabel\na\tb\tyes\n"), ("a.jsonl", '{"text":"a","text_pair":"b","label":"yes"}\n')],
)
def test_a_second_text_that_the_recipe_does_not_ask_for_is_not_left_out_silently(tmp_path, name, text):
    with pytest.raises(ConfigError, match="the rows have 'text_pair', and the recipe takes one text") as error:
        list(read(write(tmp_path, name, text), ClassifierDataSection(train="x")))
    assert error.value.remedy is not None
    assert 'data.text_pair = "text_pair"' in error.value.remedy


def test_a_pair_in_two_splits_or_with_two_labels_is_warned_of(tmp_path):
    rows = ["a\tb\tyes", "b\ta\tno", "a\tc\tno", "A\tB \tno", "d\te\tyes"]
    write(tmp_path, "train.tsv", "first\tsecond\tlabel\n" + "\n".join(rows))
    write(tmp_path, "test.tsv", "first\tsecond\tlabel\nd\te\tyes\nc\ta\tno\n")
    found = loaded(tmp_path, test="test.tsv", validation="test.tsv", text="first", text_pair="second")
    assert found.statistics["contradictions"] == 1
    assert found.statistics["shared"]["train/test"] == 1


def test_whole_numbers_are_labels_in_jsonl(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text":"fine","label":1}\n')
    assert list(read(path, ClassifierDataSection(train="x"))) == [Row("fine", "1")]


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("a.tsv", "text\tlabel\nlamp\n", 2, "the label is missing"),
        ("a.tsv", "text\tlabel\nlamp\t\n", 2, "the label is missing"),
        ("a.tsv", "text\tlabel\nx\ton\n \ton\n", 3, "the text is empty"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", 2, "3 columns: 2 columns are expected"),
        ("a.tsv", "words\tlabel\nlamp\ton\n", 1, "no column 'text'"),
        ("a.tsv", b"text\tlabel\nlamp\ton\nl\xe4mp\ton\n", 3, "byte 0xe4 is not UTF-8"),
        ("a.tsv", "text\tlabel\n" + "x" * 40_000 + "\ton\n", 2, "at most 32768"),
        ("a.csv", 'text,label\n"two\nlines",on\nlamp\n', 4, "the label is missing"),
        ("a.csv", 'text,label\nlamp,"on"x\n', 2, "no valid CSV"),
        ("a.jsonl", '{"text":"a","label":"b"}\n{"text":\n', 2, "no valid JSON"),
        ("a.jsonl", "[1]\n", 1, "no JSON object"),
        (
            "a.jsonl",
            '{"text":"a","label":"b"}\n{"text":"a","label":"b","text":"c"}\n',
            2,
            "the key 'text' stands twice",
        ),
        ("a.jsonl", '{"text":"a","label":"b","more":{"x":1,"x":1}}\n', 1, "the key 'x' stands twice"),
        ("a.jsonl", '{"text":"a","label":' + "[" * 100_000 + "\n", 1, "nests too deep"),
        ("a.jsonl", '{"text":"lamp"}\n', 1, "the label is missing"),
        ("a.jsonl", '{"label":"on"}\n', 1, "the text is missing: the object has no key 'text' (it has 'label')"),
        ("a.jsonl", '{"text":"a","intent":"b"}\n', 1, "no key 'label' (it has 'text', 'intent') (add it, or name"),
        ("a.jsonl", '{"text":"a","label":"b"},\n', 1, "remove the comma at the end of the line"),
        ("a.jsonl", '{"text":"a","label":"b",}\n', 1, "remove the comma before the closing bracket"),
        ("a.csv", "words;label\nlamp;on\n", 1, "it has 'words', 'label', separated by semicolons"),
        ("a.csv", 'text,label\nx,on\n"lamp,on\nlight,on\n', 3, "opened here is not closed up to the end, line 4"),
        ("a.csv", 'text,label\n"lamp,on\nlight,"on"\n', 2, "in line 3"),
        ("a.csv", "text,label\nlamp, please,on\n", 2, 'a comma stands in quotation marks: "one, two"'),
        ("a.tsv", "text\tlabel\tx\nlamp\t\ton\tz\n", 2, "remove the tab"),
        ("a.jsonl", '{"text":"lamp","label":0.5}\n', 1, "must be a string"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path, name, text, line, words):
    path = write(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        list(read(path, ClassifierDataSection(train="x")))
    assert caught.value.where == f"{path}:{line}"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no rows"), ("text\tlabel\n", "no rows"), ("text\tlabel\na\ton\nb\ton\n", "all 2 rows have the label 'on'")],
)
def test_a_file_that_teaches_nothing_is_refused(tmp_path, text, words):
    write(tmp_path, "train.tsv", text)
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path)


def test_missing_files_and_unknown_suffixes(tmp_path):
    with pytest.raises(ConfigError, match="no such data file"):
        loaded(tmp_path)
    path = write(tmp_path, "a.parquet", "x")
    with pytest.raises(ConfigError, match=r"'parquet' cannot be read.*use .tsv"):
        list(read(path, ClassifierDataSection(train="x")))


def test_labels_unknown_to_training_are_refused_in_other_splits(tmp_path):
    write(tmp_path, "train.tsv", TRAIN)
    write(tmp_path, "test.tsv", "text\tlabel\nwait\tpause\n")
    with pytest.raises(ConfigError, match=r"test.tsv:2: the label 'pause'.*known labels: off, on"):
        loaded(tmp_path, test="test.tsv")


def test_labels_of_the_task_are_the_order_and_must_all_appear(tmp_path):
    write(tmp_path, "train.tsv", TRAIN)
    assert loaded(tmp_path).labels == ("off", "on")
    assert loaded(tmp_path, ClassifierTaskSection(labels=("on", "off"))).labels == ("on", "off")
    with pytest.raises(ConfigError, match="no training row has the label 'wait'"):
        loaded(tmp_path, ClassifierTaskSection(labels=("on", "off", "wait")))
    with pytest.raises(ConfigError, match="the label 'off'"):
        loaded(tmp_path, ClassifierTaskSection(labels=("on", "wait")))
    with pytest.raises(ConfigError, match=r"'none' of task.out_of_scope.*set task.threshold"):
        loaded(tmp_path, ClassifierTaskSection(out_of_scope="none"))


def test_with_a_threshold_the_out_of_scope_label_needs_no_rows(tmp_path):
    write(tmp_path, "train.tsv", TRAIN)
    found = loaded(tmp_path, ClassifierTaskSection(out_of_scope="unsure", threshold=0.6))
    assert found.labels == ("off", "on")
    assert found.statistics["out_of_scope_share"] == 0


@pytest.mark.parametrize("written", ["un  sure", " un sure ", "un\u00a0sure"])
def test_the_out_of_scope_label_is_compared_in_its_one_form(tmp_path, written):
    write(tmp_path, "train.tsv", TRAIN + "what\tun sure\nwhich\tun sure\n")
    task = ClassifierTaskSection(out_of_scope=written)
    assert task.out_of_scope == "un sure"
    assert loaded(tmp_path, task).statistics["out_of_scope_share"] > 0


@pytest.mark.parametrize("written", ["Off", "OFF", "o\ufb00"])
def test_an_out_of_scope_label_that_differs_by_case_or_form_from_a_class_is_refused(tmp_path, written):
    write(tmp_path, "train.tsv", TRAIN)
    with pytest.raises(ConfigError, match=r"task.out_of_scope: .* and the label 'off' \(train.tsv:5\).* = \"off\""):
        loaded(tmp_path, ClassifierTaskSection(out_of_scope=written, threshold=0.5))


def both_labels(*names):
    return "text\tlabel\n" + "".join(f"{name} {n}\t{label}\n" for n in range(2) for name, label in names)


@pytest.mark.parametrize(
    ("one", "other"), [("on", "ON"), ("Straße", "STRASSE"), ("first", "\ufb01rst"), ("on", "\uff4f\uff4e")]
)
def test_labels_that_differ_by_case_or_compatible_characters_are_refused_with_both_lines(tmp_path, one, other):
    write(tmp_path, "train.tsv", both_labels(("lamp", one), ("light", other), ("stop", "off")))
    with pytest.raises(
        ConfigError, match=r"train.tsv:3: .*\(train.tsv:2\) differ only by case or by form.*label_names"
    ):
        loaded(tmp_path)
    assert loaded(tmp_path, label_names={other: one}).labels == tuple(sorted(("off", one)))


@pytest.mark.parametrize(
    ("one", "other"), [("caf\u00e9", "cafe\u0301"), ("lamp on", "lamp  on"), ("lamp on", " lamp\u00a0on ")]
)
def test_labels_that_differ_by_spaces_or_the_form_of_accents_are_one(tmp_path, one, other):
    write(tmp_path, "train.tsv", both_labels(("lamp", one), ("light", other), ("stop", "off")))
    assert loaded(tmp_path).labels == tuple(sorted((one, "off")))


def test_labels_of_the_task_are_compared_in_their_one_form(tmp_path):
    write(tmp_path, "train.tsv", both_labels(("lamp", "caf\u00e9"), ("stop", "off")))
    assert loaded(tmp_path, ClassifierTaskSection(labels=("off", "cafe\u0301"))).labels == ("off", "caf\u00e9")
    with pytest.raises(ConfigError, match=r"task.labels: the label 'café' is named twice, in two forms"):
        loaded(tmp_path, ClassifierTaskSection(labels=("off", "cafe\u0301", "caf\u00e9")))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("o\x00n", "NUL"),
        ("o\x1b[31mn", r"U\+001B \(a control character\), which cannot be seen"),
        ("o\x1fn", r"U\+001F"),
        ("o\u202en", r"U\+202E \(right-to-left override\)"),
        ("o\u200bn", "zero width space"),
        ("on\u200d", r"U\+200D \(zero width joiner\)"),
        ("on\u3164", r"U\+3164 \(hangul filler\)"),
        ("\u2800on", r"U\+2800 \(braille pattern blank\)"),
        ("x" * 257, "257 characters; a device takes at most 256"),
    ],
)
def test_labels_that_cannot_be_shown_name_file_and_line(tmp_path, label, words):
    path = write(tmp_path, "train.tsv", f"text\tlabel\nlamp\ton\nlight\t{label}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        loaded(tmp_path)
    assert caught.value.where == f"{path}:3"


def test_labels_with_joiners_and_sentences_of_the_permitted_length_are_kept(tmp_path):
    names = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "x" * 256]
    write(tmp_path, "train.tsv", both_labels(("lamp", names[0]), ("stop", names[1])))
    assert set(loaded(tmp_path).labels) == set(names)


def test_more_labels_than_a_device_takes_are_refused_before_anything_runs(tmp_path):
    write(tmp_path, "train.tsv", both_labels(*((f"text {n}", f"label {n}") for n in range(1025))))
    with pytest.raises(ConfigError, match="1025 different labels; a device takes at most 1024"):
        loaded(tmp_path)


def test_half_of_a_surrogate_pair_and_nul_in_a_text_name_the_line(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text":"fine","label":"a"}\n{"text":"lights \\ud83d","label":"a"}\n')
    with pytest.raises(ConfigError, match=r"\\ud83d, half of a surrogate pair") as caught:
        list(read(path, ClassifierDataSection(train="x")))
    assert caught.value.where == f"{path}:2"
    path = write(tmp_path, "a.tsv", "text\tlabel\nli\0ght\ton\n")
    with pytest.raises(ConfigError, match=r"NUL character.*UTF-16"):
        list(read(path, ClassifierDataSection(train="x")))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_what_spreadsheets_save_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path = write(tmp_path, "a.tsv", (mark + "text\tlabel\r\nläuft\ton\r\n").encode(encoding))
    assert list(read(path, ClassifierDataSection(train="x"))) == [Row("läuft", "on")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_named(tmp_path, encoding):
    path = write(tmp_path, "a.tsv", "text\tlabel\nl\u00e4uft\ton\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"looks like UTF-16 without a byte order mark .save the file as UTF-8"):
        list(read(path, ClassifierDataSection(train="x")))


@pytest.mark.parametrize(
    ("begin", "what"), [(b"PK\x03\x04\x14", r"a spreadsheet \(.xlsx, .ods\)"), (b"\x1f\x8b\x08", "compressed by gzip"),
                        (b"PAR1\x15", "Parquet"),
                        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS")]
)  # fmt: skip
def test_what_is_no_text_is_named(tmp_path, begin, what):
    path = write(tmp_path, "a.csv", begin + b"\x00\xff")
    with pytest.raises(ConfigError, match=f"it is no text but {what}.*save the rows as TSV"):
        list(read(path, ClassifierDataSection(train="x")))


@pytest.mark.parametrize("text", ["PAR16 bulb on", "PAR16", "BZh is no word", "ARROW1 key"])
def test_text_that_begins_like_the_name_of_a_format_is_text(tmp_path, text):
    path = write(tmp_path, "a.tsv", f"{text}\tlight\n")
    section = ClassifierDataSection(train="x", columns=("text", "label"))
    assert list(read(path, section)) == [Row(text, "light")]


def test_rows_split_off_are_not_called_by_the_training_file(tmp_path):
    write(tmp_path, "train.tsv", TRAIN + "lamp on\toff\n" * 3)
    for seed in range(20):
        shared = [said for said in loaded(tmp_path, seed=seed).warnings if "are also in train" in said]
        assert all(f"of the validation rows of {tmp_path / 'train.tsv'} are also" in said for said in shared)
        if shared:
            return
    raise AssertionError("no seed puts the text with two labels on both sides")


@pytest.mark.parametrize(
    ("cell", "text", "note"),
    [
        ('"he said ""on"" now"', 'he said "on" now', "read as spreadsheets write them"),
        ('"two\nlines"', "two\nlines", "read as spreadsheets write them"),
        ('"a\ttab"', "a\ttab", "read as spreadsheets write them"),
        ('"quoted"', '"quoted"', 'stay part of the text: TSV has no quoting (data.format = "csv"'),
        ('5" screen', '5" screen', None),
    ],
)
def test_quotation_marks_in_tsv_are_text_unless_a_spreadsheet_wrote_them(tmp_path, cell, text, note):
    write(tmp_path, "train.tsv", TRAIN + f"{cell}\ton\n")
    found = loaded(tmp_path)
    assert text in {row.text for rows in found.splits.values() for row in rows}
    said = (*found.warnings, *found.notes)
    assert any(note in sentence for sentence in said) if note else "quotation" not in "".join(said)
    acted_on = any("quotation" in warning for warning in found.warnings)
    assert acted_on == bool(note and "stay part" in note)  # what was read as its writer meant it needs no act


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        ("sep=;\ntext;label\nhi, you;a\n", [("hi, you", "a")], "separated by semicolons"),
        ('"sep=,",\r\ntext,label\r\nhi,a\r\n', [("hi", "a")], "separated by commas"),
        ('text, label\n"hi, you", a\n', [("hi, you", "a")], ""),
        ('text,label\nhi, "a"\n"hi, you", "b"\n', [("hi", "a"), ("hi, you", "b")], "spaces before quotation marks"),
        ('text,label\n"hi, you", "a"\nme, "b, c"\n', [("hi, you", "a"), ("me", "b, c")], "spaces before quotation"),
        ('text,label\nhe said "on",a\n', [('he said "on"', "a")], ""),
        ('text,label\nso, "a\nso, "b\n', [("so", '"a'), ("so", '"b')], ""),
        ("text,label\n'hi','a'\n'you','b'\n", [("'hi'", "'a'"), ("'you'", "'b'")], "single quotation marks"),
    ],
)  # fmt: skip
def test_csv_as_people_and_programs_write_it(tmp_path, text, rows, said):
    path = write(tmp_path, "train.csv", text)
    assert [tuple(row) for row in read(path, ClassifierDataSection(train="x"))] == rows
    table = csv_rows(text, ("text", "label"), 0, "train.csv")
    assert said in table.note + table.warning
    assert bool(said) == bool(table.note + table.warning)
    assert table.rows[0][0] == 1 + text.startswith(("sep", '"sep')), "the lines keep their numbers"


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_the_separator_of_a_csv_file_is_found_by_its_header_and_said(tmp_path, separator, name):
    rows = [line.split("\t") for line in TRAIN.splitlines()]
    write(tmp_path, "train.csv", "\n".join(separator.join(row) for row in [*rows, ['"a;b,c"', "on"]]))
    found = load(ClassifierDataSection(train="train.csv"), ClassifierTaskSection(), tmp_path)
    assert "a;b,c" in {row.text for rows in found.splits.values() for row in rows}
    assert any(f"train.csv: its cells are separated by {name}" in note for note in found.notes)
    assert not any("separated" in warning for warning in found.warnings)  # nothing is to be done


def test_a_file_with_other_separators_than_its_name_says_so(tmp_path):
    path = write(tmp_path, "a.tsv", "text,label\nlamp,on\n")
    with pytest.raises(ConfigError, match=r"no column 'text' \(it has 'text,label', separated by tabs\)"):
        list(read(path, ClassifierDataSection(train="x")))
    twice = write(tmp_path, "b.tsv", "text\tlabel\ttext\nlamp\ton\tx\n")
    with pytest.raises(ConfigError, match="the column 'text' twice"):
        list(read(twice, ClassifierDataSection(train="x")))


@pytest.mark.parametrize("blank", ["", " ", " \t", "\u00a0"])
def test_blank_lines_are_no_rows(tmp_path, blank):
    section = ClassifierDataSection(train="x")
    for name, text in (
        ("a.tsv", f"text\tlabel\n{blank}\nlamp\ton\n{blank}"),
        ("a.csv", f"text,label\n{blank}\nlamp,on\n{blank}\n,\n"),
        ("a.jsonl", f'{blank}\n{{"text":"lamp","label":"on"}}\n{blank}'),
    ):
        assert list(read(write(tmp_path, name, text), section)) == [Row("lamp", "on")]


def test_line_ends_of_every_system_are_read(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        path = write(tmp_path, "a.tsv", end.join(["text\tlabel", "lamp\ton", ""]))
        assert list(read(path, ClassifierDataSection(train="x"))) == [Row("lamp", "on")]


def test_what_flatters_figures_is_counted_and_said(tmp_path):
    write(tmp_path, "train.tsv", TRAIN + "".join(f"more {n}\ton\n" for n in range(20)))
    write(tmp_path, "validation.tsv", "text\tlabel\nLamp  ON\ton\ngo away\toff\n")
    write(tmp_path, "test.tsv", "text\tlabel\nstop\ton\n")
    found = loaded(tmp_path, validation="validation.tsv", test="test.tsv")
    assert found.statistics["shared"] == {"train/validation": 1, "train/test": 1}
    assert found.statistics["contradictions"] == 1
    assert found.statistics["imbalance"] == pytest.approx(23 / 3, abs=0.01)
    assert len(found.warnings) == 5
    assert "validation.tsv are also in train" in found.warnings[0]
    assert "test.tsv has no row of 1 class(es), whose figures are missing there: 'off'" in " ".join(found.warnings)
    assert "train.tsv:7 'off' and" in found.warnings[-1]
    assert "test.tsv:2 'on'" in found.warnings[-1]


def test_no_test_split_is_said(tmp_path):
    write(tmp_path, "train.tsv", TRAIN)
    found = loaded(tmp_path)
    assert found.measured[0] == "validation"
    assert "no test split" in found.warnings[-1]


class HubRows(list):
    """Rows as the library `datasets` gives them."""

    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = {"label": SimpleNamespace(names=names), "text": None}


def from_hub(monkeypatch, rows, names=None):
    library = SimpleNamespace(
        load_dataset=lambda *_: {"train": HubRows(rows, names)}, exceptions=SimpleNamespace(DatasetsError=OSError)
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    return load(ClassifierDataSection(hub="owner/set"), ClassifierTaskSection(), Path())


def test_rows_of_the_hub_have_the_names_of_their_classes(monkeypatch):
    rows = [{"text": f"{word} {place}", "label": word == "off"} for word in ("on", "off") for place in range(3)]
    found = from_hub(monkeypatch, [{**row, "label": int(row["label"])} for row in rows], names=["lamp on", "lamp off"])
    assert found.labels == ("lamp off", "lamp on")
    assert from_hub(monkeypatch, [{**row, "label": str(row["label"])} for row in rows]).labels == ("False", "True")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x", "label": [0, 1]}, "a string or a whole number"),
        ({"text": "x", "label": 3.5}, "a string or a whole number"),
        ({"text": "x", "label": True}, "a string or a whole number"),
        ({"text": "x", "label": None}, "the label is missing"),
        ({"text": None, "label": 1}, "'text' must be a string"),
        ({"text": "x", "label": -1}, "this split is unlabelled"),
    ],
)
def test_rows_of_the_hub_are_checked_like_those_of_files(monkeypatch, row, says):
    """Values were written out before: a missing label was the class "None", a list of labels one of its own."""
    with pytest.raises(ConfigError, match=rf"owner/set \(train\):2: .*{says}"):
        from_hub(monkeypatch, [{"text": "on", "label": 0}, row])


def test_a_hub_data_set_without_the_library_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"`datasets`, which is not installed .pip install datasets"):
        load(ClassifierDataSection(hub="owner/set"), ClassifierTaskSection(), tmp_path)


ROWS = st.lists(
    st.builds(Row, st.text("abc ", min_size=1, max_size=4), st.sampled_from(["x", "y"])), min_size=1, max_size=40
)


@given(ROWS, st.floats(0.05, 0.8), st.integers(0, 5))
def test_a_split_loses_nothing_keeps_twins_together_and_both_sides_have_each_class(rows, share, seed):
    texts = {label: {normal(row.text) for row in rows if row.label == label} for label in ("x", "y")}
    if any(len(found) == 1 for found in texts.values()):
        with pytest.raises(ConfigError, match="one text only"):
            split_rows(rows, share, seed, "train")
        return
    kept, held = split_rows(rows, share, seed, "train")
    assert Counter(kept + held) == Counter(rows)
    for label, found in texts.items():
        sides = [{normal(row.text) for row in side if row.label == label} for side in (kept, held)]
        assert not sides[0] & sides[1]
        assert not found or (sides[0] and sides[1])
    assert split_rows(list(reversed(rows)), share, seed, "train") == (kept, held)


LABELLED = st.lists(st.builds(Row, st.text("abc", min_size=1, max_size=3), st.sampled_from("uvwxyz")), min_size=1)


@given(LABELLED, st.integers(1, 50))
def test_a_sample_has_no_more_rows_than_asked_for_or_classes(rows, most):
    taken = sample(rows, most, 3)
    assert len(taken) <= max(most, len({row.label for row in rows}))
    assert {row.label for row in taken} == {row.label for row in rows}


def test_small_classes_do_not_raise_a_sample_above_what_was_asked_for():
    rows = [Row(f"text {n}", "large") for n in range(91)] + [Row(f"text {n}", f"small {n}") for n in range(9)]
    found = Counter(row.label for row in sample(rows, 12, 3))
    assert found.total() == 12
    assert found["large"] == 3


def test_fewer_rows_than_classes_are_said(tmp_path):
    write(tmp_path, "train.tsv", TRAIN)
    assert "max_rows = 1 is less than the 2 classes: one row of each is used" in loaded(tmp_path, max_rows=1).warnings
    assert len(loaded(tmp_path, max_rows=1).train) == 2


@given(ROWS, st.integers(1, 50))
def test_a_sample_keeps_order_and_every_class(rows, most):
    taken = sample(rows, most, 3)
    assert {row.label for row in taken} == {row.label for row in rows}
    assert len(taken) <= max(most, 2)
    places = iter(rows)
    assert all(row in places for row in taken)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text\r,label\nturn on,light\n", r"rows.csv:1: the header has no column 'label' \(it has 'text'"),
        ("x" * 200_000 + ",label\nturn on,light\n", r"rows.csv:1: a cell has more than 131,072 characters \(shorten"),
        (",".join(f"column{place}" for place in range(5000)) + "\na\n", r"the header has no column 'text' \(it has"),
        ("x" * 5000 + ",label\na,b\n", r"the header has no column 'text' \(it has"),
    ],
    ids=["a line break of another kind", "a cell above the limit", "many columns", "a long column"],
)
def test_a_header_that_cannot_be_used_is_named_in_few_words(tmp_path, text, says):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        list(read(path, ClassifierDataSection(train="x")))
    assert len(str(caught.value)) < 1000
