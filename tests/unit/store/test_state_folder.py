from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.base.errors import StoreError
from edge_agent.store.state_folder import DaemonHold, change_lock, running_daemon

HOLD = """
import sys
from pathlib import Path
from edge_agent.store.state_folder import DaemonHold
hold = DaemonHold(Path(sys.argv[1]), Path(sys.argv[1]) / "inbox")
assert hold.take() is None
print("held", flush=True)
sys.stdin.read()
"""


def a_hold(folder: Path) -> DaemonHold:
    return DaemonHold(folder, folder / "inbox")


def test_two_daemons_on_one_folder(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    hold = a_hold(tmp_path)
    with pytest.raises(StoreError) as caught:
        hold.take()
    assert f"another edge-agent daemon (pid {other.pid}) uses this state folder" in str(caught.value)
    assert running_daemon(tmp_path) == other.pid
    other.kill()
    other.communicate()
    assert running_daemon(tmp_path) is None
    assert hold.take() is None
    assert (tmp_path / "daemon.lock").read_text().strip() == str(os.getpid())
    assert hold.take() is None, "it is held already"
    hold.release()


def test_a_number_that_is_another_programs_by_now_is_no_daemon(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    (tmp_path / "daemon.lock").write_text(f"{other.pid}\n")
    assert running_daemon(tmp_path) is None
    other.kill()
    other.wait()


def test_two_changes_at_once_even_in_one_process(tmp_path: Path) -> None:
    with change_lock(tmp_path):
        hold = a_hold(tmp_path)
        assert hold.take() is None, "the two locks are not in each other's way"
        hold.release()
        with pytest.raises(StoreError, match="another install or rollback"), change_lock(tmp_path):
            raise AssertionError("both hold it")
    with change_lock(tmp_path):
        """Free again."""


def test_a_lock_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"), change_lock(tmp_path / "absent"):
        raise AssertionError("there is no folder")


def refusing(number: int, *writes: str) -> Callable[..., int]:
    """`os.open` of a file system that refuses to open for writing what ends in one of these names."""
    opened = os.open

    def open_(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).endswith(writes):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, mode)

    return open_


def test_a_read_only_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = a_hold(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing(errno.EROFS, "daemon.lock"))
        said = hold.take()
        assert said is not None
        assert "read-only; check the card" in said
    assert hold.take() is None
    hold.release()


def test_a_lock_file_on_a_read_only_disk_still_keeps_a_second_daemon_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "daemon.lock").touch()
    first, second = a_hold(tmp_path), a_hold(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing(errno.EROFS, "daemon.lock", ".writable"))
        patched.setattr(os, "access", lambda *_: False)
        assert "read-only" in str(first.take())
        with pytest.raises(StoreError, match="another edge-agent daemon"):
            second.take()
    first.release()


def test_a_folder_that_is_mounted_later_is_locked_anew(tmp_path: Path) -> None:
    """The lock that is held lies in the folder that the mount covers."""
    hold = a_hold(tmp_path / "state")
    assert hold.take() is None
    (tmp_path / "state").rename(tmp_path / "covered")
    assert hold.take() is None
    with pytest.raises(StoreError, match="another edge-agent daemon"):
        a_hold(tmp_path / "state").take()
    hold.release()


def test_a_file_in_the_way_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StoreError, match="File exists"):
        a_hold(tmp_path / "state").take()
