"""A command on the service's folder acts as its owner. Rights are dropped in a child, which cannot take them back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.base.errors import UsageError
from edge_agent.store.state_folder import become_owner

CHILD = """
import os, sys
from pathlib import Path
from edge_agent.store.state_folder import become_owner
folder = Path(sys.argv[1])
become_owner(folder)
(folder / "made").write_text("x")
print(os.geteuid(), os.getegid(), (folder / "made").stat().st_uid)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_becomes_the_owner() -> None:
    # pytest's own folders are closed to others
    folder = Path("/tmp") / f"edge-agent-owner-{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, 12345, 23456)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.split() == ["12345", "23456", "12345"], done.stderr
    finally:
        (folder / "made").unlink(missing_ok=True)
        folder.rmdir()


def test_nothing_changes_for_a_folder_of_ones_own_or_none(tmp_path: Path) -> None:
    before = (os.geteuid(), os.getegid())
    become_owner(tmp_path)
    become_owner(tmp_path / "nowhere")
    assert (os.geteuid(), os.getegid()) == before


def test_another_users_folder_needs_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"belongs to \w+ \(run the command with sudo\)"):
        become_owner(tmp_path)
