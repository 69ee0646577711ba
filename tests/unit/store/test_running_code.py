"""A daemon's hold on its folder says which code it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edge_agent.store.state_folder import running_code, running_daemon

HOLD = """
import sys
from pathlib import Path
from edge_agent.store.state_folder import DaemonHold
hold = DaemonHold(Path(sys.argv[1]), Path(sys.argv[1]) / "inbox", "0.1.0+abc")
assert hold.take() is None
print("held", flush=True)
sys.stdin.read()
"""


def test_the_code_of_a_running_daemon(tmp_path: Path) -> None:
    assert running_code(tmp_path) is None
    daemon = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "held\n"
    assert running_daemon(tmp_path) == daemon.pid
    assert running_code(tmp_path) == "0.1.0+abc"
    (tmp_path / "daemon.lock").write_text(f"{daemon.pid}\n")  # as written before this was noted
    assert running_code(tmp_path) == ""
    daemon.kill()
    daemon.communicate()
    assert running_code(tmp_path) is None
