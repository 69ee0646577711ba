"""What the store's record says of a version on trial, through installs, rollbacks and removals; the daemon's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.base.errors import StoreError
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.trial_file import SAMPLES_FILE, TRIALS_FILE, TrialFile
from edge_agent.store.variant_selection import Hardware
from tests.support.packages import TinyProber, base_package, trust

TERMS = '{"least":50}'


def store(folder: Path, trial: str = "") -> ModelStore:
    hardware = Hardware("board", ("onnx",))
    return ModelStore(folder / "store", InstallContext(TinyProber(), hardware, trust(), reserve_bytes=0, trial=trial))


def versions(folder: Path) -> tuple[int, int | None, str]:
    """Current and previous version of the one model, and the terms of a trial."""
    (model,) = store(folder).models()
    return model.current.version, model.previous and model.previous.version, model.current.trial


def test_the_version_before_is_the_proven_one_until_the_trial_ends(tmp_path: Path) -> None:
    one, two, three = (base_package(tmp_path / str(counter), counter, seed=counter) for counter in (1, 2, 3))
    store(tmp_path, TERMS).install(one)
    assert versions(tmp_path) == (1, None, ""), "a first version has nothing to be compared with"
    with pytest.raises(StoreError, match="not on trial"):
        store(tmp_path).promote("tiny")
    store(tmp_path, TERMS).install(two)
    assert versions(tmp_path) == (2, 1, TERMS)
    proven = store(tmp_path).proven("tiny")
    assert proven is not None and proven.version == 1 and proven.variant.files
    assert store(tmp_path).active()[0].trial == TERMS
    store(tmp_path).install(three)
    assert versions(tmp_path) == (3, 1, ""), "a version that nobody has judged is not kept"
    assert store(tmp_path).proven("tiny") is None


def test_a_rollback_to_a_version_that_was_on_trial_lets_it_answer(tmp_path: Path) -> None:
    store(tmp_path).install(base_package(tmp_path / "1"))
    store(tmp_path, TERMS).install(base_package(tmp_path / "2", 2, seed=2))
    store(tmp_path).rollback("tiny")
    assert versions(tmp_path) == (1, 2, "")
    store(tmp_path).rollback("tiny")
    assert versions(tmp_path) == (2, 1, "")


def test_a_version_that_was_returned_comes_back_on_trial_where_terms_ask_for_it(tmp_path: Path) -> None:
    store(tmp_path).install(base_package(tmp_path / "1"))
    store(tmp_path, TERMS).install(base_package(tmp_path / "2", 2, seed=2))
    store(tmp_path).rollback("tiny")
    store(tmp_path).rollback("tiny", TERMS)
    assert versions(tmp_path) == (2, 1, TERMS)
    store(tmp_path).rollback("tiny", TERMS)
    assert versions(tmp_path) == (1, 2, ""), "the version that answers is not tried"


def test_a_promoted_version_answers_and_keeps_the_one_before(tmp_path: Path) -> None:
    store(tmp_path).install(base_package(tmp_path / "1"))
    store(tmp_path, TERMS).install(base_package(tmp_path / "2", 2, seed=2))
    generation = store(tmp_path).generation()
    assert store(tmp_path).promote("tiny").version == 2
    assert versions(tmp_path) == (2, 1, "") and store(tmp_path).generation() != generation


def test_the_daemons_file_is_read_back_and_a_damaged_one_begins_anew(tmp_path: Path) -> None:
    file, record = (
        TrialFile(tmp_path),
        TrialRecord("m", 2, "sha256:1", "returned", 5.0, 6.5, 1, True, "why", {"a": None}),
    )
    assert file.read() == {}
    file.write({"m": record})
    assert file.read() == {"m": record}
    (tmp_path / TRIALS_FILE).write_bytes(b'{"schema":1,"trials":[{}]}')
    assert file.read() == {}


def test_what_trials_measured_is_read_back_counted_anew_where_damaged_and_gone_with_the_last_trial(
    tmp_path: Path,
) -> None:
    file, measured = TrialFile(tmp_path), TrialSamples(2, "sha256:1", 3, 1, 2, ratios=(1.5, 0.9), old_ms=(10.0, 10.0))
    assert file.read_samples() == {}
    file.write_samples({"m": measured})
    assert file.read_samples() == {"m": measured}
    (tmp_path / SAMPLES_FILE).write_bytes(b'{"samples":{"m":{"version":"x"}}}')
    assert file.read_samples() == {}
    file.write_samples({})
    assert not (tmp_path / SAMPLES_FILE).exists()
