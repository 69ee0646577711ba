"""A root file system that is a few files: enough to be looked at and filled, not to boot. And wheels of a few bytes."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40}


def elf(machine: str) -> bytes:
    """The head of a program of that architecture."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, MACHINES[machine])


def made_up_root(path: Path, machine: str = "aarch64", python: str = "3.11", glibc_minor: int = 36) -> Path:
    """A root with Python, a C library, a host name and an absolute link on the way to the interpreter."""
    for name in (
        "etc/alternatives",
        "usr/bin",
        f"usr/lib/python{python}/asyncio",
        f"lib/{machine}-linux-gnu",
        "var/lib",
    ):
        (path / name).mkdir(parents=True)
    (path / f"usr/bin/python{python}").write_bytes(elf(machine))
    (path / "etc/alternatives/python3").symlink_to(f"/usr/bin/python{python}")
    (path / "usr/bin/python3").symlink_to("/etc/alternatives/python3")
    (path / f"usr/lib/python{python}/asyncio/__init__.py").touch()
    symbols = b"".join(b"GLIBC_2.%d\0" % minor for minor in range(17, glibc_minor + 1))
    (path / f"lib/{machine}-linux-gnu/libc.so.6").write_bytes(elf(machine) + symbols)
    (path / "etc/hostname").write_text("raspberrypi\n")
    (path / "etc/os-release").write_text('PRETTY_NAME="Made-up GNU/Linux"\n')
    return path


def made_up_wheel(
    folder: Path, name: str, tag: str = "py3-none-any", needs: Sequence[str] = (), version: str = "1.0"
) -> Path:
    """A wheel with one module; `needs` are its Requires-Dist."""
    folder.mkdir(parents=True, exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    head = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}")
    files = {
        f"{module}/__init__.py": "",
        f"{info}/METADATA": "\n".join([*head, *(f"Requires-Dist: {one}" for one in needs)]) + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }  # fmt: skip
    if name == "edge-agent":
        files[f"{info}/entry_points.txt"] = "[console_scripts]\nedge-agent = edge_agent.cli:main\n"
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path
