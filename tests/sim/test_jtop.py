"""The real jtop client reads the simulated service, in its own process, over its own protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("jtop", reason="jetson-stats is not installed (pip install jetson-stats)")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    """A running service on a hot Orin Nano, ten times as fast as life."""
    path = tmp_path / "jtop.sock"
    (tmp_path / "board").mkdir()
    (tmp_path / "board/load").write_text("1.0")
    command = [sys.executable, "-m", "sim.board", "--board", "orin-nano", "--root", str(tmp_path / "board"),
               "--jtop", str(path), "--speed", "10", "--ambient", "35"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 20.0
        while not path.exists():
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(10)


CLIENT = """
import json, sys, time
import jtop.service
jtop.service.JTOP_PIPE = sys.argv[1]
from jtop import jtop
seen = []
with jtop(interval=0.5) as jetson:
    for _ in range(3):
        seen.append([jetson.temperature["tj"]["temp"], jetson.power["tot"]["power"]])
        time.sleep(0.6)
    print(json.dumps({"seen": seen, "temperature": jetson.temperature, "rail": sorted(jetson.power["rail"]),
                      "ram": jetson.memory["RAM"]["tot"], "board": jetson.board["hardware"]["Model"]}))
"""


def test_the_real_client_reads_temperatures_power_and_memory(socket: Path) -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT, str(socket)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["board"].startswith("NVIDIA Jetson Orin Nano")
    assert read["ram"] == 7_620_000
    assert read["rail"] == ["VDD_CPU_GPU_CV"]
    assert read["temperature"]["cv0"] == {"temp": -256, "online": False}
    assert 40.0 < read["temperature"]["tj"]["temp"] < 110.0
    assert read["seen"][-1][0] > read["seen"][0][0], "the samples move"
    assert 5_000 < read["seen"][-1][1] < 30_000


SOURCE = """
import json, sys, time
from pathlib import Path
from edge_agent.sensors.jtop import JtopSource
source, seen = JtopSource(Path(sys.argv[1]), ("tj-thermal",)), []
source.open()
def look(until):
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        readings = source.read(time.monotonic())
        if until(readings["temperature_jtop"]):
            break
        time.sleep(0.2)
    return {key: [one.value, one.source, one.reason] for key, one in readings.items()}
nobody = JtopSource(Path("/nowhere/jtop.sock"))
nobody.open()
none = nobody.read(0.0)["power_jtop"].reason
seen.append(look(lambda one: one.value is not None))
Path(sys.argv[2]).touch()
seen.append(look(lambda one: one.value is None))
Path(sys.argv[2]).unlink()
seen.append(look(lambda one: one.value is not None))
print(json.dumps([none, *seen]))
"""


def test_the_agent_s_source_notices_a_service_that_repeats_itself(socket: Path) -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SOURCE, str(socket), str(socket.parent / "board/jtop-frozen")],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    nobody, fresh, frozen, again = json.loads(done.stdout.splitlines()[-1])
    assert nobody.startswith("/nowhere/jtop.sock: ")
    assert 40.0 < fresh["temperature_jtop"][0] < 110.0
    assert fresh["temperature_jtop"][1] == "jtop tj"
    assert 4.0 < fresh["power_jtop"][0] < 30.0
    assert frozen["temperature_jtop"][0] is None
    assert "nothing new for" in frozen["power_jtop"][2]
    assert again["temperature_jtop"][0] is not None
