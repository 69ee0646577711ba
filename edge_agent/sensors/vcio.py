"""Sends text commands to the Raspberry Pi's firmware through its mailbox device, as `vcgencmd` does, without a process.

Message layout and ioctl number: raspberrypi/utils, vcgencmd.c (property tag 0x00030080, a buffer of 1024 bytes). The
device belongs to the group `video`. Mainline kernels have no such device; there sysfs is the only source. A simulated
board has a folder in place of the device, with one answer per file, named like the command.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from edge_agent.sensors.files import read_text
from edge_agent.sensors.power import Gencmd

DEVICES = ("dev/vcio_gencmd", "dev/vcio")
TAG_GENCMD = 0x00030080
TEXT_BYTES = 1024
_HEAD = struct.Struct("=6I")  # message size, request code, tag, buffer size, request size, error
_MESSAGE_BYTES = _HEAD.size + TEXT_BYTES + 4


def ioctl_number(pointer_bytes: int) -> int:
    """_IOWR(100, 0, char *): direction both, the size of a pointer, type 100, number 0."""
    return 3 << 30 | pointer_bytes << 16 | 100 << 8


def encode(command: str) -> bytearray:
    """The mailbox message for a command. Raises ValueError when it does not fit."""
    text = command.encode("ascii") + b"\0"
    if len(text) >= TEXT_BYTES:
        raise ValueError("the command is too long for the firmware's buffer")
    head = _HEAD.pack(_MESSAGE_BYTES, 0, TAG_GENCMD, TEXT_BYTES, 0, 0)
    return bytearray(head + text.ljust(TEXT_BYTES, b"\0") + b"\0\0\0\0")


def decode(message: bytes | bytearray) -> tuple[int, str]:
    """The firmware's error number (0: none) and its answer."""
    error = int(_HEAD.unpack_from(message)[5])
    text = bytes(message[_HEAD.size : _HEAD.size + TEXT_BYTES]).split(b"\0")[0]
    return error, text.decode("ascii", "replace")


def find_gencmd(root: Path) -> Gencmd | None:
    """A function that sends a command and returns the answer; None without a device. It raises OSError on a refusal."""
    path = next((str(root / device) for device in DEVICES if (root / device).exists()), None)
    if path is None:
        return None
    if Path(path).is_dir():
        return _answers(Path(path))

    def gencmd(command: str) -> str:
        import fcntl  # only on a Raspberry Pi

        message = encode(command)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, ioctl_number(struct.calcsize("P")), message)
        finally:
            os.close(descriptor)
        error, text = decode(message)
        if error:
            raise OSError(error, f"the firmware refused {command!r} with error {error}", path)
        return text

    return gencmd


def _answers(folder: Path) -> Gencmd:
    """A simulated firmware; it refuses a command without a file, as the real one refuses an unknown command."""

    def gencmd(command: str) -> str:
        text, reason = read_text(str(folder / command))
        if text is None:
            raise OSError(errno.EINVAL, f"the firmware refused {command!r}: {reason}", str(folder))
        return text

    return gencmd
