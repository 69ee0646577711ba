"""The daemon's unit tests on the oldest and the newest Python that boards have.

JetPack 6 has Python 3.10, Raspberry Pi OS 3.11 and 3.13. Each interpreter gets a virtual environment with what
the daemon and its tests need, kept under `build/pythons` and made anew when that list changes.

Where an interpreter is absent the test is skipped and says so. In CI it fails instead where pyenv exists: then the
machine is meant to have several, and a skip would hide that one was lost.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYENV = Path.home() / ".pyenv"
ROOMS = ("base", "core", "config", "protocol", "mqtt", "lifecycle", "sensors", "bundle", "store", "agent", "worker")
# The daemon's own; what signs, verifies and packs packages; what the tests themselves import.
NEEDS = (
    "msgspec",
    "paho-mqtt>=2.1,<3",
    "psutil",
    "tomli; python_version < '3.11'",
    "cryptography",
    "numpy",
    "jinja2",
    "pyyaml",
    "jsonschema",
    "safetensors",
    "pytest>=8.3",
    "pytest-timeout",
    "hypothesis",
)
INSTALL_S, TESTS_S = 600, 1500


def interpreter(version: str) -> str | None:
    """An interpreter of that version by name on the path, else the newest of pyenv's that runs."""
    found = [shutil.which(f"python{version}"), *sorted(PYENV.glob(f"versions/{version}.*/bin/python"), reverse=True)]
    for candidate in filter(None, found):
        ask = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:  # a pyenv shim of a version that is not chosen runs, and fails
            return str(candidate)
    return None


def environment(version: str) -> Path:
    """The Python of a virtual environment for these tests, made where it is missing. Skips or fails as said above."""
    base = interpreter(version)
    if base is None:
        message = f"there is no Python {version} here: the daemon was not tested on it"
        if os.environ.get("CI") and PYENV.is_dir():
            pytest.fail(message)
        pytest.skip(message)
    key = hashlib.sha256("\n".join((base, *NEEDS)).encode()).hexdigest()[:12]
    folder = ROOT / "build" / "pythons" / f"{version}-{key}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        for stale in folder.parent.glob(f"{version}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDS]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            message = f"packages for Python {version} cannot be installed: {done.stderr[-500:]}"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        ready.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_S + TESTS_S)
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_the_daemon_passes_its_unit_tests(version: str) -> None:
    python = environment(version)
    folders = [f"tests/unit/{room}" for room in ROOMS]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=quick", *folders]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=TESTS_S, check=False)
    print(f"\nPython {version}: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
