"""The worker's side of a training process: phases and errors go to standard output as JSON lines, all else to the log.

Events are {"phase", "share"} while it runs, and {"error": {...}} when it fails with an error that has a name. The other
side is `follow`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from edge_agent.base.errors import EdgeError

Report = Callable[[str, float], None]

# oneDNN keeps a compiled product per shape, 1024 of them by default; batches of many lengths make that a gigabyte.
# With 16 an epoch of home-intents in bf16 peaks at 812 instead of 1000 MB and takes as long.
# OpenMP threads that wait by spinning keep the core from the thread they wait for as soon as another program runs.
_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "OMP_WAIT_POLICY": "passive"}


def serve(run: Callable[[Report], object]) -> int:
    """Let `run` report its phases to standard output, and say there what it fails with; 0 done, 1 failed."""
    for name, value in _ENVIRONMENT.items():
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
