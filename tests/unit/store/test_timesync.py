from __future__ import annotations

from pathlib import Path

from edge_agent.store.timesync import synchronised


def test_only_after_a_time_server_answered(tmp_path: Path) -> None:
    assert not synchronised(tmp_path)
    mark = tmp_path / "run" / "systemd" / "timesync" / "synchronized"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert synchronised(tmp_path)
