"""Measured footprints on disk: kept over restarts, begun anew when they cannot be believed, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.core.memory_ledger import MeasuredFootprint
from edge_agent.store.footprint_cache import FIGURES_FILE, FootprintFile

FIGURES = {"sha256:a": MeasuredFootprint("onnx", 100, 150, 1.5)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert FootprintFile(tmp_path).read() == {}
    FootprintFile(tmp_path).write(FIGURES)
    assert FootprintFile(tmp_path).read() == FIGURES
    assert [path.name for path in tmp_path.iterdir()] == [FIGURES_FILE]


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema": 2}', b'{"schema": 1, "figures": {"a": {}}}', b"\xff" * 9])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FIGURES_FILE).write_bytes(data)
    assert FootprintFile(tmp_path).read() == {}
    assert "begun anew" in caplog.text
    FootprintFile(tmp_path).write(FIGURES)
    assert FootprintFile(tmp_path).read() == FIGURES


def test_a_disk_that_cannot_is_said_once_and_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "file"
    place.write_text("not a folder")
    file = FootprintFile(place)
    file.write(FIGURES)
    file.write(FIGURES)
    assert caplog.text.count("are not kept") == 1
