"""Events kept in a spool, recorded and cut off: what was promised before the cut is there after it, in order.

Run as a program it is the daemon's part: `python -m tests.support.power_cuts.spool_scenario FOLDER` keeps events and
has some acknowledged, and says each promise on standard output.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.mqtt.spool import Spool
from edge_agent.protocol.envelope import Outbound
from tests.support.power_cuts import recorded
from tests.support.power_cuts.states import History, State, history, states
from tests.support.store_child import ROOT

# So few that segments of two events begin and go: 16 segments share them.
EVENTS = 32
KEPT, ACKED = "kept", "acked"


def live(folder: Path) -> None:
    """Keep twelve events, synced each; after every third the two oldest are acknowledged."""
    spool = Spool(folder, max_events=EVENTS, sync_always=True)
    for number in range(12):
        spool.append(Outbound("t", b"%d" % number, qos=1))
        folder.stat()  # the spool goes on in memory where the disk is gone; this program ends
        os.write(1, f"{KEPT} {number}\n".encode())
        if number % 3 == 2:
            for _ in range(2):
                found = spool.oldest()
                assert found is not None
                os.write(1, f"{ACKED} {found[1].payload.decode()}\n".encode())
                spool.pop(found[0])
    spool.close()


@dataclass(frozen=True, slots=True)
class RecordedSpool:
    """The recorded run."""

    found: History

    def states(self) -> Iterator[State]:
        """Every state that a power cut may leave; equal files count again where more had been promised."""
        seen: set[tuple[bytes, tuple[int, ...], tuple[int, ...]]] = set()
        for state in states(self.found):
            key = (state.key, self._said(KEPT, state.cut), self._said(ACKED, state.cut))
            if key not in seen:
                seen.add(key)
                yield state

    def _said(self, word: str, cut: int) -> tuple[int, ...]:
        lines = [text.split() for at, text in self.found.said if at < cut]
        return tuple(int(number) for what, number in lines if what == word)

    def check(self, state: State, folder: Path) -> None:
        """Lay the state out and open the spool there. Raises AssertionError with the state."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        state.lay_out(folder)
        promised = set(self._said(KEPT, state.cut)) - set(self._said(ACKED, state.cut))
        where = f"cut after {state.cut} of {self.found.length}, lost {state.lost} {state.torn}"
        check_events(folder / "state" / "events", promised, where)


def check_events(folder: Path, promised: set[int], where: str) -> None:
    """Open the spool: events in order, each once, and those that were promised. Raises AssertionError."""
    spool = Spool(folder, max_events=EVENTS)
    numbers = []
    while (found := spool.oldest()) is not None:
        numbers.append(int(found[1].payload))
        spool.pop(found[0])
    spool.close()
    assert numbers == sorted(set(numbers)), f"{where}: {numbers} are not in order, each once"
    assert promised <= set(numbers), f"{where}: {numbers} lacks {sorted(promised - set(numbers))}"


def record_spool(folder: Path) -> RecordedSpool:
    """Run `live` under strace."""
    top = folder / "state"
    top.mkdir(parents=True)
    before = folder / "before"
    shutil.copytree(top, before)
    operations = recorded.run(
        [sys.executable, "-m", "tests.support.power_cuts.spool_scenario", str(top / "events")],
        top,
        folder / "trace",
        **{**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"},
    )
    return RecordedSpool(history(operations, top, before))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    live(Path(sys.argv[1]))
