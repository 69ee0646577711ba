"""Orders over MQTT run in a process that ends: by itself, or at the limit of time."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from edge_agent.app import daemon
from edge_agent.app.daemon import StoreProcess
from edge_agent.base.errors import StoreError

DEAF = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
TELL = "open({path!r}, 'w').write(str(os.getpid())); time.sleep(600)"


def order(monkeypatch: pytest.MonkeyPatch, program: str, order_s: float, folder: Path) -> object:
    monkeypatch.setattr(daemon, "module_command", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr(daemon, "ORDER_END_S", 0.5)
    return asyncio.run(StoreProcess(None, folder, order_s).rollback("minilm"))


@pytest.mark.parametrize("start", ["import os, time; ", DEAF])
def test_an_order_that_takes_too_long_is_ended_with_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: str
) -> None:
    note = tmp_path / "pid"
    with pytest.raises(StoreError, match=r"ended after 2 s; what was installed before is unchanged"):
        order(monkeypatch, start + TELL.format(path=str(note)), 2.0, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_refusal_keeps_its_begin_which_names_what_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = f"model minilm, variant int8: {'because ' * 100}"
    program = f"import sys; sys.exit('a warning of a library\\nedge-agent: {long}')"
    with pytest.raises(StoreError) as caught:
        order(monkeypatch, program, 60.0, tmp_path)
    assert caught.value.what.startswith("model minilm, variant int8: because")
    assert caught.value.what.endswith("...")
    assert len(caught.value.what) == 500


def test_an_order_that_says_nothing_is_told_by_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exit code 3"):
        order(monkeypatch, "import sys; sys.exit(3)", 60.0, tmp_path)


def test_an_order_in_time_gives_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert order(monkeypatch, 'print("{}")', 60.0, tmp_path) == {}
