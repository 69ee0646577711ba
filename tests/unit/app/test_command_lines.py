"""The help and the shell's completion of both programs."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest

from edge_agent.base.completion import completion
from edge_agent.cli.verbs import parser as agent_parser
from edge_forge.cli import _parser as forge_parser

PARSERS = {"edge-agent": agent_parser, "edge-forge": forge_parser}


def lines(parser, name):
    """Every argument of every verb: where it stands, and the argument."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from lines(below, f"{name} {verb}")
        else:
            yield f"{name} {'/'.join(action.option_strings) or action.dest}", action


@pytest.mark.parametrize("program", PARSERS)
def test_every_argument_says_what_it_is_and_every_value_its_default(program):
    found = dict(lines(PARSERS[program](), program))
    assert len(found) > 30
    assert [place for place, action in found.items() if not action.help] == []
    silent = [
        place
        for place, action in found.items()
        if action.option_strings and action.nargs != 0 and not action.required and "(default: " not in action.help
    ]
    assert silent == []


def completed(program, words, folder):
    """What bash offers for the last of `words`, with the script that the program prints."""
    script = completion(PARSERS[program](), "bash")
    name = program.replace("-", "_")
    asked = " ".join(f"'{word}'" for word in (program, *words))
    text = (
        f"{script}\nCOMP_WORDS=({asked}); COMP_CWORD={len(words)}; _shtab_{name}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run([shutil.which("bash"), "-c", text], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed: NO COMPLETION WAS TRIED")
def test_bash_completes_verbs_options_choices_and_files(tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "recipe.toml").touch()
    assert completed("edge-forge", ["bu"], tmp_path) == ["build"]
    assert completed("edge-forge", ["build", "rec"], tmp_path) == ["recipe.toml"]
    assert completed("edge-agent", ["infer", "--prot"], tmp_path) == ["--protocol"]
    assert sorted(completed("edge-agent", ["service", "install", "--"], tmp_path))[:2] == ["--drop-in", "--help"]
    assert set(completed("edge-agent", ["service", ""], tmp_path)) == {"install", "uninstall", "status"}


@pytest.mark.parametrize("program", PARSERS)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_reaches_the_terminal_as_it_was_written(program, shell, capsys):
    """What both programs print is cleaned; a script must not lose a character by that."""
    pytest.importorskip("shtab")
    module = {"edge-agent": "edge_agent.cli", "edge-forge": "edge_forge.cli"}[program]
    code = f"import sys, {module} as c; sys.exit(c.main(['completion', {shell!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout == completion(PARSERS[program](), shell) + "\n"


def test_without_shtab_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    from edge_agent.cli import main

    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
