from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.base.errors import StoreError
from edge_agent.store.state_folder import change_lock, daemon_lock, running_daemon

HOLD = """
import sys
from pathlib import Path
from edge_agent.store.state_folder import daemon_lock
with daemon_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_daemons_on_one_folder(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(StoreError) as caught, daemon_lock(tmp_path):
        raise AssertionError("both hold it")
    assert f"another edge-agent daemon (pid {other.pid}) uses this state folder" in str(caught.value)
    assert running_daemon(tmp_path) == other.pid
    other.kill()
    other.communicate()
    assert running_daemon(tmp_path) is None
    with daemon_lock(tmp_path):
        assert (tmp_path / "daemon.lock").read_text().strip() == str(os.getpid())


def test_a_number_that_is_another_programs_by_now_is_no_daemon(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    (tmp_path / "daemon.lock").write_text(f"{other.pid}\n")
    assert running_daemon(tmp_path) is None
    other.kill()
    other.wait()


def test_two_changes_at_once_even_in_one_process(tmp_path: Path) -> None:
    with change_lock(tmp_path):
        with daemon_lock(tmp_path):
            """The two locks are not in each other's way."""
        with pytest.raises(StoreError, match="another install or rollback"), change_lock(tmp_path):
            raise AssertionError("both hold it")
    with change_lock(tmp_path):
        """Free again."""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the lock cannot be opened"), daemon_lock(tmp_path / "absent"):
        raise AssertionError("there is no folder")


def test_a_full_disk_is_no_reason_not_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with daemon_lock(tmp_path), pytest.raises(StoreError), daemon_lock(tmp_path):
        pass
