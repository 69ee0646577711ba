"""The package step: from files and figures of the steps before it to a package that a device installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.base.errors import UsageError
from edge_forge.package.build import Built, base_descriptor, build
from edge_forge.package.sources import AdapterSource, ModelSource, ReleaseSource, VariantSource

__all__ = [
    "AdapterSource",
    "Built",
    "ModelSource",
    "ReleaseSource",
    "VariantSource",
    "build_adapter_package",
    "build_base_package",
    "build_merged_package",
]


def build_base_package(
    out: Path,
    model: ModelSource,
    release: ReleaseSource,
    adapters: Sequence[AdapterSource] = (),
    keys: Sequence[Path] = (),
) -> Built:
    """A base in its variants, with or without adapters of it. The same inputs give the same bytes."""
    if model.merged_from:
        raise UsageError("this is a merged model", f"model {model.name}", "use build_merged_package")
    return build(out, release, model, adapters, keys=keys)


def build_merged_package(out: Path, model: ModelSource, release: ReleaseSource, keys: Sequence[Path] = ()) -> Built:
    """A model with its adapter folded in; `merged_from` must say which. Raises UsageError."""
    if not model.merged_from:
        raise UsageError("a merged model says what it was merged from", f"model {model.name}", "set merged_from")
    return build(out, release, model, keys=keys)


def build_adapter_package(
    out: Path,
    adapters: Sequence[AdapterSource],
    base_package: Path,
    release: ReleaseSource,
    keys: Sequence[Path] = (),
) -> Built:
    """Adapters alone, a few megabytes: the base's weights are on the device already. Raises UsageError."""
    if not adapters:
        raise UsageError("there is no adapter", "package")
    subject = base_descriptor(base_package, adapters[0].base_id)
    return build(out, release, None, adapters, subject=subject, keys=keys)
