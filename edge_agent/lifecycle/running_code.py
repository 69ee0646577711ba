"""Which code runs and which lies on the disk: a daemon that was started before an upgrade goes on with the old code.

A file of its own because the daemon and the commands of the operator both need it, and neither the unit's text nor the
doctor's facts.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edge_agent import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def code_stamp(package: Path = PACKAGE) -> str:
    """Version and a digest of the names, sizes and times of the package's files: two wheels of one version differ in
    it, too. No file is read."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(package):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            found = (Path(folder) / name).stat()
            digest.update(f"{folder}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return f"{__version__}+{digest.hexdigest()[:12]}"
