"""What is no plain file is named, without waiting for what it would give."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edge_agent.base.named_file import open_named


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    with open_named(tmp_path / "x") as file:
        assert file.read() == b"content"
    with open_named(Path(os.devnull)) as file:
        assert file.read() == b""


def test_a_pipe_a_device_and_a_folder_are_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, word in (("pipe", "a named pipe"), ("device", "a device")):
        with pytest.raises(OSError, match=word):
            open_named(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_named(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_named(tmp_path / "missing")


def test_a_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket() as before:
        number = before.fileno()
    with pytest.raises(OSError, match="named pipe"):
        open_named(tmp_path / "pipe")
    with socket.socket() as after:
        assert after.fileno() == number
