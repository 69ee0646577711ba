"""Opens a file that a person named, without waiting: a named pipe without a writer, a terminal or a device such as
/dev/zero under that name would be read without an end.

A file of its own because settings, packages, recipes and tables are all named by a person, in rooms of one layer that
do not know each other. With the clock the only file of this room that calls the system.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

_NULL = os.makedev(1, 3)
"""/dev/null on Linux: an empty file by custom."""


def open_named(path: os.PathLike[str]) -> BinaryIO:
    """The file, to be read. Raises OSError, also for what is neither a plain file nor /dev/null; its `strerror` then
    says what it is."""
    # Without O_NONBLOCK the call itself waits for a pipe's writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFREG or (kind == stat.S_IFCHR and found.st_rdev == _NULL):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'no file')}; only plain files are read", os.fspath(path))
