"""One training run in a process of its own: `python -m edge_forge.training.worker JOB` (or by `accelerate launch -m`).

A process of its own, so that its peak memory is the run's, its threads and environment are its own, and ending it ends
everything. Events go to standard output as JSON lines: {"phase", "share"} while it runs, {"error": {...}} when it
fails with an error that has a name. All else goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from edge_agent.base.errors import EdgeError
from edge_forge.training.job import Job

Report = Callable[[str, float], None]

# oneDNN keeps a compiled product per shape, 1024 of them by default; batches of many lengths make that a gigabyte.
# With 16 an epoch of home-intents in bf16 peaks at 812 instead of 1000 MB and takes as long.
_PRIMITIVES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""
    return serve(lambda report: _run(Path(arguments[0]), report))


def _run(job: Path, report: Report) -> None:
    from edge_forge.training.session import run

    run(Job.read(job), report)


def serve(run: Callable[[Report], object]) -> int:
    """Let `run` report its phases to standard output, and say there what it fails with; 0 done, 1 failed."""
    for name, value in _PRIMITIVES.items():
        os.environ.setdefault(name, value)  # before the tensor library is imported
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    chief = os.environ.get("RANK", "0") == "0"

    def report(phase: str, share: float) -> None:
        if chief:
            events.write(json.dumps({"phase": phase, "share": round(share, 4)}) + "\n")

    try:
        run(report)
    except EdgeError as error:
        if chief:
            told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
            events.write(json.dumps({"error": told}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
