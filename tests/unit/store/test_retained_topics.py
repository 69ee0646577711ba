"""What the broker retains of this device is known after a restart, and no disk stops the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.store.retained_topics import RETAINED_FILE, TOPICS, RetainedFile


def test_what_was_written_is_read_and_the_oldest_leave(tmp_path: Path) -> None:
    file = RetainedFile(tmp_path / "state")
    assert file.read() == ()
    file.write(["a", "b"])
    assert RetainedFile(tmp_path / "state").read() == ("a", "b")
    file.write([str(number) for number in range(TOPICS + 3)])
    assert file.read() == tuple(str(number) for number in range(3, TOPICS + 3))


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 2}', b'{"topics": 3}', bytes(100)])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / RETAINED_FILE).write_bytes(damage)
    assert RetainedFile(tmp_path).read() == ()
    assert "not known" in caplog.text


def test_a_disk_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    file = RetainedFile(tmp_path / "file")
    file.write(["a"])
    file.write(["a"])
    assert caplog.text.count("cannot be remembered") == 1
