"""What the resident daemon costs when nothing happens: printed, and bounded in memory (a time never fails a test)."""

from __future__ import annotations

import time
from pathlib import Path

from edge_agent.sensors.memory import read_pss
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto

PSS_MAX_BYTES = 30e6


def test_the_idle_daemon_is_small(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        started_s = time.monotonic()
        with running(agent):
            ready_s = time.monotonic() - started_s
            time.sleep(2.0)
            pss = read_pss(Path("/"), agent.pid, 0.0)
    assert pss.value is not None, pss.reason
    print(f"\nidle daemon, no worker: {pss.value / 1e6:.1f} MB PSS, ready after {ready_s:.2f} s")
    assert pss.value <= PSS_MAX_BYTES
