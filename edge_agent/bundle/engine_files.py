"""Engines that a device compiles, as a package carries them: by a key, which says what an engine belongs to.

A file of its own because the runtime's engine cache on the device and the host's packager name engines alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_FILE = re.compile(r"engines/([0-9a-f]{32})\.plan")


def engine_origin(graph: str, device: Mapping[str, str], build: Mapping[str, Any]) -> dict[str, Any]:
    """All that an engine depends on: the SHA-256 of its graph, the device's versions and modes, the build."""
    return {"graph": graph, "device": dict(device), "build": dict(build)}


def engine_key(origin: Mapping[str, Any]) -> str:
    """The name of the engine of an `engine_origin`: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]


def engine_path(key: str) -> str:
    """Where a package holds the engine of a key."""
    return f"engines/{key}.plan"


def key_of_path(path: str) -> str | None:
    """The key of an engine by its path in a package; None for every other file."""
    found = _FILE.fullmatch(path)
    return found[1] if found else None
