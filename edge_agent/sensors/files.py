"""Reading small kernel files: a text, or the reason why there is none. Never raises, never waits."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

FILE_BYTES = 64 * 1024
"""More than any file of sys or proc that is read here."""

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


class Text(NamedTuple):
    """A file's text; `text` is None exactly when `reason` says why."""

    text: str | None
    reason: str


def read_text(path: str) -> Text:
    """The file's text, stripped. Opened without blocking: a switched-off Jetson sensor answers EAGAIN, not never."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        return Text(None, reason_of(problem, path))
    try:
        data = os.read(descriptor, FILE_BYTES)
    except OSError as problem:
        return Text(None, reason_of(problem, path))
    finally:
        os.close(descriptor)
    text = data.decode("utf-8", "replace").strip().strip("\0")
    return Text(text, "") if text else Text(None, f"{path}: empty")


def read_number(path: str) -> tuple[float | None, str]:
    """The whole number that a sensor file holds, or None and the reason."""
    text, reason = read_text(path)
    if text is None:
        return None, reason
    number = parse_number(text)
    return (number, "") if number is not None else (None, f"{path}: {text[:40]!r} is not a number")


def parse_number(text: str) -> float | None:
    """A decimal whole number as the kernel prints it, or None; nothing that a sensor prints has more than 20 digits."""
    digits = text.removeprefix("-")
    return float(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None


def reason_of(problem: OSError, path: str) -> str:
    """An operating system's error in the operator's words."""
    return f"{path}: {_REASONS.get(problem.errno or 0, problem.strerror or 'cannot be read')}"
