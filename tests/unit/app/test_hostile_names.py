"""Names, labels, reasons and generated text that came from elsewhere reach no output as commands.

Every output is fed: the terminal (`top`, `infer`, `chat`, errors of both programs), JSON, the table of `record`, the
picture of `plot`, reports in HTML and Markdown with their drawings, the journal, Home Assistant's discovery.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import logging
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.app import ask, packages, top
from edge_agent.app.daemon import JournalFormatter
from edge_agent.app.telemetry_plot import draw, read
from edge_agent.base.errors import PackageError
from edge_agent.base.shown_text import csv_cell, html_text, json_text, many_lines, one_line
from edge_agent.cli import main
from edge_agent.protocol.home_assistant import discovery
from edge_agent.protocol.topics import Topics
from edge_forge import cli as forge
from edge_forge.report import plots
from edge_forge.report.blocks import Heading, Items, Paragraph, Table, write
from tests.unit.app.test_top import reports

HOSTILE = (
    "\x1b[31mred\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b2Jc1",
    "\u202egnp.exe\u2066",
    "two\nlines\rback",
    "nul\x00del\x7f",
    "lone\ud800half",
    "\u2028separators\u2029",
    '=HYPERLINK("http://evil","x")',
    "@SUM(1+1)",
    "<script>alert(1)</script>",
    "&lt;b onclick='x'",
    r"$\frac$",
    "a|b`c`**d**",
)
TEXT = " ".join(HOSTILE)


def commands_in(text: str, lines: bool = True) -> list[str]:
    """What a terminal would act on."""
    kept = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}" if lines else ""
    acted = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return [char for char in text if unicodedata.category(char) in acted and char not in kept]


def renamed(body: Any) -> Any:
    """A message with every model, adapter, reason and other word in it hostile; numbers stay."""
    if isinstance(body, dict):
        return {key: renamed(value) for key, value in body.items()}
    if isinstance(body, list):
        return [renamed(value) for value in body]
    return TEXT if isinstance(body, str) else body


@functools.cache
def hostile_report() -> dict[str, Any]:
    """A real report with hostile names; made before `main` runs its own event loop."""
    told, _ = reports()
    report = renamed(told[0])
    names = dict(zip(HOSTILE, [*report["models"].values()] * len(HOSTILE), strict=False))
    report["models"] = {
        name: {**model, "adapters": dict.fromkeys([name], next(iter(model["adapters"].values())))}
        for name, model in names.items()
    }
    report["refusal_reasons"] = dict.fromkeys(HOSTILE, 1)
    memory = report["memory"]["models"]
    report["memory"]["models"] = {name: next(iter(memory.values()), {"held_bytes": 1}) for name in HOSTILE}
    return dict(report)


async def hostile_messages(_place: object) -> AsyncIterator[tuple[str, Any]]:
    """What `top` and `record` would hear."""
    yield "status", {"state": "degraded", "reason": TEXT}
    yield "event", {"severity": "error", "message": TEXT}
    yield "telemetry", hostile_report()


def test_top(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hostile_report()
    monkeypatch.setattr(top, "_hear", hostile_messages)
    assert main(["top", "--once", "--host", "h", "--device", "d"]) == 0
    shown = capsys.readouterr().out
    assert "script" in shown
    assert commands_in(shown) == []


REPLIES: tuple[dict[str, Any], ...] = (
    {"status": 503, "reason": TEXT},
    {
        "status": 200, "batch": 1, "variant": TEXT,
        "timing": {"total_ms": 1.0, "queue_ms": 0.0, "tokenize_ms": 0.0, "compute_ms": 1.0},
        "result": {"label": TEXT, "score": 0.5, "truncated": False, "labels": [
            {"label": TEXT, "score": 0.5}, {"label": TEXT, "score": 0.4}]},
    },
    {
        "status": 200, "variant": TEXT, "result": {"text": TEXT, "finish_reason": TEXT, "usage": {
            "completion_tokens": 1, "prompt_tokens": 1}},
        "timing": {"first_token_ms": 1.0, "total_ms": 1.0},
    },
)  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES, ids=["refused", "labels", "generated"])
def test_infer(reply: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ask, "ask", lambda *_: reply)
    main(["infer", "m", "text"])
    shown = capsys.readouterr()
    assert commands_in(shown.out + shown.err) == []
    main(["infer", "m", "text", "--json"])
    text = capsys.readouterr().out
    assert commands_in(text) == []
    assert json.loads(text) == reply, "JSON has the same values"


def test_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def chat(_options: object, _read: object, show: Callable[[str], None], told: Callable[[str], None]) -> int:
        for part in HOSTILE:
            show(part)
        told(TEXT)
        return 0

    monkeypatch.setattr(ask, "chat", chat)
    assert main(["chat", "m"]) == 0
    shown = capsys.readouterr()
    assert commands_in(shown.out + shown.err) == []


def test_models_and_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise PackageError(TEXT, TEXT, TEXT)

    monkeypatch.setattr(packages, "models", refuse)
    assert main(["models"]) == 1
    monkeypatch.setattr(forge, "_load", lambda _place: refuse)
    assert forge.main(["inspect", "x"]) == 1
    assert commands_in(capsys.readouterr().err) == []


def test_record_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_report()
    monkeypatch.setattr(top, "_hear", hostile_messages)
    table = tmp_path / "table.csv"
    assert main(["record", str(table), "--host", "h", "--device", "d"]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any("HYPERLINK" in cell for cell in cells)
    for cell in cells:
        assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
        assert not cell.startswith("-") or float(cell) < 0
        assert commands_in(cell, lines=False) == []
    pytest.importorskip("matplotlib")
    draw(read(table), tmp_path / "picture.svg")
    svg = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "<script" not in svg
    assert commands_in(svg) == []


def test_reports(tmp_path: Path) -> None:
    blocks = [Heading(TEXT), Paragraph(TEXT), Items(HOSTILE), Table(HOSTILE, [HOSTILE, HOSTILE])]
    markdown, page = write(tmp_path, "report", blocks)
    for path in (markdown, page):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text.replace(f"<title>{html_text(TEXT)}", "")
        assert "onclick='" not in page.read_text(encoding="utf-8")
        assert commands_in(text) == []


def test_drawings_of_reports() -> None:
    pytest.importorskip("matplotlib")
    labels = list(HOSTILE)
    matrix = [[1] * len(labels)] * len(labels)
    for svg in (plots.confusion(matrix, labels), plots.bars([(TEXT, "{:.2f}", dict.fromkeys(labels, 0.5))])):
        assert "<script" not in svg
        assert commands_in(svg) == []
        assert r"$\frac$" in svg, "no formula is made of it"


def test_the_journal() -> None:
    record = logging.LogRecord("edge_agent", logging.WARNING, "", 0, "%s: %s", ("installed", TEXT), None)
    line = JournalFormatter().format(record)
    assert commands_in(line, lines=False) == []
    assert "\n" not in line


def test_home_assistant() -> None:
    message = discovery(Topics("edge/v1", "dev", ()), TEXT, "1", 10.0)
    assert commands_in(json.loads(message.payload)["dev"]["mdl"], lines=False) == []


@given(st.text())
def test_any_text(text: str) -> None:
    assert set(commands_in(one_line(text), lines=False)) <= set("\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
    assert commands_in(many_lines(text)) == []
    assert "\n" not in one_line(text)
    assert json.loads(json_text({"x": text})) == {"x": text}
    assert commands_in(json_text([text])) == []
    assert "<" not in html_text(text)
    cell = csv_cell(text)
    assert isinstance(cell, str)
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


def test_what_people_write_stays_as_it_is() -> None:
    """Emoji with joiners, Persian with a non-joiner, Devanagari, accents made of two characters."""
    for text in ("👩\u200d🔧 ok", "می\u200cخواهم", "क्\u200dष", "e\u0301", "日本語", "a\tb\nc"):
        assert many_lines(text) == text
    assert csv_cell(-3.5) == -3.5


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", " =", "\t=", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_begins_as_a_formula(sign: str) -> None:
    """Signs of full width are those that spreadsheets of East Asian languages take as well."""
    assert str(csv_cell(f"{sign}1+1")).startswith("'")


def test_an_encoding_without_the_character_gets_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PYTHONIOENCODING=ascii."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    monkeypatch.setattr(packages, "models", lambda _config: [])
    monkeypatch.setattr(packages, "models_text", lambda _listed, _why: "80 °C … 日 ▇")
    assert main(["models"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"80 deg C ... ? #\n"
    raw.truncate(0)
    raw.seek(0)
    monkeypatch.setattr(packages, "models", lambda _config: [{"name": "日 °"}])
    assert main(["models", "--json"]) == 0
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == [{"name": "日 °"}]


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_options: argparse.Namespace) -> int:
        secret = "password-in-a-variable"
        raise ZeroDivisionError(f"never {len(secret)}")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(packages, "models", fail)
    assert main(["models"]) == 1
    monkeypatch.setattr(forge, "_load", lambda _place: fail)
    assert forge.main(["inspect", "a-secret-argument"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, program in zip(lines, ("edge-agent", "edge-forge"), strict=True):
        assert line.startswith(f"{program}: an error of the program itself: ZeroDivisionError: never 22 (details: ")
        path = Path(line.partition("details: ")[2].partition(";")[0])
        assert path.stat().st_mode & 0o777 == 0o600
        details = path.read_text(encoding="utf-8")
        assert "ZeroDivisionError" in details
        assert "a-secret-argument" not in details
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["models"]) == 1
    assert "no details:" in capsys.readouterr().err
