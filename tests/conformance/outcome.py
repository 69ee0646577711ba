"""What a check of conformance finds, and where it takes other people's files from."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900.0


class Absent(Exception):
    """What the check needs is not here; the text says how to get it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What of ours was tried against which program or suite, how often, and what failed. `version` empty: nothing was
    tried, and `note` says why."""

    subject: str
    against: str
    version: str = ""
    tried: int = 0
    failed: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """A folder to work in, that of npm's packages, a Python with client libraries, Home Assistant's program, and the
    folders (or bare clones) of suites by name."""

    work: Path
    npm: Path
    python: Path
    hass: Path
    suites: dict[str, Path]

    def suite(self, name: str, part: str) -> tuple[Path, str]:
        """The folder of a suite and its commit; of a bare clone `part` alone is unpacked. Raises Absent."""
        where = self.suites[name]
        if not where.is_dir():
            raise Absent(f"{where} is no folder; a clone of {REPOSITORIES[name]} given by --{name}")
        bare = (where / "HEAD").is_file() and (where / "objects").is_dir()
        git = ["git", *(["--git-dir", str(where)] if bare else ["-C", str(where)])]
        commit = run([*git, "rev-parse", "--short=10", "HEAD"]).stdout.strip()
        if not bare:
            return where, commit
        out = self.work / f"{name}-{commit}"
        if not (out / part).exists():
            missing = _unpack(git, part, out)
            if missing:
                commit += f" less {missing} files that the clone lacks"
                (out / "less").write_text(commit)
        elif (out / "less").exists():
            commit = (out / "less").read_text()
        return out, commit

    def npm_package(self, name: str) -> tuple[Path, str]:
        """The folder of an installed npm package and its version. Raises Absent."""
        folder = self.npm / "node_modules" / name
        if shutil.which("node") is None or not folder.is_dir():
            raise Absent(f"npm install --prefix {self.npm} {name}")
        return folder, json.loads((folder / "package.json").read_text())["version"]


REPOSITORIES = {
    "suite": "github.com/json-schema-org/JSON-Schema-Test-Suite",
    "maskbench": "github.com/guidance-ai/jsonschemabench",
    "wycheproof": "github.com/C2SP/wycheproof",
    "oci": "github.com/opencontainers/image-spec",
    "modelpack": "github.com/modelpack/model-spec",
    "paho": "github.com/eclipse/paho.mqtt.testing",
}


def _unpack(git: Sequence[str], part: str, out: Path) -> int:
    """Write the files below `part` of a bare clone's HEAD; how many blobs it does not hold (a partial clone)."""
    rows = run([*git, "ls-tree", "-r", "HEAD", "--", part]).stdout.splitlines()
    files = [(row.split()[2], row.split("\t", 1)[1]) for row in rows]
    assert files, f"{git[-1]} holds no {part}"
    asked = "".join(f"{blob}\n" for blob, _ in files).encode()
    stream = io.BytesIO(
        subprocess.run([*git, "cat-file", "--batch"], input=asked, capture_output=True, check=True).stdout
    )
    missing = 0
    for _, path in files:
        head = stream.readline().split()
        if head[1] == b"missing":
            missing += 1
            continue
        data = stream.read(int(head[2]))
        stream.read(1)
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    return missing


def run(command: Sequence[str | Path], **more: object) -> subprocess.CompletedProcess[str]:
    """A program with its output as text. Raises AssertionError with the end of what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, (
        f"{Path(words[0]).name} ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
    )
    found: subprocess.CompletedProcess[str] = done
    return found


def program(name: str, package: str) -> str:
    """The path of a program. Raises Absent with the Debian package that has it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Absent(f"apt install {package}")
    return found


def version(*command: str) -> str:
    """The first number with dots that a program prints about itself."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "?"


def pytest(*nodes: str) -> tuple[int, tuple[str, ...]]:
    """How many tests ran, and the names of those that failed. Raises Absent where they skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *nodes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if not counts.get("passed") and not counts.get("failed") and not counts.get("error"):
        raise Absent((re.findall(r"SKIPPED.*", done.stdout) or [done.stdout[-300:]])[0])
    failed = tuple(line.split(" - ")[0] for line in re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M))
    return counts.get("passed", 0) + len(failed), failed


def until(what: str, holds: object, limit_s: float = 30.0) -> None:
    """Wait until `holds()` is true. Raises AssertionError that says what did not come."""
    end_s = time.monotonic() + limit_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end_s, f"within {limit_s:.0f} s it did not come: {what}"
        time.sleep(0.1)
