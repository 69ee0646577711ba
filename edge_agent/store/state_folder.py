"""The state folder: its locks (one daemon, one change of the store at a time) and its owner.

The kernel releases a lock when its process ends. A command that root runs becomes the folder's owner first, so that no
file in it becomes root's and the service can go on writing (docs/decisions/0063).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edge_agent.base.causes import Cause
from edge_agent.base.errors import StoreError, UsageError
from edge_agent.store.disk import make_folder, translated

DAEMON_LOCK = "daemon.lock"
CHANGE_LOCK = "change.lock"
LOCK_BYTES = 256


class DaemonHold:
    """What the daemon needs of its state folder: that it and the incoming folder exist and can be written, and that no
    other daemon works on it.

    A card that turned read-only, or a folder that is mounted late, is no reason to end: what is installed is served,
    and `take` is called again.
    """

    def __init__(self, state_dir: Path, inbox: Path, code: str = "") -> None:
        """`code`: which code this daemon runs, for `running_code`."""
        self.code = code
        self._state_dir = state_dir
        self._inbox = inbox
        self._descriptor: int | None = None

    def take(self) -> str | None:
        """Make the folders and take the lock, as far as that is not done. None, or why it cannot be done now.

        Raises StoreError when another daemon works on the folder, or a file lies in the way.
        """
        try:
            with translated(self._state_dir):
                for folder in (self._state_dir, self._inbox):
                    make_folder(folder)
                self._lock()
                if not os.access(self._state_dir, os.W_OK | os.X_OK):
                    # os.access does not say why; a file does.
                    _try_to_write(self._state_dir)
        except StoreError as error:
            if isinstance(error.__cause__, FileExistsError | NotADirectoryError | None):
                raise
            if isinstance(error.__cause__, PermissionError):
                return str(StoreError(error.what, error.where, _owner_remedy(self._state_dir)))
            return str(error)
        return None

    def release(self) -> None:
        """Let another daemon work on the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> None:
        """Hold the lock of the folder that is there now; another one may have been mounted in its place."""
        path = self._state_dir / DAEMON_LOCK
        if self._descriptor is not None:
            held = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
                    return
            self.release()
        remedy = "stop the other one, or give this one its own store.state_dir"
        sentence = "another edge-agent daemon{} uses this state folder"
        self._descriptor = _take_lock(path, sentence, remedy, self.code)


def _owner_remedy(folder: Path) -> str:
    """What root has to do for a folder that this user may not write."""
    user = _name_of(os.geteuid())
    return f"files there belong to another user: sudo chown -R {user}:{user} {folder}"


def _try_to_write(folder: Path) -> None:
    path = folder / ".writable"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.unlink()


def running_daemon(state_dir: Path) -> int | None:
    """The pid of the daemon that works on this state folder, None where there is none.

    Takes no lock, because a daemon that starts at the same moment must find it free. Instead the command line of the
    process with the pid in the file is checked: after a reboot that pid may belong to another program.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int((state_dir / DAEMON_LOCK).read_bytes()[:LOCK_BYTES].split(b"\n")[0])
        return pid if b"edge" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    return None


def running_code(state_dir: Path) -> str | None:
    """Which code the daemon on this state folder runs, as it said when it began; '' for one that did not say, None
    without a daemon or for who may not look."""
    if running_daemon(state_dir) is None:
        return None
    with contextlib.suppress(OSError):
        lines = (state_dir / DAEMON_LOCK).read_bytes()[:LOCK_BYTES].decode("ascii", "replace").splitlines()
        return lines[1].strip() if len(lines) > 1 else ""
    return None


@contextlib.contextmanager
def change_lock(store_dir: Path) -> Iterator[None]:
    """Held while the store is changed. Raises StoreError when another process is changing it."""
    with _held(store_dir / CHANGE_LOCK, "another install or rollback{} is at work on this store", "wait for it"):
        yield


@contextlib.contextmanager
def _held(path: Path, sentence: str, remedy: str) -> Iterator[None]:
    with translated(path):
        descriptor = _take_lock(path, sentence, remedy)
    try:
        yield
    finally:
        os.close(descriptor)


def _take_lock(path: Path, sentence: str, remedy: str, note: str = "") -> int:
    """The descriptor that holds the lock. Raises OSError, or StoreError when another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a lock needs no writing
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise StoreError(sentence.format(holder), str(path.parent), remedy, Cause.BUSY) from None
    # The pid is only for error messages, so a full or read-only disk must not prevent the start.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{note}\n".encode(), 0)
    return descriptor


def _holder(descriptor: int) -> str:
    pid = os.pread(descriptor, LOCK_BYTES, 0).decode("ascii", "replace").partition("\n")[0].strip()
    return f" (pid {pid})" if pid.isdigit() else ""


def become_owner(state_dir: Path) -> None:
    """As root, become the owner of `state_dir` for the rest of this process; as another user, be allowed to write.

    A folder that does not exist yet changes nothing. Raises UsageError when it belongs to another user.
    """
    be_owner(state_dir)
    try:
        owner = state_dir.stat()
    except OSError:
        return
    if os.geteuid() != 0 and not os.access(state_dir, os.W_OK | os.X_OK):
        raise UsageError(f"{state_dir} belongs to {_name_of(owner.st_uid)}", None, "run the command with sudo")


def be_owner(state_dir: Path) -> None:
    """As root, become the owner of `state_dir` for the rest of this process, so that no file in it becomes root's.
    Nothing changes for another user, or where the folder does not exist yet."""
    if os.geteuid() != 0:
        return
    try:
        owner = state_dir.stat()
    except OSError:
        return
    if owner.st_uid != 0:
        name = _name_of(owner.st_uid)
        if name.isdecimal():
            os.setgroups([])  # no such user: no other groups either
        else:
            os.initgroups(name, owner.st_gid)
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def check_interpreter() -> None:
    """For commands of root that became another user and start workers, or load modules late: this user may use the
    interpreter and its modules, which one in root's home is closed to. Raises UsageError."""
    for path in (os.__file__, __file__):
        if not os.access(path, os.R_OK):
            raise UsageError(
                f"{path} cannot be used by {_name_of(os.geteuid())}, who owns the state folder and whose rights "
                "this command takes",
                None,
                "install edge-agent where every user may read it, such as /opt/edge-agent (docs/operating.md)",
            )


def _name_of(uid: int) -> str:
    import pwd  # only commands need it; the daemon does not load it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
