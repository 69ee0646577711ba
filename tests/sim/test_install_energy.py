"""Energy of each variant as an install on a simulated board finds it, with real workers and a rail that moves."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_variants import SLOW_S, two_variants
from tests.support import sysfs
from tests.support.agents import AgentProcess
from tests.support.desk import cli, said

WATTS = 6.0


@contextlib.contextmanager
def moving(file: Path, per_watt: int) -> Iterator[None]:
    """The rail shows 5.9, 6.0 and 6.1 W in turn, every 30 ms; whole at every moment, as a file of the kernel is."""
    stopped = threading.Event()

    def move() -> None:
        step = 0
        while not stopped.wait(0.03):
            step += 1
            new = file.with_suffix(".new")
            new.write_text(f"{round(per_watt * (WATTS + 0.1 * (step % 3 - 1)))}\n")
            new.replace(file)

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(5)


def installed(tmp_path: Path, root: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """What each variant was measured to take, and what `models --why` says."""
    agent = AgentProcess(tmp_path / "device", 1, extra=f'[sensors]\nsysroot = "{root}"\n')
    lines = said(cli("install", two_variants(tmp_path), "--config", agent.config))
    assert "2 golden probes hold" in lines
    (model,) = json.loads(said(cli("models", "--json", "--config", agent.config)))
    return {one["name"]: one["measured"] for one in model["variants"]}, said(
        cli("models", "--why", "--config", agent.config)
    )


@pytest.mark.parametrize("board", ["orin-nano", "jetson-nano"])
def test_a_rail_that_moves_gives_joules_by_variant(tmp_path: Path, board: str) -> None:
    if board == "orin-nano":
        tree = sysfs.orin_nano(tmp_path / "board")
        tree.orin_rail(1, "VDD_IN", 5000, 1000)
        name, per_watt = "VDD_IN", 200
        (file,) = tree.root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/*/curr1_input")
    else:
        tree = sysfs.nano(tmp_path / "board")
        name, per_watt = "POM_5V_IN", 1000
        (file,) = tree.root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power0_input")
    with moving(file, per_watt):
        found, why = installed(tmp_path, tree.root)
    print(f"\n{why}")
    slow, quick = found["echo/int8"]["joules"], found["echo/fp32"]["joules"]
    assert WATTS * SLOW_S <= slow <= 2.5 * WATTS * SLOW_S, "power times time; some of the time is the machine's"
    assert 0.0 < quick < slow / 2
    for one in found.values():
        assert one["energy_method"].startswith(f"ina3221 {name}, whole board, idle power included: ")
    assert " mJ a text" in why
    assert f"energy of a text, echo/int8: ina3221 {name}" in why


def test_a_rail_that_shows_nothing_new_gives_none_and_says_why(tmp_path: Path) -> None:
    found, why = installed(tmp_path, sysfs.orin_nano(tmp_path / "board").root)
    assert [one["joules"] for one in found.values()] == [None, None]
    assert "energy of a text is not known: the trial was too short for the sensor: ina3221 VDD_IN gave 0 new" in why
    assert " J a text" not in why


def test_a_known_board_without_a_sensor_is_estimated_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    found, why = installed(tmp_path / "pi", sysfs.pi4(tmp_path / "pi" / "board").root)
    assert all(one["energy_method"].startswith("estimated: ") for one in found.values())
    assert found["echo/int8"]["joules"] >= 2.0 * SLOW_S
    assert "ms and about " in why
    assert "energy of a text, echo/fp32: estimated: " in why
    (tmp_path / "bare" / "board").mkdir(parents=True)
    found, why = installed(tmp_path / "bare", tmp_path / "bare" / "board")
    assert [one["joules"] for one in found.values()] == [None, None]
    assert "energy of a text is not known: no power sensor was found" in why
