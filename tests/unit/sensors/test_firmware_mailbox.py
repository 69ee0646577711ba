"""The mailbox message to a Raspberry Pi's firmware. The device itself exists on a board only."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edge_agent.sensors.files import decode_gencmd, encode_gencmd, find_gencmd, ioctl_number


def test_the_message_is_laid_out_as_vcgencmd_does() -> None:
    message = encode_gencmd("pmic_read_adc")
    words = struct.unpack("=6I", message[:24])
    assert words == (263 * 4, 0, 0x00030080, 1024, 0, 0)
    assert message[24:38] == b"pmic_read_adc\0"
    assert len(message) == 263 * 4
    assert message[-4:] == b"\0\0\0\0"


def test_the_ioctl_number() -> None:
    """_IOWR(100, 0, char *) of linux/ioctl.h on 64 and 32 bits."""
    assert ioctl_number(8) == 0xC0086400
    assert ioctl_number(4) == 0xC0046400


def test_the_answer_replaces_the_command() -> None:
    message = encode_gencmd("measure_temp")
    message[24:34] = b"temp=48.2'"
    message[34:38] = b"C\0\0\0"
    assert decode_gencmd(message) == (0, "temp=48.2'C")
    struct.pack_into("=I", message, 20, 5)
    assert decode_gencmd(message)[0] == 5


def test_a_command_must_fit() -> None:
    with pytest.raises(ValueError, match="too long"):
        encode_gencmd("x" * 1024)


def test_no_device_no_function(tmp_path: Path) -> None:
    assert find_gencmd(tmp_path) is None


def test_a_device_that_is_none_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").write_bytes(b"")
    gencmd = find_gencmd(tmp_path)
    assert gencmd is not None
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        gencmd("measure_temp")
