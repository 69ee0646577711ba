"""Files are put into a root file system, and taken back: planned whole before the first is written.

A record in the image (`RECORD`) names every file that was put there, by digest. So a second run changes nothing, a run
with other contents replaces what it put there before and nothing else, and `remove` takes back only that. A file that
is not in the record, or was changed since, is somebody else's: it is never overwritten, and never removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from edge_agent.base.errors import EdgeError
from edge_agent.base.limits import MIB
from edge_agent.base.units import bytes_text
from edge_forge.provision.target_root import group_id

RECORD: Final = "etc/edge-agent/provisioned.json"
GROUP: Final = "edge-agent"
_RECORD_BYTES: Final = 16 * MIB
_CHUNK_BYTES: Final = MIB
_NAMED: Final = 5
"""Files that one message names."""

ActionKind = Literal["write", "replace", "mode", "same", "remove", "keep"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, link or folder of an image, by its name from the root. Exactly one of `data`, `source`, `link` is set;
    a folder has none. `group`: owned by the service's group, once the image has it; else by root's."""

    name: str
    mode: int
    data: bytes | None = field(default=None, repr=False)
    source: Path | None = None
    link: str | None = None
    group: bool = False

    @property
    def is_folder(self) -> bool:
        """True where it has no contents of its own."""
        return self.data is None and self.source is None and self.link is None

    @property
    def size(self) -> int:
        """Bytes of its contents."""
        return self.source.stat().st_size if self.source is not None else len(self.data or b"")

    def digest(self) -> str:
        """What tells its contents apart."""
        if self.link is not None:
            return f"-> {self.link}"
        if self.source is not None:
            return _file_digest(self.source)
        return hashlib.sha256(self.data or b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Action:
    """What happens to one name. `entry` is None for what is removed or kept."""

    kind: ActionKind
    name: str
    entry: Entry | None = None
    why: str = ""

    def text(self) -> str:
        """One line for a person: what, mode, size, place."""
        if self.entry is None:
            return f"{self.kind:<7}                      /{self.name}{f'  ({self.why})' if self.why else ''}"
        what = "link" if self.entry.link is not None else "folder" if self.entry.is_folder else ""
        size = what or bytes_text(self.entry.size)
        goes = f" -> {self.entry.link}" if self.entry.link is not None else ""
        return f"{self.kind:<7} {self.entry.mode:04o} {size:>12}    /{self.name}{goes}"


class ImageWriter:
    """Works on one root file system. `own` False leaves files to whoever runs it (a test; only root can do more)."""

    def __init__(
        self,
        root: Path,
        own: bool = True,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._root = root
        self._own = own
        self._free_bytes = free_bytes

    def plan(self, entries: Sequence[Entry]) -> list[Action]:
        """What `write` would do. Raises EdgeError when a file in the way is somebody else's; then nothing is."""
        recorded = self._recorded()
        actions = [self._judged(entry, recorded) for entry in entries]
        foreign = [one for one in actions if one.kind == "keep"]
        if foreign:
            names = ", ".join(f"/{one.name}" for one in foreign[:_NAMED])
            more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
            raise EdgeError(
                f"{names}{more}: there already, and not as provision put it there", str(self._root),
                "move it away or remove it (`edge-agent service uninstall` in the image), and run this again",
            )  # fmt: skip
        wanted = {entry.name for entry in entries}
        return actions + [self._taken_back(name, recorded[name]) for name in sorted(set(recorded) - wanted)]

    def check_room(self, actions: Iterable[Action], extra_bytes: int) -> None:
        """Raises EdgeError where the file system is too small for what is to be written, and `extra_bytes` beside."""
        needed = sum(one.entry.size for one in actions if one.entry is not None and one.kind in ("write", "replace"))
        free = self._free_bytes(self._root)
        if needed + extra_bytes > free:
            raise EdgeError(
                f"too little space: {bytes_text(needed)} are to be written and the first boot needs "
                f"{bytes_text(extra_bytes)} beside, {bytes_text(free)} are free; nothing was changed",
                str(self._root), "enlarge the image's root partition and its file system",
            )  # fmt: skip

    def write(self, actions: Sequence[Action]) -> None:
        """Carry out a plan. What is recorded first covers the old files and the new, so that a run that was cut off can
        be taken back or done again."""
        before = self._recorded()
        # What was there before, as wanted, is not provision's to take back.
        ours = [one for one in actions if one.kind in ("write", "replace") or one.name in before]
        planned = {one.name: one.entry.digest() for one in ours if one.entry is not None and not one.entry.is_folder}
        if all(one.kind == "same" for one in actions):
            return
        entries = [*(one.entry for one in actions if one.entry is not None), Entry(RECORD, 0o600, data=b"")]
        # Listed before the first is made, for the same reason.
        folders = sorted({*self._record().get("folders", []), *self._missing_folders(entries)})
        both = {name: [digest, *_list(before.get(name))] for name, digest in planned.items()}
        self._save({**before, **both}, folders)
        for one in actions:
            if one.kind == "remove":
                self._unlink(one.name)
            elif one.entry is not None and one.kind != "same":
                self._put(one.entry)
        kept = {one.name: before[one.name] for one in actions if one.kind == "keep" and one.name in before}
        self._clear(folders, [one.name if not one.is_folder else f"{one.name}/." for one in entries])
        self._save({**kept, **planned}, folders)

    def remove(self, dry: bool = False) -> list[Action]:
        """Take back what the record names, and the folders that are empty then. Raises EdgeError without a record."""
        recorded = self._recorded()
        if not recorded:
            raise EdgeError("nothing was put there by provision", str(self._root), f"it has no record /{RECORD}")
        actions = [self._taken_back(name, recorded[name]) for name in sorted(recorded)]
        if dry:
            return actions
        for one in actions:
            if one.kind == "remove":
                self._unlink(one.name)
        folders = self._record().get("folders", [])
        self._place(RECORD).unlink(missing_ok=True)
        self._clear(folders, ())
        return actions

    def _judged(self, entry: Entry, recorded: Mapping[str, Any]) -> Action:
        path = self._place(entry.name)
        if not path.is_symlink() and not path.exists():
            return Action("write", entry.name, entry)
        if entry.is_folder:
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder:
                return Action("keep", entry.name)
            wider = stat.S_IMODE(path.stat().st_mode) & 0o077 & ~entry.mode
            return Action("mode" if wider else "same", entry.name, entry)
        digest = _digest_there(path)
        if digest == entry.digest():
            return Action("same" if self._fits(path, entry) else "mode", entry.name, entry)
        if digest in _list(recorded.get(entry.name)):
            return Action("replace", entry.name, entry)
        return Action("keep", entry.name)

    def _fits(self, path: Path, entry: Entry) -> bool:
        found = path.lstat()
        return entry.link is not None or (
            stat.S_IMODE(found.st_mode) == entry.mode and (not self._own or _packages_owner(entry) or found.st_uid == 0)
        )

    def _taken_back(self, name: str, recorded: Any) -> Action:
        path = self._place(name)
        digest = _digest_there(path)
        if digest is None:
            return Action("remove", name, why="gone already")
        if digest in _list(recorded):
            return Action("remove", name)
        return Action("keep", name, why="changed since it was put there")

    def _put(self, entry: Entry) -> None:
        path = self._place(entry.name)
        try:
            self._make_parents(entry.name)
            if entry.is_folder:
                path.mkdir(exist_ok=True)
                path.chmod(entry.mode)
                self._give(path, entry)
                return
            fresh = self._fresh(entry.name)
            fresh.unlink(missing_ok=True)
            if entry.link is not None:
                fresh.symlink_to(entry.link)
            else:
                self._fill(fresh, entry)
            self._give(fresh, entry)
            fresh.replace(path)
        except OSError as error:
            raise EdgeError(
                f"cannot be written: {error.strerror}", str(path),
                "mount the image for writing; run this again, or `--remove` takes back what is there",
            ) from error  # fmt: skip

    def _fresh(self, name: str) -> Path:
        """Where a file is written before it has its name."""
        return self._place(f"{name}.edge-new")

    def _unlink(self, name: str) -> None:
        """Remove a file of provision's, and what a run that was cut off wrote of it: it may be a secret."""
        self._fresh(name).unlink(missing_ok=True)
        self._place(name).unlink(missing_ok=True)

    def _fill(self, path: Path, entry: Entry) -> None:
        """Closed from the begin: a secret is at no moment readable by others."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if entry.source is None:
                file.write(entry.data or b"")
            else:
                with entry.source.open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
            os.fchmod(file.fileno(), entry.mode)

    def _give(self, path: Path, entry: Entry) -> None:
        if self._own:
            group = group_id(self._root, GROUP) if entry.group else None
            os.chown(path, 0, group or 0, follow_symlinks=False)

    def _missing_folders(self, entries: Sequence[Entry]) -> set[str]:
        """The folders that these need and the image does not have."""
        names = {one.name for one in entries if one.is_folder}
        names |= {parent for one in entries for parent in _parents(one.name)}
        return {name for name in names if not self._place(name).is_dir()}

    def _make_parents(self, name: str) -> None:
        for one in reversed(_parents(name)):
            place = self._place(one)
            if not place.is_dir():
                place.mkdir()
                place.chmod(0o755)

    def _clear(self, folders: list[str], kept: Iterable[str]) -> None:
        """Remove the folders that provision made and that hold nothing now; byte code that Python left does not count.
        `kept`: names whose folders stay."""
        needed = {parent for name in kept for parent in _parents(name)}
        for name in sorted(set(folders), key=lambda one: -one.count("/")):
            place = self._place(name)
            if name in needed or place.is_symlink() or not place.is_dir():
                continue
            cache = place / "__pycache__"
            if cache.is_dir() and not cache.is_symlink() and [one.name for one in place.iterdir()] == ["__pycache__"]:
                shutil.rmtree(cache)
            with contextlib.suppress(OSError):
                place.rmdir()
                folders.remove(name)

    def _place(self, name: str) -> Path:
        """A place in the image. Raises EdgeError when a link leads out of it (into the host)."""
        path = self._root / name
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise EdgeError("a link leads out of the image", str(path), "check the image's folders")
        return path

    def _record(self) -> dict[str, Any]:
        path = self._place(RECORD)
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_RECORD_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise EdgeError(f"cannot be read: {error}", str(path), "remove it, then what it named is yours") from error
        files, folders = (found.get("files"), found.get("folders", [])) if isinstance(found, dict) else (None, None)
        sound = isinstance(files, dict) and isinstance(folders, list) and all(map(_is_place, [*files, *folders]))
        if not isinstance(found, dict) or not sound:
            raise EdgeError("is no record of provision", str(path), "remove it, then what it named is yours")
        return found

    def _recorded(self) -> dict[str, Any]:
        """Digests by name. A name that leads out of the image is refused where it is used (`_place`)."""
        return dict(self._record().get("files", {}))

    def _save(self, files: Mapping[str, Any], folders: Sequence[str]) -> None:
        data = json.dumps({"files": dict(sorted(files.items())), "folders": sorted(set(folders))}, indent=1).encode()
        self._put(Entry(RECORD, 0o600, data=data + b"\n"))


def _is_place(name: object) -> bool:
    """Whether it is the name of a file below the root, as provision writes them into its record."""
    return isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _parents(name: str) -> list[str]:
    """The folders that a name lies in, the nearest first, without the root."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _packages_owner(entry: Entry) -> bool:
    """Whether the first boot gives the file to the service's user (tmpfiles.d)."""
    return entry.name.startswith("var/lib/edge-agent/")


def _list(recorded: Any) -> list[str]:
    return [str(one) for one in recorded] if isinstance(recorded, list) else [] if recorded is None else [str(recorded)]


def _digest_there(path: Path) -> str | None:
    """Of a file or link; '' for anything else, None where nothing is."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.is_file():
        return _file_digest(path)
    return "" if path.exists() else None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
