"""What lies in the Debian package, by the files of wheels: nothing of them is run, so the target may be another one."""

from __future__ import annotations

import argparse
import email.parser
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from installer.sources import WheelFile

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.cli import verbs
from edge_agent.config.example import example_toml
from edge_agent.lifecycle.service import FACTORY_UNIT, UNIT, read_unit_file, rendered_unit
from edge_forge.provision.target_root import TargetRoot
from edge_forge.provision.target_wheels import unpack

VENV: Final = "usr/lib/edge-agent"
"""The virtual environment; not /opt/edge-agent, which is the operator's own (`pip install`, `edge-forge provision`)."""
PYTHON: Final = f"/{VENV}/bin/python"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name of an architecture, and that of wheels."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A distribution that a package is for. `mark` ends the version, so that of two packages of one version the newer
    system's is the higher one."""

    title: str
    mark: str
    python: tuple[int, int]
    glibc: tuple[int, int]

    def target(self, arch: str) -> TargetRoot:
        """What wheels are chosen for."""
        return TargetRoot(
            Path("/"), self.title, self.python, f"/usr/bin/python{dotted(self.python)}", MACHINES[arch], self.glibc
        )


SUITES: Final = {
    "bookworm": Suite("Debian 12 and Raspberry Pi OS 12", "deb12", (3, 11), (2, 36)),
    "trixie": Suite("Debian 13 and Raspberry Pi OS 13", "deb13", (3, 13), (2, 41)),
    "jammy": Suite("Ubuntu 22.04 and JetPack 6", "ubuntu22.04", (3, 10), (2, 35)),
    "noble": Suite("Ubuntu 24.04 and JetPack 7", "ubuntu24.04", (3, 12), (2, 39)),
}

_LIBRARIES: Final = {
    "libstdc++.so.6": "libstdc++6", "libgcc_s.so.1": "libgcc-s1", "libz.so.1": "zlib1g", "libgomp.so.1": "libgomp1",
}  # fmt: skip
"""Debian's packages of libraries beside the C library that wheels may expect of a system (PEP 600), and OpenMP's."""
_C_LIBRARY: Final = re.compile(r"(lib(c|m|dl|rt|pthread|util|resolv)|ld-linux-[a-z0-9-]+)\.so\.\d+")
_NEEDED: Final = re.compile(r"\(NEEDED\).*\[(.+)\]")
_SONAME: Final = re.compile(r"\(SONAME\).*\[(.+)\]")
_GLIBC: Final = re.compile(r"GLIBC_2\.(\d+)")
_BATCH: Final = 40
"""Files for one call of readelf."""


@dataclass(frozen=True, slots=True)
class BundledWheel:
    """A wheel that the package contains, by its metadata."""

    name: str
    version: str
    licence: str


def stage(payload: Path, wheels: Sequence[Path], target: TargetRoot) -> None:
    """Every file of the package, in a folder as on the board; what debhelper makes is not among them."""
    unpack(wheels, target, payload, VENV)
    _tidy(payload / VENV)
    files = {
        # dh_installsystemd of Debian 12 looks into /lib alone; debian/rules moves them.
        f"lib/systemd/system/{UNIT}": rendered_unit(PYTHON),
        f"lib/systemd/system/{FACTORY_UNIT}": rendered_unit(PYTHON, FACTORY_UNIT),
        "usr/lib/sysusers.d/edge-agent.conf": read_unit_file("edge-agent.sysusers.conf"),
        "usr/lib/tmpfiles.d/edge-agent.conf": read_unit_file("edge-agent.tmpfiles.conf"),
        "etc/edge-agent/edge-agent.toml": example_toml(),
    }
    for name, text in files.items():
        path = payload / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = payload / "usr/bin/edge-agent"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.symlink_to("../lib/edge-agent/bin/edge-agent")


def _tidy(venv: Path) -> None:
    """Of the commands only edge-agent's: the others are of libraries, or need what a board does not have. Modules that
    a wheel marks as programs are none."""
    for path in (venv / "bin").iterdir():
        if path.name not in ("edge-agent", "python", "python3"):
            path.unlink()
    for path in (venv / "lib").rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o111 and not _is_program(path):
            path.chmod(0o644)


def depends(payload: Path, suite: Suite) -> list[str]:
    """The Debian packages that the files need: Python of one minor version, as extension modules do, and libraries.

    Raises EdgeError for a library that is neither in the package nor known in Debian, or an unreadable file.
    """
    following = (suite.python[0], suite.python[1] + 1)
    found = [f"python3 (>= {dotted(suite.python)}~)", f"python3 (<< {dotted(following)}~)"]
    needed, own, minor = _elf_needs([path for path in sorted(payload.rglob("*")) if _is_elf(path)])
    if minor > suite.glibc[1]:
        raise EdgeError(
            f"the wheels need glibc 2.{minor}, {suite.title} has {dotted(suite.glibc)}", None, "take older wheels"
        )
    found.append(f"libc6 (>= 2.{max(minor, 17)})")
    for name in sorted(needed - own):
        if _C_LIBRARY.fullmatch(name):
            continue
        if name not in _LIBRARIES:
            raise EdgeError(
                f"a wheel needs {name}, which is in none of them", None, "add its Debian package to _LIBRARIES"
            )
        found.append(_LIBRARIES[name])
    return found


def bundled(wheels: Iterable[Path]) -> list[BundledWheel]:
    """Name, version and licence of each wheel."""
    found = []
    for path in wheels:
        with WheelFile.open(path) as source:
            head = email.parser.HeaderParser().parsestr(source.read_dist_info("METADATA"))
        classified = [one.rpartition(" :: ")[2] for one in head.get_all("Classifier", []) if one.startswith("License")]
        stated = str(head.get("License") or "").strip()
        short = stated if stated and "\n" not in stated and len(stated) < 60 else ""
        licence = head.get("License-Expression") or short or ", ".join(classified) or "see its files"
        found.append(BundledWheel(str(head["Name"]), str(head["Version"]), str(licence)))
    return found


def copyright_text(wheels: Sequence[BundledWheel], python: tuple[int, int]) -> str:
    """The file copyright: whose the bundled wheels are, and where their licences lie."""
    place = f"/{VENV}/lib/python{dotted(python)}/site-packages"
    lines = "\n".join(f"  {one.name} {one.version}: {one.licence}" for one in wheels if one.name != "edge-agent")
    return (
        "Copyright 2026 the authors of edge-agent, under the Apache License, Version 2.0: see\n"
        "/usr/share/common-licenses/Apache-2.0.\n\n"
        "This package contains, unaltered, the wheels of other projects as their authors published them. Copyright\n"
        f"notices and licences of each lie in {place}/NAME-VERSION.dist-info:\n\n{lines}\n"
    )


def manual_page(version: str) -> str:
    """edge-agent(1), with each verb as the program's own help says it."""
    parser = verbs.parser()
    chosen = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    listed = "\n".join(
        f".TP\n.B {one.dest.replace('-', chr(92) + '-')}\n{_roff(one.help or '')}" for one in chosen._choices_actions
    )
    return f"""\
.TH EDGE\\-AGENT 1 "" "edge-agent {version}" "User Commands"
.SH NAME
edge\\-agent \\- language models with LoRA adapters over MQTT
.SH SYNOPSIS
.B edge\\-agent
.I VERB
.RI [ OPTIONS ]
.SH DESCRIPTION
{_roff(parser.description or "")}.
Each verb says its options with
.BR \\-\\-help .
.SH VERBS
{listed}
.SH FILES
.TP
.I /etc/edge\\-agent/edge\\-agent.toml
settings; the file names every key with its meaning and default
.TP
.I /etc/edge\\-agent/credentials
secrets, which are root's alone and reach the service by systemd
.TP
.I /var/lib/edge\\-agent
installed models
.SH EXIT STATUS
0: done. 1: it failed, or the verdict is no. 2: called wrongly, or settings with which it cannot begin.
.SH SEE ALSO
.BR systemctl (1),
.BR journalctl (1),
.BR mosquitto (8)
"""


def debian_version(wheel: str, revision: int, suite: Suite) -> str:
    """The version of the Debian package from the wheel's: a pre-release sorts before its release. Raises UsageError."""
    upstream = re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", wheel)
    if not re.fullmatch(r"\d[0-9A-Za-z.+~]*", upstream) or revision < 1:
        raise UsageError(f"{wheel!r} with revision {revision} makes no version of a Debian package")
    return f"{upstream}-{revision}+{suite.mark}"


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with each @NAME@ replaced."""
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def dotted(version: tuple[int, int]) -> str:
    """3.11 for (3, 11)."""
    return f"{version[0]}.{version[1]}"


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("%%", "%")


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4)[:2] in (b"#!", b"\x7fE")


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _elf_needs(paths: Sequence[Path]) -> tuple[set[str], set[str], int]:
    """The libraries that these files need, those that they are, and the highest GLIBC_2.x among their symbols."""
    needed: set[str] = set()
    own = {path.name for path in paths}
    minor = 0
    for begin in range(0, len(paths), _BATCH):
        batch = [str(path) for path in paths[begin : begin + _BATCH]]
        done = subprocess.run(
            ["readelf", "--wide", "--dynamic", "--version-info", *batch], capture_output=True, text=True, check=False,
            errors="replace",
        )  # fmt: skip
        if done.returncode:
            raise EdgeError(f"readelf: {done.stderr.strip()[-300:]}", None, "is a wheel damaged? download it again")
        needed |= set(_NEEDED.findall(done.stdout))
        own |= set(_SONAME.findall(done.stdout))
        minor = max([minor, *(int(one) for one in _GLIBC.findall(done.stdout))])
    return needed, own, minor
