"""Events on disk: order, restart, damage, bounds, a disk that is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.mqtt.spool import MEMORY_EVENTS, SEGMENTS, Segment, Spool
from edge_agent.protocol.envelope import Outbound


def event(number: int, size: int = 10) -> Outbound:
    return Outbound("edge/v1/pi/event", f"{number:0{size}d}".encode(), user={"kind": "x"}, keep="disk")


def number(message: Outbound) -> int:
    return int(message.payload)


def drain(spool: Spool) -> list[int]:
    found = []
    while (item := spool.oldest()) is not None:
        found.append(number(item[1]))
        spool.pop(item[0])
    return found


def test_first_in_first_out_with_all_that_a_message_needs(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(3):
        spool.append(event(n))
    assert len(spool) == 3
    first = spool.oldest()
    assert first is not None
    assert first[1] == event(0)
    assert spool.oldest() == first
    assert drain(spool) == [0, 1, 2]
    assert len(spool) == 0
    assert spool.oldest() is None
    spool.close()


def test_it_survives_a_restart_at_any_point(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(5):
        spool.append(event(n))
    for _ in range(2):
        item = spool.oldest()
        assert item is not None
        spool.pop(item[0])
    # As after kill -9: nothing is closed.
    again = Spool(tmp_path)
    again.append(event(5))
    assert drain(again) == [2, 3, 4, 5]
    spool.close()
    again.close()
    last = Spool(tmp_path)
    assert len(last) == 0
    last.append(event(6))
    assert drain(last) == [6]
    last.close()


def test_a_lost_mark_repeats_and_never_skips(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(3):
        spool.append(event(n))
    item = spool.oldest()
    assert item is not None
    spool.pop(item[0])
    spool.close()
    (tmp_path / "acked").write_bytes(b"\xff" * 12)
    again = Spool(tmp_path)
    assert drain(again) == [0, 1, 2]
    again.close()


def test_a_torn_tail_is_cut_and_the_rest_is_used(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(3):
        spool.append(event(n))
    spool.close()
    (path,) = tmp_path.glob("events-*.log")
    os.truncate(path, path.stat().st_size - 4)
    again = Spool(tmp_path)
    assert again.cut == 1
    again.append(event(9))
    assert drain(again) == [0, 1, 9]
    again.close()


@given(st.integers(0, 400), st.integers(0, 7))
def test_any_flipped_bit_costs_only_what_stands_behind_it(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder)
    for n in range(6):
        spool.append(event(n))
    spool.close()
    (path,) = folder.glob("events-*.log")
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    again = Spool(folder)
    assert drain(again) == list(range(at * 6 // len(data)))
    again.append(event(7))
    assert drain(again) == [7]
    again.close()


def test_damage_in_one_segment_leaves_the_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_events=2 * SEGMENTS)
    for n in range(6):
        spool.append(event(n))
    spool.close()
    middle = sorted(tmp_path.glob("events-*.log"))[1]
    middle.write_bytes(b"\x00" * 100)
    again = Spool(tmp_path)
    assert drain(again) == [0, 1, 4, 5]
    again.close()


def test_damage_while_it_runs_is_skipped_and_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_events=2 * SEGMENTS)
    for n in range(4):
        spool.append(event(n))
    sorted(tmp_path.glob("events-*.log"))[0].write_bytes(b"")
    assert drain(spool) == [2, 3]
    assert spool.cut == 2
    spool.close()


def test_the_oldest_go_when_it_is_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=16_000, max_events=10_000)
    for n in range(500):
        spool.append(event(n, size=60))
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("events-*.log"))
    assert on_disk <= 16_000
    left = drain(spool)
    assert left == list(range(spool.lost, 500))
    assert 0 < spool.lost < 500
    spool.close()


def test_the_number_is_bounded_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_events=32)
    for n in range(100):
        spool.append(event(n))
    assert 30 <= len(spool) <= 32
    assert spool.lost + len(spool) == 100
    spool.close()


def test_an_event_dropped_while_on_its_way_is_no_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_events=32)
    spool.append(event(0))
    item = spool.oldest()
    assert item is not None
    for n in range(1, 100):
        spool.append(event(n))
    spool.pop(item[0])
    assert spool.lost + len(drain(spool)) == 100
    spool.close()


def test_a_full_disk_leaves_memory_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(event(0))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:5], at))
    for n in range(1, 4):
        spool.append(event(n))
    assert spool.trouble == "events are kept in memory only: No space left on device"
    assert len(spool) == 4
    for n in range(4, 4 + MEMORY_EVENTS):
        spool.append(event(n))
    assert spool.lost == 3
    monkeypatch.undo()
    spool.append(event(99))
    assert spool.trouble is None
    assert drain(spool) == [0, *range(4, 4 + MEMORY_EVENTS), 99]
    spool.close()


def test_half_a_record_on_a_full_disk_is_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(event(0))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:15], at))
    spool.append(event(1))
    monkeypatch.undo()
    spool.close()
    again = Spool(tmp_path)
    assert drain(again) == [0]
    again.close()


def test_what_is_not_on_the_disk_yet_can_be_forced_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(event(0))
    spool.append(event(1))
    pending = spool.take_unsynced()
    assert len(pending) == 2  # the folder and the segment
    Spool.sync(pending)
    assert spool.take_unsynced() == []
    for descriptor in pending:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    always = Spool(tmp_path, sync_always=True)
    always.append(event(2))
    assert always.take_unsynced() == []
    spool.close()
    always.close()


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "events-x.log").write_bytes(b"?")
    (tmp_path / "notes.txt").write_bytes(b"?")
    spool = Spool(tmp_path)
    spool.append(event(0))
    assert drain(spool) == [0]
    assert {"events-x.log", "notes.txt"} <= {path.name for path in tmp_path.iterdir()}
    spool.close()


def test_an_event_that_can_never_fit_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(Outbound("t", b"x" * 100_000, keep="disk"))
    spool.append(event(1))
    assert (spool.lost, drain(spool)) == (1, [1])
    spool.close()


def test_a_record_that_is_gone_is_none(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "events-0.log", 0)
    segment.append(b"x")
    assert segment.read(0) == b"x"
    segment.delete()
    assert segment.read(0) is None


def test_a_folder_that_comes_late_is_opened_and_its_events_go_first(tmp_path: Path) -> None:
    """As when a card is mounted after the start: events of the earlier run lie in it."""
    earlier = Spool(tmp_path / "card" / "spool")
    for n in range(3):
        earlier.append(event(n))
    earlier.close()
    (tmp_path / "spool").write_text("in the way")
    spool = Spool(tmp_path / "spool")
    assert spool.trouble is not None
    for n in (3, 4):
        spool.append(event(n))
    under_way = spool.oldest()
    assert under_way is not None
    assert number(under_way[1]) == 3
    (tmp_path / "spool").unlink()
    (tmp_path / "card" / "spool").rename(tmp_path / "spool")
    spool.append(event(5))
    assert spool.trouble is None
    spool.pop(under_way[0])  # by its old number: it is no longer known, and none is taken for it
    assert drain(spool) == [0, 1, 2, 3, 4, 5]
    spool.close()


def test_events_without_a_folder_wait_in_memory_and_leave_when_they_are_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    spool = Spool(tmp_path / "spool")
    for n in range(MEMORY_EVENTS + 2):
        spool.append(event(n))
    assert spool.lost == 2
    assert drain(spool) == list(range(2, MEMORY_EVENTS + 2))
    assert len(spool) == 0
    spool.close()
