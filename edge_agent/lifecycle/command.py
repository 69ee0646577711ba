"""Running a short command of the system, behind a type that tests replace."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

COMMAND_TIMEOUT_S = 120.0
"""`systemctl start` waits for READY; the rest takes a moment."""

OUTPUT_CHARS = 2000


class CommandResult(NamedTuple):
    """What a command came to: its exit code (127: there is no such command) and its output, shortened."""

    code: int
    output: str


Runner = Callable[[Sequence[str]], CommandResult]


def run_command(command: Sequence[str]) -> CommandResult:
    """Run it and wait. Never raises for what the command does: a missing one is 127, one that hangs 124."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return CommandResult(127, f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return CommandResult(124, f"{command[0]} did not end within {COMMAND_TIMEOUT_S:g} s")
    except OSError as problem:
        return CommandResult(126, f"{command[0]}: {problem.strerror}")
    return CommandResult(done.returncode, (done.stdout + done.stderr).strip()[-OUTPUT_CHARS:])
