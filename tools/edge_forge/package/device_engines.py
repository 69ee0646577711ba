"""Engines of TensorRT that one device has built and proven, for the packages of its kind.

A device keeps `KEY.plan` and, once its golden probes held, `KEY.proven` in the folder `engines` of its state. The proof
says what the engine was built from and for, and the key is its digest. So a package can carry engines by their key,
and a device takes one for exactly its own (`edge_agent.backends.tensorrt.engine_cache`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import ConfigError, brief
from edge_agent.bundle.engine_files import engine_key, engine_path

MOST = 32
"""Engines in one recipe. Each takes about as much space as its graph."""
_PROOF_BYTES = 65536
_WHERE = "quantize.tensorrt_engines"


@dataclass(frozen=True, slots=True)
class DeviceEngine:
    """One engine. `graph` is the SHA-256 of the ONNX file that it was built from, `made_for` names the device."""

    key: str
    path: Path
    graph: str
    made_for: str


def read(folder: Path) -> tuple[DeviceEngine, ...]:
    """The engines of a folder that was copied from a device. Raises ConfigError that names the file."""
    paths = sorted(folder.glob("*.plan"))
    if not paths:
        raise ConfigError(
            f"there is no engine (KEY.plan) in {folder}", _WHERE, "copy the folder `engines` of a device's state folder"
        )
    if len(paths) > MOST:
        raise ConfigError(f"{folder} holds {len(paths)} engines, {MOST} are taken", _WHERE, "keep those that are used")
    return tuple(map(_read, paths))


def _read(path: Path) -> DeviceEngine:
    proof = path.with_suffix(".proven")
    try:
        with proof.open("rb") as stream:
            origin = json.loads(stream.read(_PROOF_BYTES))
        graph, device = origin["graph"], origin["device"]
        made_for = f"{device['device']}, TensorRT {device['tensorrt']}"
        key = engine_key(origin)
    except OSError as error:
        raise ConfigError(
            f"its golden probes have not held on a device: {proof.name} cannot be read ({error.strerror})", str(path),
            "copy both from a device on which the model answers",
        ) from error  # fmt: skip
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{proof.name} does not say what the engine was built from", str(path),
            "delete both on the device, and load the model there again",
        ) from error  # fmt: skip
    if key != path.stem:
        raise ConfigError(f"it is not the engine that {proof.name} speaks of ({key})", str(path))
    return DeviceEngine(key, path, str(graph), brief(made_for))


def of_graph(engines: Sequence[DeviceEngine], digest: str) -> dict[str, Path]:
    """Those that were built from a graph, by their place in a package. `digest`: its SHA-256, in either spelling."""
    graph = digest.removeprefix("sha256:")
    return {engine_path(one.key): one.path for one in engines if one.graph == graph}


def check_used(engines: Sequence[DeviceEngine], digests: Sequence[str]) -> None:
    """Refuse an engine that belongs to none of the graphs. Raises ConfigError."""
    graphs = {digest.removeprefix("sha256:") for digest in digests}
    strange = [one for one in engines if one.graph not in graphs]
    if strange:
        raise ConfigError(
            f"{strange[0].path.name} ({strange[0].made_for}) was built from another graph than this recipe makes",
            _WHERE,
            "install this build on that device, and copy the engine that it builds then; or remove the file",
        )  # fmt: skip
