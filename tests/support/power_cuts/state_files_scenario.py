"""The files of the desired state and of trials, recorded and cut off: what was saved is there, or what follows.

Run as a program it is the daemon's part: `python -m tests.support.power_cuts.state_files_scenario FOLDER` saves one
state after the other, and says each that is saved on standard output.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.desired_state import DesiredState, Item, Terms, Wanted
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.store.desired_file import DesiredFile
from edge_agent.store.trial_file import TrialFile
from tests.support.power_cuts import recorded
from tests.support.power_cuts.states import History, State, history, states
from tests.support.store_child import ROOT

SAVES = 4


def live(folder: Path) -> None:
    """Save versions 1 to `SAVES` of each file."""
    for number in range(1, SAVES + 1):
        item = Item(Wanted("m", None, f"sha256:{number:064}"), since_s=float(number))
        DesiredFile(folder).write(DesiredState(number, Terms(60.0), [item], spent_s=1.0))
        _say("desired", number)
        TrialFile(folder).write({"m": TrialRecord("m", number, "sha256:0", "running", 1.0)})
        _say("trials", number)
        TrialFile(folder).write_samples({"m": TrialSamples(number, "sha256:0", 1, ratios=(1.0,), old_ms=(2.0,))})
        _say("samples", number)


def _say(what: str, number: int) -> None:
    os.write(1, f"{what} {number}\n".encode())


@dataclass(frozen=True, slots=True)
class RecordedFiles:
    """The recorded run."""

    found: History

    def states(self) -> Iterator[State]:
        """Every state that a power cut may leave; equal files count again where more had been promised."""
        seen: set[tuple[object, ...]] = set()
        for state in states(self.found):
            key = (state.key, *(self._promised(what, state.cut) for what in ("desired", "trials", "samples")))
            if key not in seen:
                seen.add(key)
                yield state

    def _promised(self, what: str, cut: int) -> int:
        """The last version that was said to be saved before the cut; 0 for none."""
        lines = [text.split() for at, text in self.found.said if at < cut]
        return max((int(number) for word, number in lines if word == what), default=0)

    def check(self, state: State, folder: Path) -> None:
        """Lay the state out and read the files there. Raises AssertionError with the state."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        state.lay_out(folder)
        promised = {what: self._promised(what, state.cut) for what in ("desired", "trials", "samples")}
        where = f"cut after {state.cut} of {self.found.length}, lost {state.lost} {state.torn}"
        check_files(folder / "state", promised, where)


def check_files(top: Path, promised: Mapping[str, int], where: str) -> None:
    """Read the files: of each the version that was saved last, or the next one. Raises AssertionError."""
    desired, trials, samples = DesiredFile(top).read(), TrialFile(top).read(), TrialFile(top).read_samples()
    found = {
        "desired": 0 if desired is None else desired.version,
        "trials": trials["m"].version if trials else 0,
        "samples": samples["m"].version if samples else 0,
    }
    for what, version in found.items():
        saved = promised[what]
        assert version in (saved, saved + 1), f"{what}, {where}: version {version}, {saved} was saved"


def record_files(folder: Path) -> RecordedFiles:
    """Run `live` under strace."""
    top = folder / "state"
    top.mkdir(parents=True)
    before = folder / "before"
    shutil.copytree(top, before)
    operations = recorded.run(
        [sys.executable, "-m", "tests.support.power_cuts.state_files_scenario", str(top)],
        top,
        folder / "trace",
        **{**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"},
    )
    return RecordedFiles(history(operations, top, before))


if __name__ == "__main__":
    live(Path(sys.argv[1]))
