"""What this user made on this machine, kept outside of every recipe and build folder.

    $XDG_STATE_HOME/edge-forge/     (default ~/.local/state/edge-forge), for its user only
      cache.key                     32 random bytes that seal the records of the step cache
      keys/<key id>.json            a key that was made or taken over here, and when

A recipe may come from anybody and bring its own build folder. Results and keys in it count only where this folder says
that they are of this user; the reasons are in decision 0201.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shlex
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.base.errors import ConfigError, EdgeError

_SECRET_BYTES: Final = 32
_RECORD_BYTES: Final = 64 * 1024
_KEY_ID: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that this user made or took over: when (Unix seconds), and which of the two."""

    since_s: float
    made_here: bool


class UserState:
    """The state folder of this user. Nothing is written before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> UserState:
        """The folder by the XDG base directory specification: a relative path there is ignored. Raises EdgeError."""
        named = Path(environ.get("XDG_STATE_HOME", ""))
        if named.is_absolute():
            return cls(named / "edge-forge")
        try:
            return cls(Path.home() / ".local" / "state" / "edge-forge")
        except RuntimeError as error:
            raise EdgeError("this user has no home folder", "the state folder", "set XDG_STATE_HOME") from error

    def seal(self, data: bytes) -> str:
        """A code over `data` that only this user can make on this machine (HMAC-SHA-256, hex). Raises EdgeError."""
        return hmac.new(self._secret(), data, hashlib.sha256).hexdigest()

    def is_sealed(self, data: bytes, seal: object) -> bool:
        """Whether `seal` is the code of `data`."""
        return isinstance(seal, str) and seal.isascii() and hmac.compare_digest(self.seal(data), seal)

    def known(self, keyid: str) -> KnownKey | None:
        """What is noted of a key; None where it is unknown here."""
        if not _KEY_ID.match(keyid):
            return None
        try:
            found = json.loads(_own_file(self.folder / "keys" / f"{keyid}.json", _RECORD_BYTES))
            return KnownKey(float(found["since_s"]), bool(found["made_here"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remember(self, keyids: Iterable[str], made_here: bool) -> None:
        """Note keys as this user's; a key that is known keeps its age. Raises EdgeError."""
        now_s = time.time()
        for keyid in keyids:
            if self.known(keyid) is None:
                note = json.dumps({"since_s": now_s, "made_here": made_here}).encode()
                self._write(self.folder / "keys" / f"{keyid}.json", note, replace=True)

    def _secret(self) -> bytes:
        path = self.folder / "cache.key"
        if not os.path.lexists(path):
            self._write(path, secrets.token_bytes(_SECRET_BYTES), replace=False)
        try:
            found = _own_file(path, _SECRET_BYTES)
        except (OSError, ValueError) as error:
            raise EdgeError(
                f"it cannot be used: {_reason(error)}", str(path), "remove it; every step runs again"
            ) from error
        if len(found) != _SECRET_BYTES:
            raise EdgeError("it is damaged", str(path), "remove it; every step runs again")
        return found

    def _write(self, path: Path, data: bytes, replace: bool) -> None:
        """A whole file for this user only; without `replace` what another process wrote meanwhile stays."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
        except OSError as error:
            raise EdgeError(
                f"the state folder of this user cannot be written: {error.strerror}", str(self.folder),
                "set XDG_STATE_HOME to a folder that can be",
            ) from error  # fmt: skip
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def require_known(state: UserState, keyids: Iterable[str], place: Path, key: str) -> None:
    """Whether all keys in `place`, a file or folder that option or recipe key `key` names, are of this user.

    Raises ConfigError: a recipe may bring keys of its own, and whoever made them can sign with them, too.
    """
    unknown = sorted(keyid for keyid in keyids if state.known(keyid) is None)
    if not unknown:
        return
    folder = place if place.is_dir() else place.parent
    what = f"the keys in {place} were" if place.is_dir() else f"the key {place} was"
    them, these = ("them", "they are") if place.is_dir() else ("it", "it is")
    raise ConfigError(
        f"{what} not made here by this user ({unknown[0][:16]}): whoever made {them} can sign for every device that "
        f"trusts {them}", key,
        f"if {these} yours, `edge-forge keygen {shlex.quote(str(folder))} --adopt`; else name your own",
    )  # fmt: skip


def named_key(known: KnownKey | None, keyid: str, path: Path, now_s: float) -> str:
    """A signing key for people: its fingerprint, its age and its file."""
    if known is None:
        with contextlib.suppress(OSError):
            return f"{keyid[:16]} {path}, not made here; its file is {_age(now_s - path.stat().st_mtime)} old"
        return f"{keyid[:16]} {path}, not made here"
    day = time.strftime("%Y-%m-%d", time.gmtime(known.since_s))
    what = "made" if known.made_here else "taken over"
    return f"{keyid[:16]} {path}, {what} here {_age(now_s - known.since_s)} ago ({day})"


def _age(seconds: float) -> str:
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length_s)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"


def _own_file(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of this user that nobody else may read. Raises OSError, ValueError with the reason."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no plain file")
        if found.st_uid != os.geteuid():
            raise ValueError(f"it belongs to another user (uid {found.st_uid})")
        if found.st_mode & 0o077:
            raise ValueError("others may read or write it")
        return file.read(limit + 1)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
