"""Raspberry Pi's throttle word in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sensors.throttle import (
    FLAGS,
    REMEDIES,
    decode,
    find_over_current,
    find_throttled,
    find_under_voltage,
    parse_word,
    read_over_current,
    read_throttled,
)
from tests.support import sysfs


@pytest.mark.parametrize(
    ("text", "word"),
    [("0", 0), ("50005", 0x50005), ("0x80008", 0x80008), ("throttled=0x50000\n", 0x50000), ("80008\n", 0x80008)],
)
def test_all_three_forms(text: str, word: int) -> None:
    assert parse_word(text) == word


@pytest.mark.parametrize("text", ["", "throttled=", "0x", "-1", "xyz", "123456789"])
def test_what_is_no_word(text: str) -> None:
    assert parse_word(text) is None


def test_observed_words() -> None:
    """raspberrypi/documentation#2546: 0x80008 on a Pi 4 at 82 degrees."""
    hot = decode(0x80008)
    assert (hot.now, hot.since_boot) == (("soft-temperature-limit",), ("soft-temperature-limit",))
    weak = decode(0x50005)
    assert (weak.now, weak.since_boot) == (("under-voltage", "throttled"), ("under-voltage", "throttled"))
    past = decode(0x50000)
    assert (past.now, past.since_boot) == ((), ("under-voltage", "throttled"))


def test_every_flag_has_a_remedy() -> None:
    assert set(FLAGS.values()) == set(REMEDIES)


@given(st.integers(0, 0xFFFFFFFF))
def test_word_and_text_agree(word: int) -> None:
    assert parse_word(f"{word:x}") == parse_word(f"throttled=0x{word:x}") == word
    throttle = decode(word)
    again = sum(1 << bit for bit, name in FLAGS.items() if name in throttle.now)
    again |= sum(1 << (bit + 16) for bit, name in FLAGS.items() if name in throttle.since_boot)
    assert again == word & 0xF000F


@pytest.mark.parametrize("build", [sysfs.pi4, sysfs.pi5])
def test_both_places_of_the_word(tmp_path: Path, build: object) -> None:
    tree = build(tmp_path)  # type: ignore[operator]
    path = find_throttled(tree.root)
    assert path is not None
    Path(path).write_text("80008\n")
    reading = read_throttled(path, None, 2.0)
    assert (reading.value, reading.unit, reading.taken_s) == (float(0x80008), "flags", 2.0)


def test_the_alarm_serves_without_the_word_and_says_what_it_is(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.hwmon(7, "rpi_volt", in0_lcrit_alarm="1")
    reading = read_throttled(find_throttled(tree.root), find_under_voltage(tree.root), 1.0)
    assert (reading.value, reading.source) == (1.0, "rpi_volt (under-voltage only)")


def test_other_boards_and_broken_files_have_reasons(tmp_path: Path) -> None:
    assert read_throttled(None, None, 1.0).reason == "this board does not report throttling"
    path = sysfs.Tree(tmp_path).write("word", "nonsense")
    assert "'nonsense' is not a throttle word" in str(read_throttled(str(path), None, 1.0).reason)
    assert "does not have it" in str(read_throttled(str(tmp_path / "gone"), None, 1.0).reason)
    assert "does not have it" in str(read_throttled(None, str(tmp_path / "gone"), 1.0).reason)


def test_the_mailbox_is_asked_where_the_file_says_nothing(tmp_path: Path) -> None:
    def gencmd(command: str) -> str:
        asked.append(command)
        return "throttled=0x80008"

    asked: list[str] = []
    file = sysfs.Tree(tmp_path).write("word", "0")
    assert read_throttled(str(file), None, 1.0, gencmd).value == 0.0
    assert asked == [], "the file is there: the mailbox is left alone"
    assert read_throttled(None, str(tmp_path / "alarm"), 1.0, gencmd).value == float(0x80008)
    assert read_throttled(str(tmp_path / "gone"), None, 1.0, gencmd).source == "firmware get_throttled"
    assert asked == ["get_throttled", "get_throttled"]


def test_a_mailbox_that_refuses_leaves_the_alarm_or_the_reason(tmp_path: Path) -> None:
    def gencmd(command: str) -> str:
        raise PermissionError(13, "Permission denied", "/dev/vcio")

    alarm = sysfs.Tree(tmp_path).write("alarm", "1")
    assert read_throttled(None, str(alarm), 1.0, gencmd).source == "rpi_volt (under-voltage only)"
    reason = read_throttled(None, None, 1.0, gencmd).reason
    assert reason == "/dev/vcio: Permission denied; the user must be in the group video"
    assert "not a throttle word" in str(read_throttled(None, None, 1.0, lambda _: "what?").reason)


def test_over_current_counters_are_summed(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path)
    assert read_over_current(find_over_current(tree.root), 1.0).value == 2.0
    assert read_over_current((), 1.0).value is None
    assert read_over_current((str(tmp_path / "gone"),), 1.0).value is None
