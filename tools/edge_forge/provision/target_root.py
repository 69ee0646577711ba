"""What a mounted root file system is: its Python, architecture and C library, read from files. Nothing of it is run, so
the host's architecture does not matter."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.base.errors import EdgeError, UsageError

OLDEST_PYTHON: Final = (3, 10)
_LINKS: Final = 40
"""Symbolic links followed on one path; the kernel's own bound (path_resolution(7))."""
_ELF_HEAD_BYTES: Final = 20
_MACHINES: Final = {62: "x86_64", 183: "aarch64", 40: "armv7l", 3: "i686", 243: "riscv64"}
"""e_machine of an ELF file (elf.h) by the name that wheels use."""
SUPPORTED: Final = ("aarch64", "x86_64")
_PYTHON: Final = "usr/bin/python3"
_LIBC_BYTES: Final = 16 * 1024 * 1024
_TEXT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TargetRoot:
    """A root file system that can be filled. `python` and `glibc` are (major, minor), `interpreter` is its path as seen
    from inside, `system` its name for people."""

    path: Path
    system: str
    python: tuple[int, int]
    interpreter: str
    machine: str
    glibc: tuple[int, int]

    def text(self) -> str:
        """One line for a person."""
        return (
            f"{self.system}, {self.machine}, Python {_dotted(self.python)} ({self.interpreter}), "
            f"glibc {_dotted(self.glibc)}"
        )


def inspect_root(path: Path, expected: str | None = None) -> TargetRoot:
    """Look at a root file system. `expected`: the architecture that it must be of; None takes any that is supported.

    Raises UsageError for what is no root file system, EdgeError for one that the agent cannot run in.
    """
    if not (path / "etc").is_dir() or not (path / "usr").is_dir():
        raise UsageError(
            f"{path} is no root file system: it has no folders etc and usr", None,
            "mount the image's root partition and name where it is mounted",
        )  # fmt: skip
    if path.resolve() == Path("/"):
        raise UsageError(
            "that is the running system", str(path), "use `edge-agent service install` here; provision fills an image"
        )
    found = locate(path, _PYTHON)
    if found is None or not found.is_file():
        raise EdgeError("it has no Python", str(path / _PYTHON), "install python3 in the image: apt install python3")
    machine = _machine(found)
    _check_machine(path, machine, expected)
    version = _version(path, found)
    inside = "/" + found.relative_to(path.resolve()).as_posix()
    return TargetRoot(path, _system(path), version, inside, machine, _glibc(path, machine))


def locate(root: Path, name: str) -> Path | None:
    """The file of that name as a process inside the root would find it: links are followed as from there, and never
    lead out. None where it does not exist."""
    root = root.resolve()
    rest = [part for part in name.split("/") if part]
    found: list[str] = []
    links = 0
    while rest:
        part = rest.pop(0)
        if part == ".":
            continue
        if part == "..":
            found = found[:-1]
            continue
        path = root.joinpath(*found, part)
        if path.is_symlink():
            links += 1
            if links > _LINKS:
                return None
            target = path.readlink().as_posix()
            found = [] if target.startswith("/") else found
            rest = [one for one in target.split("/") if one] + rest
            continue
        if not path.exists():
            return None
        found.append(part)
    return root.joinpath(*found)


def host_name(root: Path) -> str | None:
    """The host name that the image starts with; None where it has none."""
    lines = _text(root, "etc/hostname").splitlines()
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)


def group_id(root: Path, name: str) -> int | None:
    """The id of a group of the image; None where it has no such group yet."""
    for line in _text(root, "etc/group").splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] == name and fields[2].isdecimal():
            return int(fields[2])
    return None


def _text(root: Path, name: str) -> str:
    """The begin of a text file of the image, which may be of any size; empty where there is none."""
    found = locate(root, name)
    return "" if found is None else _head(found, _TEXT_BYTES).decode("utf-8", "replace")


def _head(path: Path, most: int) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(most)


def _machine(path: Path) -> str:
    """The architecture of an ELF file. Raises EdgeError for another file."""
    with path.open("rb") as file:
        head = file.read(_ELF_HEAD_BYTES)
    if len(head) < _ELF_HEAD_BYTES or head[:4] != b"\x7fELF":
        raise EdgeError("it is no program of Linux (ELF)", str(path), "is the image's root partition whole?")
    order = ">" if head[5] == 2 else "<"
    (number,) = struct.unpack_from(f"{order}H", head, 18)
    return _MACHINES.get(number, f"the ELF machine {number}")


def _check_machine(path: Path, machine: str, expected: str | None) -> None:
    if machine not in SUPPORTED:
        wide = "a 32-bit system; take the 64-bit image" if machine in {"armv7l", "i686"} else "not supported"
        raise EdgeError(
            f"its programs are of {machine}, which is {wide}", str(path),
            f"the runtimes have wheels for {' and '.join(SUPPORTED)}",
        )  # fmt: skip
    if expected is not None and machine != expected:
        raise EdgeError(
            f"its programs are of {machine}, not of {expected}", str(path), "is it the image for these boards?"
        )


def _version(root: Path, interpreter: Path) -> tuple[int, int]:
    """Of the interpreter, by its name and the library beside it. Raises EdgeError where either does not fit."""
    match = re.fullmatch(r"python(\d+)\.(\d+)", interpreter.name)
    if match is None:
        raise EdgeError(
            "its name does not say its version", str(interpreter), "python3 must be a link to python3.x, as on Debian"
        )
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_PYTHON:
        raise EdgeError(
            f"its Python is {_dotted(version)}, edge-agent needs {_dotted(OLDEST_PYTHON)} or newer", str(root),
            "take a newer image (Raspberry Pi OS 12, Debian 12, JetPack 6)",
        )  # fmt: skip
    library = locate(root, f"usr/lib/python{_dotted(version)}/asyncio/__init__.py")
    if library is None:
        raise EdgeError(
            "it has no whole standard library of Python (python3-minimal alone?)", str(root),
            "install python3 in the image: apt install python3",
        )  # fmt: skip
    return version


def _glibc(root: Path, machine: str) -> tuple[int, int]:
    """The newest version of its interface that the C library has (its symbols are named GLIBC_2.36)."""
    found = locate(root, f"lib/{machine}-linux-gnu/libc.so.6") or locate(root, "lib64/libc.so.6")
    data = b"" if found is None else _head(found, _LIBC_BYTES)
    minors = [int(one) for one in re.findall(rb"GLIBC_2\.(\d{1,3})\0", data)]
    if not minors:
        raise EdgeError(
            "it has no GNU C library, which wheels are made for", str(root), "take an image of Debian's family"
        )
    return 2, max(minors)


def _system(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]{1,100})', _text(root, "etc/os-release"), re.MULTILINE)
    return match[1] if match else "a system without a name"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
