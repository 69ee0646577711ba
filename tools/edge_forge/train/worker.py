"""One training run in a process of its own: `python -m edge_forge.train.worker JOB` (or by `accelerate launch -m`).

A process of its own, so that its peak memory is the run's, its threads and environment are its own, and ending it ends
everything. What it says meanwhile: `serve`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge_forge.train.classifier_job import Job
from edge_forge.train.serve import Report, serve


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""
    return serve(lambda report: _run(Path(arguments[0]), report))


def _run(job: Path, report: Report) -> None:
    from edge_forge.train.classifier_session import run

    run(Job.read(job), report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
