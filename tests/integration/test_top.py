"""`edge-agent top` and `record` against a real agent behind a real broker."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import threading
from pathlib import Path

from edge_agent.app.top import KINDS, is_report
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto


def test_an_operator_sees_the_device_and_keeps_a_table_of_it(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            table = tmp_path / "hour.csv"
            recording = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "record", str(table), "--seconds", "5", "--config",
                 str(agent.config)], stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert "on" not in said(cli("infer", "echo", "hello", "--config", agent.config))[:2]
            shown = said(cli("top", "--once", "--config", agent.config))
            assert _interrupted(agent) == (130, "edge-agent: interrupted\n")
            assert recording.communicate(timeout=60)[0].endswith(f"reports of dev1 in {table}\n")
        assert shown.startswith("dev1   online")
        assert "governor" in shown
        assert "echo" in shown
        with table.open(newline="") as file:
            found = list(csv.DictReader(file))
        assert len(found) >= 3
        assert {row["device"] for row in found} == {"dev1"}
        assert any(row["model"] == "echo" and row["requests"] == "1" for row in found)
        drawn = cli("plot", table, tmp_path / "hour.png")
        assert said(drawn).startswith(f"{tmp_path / 'hour.png'}: "), said(drawn)
        assert (tmp_path / "hour.png").read_bytes().startswith(b"\x89PNG")
        assert cli("top", "--once", "--config", agent.config, "--port", 1).returncode == 1
        nobody = cli("top", "--seconds", 2, "--config", agent.config, "--device", "nobody")
        assert (nobody.returncode, "nothing heard from 'nobody'" in said(nobody)) == (1, True)


def _interrupted(agent: AgentProcess) -> tuple[int, str]:
    """(exit code, what went to standard error) of a `top` that was left by Ctrl-C after its first report."""
    command = [sys.executable, "-m", "edge_agent", "top", "--config", str(agent.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        doom = threading.Timer(30.0, process.kill)
        doom.start()
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        doom.cancel()
    return process.returncode, told


def test_what_cannot_be_drawn_or_recorded_is_said(tmp_path: Path) -> None:
    other, picture = tmp_path / "other.csv", tmp_path / "p.png"
    assert "cannot be read" in said(cli("plot", other, picture))
    other.write_text("time,device\n")
    assert "has no rows" in said(cli("plot", other, picture))
    other.write_text("time,device\n1,pi\n")
    assert "no table of `edge-agent record`: interval_s is missing" in said(cli("plot", other, picture))
    head = "time,device,interval_s,model,requests,refused,p50_ms,p99_ms,temperature_c,forecast_c\n"
    for row, said_of in (("1,pi,0,m,1,0,1,1,,", "interval_s is '0'"), ("1,pi,10,m,many,0,1,1,,", "requests is 'many'")):
        other.write_text(head + row + "\n")
        assert f"line 2: {said_of}, no number that is drawn" in said(cli("plot", other, picture))
    assert not picture.exists()
    other.write_text(head + "1,p\x1b[31mi,10,$\\frac{$,1,0,1,1,,\n11,pi,10,$\\frac{$,1,0,1,1,,\n")
    drawn = said(cli("plot", other, picture))
    assert "2 reports of p�[31mi" in drawn, drawn
    other.write_text("time,device\n1,pi\n")
    kept = other.read_bytes()
    recorded = cli("record", other, "--seconds", 1, "--host", "127.0.0.1", "--port", 1, "--device", "pi")
    assert "other columns than this version writes" in said(recorded)
    assert other.read_bytes() == kept


def test_what_is_no_report_is_passed_over() -> None:
    assert not any(
        is_report(kind, text)
        for kind in KINDS
        for text in (b"{", b"[]", b'{"a":1}', b"\xff", b'{"boot_id":"\xff"}', b"[" * 5000)
    )
    assert not is_report("infer", b"{}")
