"""Power cuts: a real process is killed at every named point; the reopened store shows old or new, never half."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_agent.base.errors import StoreError
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import read_release
from edge_agent.store.crash_points import INSTALL_POINTS, ROLLBACK_POINTS
from edge_agent.store.model_store import ModelStore
from edge_agent.store.state_file import StateFile
from tests.support import packages as tiny
from tests.support.store_child import Device, install_context

View = tuple[tuple[str, int, str, tuple[str, ...]], ...]
# Points that are reached once per blob: die at the first and at a later one.
REPEATED = {"blob-begun": 5, "blob-written": 5, "blob-placed": 5}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    found = Device()
    yield found
    found.close()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    first = tiny.base_package(folder, counter=1, seed=1)
    return {
        "first": first,
        "second": tiny.base_package(folder, counter=2, seed=2),
        "adapter": tiny.adapter_package(folder, first),
    }


def reopen(store: Path) -> ModelStore:
    return ModelStore(store, install_context(tiny.keys().root_file))


def view(library: ModelStore) -> View:
    """What a client sees: models, versions, contents, adapters."""
    return tuple(
        (model.name, model.version, model.variant.digest, tuple(one.name for one in model.adapters))
        for model in library.active()
    )


def check_whole(store: Path, library: ModelStore) -> None:
    """No half state: every file that is needed is intact, and nothing else is there."""
    assert library.problems() == ()
    assert library.scrub() == ()
    assert library.collect() == 0
    assert not list((store / "unfinished").iterdir())
    assert not list(store.rglob("*.tmp"))


def index_digest(package: Path) -> str:
    with open_package(package) as opened:
        return read_release(opened, tiny.trust()).release.index.digest


def committed(store: Path) -> dict[str, int]:
    return {line: mark.counter for line, mark in StateFile(store).read().committed.items()}


CASES = [
    (before, package, point, nth)
    for before, package in (((), "first"), (("first",), "second"), (("first",), "adapter"))
    for point in INSTALL_POINTS
    for nth in (1, REPEATED.get(point, 1))
    if nth == 1 or (point in REPEATED and package != "adapter")
]


@pytest.mark.parametrize(("before", "package", "point", "nth"), sorted(set(CASES)))
def test_killed_in_an_install(
    before: tuple[str, ...],
    package: str,
    point: str,
    nth: int,
    device: Device,
    packages: dict[str, Path],
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    library = reopen(store)
    for name in before:
        library.install(packages[name])
    old, old_marks = view(library), committed(store)
    twin = tmp_path / "twin"
    if before:  # a store that nothing was installed in has no folder yet
        shutil.copytree(store, twin)
    reopen(twin).install(packages[package])
    new, new_marks = view(reopen(twin)), committed(twin)

    end = device.change(store, "install", str(packages[package]), point, nth)

    assert end.killed, f"{point} was not reached: {end}"
    reopened = reopen(store)
    switched = INSTALL_POINTS.index(point) >= INSTALL_POINTS.index("switched")
    assert view(reopened) == (new if switched else old)
    assert committed(store) == (new_marks if switched else old_marks)
    check_whole(store, reopened)
    on_trial = point in ("trial-recorded", "probing", "probed")
    assert StateFile(store).trials(index_digest(packages[package])) == int(on_trial)
    assert reopened.install(packages[package]).changed is not switched
    assert view(reopened) == new
    check_whole(store, reopened)


@pytest.mark.parametrize("point", ROLLBACK_POINTS)
@pytest.mark.parametrize("do", ["rollback", "remove"])
def test_killed_in_a_rollback_or_removal(
    do: str, point: str, device: Device, packages: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    library = reopen(store)
    library.install(packages["first"])
    one = view(library)
    library.install(packages["second"])
    two = view(library)
    end = device.change(store, do, "tiny", point)
    assert end.killed
    reopened = reopen(store)
    after = one if do == "rollback" else ()
    assert view(reopened) == (two if point == "record-written" else after)
    assert committed(store) == {"tiny/stable": 2}
    check_whole(store, reopened)


def test_every_listed_point_is_reached(device: Device, packages: dict[str, Path], tmp_path: Path) -> None:
    end = device.change(tmp_path / "store", "install", str(packages["first"]))
    assert set(end.points) == set(INSTALL_POINTS)
    device.change(tmp_path / "store", "install", str(packages["second"]))
    assert tuple(device.change(tmp_path / "store", "rollback", "tiny").points) == ROLLBACK_POINTS


def test_a_trial_that_is_cut_off_again_and_again_is_not_repeated(
    device: Device, packages: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for _ in range(3):
        assert device.change(store, "install", str(packages["first"]), "probing").killed
    library = reopen(store)
    with pytest.raises(StoreError, match="cut off 3 times"):
        library.install(packages["first"])
    again = ModelStore(store, replace(install_context(tiny.keys().root_file), again=True))
    assert again.install(packages["first"]).changed


class Life(RuleBasedStateMachine):
    """Install, be killed, roll back, remove, collect, in any order; a model of four lines says what must be there."""

    device: Device
    packages: dict[str, Path]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edge-life-"))
        self.store = self.folder / "store"
        self.current: tuple[str, tuple[str, ...]] | None = None
        self.previous: tuple[str, tuple[str, ...]] | None = None
        self.floor = 0

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)

    def _install(self, name: str) -> None:
        """What an install that is let finish must do to the model."""
        if name == "adapter":
            assert self.current is not None
            wanted = (self.current[0], ("intents",))
        else:
            wanted = (name, () if self.current is None else self.current[1])
            self.floor = max(self.floor, {"first": 1, "second": 2}[name])
        if wanted != self.current:
            self.previous, self.current = self.current, wanted

    def _allowed(self, name: str) -> bool:
        if name == "adapter":
            return self.current is not None
        return {"first": 1, "second": 2}[name] >= self.floor

    @rule(name=st.sampled_from(["first", "second", "adapter"]))
    def install(self, name: str) -> None:
        end = self.device.change(self.store, "install", str(self.packages[name]))
        if self._allowed(name):
            assert end.error is None
            self._install(name)
        else:
            assert end.error is not None

    @rule(
        name=st.sampled_from(["first", "second", "adapter"]),
        point=st.sampled_from(INSTALL_POINTS),
        nth=st.integers(1, 9),
    )
    def install_killed(self, name: str, point: str, nth: int) -> None:
        end = self.device.change(self.store, "install", str(self.packages[name]), point, nth)
        if self._allowed(name) and (not end.killed or INSTALL_POINTS.index(point) >= INSTALL_POINTS.index("switched")):
            self._install(name)
        # A kill may have left a trial; three of them would stop the next install, which has a test of its own.
        reopen(self.store).forget_trials(index_digest(self.packages[name]))

    @precondition(lambda self: self.current is not None)
    @rule(point=st.sampled_from([None, *ROLLBACK_POINTS]))
    def rollback(self, point: str | None) -> None:
        end = self.device.change(self.store, "rollback", "tiny", point)
        if self.previous is None:
            assert end.error is not None
        elif point != "record-written":
            self.current, self.previous = self.previous, self.current

    @precondition(lambda self: self.current is not None)
    @rule(point=st.sampled_from([None, *ROLLBACK_POINTS]))
    def remove(self, point: str | None) -> None:
        self.device.change(self.store, "remove", "tiny", point)
        if point != "record-written":
            self.current = self.previous = None

    @rule()
    def collect(self) -> None:
        assert reopen(self.store).collect() == 0

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        library = reopen(self.store)
        models = library.active()
        found = None if not models else tuple(one.name for one in models[0].adapters)
        assert found == (None if self.current is None else self.current[1])
        slots = library.models()
        wanted = [state[0] for state in (self.current, self.previous) if state is not None]
        kept = [] if not slots else [slot for slot in (slots[0].current, slots[0].previous) if slot is not None]
        assert [slot.package for slot in kept] == [index_digest(self.packages[name]) for name in wanted]
        assert committed(self.store).get("tiny/stable", 0) == self.floor
        check_whole(self.store, library)


@pytest.mark.slow
def test_life(device: Device, packages: dict[str, Path]) -> None:
    bound = type("BoundLife", (Life,), {"device": device, "packages": packages})
    rules = settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(bound, settings=rules)
