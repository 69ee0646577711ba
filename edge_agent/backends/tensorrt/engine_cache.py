"""Engine files on this device: their names say all that an engine depends on, so that no stale one is ever loaded.

An engine is a compiled graph. It belongs to the graph, the shapes it was built for, TensorRT's and CUDA's version, the
GPU and its power mode. All of that goes into the key; a change of any gives another file. An engine is unproven until
its golden probes held (`judge`), and only then do the ones that are longest unused make room: until the new engine of
a graph is known to compute what the old one did, the old one stays. A file of its own because it is pure but for the
folder, and knows no host process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.bundle.engine_files import engine_key

ENGINES_KEPT, ENGINES_BYTES = 8, 2 << 30
"""Of the engine files the longest unused ones go while there are more than so many and they have more bytes than that
together. Each has about the size of its graph; a board with more models than that keeps all that are small."""
PART_KEPT_S = 86400.0
_OF_DEVICE = ("tensorrt", "cuda", "device", "compute_capability")
# nvpmodel keeps the mode that it last set here, as "pmode:0002" (jetson_stats reads the same file).
_POWER_MODE = "var/lib/nvpmodel/status"
_POWER_MODE_BYTES = 200
_CHUNK_BYTES = 1 << 20
_SECONDS_CHARS = 20


def device_key(probe: Mapping[str, Any], root: Path = Path("/")) -> dict[str, str]:
    """What an engine and a timing cache depend on beside the graph, from the engine host's `probe`."""
    mode = b""
    with contextlib.suppress(OSError), (root / _POWER_MODE).open("rb") as stream:
        mode = stream.read(_POWER_MODE_BYTES)
    return {
        **{name: str(probe[name]) for name in _OF_DEVICE},
        "power_mode": mode.decode(errors="replace").strip(),
    }


def graph_digest(path: str) -> str:
    """The SHA-256 of a file in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:  # noqa: PTH123 (pathlib costs memory for one line)
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class EngineCache:
    """The folder of engine files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def engine(self, origin: Mapping[str, Any]) -> Path:
        """Where the engine of an `engine_origin` lies; perhaps not yet."""
        return self._folder / f"{engine_key(origin)}.plan"

    def take(self, engine: Path, shipped: Path) -> bool:
        """Put an engine that came with the package where this device keeps its own, unproven. Not one whose probes did
        not hold here before. Raises OSError."""
        if _refusal(engine).exists():
            return False
        part = engine.with_suffix(".part")
        try:
            shutil.copyfile(shipped, part)
            part.replace(engine)
            return True
        finally:
            part.unlink(missing_ok=True)

    def timings(self, device: Mapping[str, str]) -> Path:
        """TensorRT's timing cache for this device."""
        return self._folder / f"{_digest(dict(device))}.timings"

    def expected_s(self, device: Mapping[str, str]) -> float | None:
        """Seconds that the last build on this device took; None before the first one."""
        with contextlib.suppress(OSError, ValueError):
            taken_s = float(self._last_build(device).read_text()[:_SECONDS_CHARS])
            return taken_s if 0.0 < taken_s < math.inf else None
        return None

    def note_build(self, device: Mapping[str, str], taken_s: float) -> None:
        """A build on this device took so many seconds. Where that cannot be written, nothing is expected."""
        with contextlib.suppress(OSError):
            self._last_build(device).write_text(f"{taken_s:.1f}")

    def _last_build(self, device: Mapping[str, str]) -> Path:
        return self._folder / f"{_digest(dict(device))}.seconds"

    def used(self, engine: Path) -> None:
        """Note that an engine serves."""
        with contextlib.suppress(OSError):
            os.utime(engine)

    def is_proven(self, engine: Path) -> bool:
        """Whether the golden probes of an engine held."""
        return _proof(engine).exists()

    def judge(self, engine: Path, passed: bool, origin: Mapping[str, Any]) -> None:
        """The golden probes of an engine held, or did not: keep it and let others make room, or delete it.

        The proof says what the engine was built from and for, so that a package can carry both to other devices.
        """
        if not passed:
            self.refuse(engine)
            return
        # Where this cannot be written the probes run again after the next load.
        with contextlib.suppress(OSError):
            _proof(engine).write_text(json.dumps(origin, sort_keys=True))
            self._make_room()

    def refuse(self, engine: Path) -> None:
        """Delete an engine that is of no use here, and do not take it from a package again."""
        self.delete(engine)
        with contextlib.suppress(OSError):
            _refusal(engine).touch()

    def delete(self, engine: Path) -> None:
        """Remove an engine and what is known of it."""
        _proof(engine).unlink(missing_ok=True)
        engine.unlink(missing_ok=True)

    def _make_room(self) -> None:
        for path in self._folder.glob("*.part"):  # of a build whose worker was killed
            if time.time() - path.stat().st_mtime > PART_KEPT_S:
                path.unlink(missing_ok=True)
        ages = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.plan"))
        total_bytes = sum(size for _, size, _ in ages)
        for _, size, path in ages[: max(0, len(ages) - ENGINES_KEPT)]:
            if total_bytes <= ENGINES_BYTES:
                return
            self.delete(path)
            total_bytes -= size


def _proof(engine: Path) -> Path:
    return engine.with_suffix(".proven")


def _refusal(engine: Path) -> Path:
    return engine.with_suffix(".refused")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
