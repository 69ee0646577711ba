"""Reads small kernel files and asks the Raspberry Pi's firmware: the answer, or the reason why there is none.

`read_text` and `read_number` never raise and never block. `find_gencmd` gives a function that sends text commands to
the firmware through its mailbox device, as `vcgencmd` does, without a process. Message layout and ioctl number:
raspberrypi/utils, vcgencmd.c (property tag 0x00030080, a buffer of 1024 bytes). The device belongs to the group
`video`. Mainline kernels have no such device; there sysfs is the only source. A simulated board has a folder in place
of the device, with one answer per file, named like the command.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FILE_BYTES = 64 * 1024
"""Larger than any file of /sys and /proc that is read."""

_REASONS = {
    errno.ENOENT: "this kernel or board does not have it",
    errno.EACCES: "permission denied for this user",
    errno.EPERM: "permission denied for this user",
    errno.EAGAIN: "the sensor's power domain is switched off",
    errno.ENODEV: "the device has gone",
    errno.ENODATA: "the driver has no data",
    errno.EOPNOTSUPP: "switched off in this kernel",
    errno.EINVAL: "the driver refuses to read it now",
    errno.EIO: "the device does not answer",
    errno.ETIMEDOUT: "the device does not answer",
}


class FileText(NamedTuple):
    """The text of a file; None exactly when `reason` says why."""

    text: str | None
    reason: str


def read_text(path: str) -> FileText:
    """The stripped text of a file, opened non-blocking: a Jetson sensor that is powered off then answers EAGAIN."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        return FileText(None, reason_of(problem, path))
    try:
        data = os.read(descriptor, FILE_BYTES)
    except OSError as problem:
        return FileText(None, reason_of(problem, path))
    finally:
        os.close(descriptor)
    text = data.decode("utf-8", "replace").strip().strip("\0")
    return FileText(text, "") if text else FileText(None, f"{path}: empty")


def read_number(path: str) -> tuple[float | None, str]:
    """(the integer in a sensor file, ""), or (None, reason)."""
    text, reason = read_text(path)
    if text is None:
        return None, reason
    number = parse_number(text)
    return (number, "") if number is not None else (None, f"{path}: {text[:40]!r} is not a number")


def parse_number(text: str) -> float | None:
    """A decimal integer as the kernel prints it, of at most 20 digits; None for anything else."""
    digits = text.removeprefix("-")
    return float(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None


def reason_of(problem: OSError, path: str) -> str:
    """An operating system's error as a sentence for the operator."""
    return f"{path}: {_REASONS.get(problem.errno or 0, problem.strerror or 'cannot be read')}"


Gencmd = Callable[[str], str]
"""Sends a command to the Raspberry Pi's firmware and returns its answer; raises OSError."""
DEVICES = ("dev/vcio_gencmd", "dev/vcio")
TAG_GENCMD = 0x00030080
TEXT_BYTES = 1024
_HEAD = struct.Struct("=6I")  # message size, request code, tag, buffer size, request size, error
_MESSAGE_BYTES = _HEAD.size + TEXT_BYTES + 4


def ioctl_number(pointer_bytes: int) -> int:
    """_IOWR(100, 0, char *): direction both, the size of a pointer, type 100, number 0."""
    return 3 << 30 | pointer_bytes << 16 | 100 << 8


def encode_gencmd(command: str) -> bytearray:
    """The mailbox message for a command. Raises ValueError when it does not fit."""
    text = command.encode("ascii") + b"\0"
    if len(text) >= TEXT_BYTES:
        raise ValueError("the command is too long for the firmware's buffer")
    head = _HEAD.pack(_MESSAGE_BYTES, 0, TAG_GENCMD, TEXT_BYTES, 0, 0)
    return bytearray(head + text.ljust(TEXT_BYTES, b"\0") + b"\0\0\0\0")


def decode_gencmd(message: bytes | bytearray) -> tuple[int, str]:
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

        message = encode_gencmd(command)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, ioctl_number(struct.calcsize("P")), message)
        finally:
            os.close(descriptor)
        error, text = decode_gencmd(message)
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
