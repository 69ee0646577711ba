"""Orders over MQTT run in a process that ends: by itself, or at the limit of time."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from edge_agent.app import daemon
from edge_agent.app.daemon import StoreProcess
from edge_agent.base.causes import Cause
from edge_agent.base.errors import StoreError
from tests.support.mqtt import until

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


def test_a_file_that_came_during_the_install_of_another_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under the same name: what is installed leaves the incoming folder, and nothing else."""
    package = tmp_path / "p.tar"
    package.write_text("the first")
    new = tmp_path / "new"
    replace = f"import os; open({str(new)!r}, 'w').write('2'); os.replace({str(new)!r}, {str(package)!r}); "
    for program, left in ((replace + "print('{}')", True), ("print('{}')", False)):
        monkeypatch.setattr(daemon, "module_command", lambda *_, program=program: [sys.executable, "-c", program])
        asyncio.run(StoreProcess(None, tmp_path).install("p.tar"))
        assert package.exists() is left


def test_an_order_that_is_given_up_has_ended_before_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    monkeypatch.setattr(daemon, "ORDER_END_S", 0.5)
    program = DEAF + TELL.format(path=str(note))
    monkeypatch.setattr(daemon, "module_command", lambda *_: [sys.executable, "-c", program])

    async def run() -> None:
        task = asyncio.create_task(StoreProcess(None, tmp_path).rollback("minilm"))
        await until(lambda: note.exists() and note.read_text())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)

    asyncio.run(run())


STEP = """print('{"step": "%s", "done_bytes": %d, "total_bytes": 9}', file=sys.stderr, flush=True); """


def test_the_steps_of_a_download_are_heard_and_its_end_in_them_is_the_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(daemon, "ORDER_END_S", 0.5)
    begin = "import sys, time; print('noise', file=sys.stderr); " + STEP % ("fetching", 3) + STEP % ("fetching", 7)
    for more, cause in (("", Cause.SOURCE), (STEP % ("probing", 0), Cause.EXPIRED)):
        program = begin + more + "time.sleep(600)"
        monkeypatch.setattr(daemon, "module_command", lambda *_, program=program: [sys.executable, "-c", program])
        heard: list[tuple[int, int]] = []
        with pytest.raises(StoreError, match="ended after 2 s") as caught:
            store = StoreProcess(None, tmp_path, 2.0)
            asyncio.run(
                store.fetch("http://x/p.tar", "sha256:0", progress=lambda *step, heard=heard: heard.append(step))
            )
        assert caught.value.cause is cause and heard == [(3, 9), (7, 9)]
    program = begin + "sys.exit('edge-agent: the server answers 404')"
    monkeypatch.setattr(daemon, "module_command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(StoreError, match="the server answers 404"):
        asyncio.run(StoreProcess(None, tmp_path).fetch("http://x/p.tar", "sha256:0"))


def test_an_order_that_says_nothing_is_told_by_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exit code 3"):
        order(monkeypatch, "import sys; sys.exit(3)", 60.0, tmp_path)


def test_an_order_in_time_gives_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert order(monkeypatch, 'print("{}")', 60.0, tmp_path) == {}
