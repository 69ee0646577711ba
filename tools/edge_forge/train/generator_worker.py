"""One training run of a generator in a process of its own: `python -m edge_forge.train.generator_worker JOB`."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_forge.train.generator_job import Job
from edge_forge.train.serve import Report, serve


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""

    def run(report: Report) -> None:
        from edge_forge.train import generator_session as session

        session.run(Job.read(Path(arguments[0])), report)

    return serve(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
