"""Whose state it is: a command that root runs on the service's folder acts as the folder's owner, so that no file in it
becomes root's and the service can go on writing."""

from __future__ import annotations

import os
from pathlib import Path

from edge_agent.base.errors import UsageError


def become_owner(state_dir: Path) -> None:
    """As root, become the owner of `state_dir` for the rest of this process; as another user, be allowed to write.

    A folder that does not exist yet is nobody's and changes nothing. Raises UsageError when it is somebody else's.
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
    import pwd  # a command's need, not the daemon's

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
