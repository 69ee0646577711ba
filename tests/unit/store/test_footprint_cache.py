"""Measured footprints on disk: kept over restarts, begun anew when they cannot be believed, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.memory_ledger import FootprintKey, MeasuredFootprint
from edge_agent.store.footprint_cache import FIGURES_FILE, FootprintFile, parse_key, stored_key

FIGURES = {FootprintKey("sha256:a"): MeasuredFootprint("onnx", 100, 150, 1.5)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert FootprintFile(tmp_path).read() == {}
    FootprintFile(tmp_path).write(FIGURES)
    assert FootprintFile(tmp_path).read() == FIGURES
    assert [path.name for path in tmp_path.iterdir()] == [FIGURES_FILE]


OLD_FILE = (
    b'{"figures":{'
    b'"sha256:a":{"held_bytes":150,"load_s":1.5,"runtime":"onnx","stated_bytes":100},'
    b'"sha256:g":{"held_bytes":800,"load_s":3.25,"runtime":"llamacpp","stated_bytes":900},'
    b'"sha256:g context=512 sequences=2":{"held_bytes":390,"load_s":2.0,"runtime":"llamacpp","stated_bytes":400},'
    b'"sha256:g shrunk":{"held_bytes":120,"load_s":0.0,"runtime":"llamacpp","stated_bytes":300}}}'
)


def test_a_file_of_an_earlier_release_is_read_and_written_back_identically(tmp_path: Path) -> None:
    """Its keys are texts: the digest, then a generator's settings, then ' shrunk' for a bounded load."""
    path = tmp_path / FIGURES_FILE
    path.write_bytes(OLD_FILE)
    figures = FootprintFile(tmp_path).read()
    assert list(figures) == [
        FootprintKey("sha256:a"),
        FootprintKey("sha256:g"),
        FootprintKey("sha256:g", "context=512 sequences=2"),
        FootprintKey("sha256:g", bounded=True),
    ]
    path.unlink()
    FootprintFile(tmp_path).write(figures)
    assert path.read_bytes() == OLD_FILE


@given(st.text("ab:0=", min_size=1), st.text("cs=1 ").map(str.strip), st.booleans())
def test_a_key_is_the_inverse_of_its_text(digest: str, options: str, bounded: bool) -> None:
    key = FootprintKey(digest, options, bounded)
    assert parse_key(stored_key(key)) == key


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
