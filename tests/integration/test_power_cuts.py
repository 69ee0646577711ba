"""What a power cut or a failing disk leaves of a store and of the spool: the old state or the new one, by every rule.

A share of the states and faults that `make powercut` goes through; the operations are those of a real process.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.base.errors import StoreError
from tests.support.power_cuts import recorded
from tests.support.power_cuts.__main__ import faults
from tests.support.power_cuts.recorded import Make, Remove, Rename, Sync, Write
from tests.support.power_cuts.spool_scenario import record_spool
from tests.support.power_cuts.state_files_scenario import record_files
from tests.support.power_cuts.states import history, states
from tests.support.power_cuts.store_scenarios import SCENARIOS, Scenario, packages, record

STATES, FAULTS = 25, 3

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"),
    reason="NO strace HERE: power cuts were NOT simulated (Debian package strace)",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    yield packages(tmp_path_factory.mktemp("packages"))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_change_of_the_store_that_is_cut_off(scenario: Scenario, made: dict[str, Path], tmp_path: Path) -> None:
    found = record(scenario, made, tmp_path)
    everything = list(found.states())
    ended = [state for state in everything if state.cut == found.found.length]
    for state in [*random.Random(scenario.name).sample(everything, min(STATES, len(everything))), *ended[:5]]:
        found.check(state, tmp_path / "at")
    calls = list(faults(found))
    for call, error in random.Random(scenario.name).sample(calls, min(FAULTS, len(calls))):
        found.check_fault(call, error, tmp_path / "at")


def test_a_file_that_were_not_synced_would_be_found(made: dict[str, Path], tmp_path: Path) -> None:
    """The check itself: without the fsync of the record some state shows neither the old store nor the new one."""
    found = record(SCENARIOS[0], made, tmp_path)
    top = tmp_path / "state"
    operations = [one for one in found.operations if one != Sync(str(top / "store" / "record.json.tmp"))]
    assert len(operations) < len(found.operations)
    found.found = history(operations, top, found.before)
    with pytest.raises((AssertionError, StoreError)):
        for state in itertools.islice(found.states(), 20_000):
            if state.cut > found.found.length - 3:
                found.check(state, tmp_path / "at")


def test_events_that_were_kept_are_there_after_a_power_cut(tmp_path: Path) -> None:
    found = record_spool(tmp_path)
    everything = list(found.states())
    for state in random.Random(1).sample(everything, 100):
        found.check(state, tmp_path / "at")


def test_the_desired_state_and_trials_that_were_saved_are_there_after_a_power_cut(tmp_path: Path) -> None:
    found = record_files(tmp_path)
    everything = list(found.states())
    for state in random.Random(2).sample(everything, min(60, len(everything))):
        found.check(state, tmp_path / "at")


def test_the_rules_of_a_power_cut() -> None:
    """A name without its bytes, bytes that are torn, a rename without the file's own name, and what is synced."""
    top = Path("/folder")
    done = [Make("/folder/new", False), Write("/folder/new", 0, b"abcd"), Rename("/folder/new", "/folder/name")]
    left = {dict(state.files).get("folder/name") for state in states(history(done, top, None))}
    assert left == {None, b"", b"ab", b"\0" * 4, b"abcd"}
    synced = [*done[:2], Sync("/folder/new"), done[2], Sync("/folder")]
    after = [dict(state.files) for state in states(history(synced, top, None)) if state.cut == len(synced)]
    assert after == [{"folder": None, "folder/name": b"abcd"}]
    removed = [*synced, Remove("/folder/name")]
    after = [dict(state.files) for state in states(history(removed, top, None)) if state.cut == len(removed)]
    assert after == [{"folder": None}, {"folder": None, "folder/name": b"abcd"}]


def test_a_line_of_strace_is_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    place = tmp_path / "place"
    place.mkdir()
    file = place / "a b"
    found = recorded.run(["sh", "-c", f"printf 1234 > '{file}'; printf said; rm '{file}'"], place, trace)
    assert found == [Make(str(file), False), Write(str(file), 0, b"1234"), recorded.Said("said")]
