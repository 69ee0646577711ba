"""What a package is built from: plain paths and values, checked by the same forms that the device reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.bundle import jsonio
from edge_agent.bundle.manifest import TaskDoc, VariantInfo
from edge_agent.bundle.probes import ProbeFile, problem_of
from edge_agent.bundle.statement import IndexRef, Release


@dataclass(frozen=True, slots=True)
class VariantSource:
    """One variant's weights and what was measured of it; see `manifest.VariantInfo` for the meaning of each."""

    weights: Path
    runtime: str
    dtype: str
    peak_bytes: int
    accuracy: float | None = None
    features: Sequence[str] = ()
    hardware: Sequence[str] = ()
    requires: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    engines: Mapping[str, Path] = field(default_factory=dict)
    """Engines that devices built from these weights, by their place in the package (`engine_files.engine_path`)."""

    def info(self) -> VariantInfo:
        """The annotation. Raises UsageError that names the wrong field."""
        fields = {name: getattr(self, name) for name in VariantInfo.__struct_fields__}
        return convert(fields, VariantInfo, f"variant {self.runtime}/{self.dtype}")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base or merged model: `probes` is a file in the form of `probes.ProbeFile`, `task` as `manifest.TaskDoc`.

    `docs` are notes by their name in the package ('README.md', 'LICENSE'); `licences` SPDX names. `merged_from` says
    what a merged model was folded from.
    """

    name: str
    base_id: str
    task: Mapping[str, object]
    variants: Sequence[VariantSource]
    probes: Path
    tokenizer: Path | None = None
    docs: Mapping[str, Path] = field(default_factory=dict)
    licences: Sequence[str] = ()
    architecture: str = ""
    merged_from: Mapping[str, str] = field(default_factory=dict)
    requires: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AdapterPackageSource:
    """One adapter and how it was made; see `manifest.AdapterConfig`. `weights` is its `adapter.safetensors`.

    `licences` are SPDX names.
    """

    name: str
    base_id: str
    weights: Path
    rank: int
    alpha: float
    targets: Sequence[str]
    task: Mapping[str, object]
    probes: Path
    dtype: str = "float32"
    accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    docs: Mapping[str, Path] = field(default_factory=dict)
    licences: Sequence[str] = ()
    requires: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ReleaseSource:
    """The signed statement's fields, `index` apart. Moments are '2026-07-01T00:00:00Z' (`statement.moment`)."""

    product: str
    counter: int
    issued_at: str
    expires: str
    channel: str = "stable"
    min_agent: str = "0"
    hardware: Sequence[str] = ()
    requires: Sequence[str] = ()

    def statement(self, index: IndexRef) -> Release:
        """The statement over an index. Raises UsageError that names the wrong field."""
        names = ("product", "counter", "issued_at", "expires", "channel", "min_agent", "hardware", "requires")
        fields = {name: getattr(self, name) for name in names}
        return convert({"schema": 1, "index": index, **fields}, Release, f"release of {self.product}")


def task_doc(task: Mapping[str, object], where: str) -> TaskDoc:
    """A task from plain values. Raises UsageError."""
    return convert(task, TaskDoc, f"{where}, task")


def probe_bytes(path: Path, variants: Sequence[str] | None, adapter: bool) -> bytes:
    """A probe file in its canonical bytes; `variants` must all be covered. Raises UsageError that names the file."""
    try:
        file = jsonio.decode(path.read_bytes(), ProbeFile, str(path))
    except OSError as error:
        raise UsageError(f"the golden probes cannot be read: {error.strerror}", str(path)) from error
    except EdgeError as error:
        raise UsageError(error.what, str(path)) from error
    problem = problem_of(file, adapter)
    missing = [name for name in variants or () if name not in file.expected]
    if missing:
        problem = f"there are no golden probes for variant {missing[0]}"
    if problem:
        raise UsageError(problem, str(path))
    return jsonio.encode(file)


T = TypeVar("T")


def convert(fields: Mapping[str, object], kind: type[T], where: str) -> T:
    """Plain values as a document of the format. Raises UsageError that names `where` and the wrong field."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), where) from error
