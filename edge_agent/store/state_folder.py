"""The state folder: its locks (one daemon, one change of the store at a time) and its owner.

The kernel releases a lock when its process ends. A command that root runs becomes the folder's owner first, so that no
file in it becomes root's and the service can go on writing (docs/decisions/0063).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edge_agent.base.errors import StoreError, UsageError

DAEMON_LOCK = "daemon.lock"
CHANGE_LOCK = "change.lock"


@contextlib.contextmanager
def daemon_lock(state_dir: Path) -> Iterator[None]:
    """Held while the daemon runs. Raises StoreError that names the other daemon's pid."""
    remedy = "stop the other one, or give this one its own store.state_dir"
    with _held(state_dir / DAEMON_LOCK, "another edge-agent daemon{} uses this state folder", remedy):
        yield


def running_daemon(state_dir: Path) -> int | None:
    """The pid of the daemon that works on this state folder, None where there is none.

    Takes no lock, because a daemon that starts at the same moment must find it free. Instead the command line of the
    process with the pid in the file is checked: after a reboot that pid may belong to another program.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int((state_dir / DAEMON_LOCK).read_bytes()[:16])
        return pid if b"edge" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    return None


@contextlib.contextmanager
def change_lock(store_dir: Path) -> Iterator[None]:
    """Held while the store is changed. Raises StoreError when another process is changing it."""
    with _held(store_dir / CHANGE_LOCK, "another install or rollback{} is at work on this store", "wait for it"):
        yield


@contextlib.contextmanager
def _held(path: Path, sentence: str, remedy: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"the lock cannot be opened: {error.strerror}", str(path), "check owner and path") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(sentence.format(_holder(descriptor)), str(path.parent), remedy) from None
        # The pid is only for error messages, so a full disk must not prevent the start.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    pid = os.pread(descriptor, 16, 0).strip().decode("ascii", "replace")
    return f" (pid {pid})" if pid.isdigit() else ""


def become_owner(state_dir: Path) -> None:
    """As root, become the owner of `state_dir` for the rest of this process; as another user, be allowed to write.

    A folder that does not exist yet changes nothing. Raises UsageError when it belongs to another user.
    """
    try:
        owner = state_dir.stat()
    except OSError:
        return
    if os.geteuid() == 0:
        if owner.st_uid != 0:
            os.initgroups(_name_of(owner.st_uid), owner.st_gid)
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
    elif not os.access(state_dir, os.W_OK | os.X_OK):
        raise UsageError(f"{state_dir} belongs to {_name_of(owner.st_uid)}", None, "run the command with sudo")


def _name_of(uid: int) -> str:
    import pwd  # only commands need it; the daemon does not load it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
