"""The step cache: a folder for each step, named by its inputs, its settings and the version of its code.

    BUILD/steps/<step>/<key>/       what a step wrote, with record.json
    BUILD/tmp/                      a step at work; renamed into place when it is whole, removed when it is not
    BUILD/checkpoints/<step>-<key>  what a training writes to go on from if it is killed; removed with the finished step
    BUILD/lock                      held by the build at work; a second one waits for it

`record.json` holds the parts of the key (to see why a step ran again), the digest and size of every output, the seconds
it took, and the facts that the step returned. Inputs are named by content, never by path or time: a step that runs
again and writes the same bytes does not make the steps after it run again.

A build folder may have come with a recipe. A result is used again only where its record carries the seal of this user
(`edge_forge.user_state`) and its folder holds the recorded files alone, with the recorded digests; else the step runs
again. Nothing in the build folder is followed as a link, and nothing of another user is used (decision 0201).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import EdgeError
from edge_forge.progress import Progress, duration, size
from edge_forge.user_state import UserState

_CHUNK_BYTES = 1 << 20
_RECORD = "record.json"
_RECORD_BYTES = 64 << 20
_FOLDERS = ("steps", "tmp", "checkpoints", "packages", "reports", "logs", "keys", "sweeps")
UNUSED_DAYS = 14
"""Days after which a result that no build asked for is removed; the next build that needs it makes it again."""


class StepEnded(Exception):
    """A step was ended on purpose and for good: what it would go on from is removed."""


@dataclass(frozen=True, slots=True)
class BuildStep:
    """One piece of work. `inputs` maps a name to a digest; `work(folder)` writes its outputs there, returns facts."""

    name: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    code: str
    work: Callable[[Path], Mapping[str, Any]]
    title: str = ""

    @property
    def parts(self) -> dict[str, Any]:
        """What the key is made of."""
        return {
            "step": self.name, "inputs": dict(self.inputs), "settings": dict(self.settings), "code": self.code,
        }  # fmt: skip

    @property
    def key(self) -> str:
        """The folder's name."""
        return hashlib.sha256(canonical(self.parts)).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step: its folder and its record."""

    folder: Path
    record: Mapping[str, Any]
    cached: bool

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step said about its work."""
        facts: Mapping[str, Any] = self.record["facts"]
        return facts

    def digests(self, *names: str) -> dict[str, str]:
        """Digests of the outputs `names` (files, or folders with all that is below them); of all when none is named."""
        outputs: Mapping[str, Any] = self.record["outputs"]
        return {
            path: entry["sha256"]
            for path, entry in outputs.items()
            if not names or any(path == name or path.startswith(f"{name}/") for name in names)
        }

    def path(self, name: str) -> Path:
        """An output of this step."""
        return self.folder / name


class Cache:
    """The build folder. One process works in it at a time (`locked`)."""

    def __init__(self, root: Path, progress: Progress, state: UserState | None = None) -> None:
        self.root = root
        self._progress = progress
        self._state = state or UserState.of(os.environ)
        self._proven: dict[Path, StepResult] = {}  # what this process made or hashed: once per build is enough

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the build folder; wait while another build does. What a killed build left behind is removed."""
        check_places(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / "lock").open("a+")
        except OSError as error:
            reason = "it is a file" if self.root.is_file() else error.strerror
            raise EdgeError(
                f"the build folder cannot be written: {reason}", str(self.root), "name another: --build DIR"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress.say(f"another build works in {self.root}; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            shutil.rmtree(self.root / "tmp", ignore_errors=True)
            yield

    def find(self, step: BuildStep) -> StepResult | None:
        """What the step made before, if this user made it here and it is unchanged; says why where it is not."""
        folder = self.root / "steps" / step.name / step.key
        result = self._proven.get(folder)
        if result is None or not folder.is_dir():
            record = _read_record(folder / _RECORD)
            if record is None:
                return None
            reason = self._unusable(step, folder, record)
            if reason:
                self._progress.say(f"{step.title or step.name}: {reason}, so it is made again")
                return None
            result = self._proven[folder] = StepResult(folder, record, cached=True)
        with contextlib.suppress(OSError):  # a build folder that can only be read
            os.utime(folder / _RECORD)
        return StepResult(folder, result.record, cached=True)

    def _unusable(self, step: BuildStep, folder: Path, record: Mapping[str, Any]) -> str:
        """Why a result may not be used; '' where it may. The seal comes first: without it no output is opened."""
        if not self._state.is_sealed(_sealed_bytes(record), record.get("seal")):
            return "the result there was made by another user or machine, or changed"
        if any(_normal(record.get(name)) != _normal(part) for name, part in step.parts.items()):
            return "the result there is of other inputs"
        outputs = record["outputs"]
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
        plain = {name: path for name, path in found.items() if not _is_folder(path) and name != _RECORD}
        other = sorted(plain.keys() ^ outputs.keys())
        if other:
            return f"{other[0]} in the result there is {'unknown' if other[0] in plain else 'missing'}"
        for name, entry in outputs.items():
            about = plain[name].lstat()
            if not stat.S_ISREG(about.st_mode):
                return f"{name} in the result there is no plain file"
            if about.st_size != entry["size_bytes"] or file_digest(plain[name]) != entry["sha256"]:
                return f"{name} in the result there was changed"
        return ""

    def collect(self, now_s: float) -> int:
        """Remove results that were not asked for since `UNUSED_DAYS` before `now_s` (Unix seconds); returns bytes."""
        freed_bytes, count = 0, 0
        for record in sorted(self.root.glob("steps/*/*/record.json")):
            if record.stat().st_mtime >= now_s - UNUSED_DAYS * 86400.0:
                continue
            freed_bytes += sum(path.stat().st_size for path in record.parent.rglob("*") if path.is_file())
            shutil.rmtree(record.parent, ignore_errors=True)
            count += 1
        for left in self.root.glob("checkpoints/*"):
            if left.stat().st_mtime < now_s - UNUSED_DAYS * 86400.0:
                freed_bytes += sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
                shutil.rmtree(left, ignore_errors=True)
                count += 1
        if count:
            self._progress.say(f"removed {count} results unused for {UNUSED_DAYS} days ({size(freed_bytes)})")
        return freed_bytes

    def checkpoints(self, folder: Path) -> Path:
        """Where the step that works in `folder` may keep what it goes on from if it is killed."""
        return self.root / "checkpoints" / folder.name

    def _usual_s(self, step: BuildStep) -> float | None:
        """Seconds that the newest other result of this piece of work took; None where there is none, or less than one.

        It is the same piece where it has the title and the inputs, or the title and the settings, but not where another
        method of training is set: a head alone takes seconds.
        """
        method = step.settings.get("method")
        found = (self.root / "steps" / step.name).glob("*/record.json")
        for path in sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True):
            try:
                record = _read_record(path) or {}
                alike = any(canonical(record[name]) == canonical(step.parts[name]) for name in ("inputs", "settings"))
                alike = alike and record["settings"].get("method") == method
                if record["title"] == (step.title or step.name) and alike:
                    took_s = float(record["took_s"])
                    return took_s if took_s >= 1.0 else None
            except (ValueError, KeyError, TypeError):
                continue
        return None

    def run(self, step: BuildStep) -> StepResult:
        """The step's outputs, made now unless they are there. Nothing half-written stays, whatever happens."""
        title = step.title or step.name
        found = self.find(step)
        if found is not None:
            self._progress.say(f"{title}: cached")
            return found
        usual_s = self._usual_s(step)
        self._progress.say(f"{title} ..." + (f" ({duration(usual_s)} the last time)" if usual_s else ""))
        folder = self.root / "tmp" / f"{step.name}-{step.key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun_s = time.monotonic()
        try:
            with self._progress.working(title, usual_s):
                facts = dict(step.work(folder))
            took_s = time.monotonic() - begun_s
            record = {
                **step.parts,
                "title": title,
                "outputs": describe(folder),
                "took_s": round(took_s, 3),
                "facts": facts,
            }
            record["seal"] = self._state.seal(_sealed_bytes(record))
            write_json(folder / _RECORD, record)
            place = self.root / "steps" / step.name / step.key
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
            shutil.rmtree(self.checkpoints(folder), ignore_errors=True)
        except StepEnded:
            shutil.rmtree(self.checkpoints(folder), ignore_errors=True)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._progress.say(f"{title}: done in {duration(took_s)}")
        made = self._proven[place] = StepResult(place, record, cached=False)
        return made


def check_places(root: Path) -> None:
    """Raise EdgeError where a build folder has links, pipes or another user's files at places that a build writes to.

    The results below `steps` are looked at when they are used again.
    """
    for path in _places(root):
        try:
            found = path.lstat()
        except OSError:  # absent, or not to be looked into: what writes there says so
            continue
        reason = ""
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            reason = "it is a link" if stat.S_ISLNK(found.st_mode) else "it is neither a file nor a folder"
        elif found.st_uid != os.geteuid():
            reason = f"it belongs to another user (uid {found.st_uid})"
        if reason:
            raise EdgeError(
                f"a build does not write there: {reason}", str(path), "remove it, or name another folder: --build DIR"
            )


def _places(root: Path) -> Iterator[Path]:
    yield root
    if root.is_symlink() or not root.is_dir():
        return
    yield root / "lock"
    for name in _FOLDERS:
        yield root / name
        if name == "tmp" or (root / name).is_symlink():
            continue
        yield from (root / name).glob("*") if name == "steps" else (root / name).rglob("*")
        if name == "steps":
            yield from (root / name).glob("*/*")


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of a result as it stands there, neither link nor pipe; None where there is no readable one."""
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _RECORD_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        _normal(record)  # no NaN, which the json module reads and no record holds
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _sealed_bytes(record: Mapping[str, Any]) -> bytes:
    """What the seal of a record is made over. Raises ValueError where a value is no JSON."""
    return _normal({name: value for name, value in record.items() if name != "seal"})


def _normal(value: object) -> bytes:
    """The same bytes for a value before it is written as JSON and after it is read (keys that are numbers, tuples)."""
    return canonical(json.loads(canonical(value)))


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below a folder, by its path relative to it."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_digest(path), "size_bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def write_json(path: Path, value: object) -> None:
    """Write readable JSON so that a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
