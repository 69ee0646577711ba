from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.sensors.time_sync import ClockSync, clock_sync


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], ClockSync.UNKNOWN),
        (["run/systemd/timesync/other"], ClockSync.UNSYNCHRONISED),
        (["run/systemd/timesync/synchronized"], ClockSync.SYNCHRONISED),
        (["run/chrony/chronyd.pid"], ClockSync.MANAGED),
        (["run/chrony/chronyd.pid", "run/systemd/timesync/other"], ClockSync.MANAGED),
        (["run/chrony/chronyd.pid", "run/systemd/timesync/synchronized"], ClockSync.SYNCHRONISED),
    ],
)
def test_the_files_of_time_services_tell(tmp_path: Path, files: list[str], expected: ClockSync) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert clock_sync(tmp_path) is expected
