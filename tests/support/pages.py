"""Documentation pages taken apart: commands, their printed output, links, paths, settings; and what is wrong there."""

from __future__ import annotations

import argparse
import fnmatch
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"(?:device|mqtt|store|models|worker|limits|thermal|telemetry|stream|sensors|log)(?:\.[a-z_]+)+")
SHELLS = ("console", "sh", "")
PROGRAMS = ("edge-agent", "edge-forge", "make")


@dataclass(frozen=True)
class Command:
    """A command of a page and the output that the page shows for it, empty where it shows none."""

    words: tuple[str, ...]
    output: str = ""


def commands(text: str) -> list[Command]:
    """The commands of all shell blocks: `$ command` and its output in console blocks, every line in the others."""
    found = []
    for language, body in FENCE.findall(text):
        if language in SHELLS:
            found += list(_block(body.replace("\\\n", " ").splitlines(), language == "console"))
    return [command for command in found if command.words]


def _block(lines: Sequence[str], console: bool) -> Iterator[Command]:
    command, output = "", []
    for line in lines:
        if not console:
            yield from _split(line, "")
        elif line.startswith("$ "):
            yield from _split(command, "\n".join(output))
            command, output = line[2:], []
        else:
            output.append(line)
    yield from _split(command, "\n".join(output))


def _split(line: str, output: str) -> Iterator[Command]:
    for part in re.split(r"\s(?:&&|\|)\s", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        while words and (words[0] in ("sudo", "&") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
            words.pop(0)
        words = [word for word in words if word != "&"]
        yield Command(tuple(words), output)


def inline(text: str) -> list[str]:
    """What stands in backticks outside blocks."""
    return CODE.findall(FENCE.sub("", text))


def inline_commands(text: str) -> list[Command]:
    """Commands of ours in backticks."""
    return [found for code in inline(text) if code.split()[0] in PROGRAMS for found in _split(code, "")]


def verbs(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The verbs of a program, each with the parser of its arguments."""
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _has_verbs(parser: argparse.ArgumentParser) -> bool:
    return any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def wrong_command(command: Command, parsers: Mapping[str, argparse.ArgumentParser], targets: set[str]) -> str | None:
    """Why a command of ours cannot be right: an unknown verb, option or make target; None where there is no reason."""
    program, *words = command.words
    if program == "make":
        unknown = [word for word in words if "=" not in word and not word.startswith("-") and word not in targets]
        return f"make has no target {unknown[0]!r}" if unknown else None
    if program not in parsers or not words:
        return None
    parser = parsers[program]
    while words and not words[0].startswith("-") and _has_verbs(parser):
        if re.fullmatch(r"[A-Z.…|]+", words[0]):
            return None
        known_verbs = verbs(parser)
        missing = [verb for verb in words[0].split("|") if verb not in known_verbs]
        if missing:
            return f"{program} has no verb {missing[0]!r}"
        parser = known_verbs[words[0].split("|")[0]]
        program, words = f"{program} {words[0]}", words[1:]
    known = {option for action in parser._actions for option in action.option_strings}
    for word in words:
        option = word.split("=")[0]
        if re.fullmatch(r"--[a-z-]+", option) and option not in known:
            return f"{' '.join(command.words[:2])} has no option {option}"
    return None


def paths(text: str) -> set[str]:
    """Relative links, and paths in backticks that begin with a folder of the project."""
    links = {link.split("#")[0] for link in LINK.findall(FENCE.sub("", text)) if "://" not in link}
    return {link for link in links if link}


def project_paths(text: str, tops: Sequence[str]) -> set[str]:
    """Paths in backticks below the project's top folders, without placeholders; of `file::test` the file."""
    found = {code.strip().partition("::")[0] for code in inline(text)}
    return {
        code for code in found if code.split("/")[0] in tops and "/" in code and not re.search(r"[<>{}*\s…]|\.\.", code)
    }


def modules_named(text: str, rooms: Collection[str]) -> set[str]:
    """Modules in backticks, and names in modules, as paths below their package.

    `core/admission`, `core/admission.py`, `edge_agent.core.admission`, `core.admission.decide`; the last form only
    for `rooms`, since a dot also stands in settings, keys of recipes and names of files.
    """
    found = set()
    for code in (code.strip() for code in inline(text)):
        path = re.sub(r"^edge_(agent|forge)[./]", "", code)
        dotted = path.split(".")[0] in rooms and not SETTING.fullmatch(path)
        if path != code or dotted:
            path = path.removesuffix(".py").replace(".", "/")
        path = path.removesuffix(".py")
        if re.fullmatch(r"\w+(/\w+)+", path):
            found.add(path)
    return found


def settings_named(text: str) -> set[str]:
    """Settings in backticks, such as `mqtt.host` or `mqtt.port = 1`."""
    return {code.split(" ")[0] for code in inline(text) if SETTING.fullmatch(code.split(" ")[0])}


def last_cells(text: str) -> list[str]:
    """The last cell of every row of every table, heads and rules left out."""
    lines = text.splitlines()
    heads = {index - 1 for index, line in enumerate(lines) if re.fullmatch(r"\|(?: *:?-+:? *\|)+", line)}
    rows = [index for index, line in enumerate(lines) if line.startswith("|") and index not in heads]
    return [lines[index].rstrip("| ").rpartition("| ")[2] for index in rows if index - 1 not in heads]


def shows(expected: str, printed: str) -> bool:
    """Whether an output is as a page shows it: `...` stands for anything."""
    pattern = re.sub(r"([\[\]?*])", r"[\1]", expected.strip()).replace("...", "*")
    return fnmatch.fnmatchcase(printed.strip(), pattern)


def targets(makefile: Path) -> set[str]:
    """The targets of a makefile."""
    return set(re.findall(r"^([a-z][a-z0-9_-]*):", makefile.read_text(), re.MULTILINE))
