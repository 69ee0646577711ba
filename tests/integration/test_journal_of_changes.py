"""Every change that a person makes on the board is a line of the system's journal, with who made it."""

from __future__ import annotations

import os
import syslog
from pathlib import Path

import pytest

from edge_agent.app import packages
from tests.support.agents import AgentProcess, echo_package


def test_install_rollback_and_removal_are_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda level, text: said.append((level, text)))
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setenv("SUDO_USER", "ada\x1b[2J")
    config = AgentProcess(tmp_path / "device", 1).config
    packages.install(config, echo_package(tmp_path, counter=1))
    packages.install(config, echo_package(tmp_path, counter=2))
    packages.install(config, echo_package(tmp_path, counter=2))
    packages.rollback(config, "echo")
    packages.remove(config, "echo", None)
    assert [level for level, _ in said] == [syslog.LOG_NOTICE] * 4, "a second install of the same changes nothing"
    texts = [text for _, text in said]
    for text, words in zip(texts, ("installed echo", "installed echo", "echo is back", "removed echo"), strict=True):
        assert text.startswith(words)
        assert text.endswith("(by ada\ufffd[2J)")


def test_what_the_daemons_own_process_changes_is_said_by_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JOURNAL_STREAM", "8:1")
    monkeypatch.setattr(syslog, "syslog", lambda *_: pytest.fail("the daemon's child wrote a line of its own"))
    packages.journal("removed echo")
