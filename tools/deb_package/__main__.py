"""`python -m deb_package`: the Debian package of edge-agent for boards, made without one. `make deb` calls it.

The files come from wheels for the target's Python and architecture (those of `edge-forge provision`), debhelper makes
the package of them. Each package is written to --out; its name is printed.
"""

from __future__ import annotations

import argparse
import email.utils
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deb_package import contents
from deb_package.contents import MACHINES, SUITES, Suite
from edge_agent.base.errors import EdgeError, UsageError
from edge_forge.provision.image_plan import agent_wheel
from edge_forge.provision.target_wheels import WheelOrder, wheels_for

ROOT: Final = Path(__file__).parents[2]
TEMPLATES: Final = Path(__file__).parent / "debian"
NEEDED: Final = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "readelf": "binutils"}
"""Programs, and the Debian packages that have them."""
MAINTAINER: Final = "edge-agent builder <edge-agent@invalid.invalid>"
"""Where DEBFULLNAME and DEBEMAIL (debchange(1)) do not say who builds."""
SAID_CHARS: Final = 3000


@dataclass(frozen=True, slots=True)
class Build:
    """One package to make. `built_s`: the time that its files get, seconds since 1970."""

    arch: str
    suite: str
    version: str
    built_s: int
    maintainer: str


def main(arguments: Sequence[str]) -> int:
    """Make each package that is asked for; the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        for path in build_all(asked):
            print(path)
    except EdgeError as error:
        print(f"deb_package: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def build_all(asked: argparse.Namespace) -> list[Path]:
    """The packages, in the order of the architectures. Raises EdgeError."""
    missing = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    if missing:
        raise UsageError("tools of Debian are missing", None, f"apt install {' '.join(sorted(missing))}")
    wheel = agent_wheel(asked.wheel, asked.wheels if asked.wheel is None else None)
    suite = SUITES[asked.suite]
    (named,) = contents.bundled([wheel])
    version = contents.debian_version(named.version, asked.revision or _commits(), suite)
    found = []
    for arch in asked.arch:
        build = Build(arch, asked.suite, version, _built_s(wheel), _maintainer())
        order = WheelOrder(wheel, tuple(asked.extra), suite.target(arch))
        found.append(make(build, suite, wheels_for(order, asked.wheels, asked.cache), asked.out))
    return found


def make(build: Build, suite: Suite, wheels: Sequence[Path], out: Path) -> Path:
    """Lay the files out, let debhelper make the package, and move it to `out`. Raises EdgeError with its last words."""
    # Not /tmp, which may be memory: the files of a package take 300 MB.
    with tempfile.TemporaryDirectory(prefix="edge-deb-", dir="/var/tmp") as scratch:
        top = Path(scratch) / "edge-agent"
        payload, debian = top / "payload", top / "debian"
        payload.mkdir(parents=True)
        contents.stage(payload, wheels, suite.target(build.arch))
        shutil.copytree(TEMPLATES, debian)
        _write_debian(debian, build, suite, wheels, contents.depends(payload, suite))
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(build.built_s), "DEB_BUILD_OPTIONS": "nocheck"}
        # -d: debhelper of another architecture is not wanted; nothing here is run on the target's.
        done = subprocess.run(
            ["dpkg-buildpackage", "--build=binary", f"--host-arch={build.arch}", "--no-sign", "-d"], cwd=top, env=env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        made = Path(scratch) / f"edge-agent_{build.version}_{build.arch}.deb"
        if done.returncode or not made.is_file():
            raise EdgeError(f"dpkg-buildpackage failed:\n{(done.stdout + done.stderr)[-SAID_CHARS:]}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, out / made.name))


def _write_debian(debian: Path, build: Build, suite: Suite, wheels: Sequence[Path], depends: Sequence[str]) -> None:
    """The files of debian/ that depend on what is built."""
    listed = contents.bundled(wheels)
    template = debian / "control.in"
    names = ", ".join(one.name for one in listed if one.name != "edge-agent")
    control = contents.filled(
        template.read_text("utf-8"),
        {"MAINTAINER": build.maintainer, "DEPENDS": ", ".join(depends), "BUNDLED": _folded(names)},
    )
    template.unlink()
    day = email.utils.formatdate(build.built_s)
    files = {
        "control": control,
        "copyright": contents.copyright_text(listed, suite.python),
        "changelog": f"edge-agent ({build.version}) {build.suite}; urgency=medium\n\n"
        f"  * Built for {suite.title}; what changed is in changelog.gz.\n\n"
        f" -- {build.maintainer}  {day}\n",
        "edge-agent.1": contents.manual_page(build.version),
        "edge-agent.manpages": "debian/edge-agent.1\n",
        "edge-agent.docs": "",
        "upstream-changelog": (ROOT / "CHANGELOG.md").read_text("utf-8"),
    }
    for name, text in files.items():
        (debian / name).write_text(text, encoding="utf-8")


def _folded(text: str, width: int = 70) -> str:
    """A text that goes on in the lines of a description."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n ".join([*lines, line])


def _built_s(wheel: Path) -> int:
    """The time of the commit, so that two builds of it give the same bytes; of the wheel, where the tree differs from
    the commit or is no clone."""
    changed = _git("status", "--porcelain")
    commit = _git("log", "-1", "--format=%ct")
    return int(commit) if commit and changed == "" else int(min(wheel.stat().st_mtime, time.time()))


def _commits() -> int:
    """The count of commits, which only grows: a package that is built later replaces an earlier one."""
    return int(_git("rev-list", "--count", "HEAD") or 1)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _maintainer() -> str:
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name or 'edge-agent builder'} <{address}>" if address else MAINTAINER


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deb_package", description="Make the Debian package of edge-agent.")
    parser.add_argument("--arch", nargs="+", choices=sorted(MACHINES), default=sorted(MACHINES), help="architectures")
    parser.add_argument("--suite", choices=sorted(SUITES), default="bookworm", help="the distribution that it is for")
    parser.add_argument("--extra", nargs="+", default=["onnx", "verify"], help="extras of edge-agent (runtimes)")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="edge-agent's wheel (default: this clone's dist/)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take wheels from this folder alone, no download")
    parser.add_argument("--revision", type=int, metavar="N", help="of the package (default: the count of commits)")
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR", help="where the packages go")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-forge/wheels"
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="where downloaded wheels are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
