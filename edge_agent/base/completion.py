"""The shell's completion of both programs, written once from their parsers.

A file of its own because the verb `completion` alone reads it: the resident daemon imports neither it nor shtab.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from edge_agent.base.errors import UsageError

SHELLS = ("bash", "zsh")
HELP = "print a script that completes verbs, options and files in the shell"


def add_completion(verbs: Any, program: str) -> argparse.ArgumentParser:
    """The verb `completion SHELL` among the verbs of `program`; returns its parser."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        "completion",
        help=HELP,
        description=f'{HELP}: for bash, eval "$({program} completion bash)" in ~/.bashrc; for zsh, '
        f"{program} completion zsh > a file _{program} in a folder of $fpath.",
    )
    verb.add_argument("shell", choices=SHELLS, help="which shell")
    return verb


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script that completes verbs, options, choices and file names of `parser` in `shell`, one of `SHELLS`.

    It is a plain script: the program does not start at each press of the key. Raises UsageError where shtab, which
    writes it, is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UsageError(
            "the package shtab writes the script and is not installed", "completion",
            "pip install shtab (the extra `completion` names it)",
        ) from error  # fmt: skip
    for action in _actions(parser):
        if getattr(action.type, "__name__", "") == "Path":
            vars(action)["complete"] = shtab.FILE  # where shtab looks for it
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All actions of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in dict.fromkeys(action.choices.values()):
                yield from _actions(verb)
