"""`edge-agent fleet` with a real mosquitto and devices that are messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli import main
from tests.support import told_devices as told
from tests.support.mosquitto import Mosquitto


def fleet(capsys: pytest.CaptureFixture[str], broker: Mosquitto, *words: str) -> tuple[int, str, str]:
    """A verb of `edge-agent fleet` in this process: exit code, output, errors."""
    code = main(["fleet", *words, "--host", "127.0.0.1", "--port", str(broker.port)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_status_is_one_table_from_what_the_broker_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path) as broker, told.Teller(broker.port) as teller:
        teller.say("pi-1", "status", told.status())
        teller.say("pi-2", "status", told.status("degraded", "too hot"))
        teller.say("old", "status", told.status(ts=1_700_000_000.0))
        code, out, _ = fleet(capsys, broker, "status", "--seconds", "1")
        assert code == 0
        shown = [line.split()[:2] for line in out.splitlines() if not line.startswith("    ")]
        assert shown[1:4] == [["old", "lost"], ["pi-2", "degraded"], ["pi-1", "online"]]
        assert out.splitlines()[-1] == "3 devices: 1 degraded, 1 lost, 1 online; 2 in trouble"
        _, text, _ = fleet(capsys, broker, "status", "pi-*", "--trouble", "--json", "--seconds", "1")
        body: dict[str, Any] = json.loads(text)
        assert [(one["device"], one["trouble"]) for one in body["devices"]] == [("pi-2", ["too hot"])]


def test_status_says_where_nothing_was_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path) as broker:
        code, _, err = fleet(capsys, broker, "status", "--seconds", "1")
        assert code == 1
        assert "no device was heard" in err
