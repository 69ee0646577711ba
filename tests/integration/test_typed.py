"""A user's mypy --strict reads the types of the installed client library (PEP 561)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
from edge_agent.client import Client, RequestError


def label(text: str) -> str:
    """What the device says of a text."""
    with Client("localhost", device="demo") as edge:
        try:
            answer = edge.ask("minilm", text, adapter="home-intents", deadline_s=5.0)
        except RequestError as refusal:
            return f"{refusal.status}: {refusal.reason}"
        return answer.label


def words(text: str) -> list[str]:
    """The parts of a streamed answer."""
    with Client("localhost", device="demo") as edge:
        return [part.text for part in edge.stream("tiny-llama", text)]
'''
WRONG = {
    'return answer.label': ("return answer.score", "[return-value]"),
    'deadline_s=5.0': ('deadline_s="soon"', "[arg-type]"),
}  # fmt: skip


def test_both_packages_carry_the_marker_into_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert set(wheel["wheel"]) == {"packages", "force-include"}, "something is left out of the packages' files"
    packages = wheel["wheel"]["packages"]
    assert packages == ["edge_agent", "tools/edge_forge"]
    assert [(ROOT / package / "py.typed").is_file() for package in packages] == [True, True]


@pytest.mark.slow
def test_a_program_is_checked_against_the_clients_types(tmp_path: Path) -> None:
    """One run for all: what is right passes, and each of what is wrong is found."""
    (tmp_path / "right.py").write_text(PROGRAM)
    for number, (line, (instead, _)) in enumerate(WRONG.items()):
        assert line in PROGRAM
        (tmp_path / f"wrong{number}.py").write_text(PROGRAM.replace(line, instead))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache")]
    names = ["right.py", *(f"wrong{number}.py" for number in range(len(WRONG)))]
    done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    found = sorted(line for line in done.stdout.splitlines() if " error: " in line)
    assert len(found) == len(WRONG), done.stdout + done.stderr
    for number, (_, kind) in enumerate(WRONG.values()):
        assert found[number].startswith(f"wrong{number}.py:") and found[number].endswith(kind)
