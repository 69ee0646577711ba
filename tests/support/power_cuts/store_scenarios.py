"""Changes of a store, recorded, cut off in every way, and what must hold of what is left: the old state or the new one.

`python -m tests.support.power_cuts` runs all of them over every state and prints the counts (`make powercut`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.store.model_store import ModelStore
from edge_agent.store.state_file import StateFile
from tests.support import packages as tiny
from tests.support.power_cuts import recorded
from tests.support.power_cuts.recorded import Call, Operation
from tests.support.power_cuts.states import History, State, history, states
from tests.support.store_child import ROOT, change, install_context


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a store went through before (`installed`, by package), and the change that is cut off."""

    name: str
    installed: tuple[str, ...]
    do: str
    what: str


SCENARIOS = (
    Scenario("install into nothing", (), "install", "first"),
    Scenario("install the next version", ("first",), "install", "second"),
    Scenario("install an adapter", ("first",), "install", "adapter"),
    Scenario("install a third version: the first one is collected", ("first", "second"), "install", "third"),
    Scenario("roll back", ("first", "second"), "rollback", "tiny"),
    Scenario("remove", ("first", "adapter"), "remove", "tiny"),
)


def packages(folder: Path) -> dict[str, Path]:
    """The packages of the scenarios, made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = tiny.base_package(folder, counter=1, seed=1)
    return {
        "first": first,
        "second": tiny.base_package(folder, counter=2, seed=2),
        "third": tiny.base_package(folder, counter=3, seed=3),
        "adapter": tiny.adapter_package(folder, first),
    }


View = tuple[tuple[tuple[str, int, str, tuple[str, ...]], ...], tuple[tuple[str, int], ...]]


def opened(store: Path) -> ModelStore:
    """The store as a device opens it."""
    return ModelStore(store, install_context(tiny.keys().root_file))


def view(store: Path) -> View:
    """Models, versions, contents and adapters that run, and the anti-rollback counters."""
    models = tuple(
        (model.name, model.version, model.variant.digest, tuple(one.name for one in model.adapters))
        for model in opened(store).active()
    )
    return models, tuple(sorted((line, mark.counter) for line, mark in StateFile(store).read().committed.items()))


@dataclass(slots=True)
class Recorded:
    """A scenario's recorded change, and how the store looked before (`before` is a copy of it) and after it."""

    scenario: Scenario
    before: Path
    trace: Path
    package: Path | None
    old: View
    new: View = ((), ())
    operations: Sequence[Operation] = ()
    found: History = field(default_factory=lambda: history((), Path("/"), None))

    def states(self) -> Iterator[State]:
        """Every state that a power cut may leave, those of equal files once."""
        seen: set[tuple[bytes, bool]] = set()
        for state in states(self.found):
            key = (state.key, state.cut == self.found.length)
            if key not in seen:
                seen.add(key)
                yield state

    def check(self, state: State, folder: Path) -> None:
        """Lay the state out in `folder` and open the store there. Raises AssertionError with the state."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        state.lay_out(folder)
        store = folder / "state" / "store"
        where = f"{self.scenario.name}, cut after {state.cut} of {self.found.length}, lost {state.lost} {state.torn}"
        library = opened(store)
        library.recover()
        seen = view(store)
        ended = state.cut == self.found.length
        assert seen == self.new if ended else seen in (self.old, self.new), f"{where}: neither old nor new: {seen}"
        assert library.problems() == () and library.scrub() == (), f"{where}: {library.problems()} {library.scrub()}"
        assert library.collect() == 0 and not list(store.rglob("*.tmp")), where
        if self.package is not None:
            library.install(self.package)
        elif seen == self.old:
            getattr(library, self.scenario.do)(self.scenario.what)
        assert view(store) == self.new, f"{where}: made again it is {view(store)}"

    def check_fault(self, call: Call, error: str, folder: Path) -> str:
        """Make the change anew with one call failing: a sentence or success, and the old state or the new one. Returns
        what was said. Raises AssertionError."""
        store = folder / "state" / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before, folder / "state")
        order = self.order(store)
        said, hit = recorded.fail(_command(order), call, error, folder / "trace", **_environment())
        where = f"{self.scenario.name}, {error} at {call.name} number {call.number}"
        if str(folder).encode().hex() not in hit.replace("\\x", ""):
            return ""  # calls before the change differ by some, such as those of the interpreter's caches
        answer = json.loads(said)
        assert answer["points"] or answer["error"], f"{where}: {answer}"
        library = opened(store)
        library.recover()
        seen = view(store)
        wanted = (self.old, self.new) if answer["error"] else (self.new,)
        assert seen in wanted, f"{where}: said {answer['error']}, neither old nor new: {seen}"
        assert library.problems() == () and library.scrub() == () and library.collect() == 0, where
        if self.package is not None:
            library.install(self.package)
            assert view(store) == self.new, f"{where}: made again it is {view(store)}"
        return str(answer["error"] or "")

    def order(self, store: Path) -> str:
        """The change as an order to `store_child`."""
        trust = str(tiny.keys().root_file)
        what = str(self.package or self.scenario.what)
        return json.dumps(
            {"store": str(store), "trust": trust, "do": self.scenario.do, "what": what, "point": None, "nth": 1}
        )


def _command(order: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.power_cuts.store_scenarios", order]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}


def record(scenario: Scenario, made: dict[str, Path], folder: Path) -> Recorded:
    """Run a scenario in `folder`, its change under strace."""
    top = folder / "state"
    store = top / "store"
    top.mkdir(parents=True)
    for name in scenario.installed:
        opened(store).install(made[name])
    found = Recorded(scenario, folder / "before", folder / "trace", made.get(scenario.what), view(store))
    shutil.copytree(top, found.before)
    found.operations = recorded.run(_command(found.order(store)), top, found.trace, **_environment())
    found.new = view(store)
    found.found = history(found.operations, top, found.before)
    return found


if __name__ == "__main__":
    change(json.loads(sys.argv[1]), 1)
