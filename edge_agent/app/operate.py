"""`edge-agent service` and `doctor`: the operator's side of this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.lifecycle import service as units
from edge_agent.lifecycle.service import IMAGE_PYTHON, Target
from edge_agent.lifecycle.service_status import status


def service(action: str, root: Path | None, python: str | None, drop_ins: Sequence[str] | None, purge: bool) -> int:
    """Install, uninstall or look at the systemd service, here or in an image. Raises UsageError, EdgeError."""
    place = Target(root or Path("/"), python or (sys.executable if root is None else IMAGE_PYTHON))
    if action == "status":
        found = status(place)
        print("\n".join(found.lines()))
        return 0 if found.healthy else 1
    done = units.install(place, drop_ins) if action == "install" else units.uninstall(place, purge)
    print("\n".join(done))
    return 0
