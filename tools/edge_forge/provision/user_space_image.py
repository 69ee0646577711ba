"""A raw image file where the host has no loop devices (a container, say): e2fsprogs reads and writes its ext4 root.

`debugfs` copies the root into a folder, which is filled like any other; what differs afterwards is written back by it,
with owner and mode, and read again. Nothing is written unless all of it fits. The folder takes the room that the root's
files take, below TMPDIR.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.base.units import bytes_text
from edge_forge.provision.raw_image import Partition, partitions, root_partition

_COMMAND_S: Final = 1800.0
_SAID_CHARS: Final = 300
_BLOCK_BYTES: Final = 4096
_FAULT: Final = re.compile(
    r"(?i)\b(no such file|not found|no free|could not allocate|error|illegal|already exists|cannot|corrupt|denied)\b"
)
"""What debugfs says where a request failed: its exit code is 0."""


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """`folder`: the files of the root; `free_bytes`: what the image's file system has left."""

    folder: Path
    free_bytes: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tells whether a file was changed."""

    mode: int
    owner: tuple[int, int]
    size: int
    times: tuple[int, int]
    inode: int


def has_loop_devices() -> bool:
    """Whether an image can be mounted here."""
    try:
        done = subprocess.run(["losetup", "--find"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextlib.contextmanager
def unpacked_image(image: Path, read_only: bool) -> Iterator[UnpackedImage]:
    """The root file system of an image as a folder; what the block changes there is written into the image at its end,
    unless it raises or `read_only`.

    Raises UsageError for a file that is no image, EdgeError for one without a single ext4 root, or whose file system
    must be repaired first.
    """
    if os.geteuid() != 0:
        raise UsageError("only root can keep the owners of an image", str(image), "run it with sudo")
    part = root_partition(image, partitions(image), lambda one: _holds_root(image, one))
    if part.system != "ext4":
        raise EdgeError(f"its root is {part.system}, which needs loop devices", str(image), "`modprobe loop`")
    system = _ImageFileSystem(image, part)
    free_bytes = system.free_bytes()
    with tempfile.TemporaryDirectory(prefix="edge-image-") as scratch:
        folder = Path(scratch) / image.name
        folder.mkdir()
        system.copy_out(folder)
        before = _seen(folder)
        yield UnpackedImage(folder, free_bytes)
        if not read_only:
            system.write_back(folder, before, _seen(folder), Path(scratch))


class _ImageFileSystem:
    """One ext4 partition of an image, by debugfs and e2fsck."""

    def __init__(self, image: Path, part: Partition) -> None:
        self._image = image
        self._name = f"{image.resolve()}?offset={part.start}" if part.start else str(image.resolve())

    def free_bytes(self) -> int:
        """Bytes that are free. Raises EdgeError for a file system that was not closed, or is damaged."""
        said = _run(["debugfs", "-R", "stats -h", self._name]).stdout
        found = {key: re.search(rf"^{key}:\s*(.+)$", said, re.MULTILINE) for key in ("Free blocks", "Block size")}
        blocks, size = found["Free blocks"], found["Block size"]
        if blocks is None or size is None:
            raise EdgeError("its file system cannot be read by debugfs", str(self._image), "a damaged one: `e2fsck -f`")
        if "needs_recovery" in said or re.search(r"^Filesystem state:\s*clean\s*$", said, re.MULTILINE) is None:
            raise EdgeError("its file system was not closed", str(self._image), "`e2fsck -f` on its root partition")
        return int(blocks.group(1)) * int(size.group(1))

    def copy_out(self, folder: Path) -> None:
        """Copy files, folders and links, with owners and modes; devices and pipes stay in the image alone."""
        done = _run(["debugfs", "-R", f'rdump "/" "{folder}"', self._name])
        if not any(folder.iterdir()):
            raise EdgeError(f"it cannot be unpacked: {done.stderr.strip()[-_SAID_CHARS:]}", str(self._image))

    def write_back(self, folder: Path, before: dict[str, _Seen], after: dict[str, _Seen], scratch: Path) -> None:
        """Write what differs, then read it again. Raises EdgeError, before anything is written where it does not
        fit."""
        changed = sorted(name for name, one in after.items() if before.get(name) != one)
        gone = sorted(before.keys() - after.keys(), reverse=True)
        if not changed and not gone:
            return
        self._check_fits(after, changed)
        lines = [f'{"rmdir" if stat.S_ISDIR(before[name].mode) else "rm"} "/{name}"' for name in gone]
        for name in changed:
            lines += self._lines(folder, name, before.get(name), after[name])
        script = scratch / "debugfs"
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = _run(["debugfs", "-w", "-f", str(script), self._name])
        wrong = [line for line in (done.stderr + done.stdout).splitlines() if _is_fault(line)]
        if wrong:
            raise EdgeError(f"it is only partly written: {wrong[0][:_SAID_CHARS]}", str(self._image), _AGAIN)
        self._check_written(folder, changed, after, scratch)
        checked = _run(["e2fsck", "-f", "-n", self._name])
        if checked.returncode:
            raise EdgeError(f"its file system is damaged: {checked.stdout[-_SAID_CHARS:]}", str(self._image), _AGAIN)

    def _check_fits(self, after: dict[str, _Seen], changed: Sequence[str]) -> None:
        if any('"' in name or "\n" in name for name in changed):
            raise EdgeError("a name with a quotation mark cannot be written without loop devices", str(self._image))
        files = [after[name].size for name in changed if stat.S_ISREG(after[name].mode)]
        needed = sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in files) + _BLOCK_BYTES * len(changed)
        free = self.free_bytes()
        if needed > free:
            raise EdgeError(
                f"too little space: {bytes_text(needed)} are to be written, {bytes_text(free)} are free; nothing was "
                "changed", str(self._image), "enlarge the image's root partition and its file system",
            )  # fmt: skip

    @staticmethod
    def _lines(folder: Path, name: str, before: _Seen | None, now: _Seen) -> list[str]:
        """What makes this file, folder or link what it is now."""
        above, _, own = f"/{name}".rpartition("/")
        # debugfs takes "/own" for a name in its present folder, so that one is set first.
        lines, place = [f'cd "{above or "/"}"'], folder / name
        if stat.S_ISDIR(now.mode):
            lines += [] if before is not None else [f'mkdir "{own}"']
        else:
            lines += [] if before is None else [f'rm "/{name}"']
            made = f'symlink "{own}" "{place.readlink()}"' if stat.S_ISLNK(now.mode) else f'write "{place}" "{own}"'
            lines.append(made)
        fields = (("mode", f"0{now.mode:o}"), ("uid", str(now.owner[0])), ("gid", str(now.owner[1])))
        return lines + [f'set_inode_field "/{name}" {field} {value}' for field, value in fields]

    def _check_written(self, folder: Path, changed: Sequence[str], after: dict[str, _Seen], scratch: Path) -> None:
        files = [name for name in changed if stat.S_ISREG(after[name].mode)]
        again = scratch / "again"
        again.mkdir()
        script = scratch / "debugfs"
        lines = [f'dump "/{name}" "{again / str(number)}"' for number, name in enumerate(files)]
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        _run(["debugfs", "-f", str(script), self._name])
        for number, name in enumerate(files):
            copy = again / str(number)
            if not copy.is_file() or not filecmp.cmp(copy, folder / name, shallow=False):
                raise EdgeError(f"/{name} is not what was written", str(self._image), _AGAIN)


_AGAIN: Final = "take a new copy of the image, and run it again"


def _is_fault(line: str) -> bool:
    """Whether a line of debugfs says that a request failed; lines that repeat a request name files, too."""
    return not line.startswith(("debugfs:", "debugfs ", "Allocated inode")) and _FAULT.search(line) is not None


def _holds_root(image: Path, part: Partition) -> bool:
    if part.system != "ext4":
        return False
    name = f"{image.resolve()}?offset={part.start}" if part.start else str(image.resolve())
    said = _run(["debugfs", "-R", "ls -p /", name]).stdout
    names = {row.split("/")[5] for row in said.splitlines() if row.count("/") >= 6}
    return {"etc", "usr"} <= names


def _seen(folder: Path) -> dict[str, _Seen]:
    """Files, folders and links by name. A folder's time and size change with what is in it, and count for nothing."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            one = path.lstat()
            is_folder = stat.S_ISDIR(one.st_mode)
            found[path.relative_to(folder).as_posix()] = _Seen(
                one.st_mode,
                (one.st_uid, one.st_gid),
                0 if is_folder else one.st_size,
                (0, 0) if is_folder else (one.st_mtime_ns, one.st_ctime_ns),
                0 if is_folder else one.st_ino,
            )
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_S, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not installed", None, "apt install e2fsprogs") from error
    except subprocess.TimeoutExpired as error:
        raise EdgeError(f"{command[0]} did not end within {_COMMAND_S:g} s") from error
