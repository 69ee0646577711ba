"""Run a program under strace and read which operations it made on the files below a folder.

The program is the real one; nothing in it is replaced. A line that it writes to standard output is an operation too
(`Said`), so that a check knows what had been promised when the power went.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,open,creat,write,pwrite64,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,truncate,"
    "fsync,fdatasync,close,dup,dup2,dup3,lseek"
)
# What the model does not know; a program that begins to use one of them must not pass unseen.
UNKNOWN = "writev,pwritev,pwritev2,link,linkat,symlink,symlinkat,fallocate,copy_file_range,sendfile,splice,sync,syncfs"


@dataclass(frozen=True, slots=True)
class Make:
    """A file or folder gets a name."""

    path: str
    folder: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file. `path` is its name at that moment."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A file gets the length `size`."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name becomes another one, at once."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A name of a file or of an empty folder goes."""

    path: str


@dataclass(frozen=True, slots=True)
class Sync:
    """Everything so far of this file, or the names in this folder, is durable."""

    path: str


@dataclass(frozen=True, slots=True)
class Said:
    """The program wrote this to standard output."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A system call on the files below the folder: its name, and the how manieth of that name in its process."""

    name: str
    number: int


Operation = Make | Write | Cut | Rename | Remove | Sync | Said


def run(command: Sequence[str], folder: Path, trace: Path, **environment: str) -> list[Operation]:
    """The operations of `command`, one process, on files below `folder`, in order; strace's lines are in `trace`.

    Raises AssertionError when the command fails, or makes calls that the model does not know.
    """
    known = [str(path) for path in folder.rglob("*")]
    done = _traced(command, trace, (), environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(_Reader(str(folder), known).read(trace.read_text().splitlines()))


def calls(folder: Path, trace: Path) -> list[Call]:
    """Every call of the recorded run that touched `folder`."""
    count: Counter[str] = Counter()
    found = []
    shown = "".join(f"\\x{byte:02x}" for byte in str(folder).encode())
    for line in trace.read_text().splitlines():
        name = line.partition("(")[0]
        count[name] += 1
        if shown in line and name not in ("close", "lseek"):
            found.append(Call(name, count[name]))
    return found


def fail(command: Sequence[str], call: Call, error: str, trace: Path, **environment: str) -> tuple[str, str]:
    """Run `command` with that call failing by `error` (such as ENOSPC). Returns its standard output, and the line of
    the call that failed."""
    done = _traced(command, trace, ("-e", f"inject={call.name}:error={error}:when={call.number}"), environment)
    assert done.returncode == 0, done.stderr[-2000:]
    hit = [line for line in trace.read_text().splitlines() if "(INJECTED)" in line]
    return done.stdout, hit[0] if hit else ""


def _traced(
    command: Sequence[str], trace: Path, further: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    strace = ["strace", "-y", "-xx", "-s", "16777216", "-e", f"trace={CALLS},{UNKNOWN}", *further, "-o", str(trace)]
    return subprocess.run(
        [*strace, *command], capture_output=True, text=True, env=environment or None, check=False, timeout=120
    )


_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<([^>]*)>)?")
_TEXT = re.compile(r'"([^"]*)"')
_NAMED = re.compile(r"(?:AT_FDCWD|-?\d+)<([^>]*)>")


def _plain(hexed: str) -> bytes:
    return bytes.fromhex(hexed.replace("\\x", ""))


class _Reader:
    """The operations of one process on files below `below`, from the lines that strace wrote of it.

    `known`: the files that were there before. Descriptors are followed for their offsets.
    """

    def __init__(self, below: str, known: Iterable[str]) -> None:
        self._below = below
        self._at: dict[int, int] = {}
        self._known = set(known)

    def read(self, lines: Sequence[str]) -> Iterator[Operation]:
        for line in lines:
            found = _CALL.match(line)
            if found is None or found[3].startswith("-"):
                continue
            yield from self._operation(found[1], found[2], int(found[3]), found[4])

    def _inside(self, path: str) -> bool:
        return path == self._below or path.startswith(self._below + "/")

    def _paths(self, arguments: str) -> list[str]:
        """The paths that a call names, relative ones joined to their folder's descriptor."""
        roots = [_plain(one).decode() for one in _NAMED.findall(arguments)]
        texts = [_plain(one).decode(errors="replace") for one in _TEXT.findall(arguments)]
        return [
            str(Path(roots[min(index, len(roots) - 1)] if roots else "/") / text) for index, text in enumerate(texts)
        ]

    def _operation(self, call: str, arguments: str, result: int, opened: str | None) -> Iterator[Operation]:
        if call in ("open", "openat", "creat"):
            yield from self._open(arguments, result, _plain(opened or "").decode())
            return
        descriptor = re.match(r"(\d+)<([^>]*)>", arguments)
        path = _plain(descriptor[2]).decode(errors="replace") if descriptor and "\\x" in descriptor[2] else ""
        number = int(descriptor[1]) if descriptor else -1
        if call == "write" and number == 1 and not self._inside(path):
            yield Said(_plain(_TEXT.findall(arguments)[0])[:result].decode())
        elif call in ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "truncate"):
            yield from self._named(call, arguments)
        elif call == "lseek":
            self._at[number] = result
        elif call in ("dup", "dup2", "dup3"):
            self._at[result] = self._at.get(number, 0)
        elif not self._inside(path):
            return
        elif call == "write":
            at = self._at.get(number, 0)
            self._at[number] = at + result
            yield Write(path, at, _plain(_TEXT.findall(arguments)[0])[:result])
        elif call == "pwrite64":
            yield Write(path, int(arguments.rpartition(",")[2]), _plain(_TEXT.findall(arguments)[0])[:result])
        elif call == "ftruncate":
            yield Cut(path, int(arguments.rpartition(",")[2]))
        elif call in ("fsync", "fdatasync"):
            yield Sync(path)
        elif call != "close":
            raise AssertionError(f"the model does not know {call}({arguments[:200]})")

    def _open(self, arguments: str, number: int, path: str) -> Iterator[Operation]:
        self._at[number] = 0
        if not self._inside(path):
            return
        assert "O_APPEND" not in arguments, f"the model does not know O_APPEND: {path}"
        if "O_CREAT" in arguments and path not in self._known:
            self._known.add(path)
            yield Make(path, folder=False)
        elif "O_TRUNC" in arguments:
            yield Cut(path, 0)

    def _named(self, call: str, arguments: str) -> Iterator[Operation]:
        paths = self._paths(arguments)
        if not self._inside(paths[0]):
            return
        if call.startswith("rename"):
            self._known.discard(paths[0])
            self._known.add(paths[1])
            yield Rename(paths[0], paths[1])
        elif call.startswith("mkdir"):
            self._known.add(paths[0])
            yield Make(paths[0], folder=True)
        elif call == "truncate":
            yield Cut(paths[0], int(arguments.rpartition(",")[2]))
        else:
            self._known.discard(paths[0])
            yield Remove(paths[0])
