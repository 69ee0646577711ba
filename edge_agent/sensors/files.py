"""Reads small kernel files: the text, or the reason why there is none. Never raises and never blocks."""

from __future__ import annotations

import errno
import os
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
