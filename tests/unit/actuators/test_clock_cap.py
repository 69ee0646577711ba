"""The clock cap: only what the board offers, never above what was set, and always given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.actuators.clock_cap import LEAST_SHARE, STATE_FILE, ClockCap, parse_steps

PI_5 = "1500000 1600000 1700000 1800000 1900000 2000000 2100000 2200000 2300000 2400000"


def board(root: Path, cap: str = "2400000", steps: str | None = PI_5, gpu: bool = False) -> dict[str, Path]:
    policy = root / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    caps = {"cpu": policy / "scaling_max_freq"}
    caps["cpu"].write_text(f"{cap}\n")
    (policy / "cpuinfo_min_freq").write_text("1500000\n")
    if steps is not None:
        (policy / "scaling_available_frequencies").write_text(f"{steps} \n")
    if gpu:
        folder = root / "sys/class/devfreq/17000000.gpu"
        folder.mkdir(parents=True)
        caps["gpu"] = folder / "max_freq"
        caps["gpu"].write_text("624750000\n")
        (folder / "available_frequencies").write_text("306000000 408000000 510000000 612000000 624750000\n")
    return caps


def shown(path: Path) -> int:
    return int(path.read_text())


def test_the_cap_is_the_next_step_below_in_every_domain(tmp_path: Path) -> None:
    caps = board(tmp_path, gpu=True)
    clocks = ClockCap(tmp_path, tmp_path / "state")
    assert clocks.shares[0] == 1.0
    assert len(clocks.shares) == 10
    assert clocks.set(0.8) is None
    assert (shown(caps["cpu"]), shown(caps["gpu"])) == (1_900_000, 408_000_000)
    assert clocks.set(clocks.shares[3]) is None
    assert shown(caps["cpu"]) == 2_100_000
    assert clocks.set(0.01) is None
    assert shown(caps["cpu"]) == 1_500_000
    clocks.restore()
    assert (shown(caps["cpu"]), shown(caps["gpu"])) == (2_400_000, 624_750_000)
    assert not (tmp_path / "state" / STATE_FILE).exists()


def test_a_cap_that_was_there_is_never_raised(tmp_path: Path) -> None:
    caps = board(tmp_path, cap="1800000")
    clocks = ClockCap(tmp_path, tmp_path / "state")
    assert clocks.shares == (1.0, 0.9444, 0.8889, 0.8333)
    assert clocks.set(1.0) is None
    assert shown(caps["cpu"]) == 1_800_000


def test_what_a_killed_daemon_left_behind_is_put_back(tmp_path: Path) -> None:
    caps = board(tmp_path)
    ClockCap(tmp_path, tmp_path / "state").set(0.7)
    assert shown(caps["cpu"]) == 1_600_000
    after = ClockCap(tmp_path, tmp_path / "state")
    assert shown(caps["cpu"]) == 2_400_000
    assert after.shares[0] == 1.0
    assert len(after.shares) == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"/etc/passwd": "1"}', '{"%s": "reboot"}'])
def test_a_state_file_names_caps_and_nothing_else(tmp_path: Path, text: str) -> None:
    caps = board(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    (state / STATE_FILE).write_text(text.replace("%s", str(caps["cpu"])))
    ClockCap(tmp_path, state)
    assert shown(caps["cpu"]) == 2_400_000


def test_a_board_that_refuses_is_a_sentence_not_an_exception(tmp_path: Path) -> None:
    caps = board(tmp_path)
    clocks = ClockCap(tmp_path, tmp_path / "state")
    caps["cpu"].unlink()
    caps["cpu"].mkdir()
    refused = clocks.set(0.8)
    assert refused is not None
    assert "scaling_max_freq" in refused
    assert "thermal.set_clock = false" in refused


def test_a_machine_without_a_clock_to_set_has_no_shares(tmp_path: Path) -> None:
    clocks = ClockCap(tmp_path, tmp_path / "state")
    assert clocks.shares == ()
    assert clocks.set(0.5) is None
    clocks.restore()


def test_a_driver_without_a_table_gets_even_steps() -> None:
    assert parse_steps(None, "700", "1400") == (700, 800, 900, 1000, 1100, 1200, 1300, 1400)
    assert parse_steps(None, None, "1400")[0] == 700
    assert parse_steps("300 100 200 900", None, "250") == (100, 200, 250)


def test_the_lowest_share_keeps_the_board_usable(tmp_path: Path) -> None:
    board(tmp_path, steps="200000 600000 1200000 2400000")
    assert min(ClockCap(tmp_path, tmp_path / "state").shares) >= LEAST_SHARE


def test_the_state_is_what_was_there(tmp_path: Path) -> None:
    caps = board(tmp_path)
    clocks = ClockCap(tmp_path, tmp_path / "state")
    clocks.set(0.8)
    clocks.set(0.7)
    kept = json.loads((tmp_path / "state" / STATE_FILE).read_text())
    assert kept == {"boot_id": "", "power_mode": "", str(caps["cpu"]): "2400000"}


def test_what_was_there_before_the_last_boot_is_not_put_back(tmp_path: Path) -> None:
    """A power mode that was chosen since counts, not the one of before the power cut."""
    caps = board(tmp_path)
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("first\n")
    ClockCap(tmp_path, tmp_path / "state").set(0.7)
    boot.write_text("second\n")
    caps["cpu"].write_text("1800000\n")
    assert ClockCap(tmp_path, tmp_path / "state").shares[0] == 1.0
    assert shown(caps["cpu"]) == 1_800_000
    assert not (tmp_path / "state" / STATE_FILE).exists()
