"""The step cache: a folder for each step, named by its inputs, its settings and the version of its code.

    BUILD/steps/<step>/<key>/       what a step wrote, with record.json
    BUILD/tmp/                      a step at work; renamed into place when it is whole, removed when it is not
    BUILD/lock                      held by the build at work; a second one waits for it

`record.json` holds the parts of the key (to see why a step ran again), the digest and size of every output, the seconds
it took, and the facts that the step returned. Inputs are named by content, never by path or time: a step that runs
again and writes the same bytes does not make the steps after it run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import EdgeError
from edge_forge.progress import Progress, duration, size

_CHUNK_BYTES = 1 << 20
UNUSED_DAYS = 14
"""Days after which a result that no build asked for is removed; the next build that needs it makes it again."""


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

    def __init__(self, root: Path, progress: Progress) -> None:
        self.root = root
        self._progress = progress

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the build folder; wait while another build does. What a killed build left behind is removed."""
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
        """What the step made before, if its outputs are all there, unchanged in size."""
        folder = self.root / "steps" / step.name / step.key
        try:
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        for name, entry in record["outputs"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["size_bytes"]:
                return None
        with contextlib.suppress(OSError):  # a build folder that can only be read
            os.utime(folder / "record.json")
        return StepResult(folder, record, cached=True)

    def collect(self, now_s: float) -> int:
        """Remove results that were not asked for since `UNUSED_DAYS` before `now_s` (Unix seconds); returns bytes."""
        freed_bytes, count = 0, 0
        for record in sorted(self.root.glob("steps/*/*/record.json")):
            if record.stat().st_mtime >= now_s - UNUSED_DAYS * 86400.0:
                continue
            freed_bytes += sum(path.stat().st_size for path in record.parent.rglob("*") if path.is_file())
            shutil.rmtree(record.parent, ignore_errors=True)
            count += 1
        if count:
            self._progress.say(f"removed {count} results unused for {UNUSED_DAYS} days ({size(freed_bytes)})")
        return freed_bytes

    def _usual_s(self, step: BuildStep) -> float | None:
        """Seconds that the newest other result of this piece of work took; None where there is none, or less than one.

        It is the same piece where it has the title and the inputs, or the title and the settings.
        """
        found = (self.root / "steps" / step.name).glob("*/record.json")
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                alike = any(canonical(record[name]) == canonical(step.parts[name]) for name in ("inputs", "settings"))
                if record["title"] == (step.title or step.name) and alike:
                    took_s = float(record["took_s"])
                    return took_s if took_s >= 1.0 else None
            except (OSError, ValueError, KeyError):
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
            write_json(folder / "record.json", record)
            place = self.root / "steps" / step.name / step.key
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._progress.say(f"{title}: done in {duration(took_s)}")
        return StepResult(place, record, cached=False)


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
