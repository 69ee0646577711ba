"""Whether the service's user may read what its settings name, for checks that root runs.

Root may read everything, so a check by root of files that only root may read would call them sound. The question is
asked in a child process that gives up its rights first: the kernel answers it with groups, access lists and all.

A file of its own because `doctor` and `check-config` use it, and it is about users and not about findings.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_agent.config.settings import Settings

USER = "edge-agent"


def paths_to_read(settings: Settings, config: Path | None) -> Mapping[str, Path]:
    """What the service reads by itself, by the words for it; systemd reads the credentials for it."""
    tls = settings.mqtt.tls
    named = {
        "the settings": config,
        "store.trust_root": None if settings.store.allow_unsigned else settings.store.trust_root,
        "store.registry_auth": settings.store.registry_auth,
        "mqtt.password_file": settings.mqtt.password_file,
        "mqtt.tls.ca": tls.ca,
        "mqtt.tls.cert": tls.cert,
        "mqtt.tls.key": tls.key,
    }
    return {words: path for words, path in named.items() if path is not None}


def unreadable(paths: Mapping[str, Path], user: str = USER) -> Mapping[str, str]:
    """The paths that `user` may not read, by their words, each with the sentence that says so. Empty where this process
    is not root's, there is no such user, or a file is missing: that is said elsewhere."""
    if os.geteuid() != 0:
        return {}
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return {}
    there = {words: path for words, path in paths.items() if path.exists()}
    refused = _refused(list(there.values()), found)
    return {
        words: f"{words}: {path} cannot be read by the service's user {user}"
        for (words, path), no in zip(there.items(), refused, strict=True)
        if no
    }


def remedy(path: Path, user: str = USER) -> str:
    """What root has to do for the user to read a file."""
    return f"sudo chown root:{user} {path} && sudo chmod 640 {path}"


def _refused(paths: Sequence[Path], user: pwd.struct_passwd) -> list[bool]:
    """Whether the kernel refuses each path to the user. One byte for each from a child that becomes that user."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.write(theirs, bytes(0 if os.access(path, os.R_OK) else 1 for path in paths))
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        answer = os.read(ours, len(paths) + 1)
    finally:
        os.close(ours)
        os.waitpid(child, 0)
    return [bool(one) for one in answer] if len(answer) == len(paths) else [False] * len(paths)
