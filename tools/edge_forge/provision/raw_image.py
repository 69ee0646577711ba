"""A raw image file (`.img`) is mounted for as long as it is worked on: its root partition is found by the partition
table and by the file systems in it, and mounted at its offset. No partition of the host's is touched.

util-linux does it: `partx` reads the table (MBR and GPT), `mount` takes a loop device and frees it at the unmount.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.base.errors import EdgeError, UsageError

_SECTOR_BYTES: Final = 512
_COMMAND_S: Final = 120.0
_SAID_CHARS: Final = 300
_COMPRESSED: Final = {
    b"\xfd7zXZ\0": ("xz", "unxz"), b"\x1f\x8b": ("gzip", "gunzip"), b"PK\x03\x04": ("zip", "unzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"BZh": ("bzip2", "bunzip2"),
}  # fmt: skip
"""First bytes of a file, the name of its form, and the program that unpacks it."""
_FILE_SYSTEMS: Final = (
    ("ext4", 1080, b"\x53\xef"), ("btrfs", 0x10040, b"_BHRfS_M"), ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("xfs", 0, b"XFSB"), ("squashfs", 0, b"hsqs"),
)  # fmt: skip
"""File systems that a root lies on: name, place and value of the magic number (of ext2 and ext3, too: 'ext4')."""
_READ_ONLY: Final = "squashfs"


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of an image, in bytes; number 0: the whole file, which has no partition table. `system`: the file system,
    where it is one that may hold a root; else ''."""

    number: int
    start: int
    size: int
    system: str = ""

    def text(self) -> str:
        """Its name for a person."""
        return f"partition {self.number}" if self.number else "the whole file"


@contextlib.contextmanager
def mounted_image(image: Path, read_only: bool) -> Iterator[Path]:
    """The root file system of an image, mounted until the block ends. `read_only`: no byte of the image changes.

    Raises UsageError for a file that is no image, EdgeError for one without a single root, or that cannot be mounted.
    """
    if os.geteuid() != 0:
        raise UsageError("only root can mount an image", str(image), "run it with sudo, or name a mounted root")
    number = root_partition(image, partitions(image), lambda one: _is_root(image, one))
    with _mounted(image, number, read_only) as root:
        yield root


def partitions(image: Path) -> list[Partition]:
    """What the partition table names, with the file systems found.

    Raises UsageError for what is no raw image, EdgeError for one that ends too early.
    """
    size = image.stat().st_size
    with image.open("rb") as file:
        head = file.read(8)
    packed = next((how for first, how in _COMPRESSED.items() if head.startswith(first)), None)
    if packed is not None:
        raise UsageError(f"is compressed ({packed[0]})", str(image), f"{packed[1]} {image.name}")
    said = _run(["partx", "--raw", "--noheadings", "--output", "NR,START,SECTORS", str(image)])
    listed = _listed(said.stdout) if said.returncode == 0 else []
    parts = listed or [Partition(0, 0, size)]
    found = [Partition(one.number, one.start, one.size, _system(image, one.start)) for one in parts]
    if not listed and not found[0].system:
        raise UsageError(
            "is no raw image: it has neither a partition table nor a file system of Linux", str(image),
            "name an .img file, or the folder where the root partition is mounted",
        )  # fmt: skip
    cut = next((one for one in found if one.start + one.size > size), None)
    if cut is not None:
        raise EdgeError(
            f"it ends within {cut.text()}: {size} bytes are there, {cut.start + cut.size} are needed", str(image),
            "download or unpack it again",
        )  # fmt: skip
    return found


def _listed(said: str) -> list[Partition]:
    """partx's lines: number, first sector, sectors."""
    rows = [line.split() for line in said.splitlines() if line.strip()]
    return [Partition(int(row[0]), int(row[1]) * _SECTOR_BYTES, int(row[2]) * _SECTOR_BYTES) for row in rows]


def _system(image: Path, start: int) -> str:
    with image.open("rb") as file:
        for name, place, magic in _FILE_SYSTEMS:
            file.seek(start + place)
            if file.read(len(magic)) == magic:
                return name
    return ""


def _is_root(image: Path, part: Partition) -> bool:
    with _mounted(image, part, read_only=True) as place:
        return (place / "etc").is_dir() and (place / "usr").is_dir()


def root_partition(image: Path, found: Sequence[Partition], holds_root: Callable[[Partition], bool]) -> Partition:
    """The partition with a root file system. Raises EdgeError where there is none, or more than one."""
    roots = [one for one in found if one.system and holds_root(one)]
    if not roots:
        names = ", ".join(f"{one.text()}: {one.system or 'no file system of Linux'}" for one in found)
        raise EdgeError(f"no partition holds a root file system with etc and usr ({names})", str(image))
    if len(roots) > 1:
        raise EdgeError(
            f"it has {len(roots)} root file systems: {', '.join(one.text() for one in roots)}", str(image),
            "mount the one that boots, and name the folder",
        )  # fmt: skip
    if roots[0].system == _READ_ONLY:
        raise EdgeError(f"its root is {_READ_ONLY}, which cannot be written", str(image), "fill the tree it is made of")
    return roots[0]


@contextlib.contextmanager
def _mounted(image: Path, part: Partition, read_only: bool) -> Iterator[Path]:
    options = f"loop,nodev,offset={part.start},sizelimit={part.size}"
    if read_only:
        # A journal that was not closed would be replayed, which writes.
        options += ",ro,noload" if part.system == "ext4" else ",ro"
    with tempfile.TemporaryDirectory(prefix="edge-image-") as scratch:
        # Sentences about files in it name the image by this.
        place = Path(scratch) / image.name
        place.mkdir()
        done = _run(["mount", "-t", part.system, "-o", options, str(image.resolve()), str(place)])
        if done.returncode:
            raise EdgeError(
                f"{part.text()} cannot be mounted: {done.stderr.strip()[-_SAID_CHARS:]}", str(image),
                "without loop devices (`modprobe loop`) name a folder instead; a damaged file system: `e2fsck -f`",
            )  # fmt: skip
        try:
            yield place
        finally:
            ended = _run(["umount", str(place)])
            if ended.returncode:
                # A process still works in it: it goes when that ends, and is not torn away.
                _run(["umount", "--lazy", str(place)])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not installed", None, "apt install util-linux mount") from error
    except subprocess.TimeoutExpired as error:
        raise EdgeError(f"{command[0]} did not end within {_COMMAND_S:g} s") from error
