"""What the resident daemon costs when nothing happens: printed, and bounded in memory (a time never fails a test)."""

from __future__ import annotations

import time
from pathlib import Path

from edge_agent.sensors.memory import parse_meminfo, read_pss
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto

# What would come free if the daemon ended. Its PSS (target: 25 MB, docs/figures.md) has shares of libpython and OpenSSL
# that depend on which other programs run: 27.8 MB beside three interpreters, 30.0 MB beside one, of the same daemon.
PRIVATE_MAX_BYTES = 26e6


def test_the_idle_daemon_is_small(tmp_path: Path) -> None:
    # Installed code is compiled (pip and the Debian package do it): the first start does that here, the second is read.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        with running(agent, **compiled):
            pass
        started_s = time.monotonic()
        with running(agent, **compiled):
            ready_s = time.monotonic() - started_s
            time.sleep(2.0)
            pss = read_pss(Path("/"), agent.pid, 0.0)
            held = parse_meminfo(Path(f"/proc/{agent.pid}/smaps_rollup").read_text())
    assert pss.value is not None, pss.reason
    private = held["Private_Clean"] + held["Private_Dirty"]
    memory = f"{private / 1e6:.1f} MB of its own, {pss.value / 1e6:.1f} MB PSS"
    print(f"\nidle daemon, no worker: {memory}, ready after {ready_s:.2f} s")
    assert private <= PRIVATE_MAX_BYTES
