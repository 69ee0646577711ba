"""`make powercut`: every scenario over every state that a power cut may leave, and every fault at every call."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edge_agent.base.errors import EdgeError
from tests.support.power_cuts import recorded
from tests.support.power_cuts.recorded import Call
from tests.support.power_cuts.spool_scenario import record_spool
from tests.support.power_cuts.state_files_scenario import record_files
from tests.support.power_cuts.store_scenarios import SCENARIOS, Recorded, packages, record

# What a disk says of each kind of call.
FAULTS = {
    "openat": ("EIO", "EROFS", "ENOSPC"),
    "mkdir": ("EIO", "EROFS", "ENOSPC"),
    "write": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "EROFS", "ENOSPC"),
    "unlink": ("EIO", "EROFS"),
}


def faults(found: Recorded) -> Iterator[tuple[Call, str]]:
    """Every call of the change, with each error."""
    for call in recorded.calls(found.before.parent / "state", found.trace):
        for error in FAULTS.get(call.name, ()):
            yield call, error


def main() -> int:
    """Run everything; print a line per scenario. Returns 1 when a state or a fault was not survived."""
    logging.disable(logging.WARNING)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="power-cuts-") as name:
        folder = Path(name)
        made = packages(folder / "packages")
        for number, scenario in enumerate(SCENARIOS):
            found = record(scenario, made, folder / f"of{number}")
            cuts = _run(failures, [partial(found.check, one, folder / "at") for one in found.states()])
            hit = _run(failures, [partial(found.check_fault, *one, folder / "at") for one in faults(found)])
            print(f"{scenario.name}: {len(found.operations)} operations, {cuts} states, {hit} faults", flush=True)
        spool = record_spool(folder / "spool")
        cuts = _run(failures, [partial(spool.check, one, folder / "at") for one in spool.states()])
        print(f"events in the spool: {spool.found.length} operations, {cuts} states", flush=True)
        files = record_files(folder / "files")
        cuts = _run(failures, [partial(files.check, one, folder / "at") for one in files.states()])
        print(f"the desired state and trials: {files.found.length} operations, {cuts} states", flush=True)
    for line in failures[:40]:
        print(line)
    print(f"{len(failures)} not survived")
    return 1 if failures else 0


def _run(failures: list[str], checks: Sequence[Callable[[], object]]) -> int:
    """Run each check; what it finds is kept. Returns how many there were."""
    for check in checks:
        try:
            check()
        except (AssertionError, EdgeError, OSError, ValueError) as error:
            failures.append(f"{type(error).__name__}: {error}")
    return len(checks)


if __name__ == "__main__":
    sys.exit(main())
