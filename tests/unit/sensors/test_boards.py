"""Boards are recognised by their device tree, the most specific name first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sensors.boards import (
    BOARDS,
    match,
    parse_compatible,
    parse_cpu_features,
    parse_cpu_list,
    read_board,
    read_cpu_features,
)
from tests.support import sysfs


@pytest.mark.parametrize(
    ("build", "key", "soft_limit_c", "cores"),
    [
        (sysfs.pi4, "pi-4", 80.0, 4),
        (sysfs.pi5, "pi-5", 80.0, 4),
        (sysfs.nano, "jetson-nano", 97.0, 4),
        (sysfs.orin_nano, "orin-nano", 95.0, 6),
    ],
)
def test_the_trees_are_recognised(tmp_path: Path, build: object, key: str, soft_limit_c: float, cores: int) -> None:
    board = read_board(build(tmp_path).root)  # type: ignore[operator]
    assert (board.key, board.soft_limit_c, board.cores, board.known) == (key, soft_limit_c, cores, True)
    assert board.set_point_c == soft_limit_c - 2.5


@pytest.mark.parametrize(
    ("compatible", "key"),
    [
        (("raspberrypi,4-compute-module", "brcm,bcm2711"), "pi-4"),
        (("raspberrypi,500", "brcm,bcm2712"), "pi-5"),
        (("raspberrypi,3-model-b-plus", "brcm,bcm2837"), "pi-3b-plus"),
        (("raspberrypi,model-zero-2-w", "brcm,bcm2837"), "pi-zero-2"),
        (("nvidia,p3509-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"), "orin-nx"),
        (("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"), "orin-nano"),
        (("nvidia,p3737-0000+p3701-0000", "nvidia,tegra234"), "orin"),
        (("radxa,rock-5b", "rockchip,rk3588"), "unknown"),
    ],
)
def test_compatible_texts(compatible: tuple[str, ...], key: str) -> None:
    assert match(compatible).key == key


def test_a_machine_without_device_tree_is_unknown_with_cautious_limits(tmp_path: Path) -> None:
    board = read_board(tmp_path)
    assert (board.key, board.known, board.soft_limit_c, board.zones) == ("unknown", False, 80.0, ())
    assert board.cores >= 1


def test_no_name_stands_for_two_boards() -> None:
    names = [text for board in BOARDS for text in board.compatible]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("text", "count"), [("0-3", 4), ("0", 1), ("0,2-3", 3), ("", 0), ("x", 0), ("3-1", 0)])
def test_cpu_lists(text: str, count: int) -> None:
    assert parse_cpu_list(text) == count


def test_features_of_arm_and_x86(tmp_path: Path) -> None:
    assert "asimddp" in read_cpu_features(sysfs.pi5(tmp_path).root)
    assert parse_cpu_features("flags\t\t: fpu avx2 avx512_vnni\n") == {"fpu", "avx2", "avx512_vnni"}
    assert read_cpu_features(tmp_path / "nowhere") == frozenset()


@given(st.text(max_size=200))
def test_any_device_tree_and_cpu_text_is_survived(text: str) -> None:
    board = match(parse_compatible(text))
    assert board.soft_limit_c > 0
    assert parse_cpu_list(text) >= 0
    parse_cpu_features(text)
