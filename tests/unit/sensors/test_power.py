"""Power: rails of Jetsons, the fitted PMIC of a Raspberry Pi 5, and no figure elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sensors.power import (
    PMIC_OFFSET_W,
    board_power,
    find_rails,
    parse_pmic,
    pmic_board_w,
    read_pmic,
    read_rails,
)
from tests.support import sysfs


def test_orin_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    rails = read_rails(find_rails(sysfs.orin_nano(tmp_path).root), 1.0)
    assert set(rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}, "the chip's own sum is no rail"
    assert rails["VDD_IN"].value == pytest.approx(5.016 * 1.016)
    total = board_power(rails, 1.0)
    assert (total.value, total.source) == (rails["VDD_IN"].value, "ina3221 VDD_IN")


def test_nano_rails_have_their_own_power(tmp_path: Path) -> None:
    rails = read_rails(find_rails(sysfs.nano(tmp_path).root), 1.0)
    assert {name: reading.value for name, reading in rails.items()} == {
        "POM_5V_IN": 4.21,
        "POM_5V_GPU": 0.0,
        "POM_5V_CPU": 1.18,
    }
    assert board_power(rails, 1.0).source == "ina3221 POM_5V_IN"


def test_a_nano_whose_power_files_are_for_root_uses_volts_and_amperes(tmp_path: Path) -> None:
    tree = sysfs.nano(tmp_path)
    for path in tree.root.glob("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power*"):
        path.unlink()
    assert board_power(read_rails(find_rails(tree.root), 1.0), 1.0).value == pytest.approx(4.21)


def test_rails_that_are_not_connected_are_left_out(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.orin_rail(1, "NC", 0, 0)
    tree.orin_rail(2, "VDD_GPU", 5000, 400)
    tree.orin_rail(3, "VDD_SYNC", 5000, 100)
    tree.orin_rail(7, "VDD_SUM", 5000, 500)
    rails = read_rails(find_rails(tree.root), 1.0)
    assert set(rails) == {"VDD_GPU", "VDD_SYNC"}
    total = board_power(rails, 1.0)
    assert (total.value, total.source) == (pytest.approx(2.5), "ina3221 VDD_GPU + VDD_SYNC")


def test_a_lost_rail_makes_the_sum_unknown_not_smaller(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.orin_rail(1, "VDD_GPU", 5000, 400)
    tree.orin_rail(2, "VDD_SOC", 5000, 400)
    rails = find_rails(tree.root)
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr2_input").unlink()
    total = board_power(read_rails(rails, 1.0), 1.0)
    assert total.value is None
    assert "VDD_SOC" in str(total.reason)


def test_impossible_products_are_refused(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.orin_rail(1, "VDD_IN", 65535, 65535)
    total = board_power(read_rails(find_rails(tree.root), 1.0), 1.0)
    assert total.value is None
    assert "cannot be true" in str(total.reason)


def test_the_pmic_rails() -> None:
    rails = parse_pmic(sysfs.PMIC_ADC)
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(2.37250300 * 0.87673940)
    assert "EXT5V" not in rails, "a voltage without a current is no power"
    assert pmic_board_w({"A": 6.0, "B": 4.0}) == pytest.approx(1.1451 * 10 + 0.5879)


def test_the_pmic_reading_names_its_method() -> None:
    asked: list[str] = []

    def gencmd(command: str) -> str:
        asked.append(command)
        return sysfs.PMIC_ADC

    reading = read_pmic(gencmd, 4.0)
    assert asked == ["pmic_read_adc"]
    assert reading.source == "pmic (fitted, +-10 %)"
    assert reading.value == pmic_board_w(parse_pmic(sysfs.PMIC_ADC))


def test_a_firmware_that_refuses_gives_a_reason() -> None:
    def refused(command: str) -> str:
        raise PermissionError(13, "Permission denied", "/dev/vcio")

    assert read_pmic(refused, 1.0).reason == "/dev/vcio: Permission denied; the user must be in the group video"
    reading = read_pmic(lambda command: "error=1 error_msg='Command not registered'", 1.0)
    assert "error=1 error_msg=" in str(reading.reason)


def test_a_board_without_sensor_has_no_figure(tmp_path: Path) -> None:
    reading = board_power(read_rails(find_rails(sysfs.pi4(tmp_path).root), 1.0), 1.0)
    assert (reading.value, reading.reason) == (None, "no power sensor was found")


@given(st.text(max_size=300))
def test_no_firmware_answer_breaks_the_parser(text: str) -> None:
    rails = parse_pmic(text)
    assert pmic_board_w(rails) >= PMIC_OFFSET_W
    read_pmic(lambda command: text, 1.0)
