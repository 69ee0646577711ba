from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edge_agent.base.errors import StoreError
from edge_agent.bundle.catalog import TrialFigures
from edge_agent.core.energy import UtilisationModel
from edge_agent.store.state_file import (
    RECORD_FILE,
    TRIALS_KEPT,
    AdapterRecord,
    Committed,
    InstalledVersion,
    Measurements,
    ModelRecord,
    Record,
    Ref,
    StateFile,
)

DIGEST = "sha256:" + "a" * 64


def record(counter: int) -> Record:
    return Record(committed={"p/stable": Committed(counter=counter, index=DIGEST)}, newest_issued_s=12.5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    assert state_file.read() == Record()
    state_file.write(record(3), lambda: None)
    assert StateFile(tmp_path).read() == record(3)


def test_a_disk_that_does_not_answer_is_an_error_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on without the store; an OSError ended it."""

    def stat(_path: Path) -> os.stat_result:
        raise OSError(5, "Input/output error")

    state_file = StateFile(tmp_path)
    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(StoreError, match="Input/output error"):
        state_file.generation()


def test_every_write_changes_the_generation_whatever_the_clock_says(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    seen = [state_file.generation()]
    for counter in range(50):
        state_file.write(record(counter), lambda: None)
        seen.append(state_file.generation())
    assert len(set(seen)) == len(seen)
    os.utime(tmp_path / RECORD_FILE, (4e9, 4e9))
    ahead = state_file.generation()
    state_file.write(record(99), lambda: None)
    assert (tmp_path / RECORD_FILE).stat().st_mtime > 3.9e9, "a time in the future is passed, not fallen behind"
    assert state_file.generation() != ahead


def test_any_flipped_bit_is_said(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.write(record(3), lambda: None)
    path = tmp_path / RECORD_FILE
    good = path.read_bytes()
    for at in range(len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StoreError, match="damaged"):
            state_file.read()


@pytest.mark.parametrize("data", [b"", b"\n", b"\0" * 4096])
def test_what_a_torn_file_system_leaves_is_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        StateFile(tmp_path).read()


def test_nothing_is_in_place_before_the_rename(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.write(record(1), lambda: None)
    seen: list[Record] = []
    state_file.write(record(2), lambda: seen.append(StateFile(tmp_path).read()))
    assert seen == [record(1)]


def test_trials_are_counted_until_one_ends(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    assert state_file.trials(DIGEST) == 0
    state_file.begin_trial(DIGEST)
    state_file.begin_trial(DIGEST)
    assert StateFile(tmp_path).trials(DIGEST) == 2
    state_file.end_trial(DIGEST)
    assert state_file.trials(DIGEST) == 0 and list(tmp_path.iterdir()) == []


def test_trials_are_bounded(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    for number in range(TRIALS_KEPT + 5):
        state_file.begin_trial(f"sha256:{number:064x}")
    kept = [number for number in range(TRIALS_KEPT + 5) if state_file.trials(f"sha256:{number:064x}")]
    assert kept == list(range(5, TRIALS_KEPT + 5))


def test_the_keys_on_disk_stay_those_of_the_first_release(tmp_path: Path) -> None:
    version = InstalledVersion(
        version=1,
        package=DIGEST,
        line="p/stable",
        counter=3,
        chosen=DIGEST,
        variants=(Ref(digest=DIGEST, size=9),),
        adapters=(
            AdapterRecord(
                name="a",
                manifest=Ref(digest=DIGEST, size=9),
                counter=3,
                package=DIGEST,
                measured=Measurements.of(TrialFigures(2.5, 0, 0.0, 17)),
            ),
        ),
        measured=Measurements.of(TrialFigures(3.0, 1000, 0.5, 17, 0.02, "estimated: x", energy_estimated=True)),
        selection="balanced  0.01",
    )
    StateFile(tmp_path).write(
        Record(models={"m": ModelRecord(current=version, last_version=1)}, committed={}), lambda: None
    )
    found = json.loads((tmp_path / RECORD_FILE).read_bytes().splitlines()[0])["models"]["m"]["current"]
    assert found["wishes"] == "balanced  0.01" and "selection" not in found
    assert found["adapters"][0]["measured"] == {"latency_ms": 2.5, "text_bytes": 17}
    assert found["measured"] == {
        "energy_method": "estimated: x",
        "joules": 0.02,
        "latency_ms": 3.0,
        "load_s": 0.5,
        "peak_bytes": 1000,
        "text_bytes": 17,
    }
    read = StateFile(tmp_path).read().models["m"].current
    assert read == version
    assert read.measured.figures() == TrialFigures(3.0, 1000, 0.5, 17, 0.02, "estimated: x", energy_estimated=True)


@pytest.mark.parametrize(
    ("method", "estimated"),
    [
        (UtilisationModel("board", 2.7, 4.0, 4).method("one text"), True),
        ("ina3221 VDD_IN, whole board", False),
        ("", False),
    ],
)
def test_that_energy_is_an_estimate_survives_the_file(method: str, estimated: bool) -> None:
    """The file has the method only; its field names are fixed because earlier releases refuse unknown ones."""
    figures = TrialFigures(3.0, 1000, 0.5, 17, 0.02, method, energy_estimated=estimated)
    assert Measurements.of(figures).figures() == figures
