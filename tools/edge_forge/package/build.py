"""Build packages from the files and figures of earlier steps, then read them back as a device would.

A package holds a base or merged model in variants, adapters, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.base.errors import PackageError, UsageError
from edge_agent.bundle import jsonio, weight_files
from edge_agent.bundle import manifest as forms
from edge_agent.bundle import sign as dsse
from edge_agent.bundle.contents import Contents
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.manifest import AdapterConfig, Descriptor, Index, Manifest, ModelDoc
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, IndexRef
from edge_agent.bundle.verify import read_package, read_release
from edge_agent.bundle.weight_files import check_adapter
from edge_forge.package.sources import (
    AdapterPackageSource,
    ModelSource,
    ReleaseSource,
    VariantSource,
    convert,
    probe_bytes,
    task_doc,
)
from edge_forge.package.write import Layout, PackageFile, package_file

_LICENCES = "org.opencontainers.image.licenses"
REF_CHARS = 120
"""Of a name in `index.json`. A registry's tag, which it becomes at a push, has at most 128 characters."""


@dataclass(frozen=True, slots=True)
class BuiltPackage:
    """A package that was written: its path, the digest of its index (what is signed), of the tar, and its size."""

    path: Path
    index_digest: str
    digest: str | None
    size_bytes: int


def build(
    out: Path,
    release: ReleaseSource,
    model: ModelSource | None,
    adapters: Sequence[AdapterPackageSource] = (),
    subject: Descriptor | None = None,
    keys: Sequence[Path] = (),
    folder: bool = False,
) -> BuiltPackage:
    """Write one package. `subject` is the base's manifest for an adapter-only package (`base_descriptor`).

    Without `keys` the package is unsigned. Raises UsageError (an input) or PackageError (the result would be refused).
    """
    layout = Layout()
    entries = [] if model is None else _model_entries(model, layout)
    base = entries[0] if entries else subject
    if adapters and base is None:
        raise UsageError("an adapter-only package needs the base's manifest", "package")
    for adapter in adapters:
        assert base is not None  # noqa: S101 - said just above
        entries.append(_adapter_entry(adapter, base, layout))
    if not entries:
        raise UsageError("there is neither a model nor an adapter", "package")
    document = Index(schema_version=2, media_type=forms.OCI_INDEX, manifests=_unique_refs(entries))
    index = layout.put("index.json", jsonio.encode(document))
    statement = release.statement(IndexRef(digest=index.digest, size=index.size))
    signers = [dsse.PrivateKey.load(path) for path in keys]
    layout.put(RELEASE_FILE, dsse.wrap(RELEASE_TYPE, jsonio.encode(statement), signers))
    layout.write(out, folder, _read_back)
    digest = None if folder else package_file(out).digest
    with open_package(out) as package:
        return BuiltPackage(out, index.digest, digest, sum(package.sizes.values()))


def base_descriptor(package: Path, base_id: str) -> Descriptor:
    """The manifest of a built base package that adapters of `base_id` name as their subject. Raises UsageError."""
    with open_package(package) as opened:
        contents = read_package(opened, read_release(opened, None, allow_unsigned=True).release)
    model = contents.model
    if model is None or model.kind != "base" or model.base_id != base_id:
        raise UsageError(f"it is no package of base {base_id[7:19]}", str(package))
    return contents.variants[0].descriptor


def _model_entries(model: ModelSource, layout: Layout) -> list[Descriptor]:
    if not model.variants:
        raise UsageError("a model has at least one variant", f"model {model.name}")
    kind = "merged" if model.merged_from else "base"
    fields = {"name": model.name, "kind": kind, "base_id": model.base_id, "requires": model.requires}
    task = task_doc(model.task, f"model {model.name}")
    doc = {"schema": 1, **fields, "task": task, "merged_from": model.merged_from}
    described = convert(doc, ModelDoc, f"model {model.name}")
    names = [f"{one.runtime}/{one.dtype}" for one in model.variants]
    shared = {
        forms.MODEL_FILE: (forms.WEIGHT_CONFIG, layout.blob(jsonio.encode(described))),
        forms.PROBES_FILE: (forms.WEIGHT_CONFIG, layout.blob(probe_bytes(model.probes, names, adapter=False))),
    }
    if model.tokenizer is not None:
        shared[forms.TOKENIZER_FILE] = (forms.WEIGHT_CONFIG, layout.blob(_checked(model.tokenizer, "tokenizer.json")))
    for name, path in model.docs.items():
        shared[name] = (forms.DOC, layout.blob(path))
    return [_variant_entry(model, one, shared, layout) for one in model.variants]


def _variant_entry(
    model: ModelSource, source: VariantSource, shared: dict[str, tuple[str, PackageFile]], layout: Layout
) -> Descriptor:
    file = "model" + source.weights.suffix
    weights = layout.blob(_checked(source.weights, file))
    engines = {name: (forms.ENGINE, layout.blob(path)) for name, path in source.engines.items()}
    layers = _layers({file: (forms.WEIGHT, weights), **shared, **engines})
    config = {
        "descriptor": {"name": model.name, "licenses": list(model.licences)},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        "config": {
            "architecture": model.architecture,
            "format": source.weights.suffix.lstrip("."),
            "precision": source.dtype,
        },
    }
    manifest = Manifest(
        schema_version=2,
        media_type=forms.OCI_MANIFEST,
        artifact_type=forms.MODEL,
        config=_descriptor(forms.MODEL_CONFIG, layout.blob(jsonio.encode(config))),
        layers=layers,
        annotations={forms.VARIANT: jsonio.encode(source.info()).decode()},
    )
    return _manifest_descriptor(manifest, layout, f"{source.runtime}-{source.dtype}")


def _adapter_entry(source: AdapterPackageSource, subject: Descriptor, layout: Layout) -> Descriptor:
    names = ("name", "base_id", "rank", "alpha", "targets", "dtype", "accuracy", "metrics", "requires")
    fields = {name: getattr(source, name) for name in names}
    where = f"adapter {source.name}"
    config = convert({"schema": 1, "task": task_doc(source.task, where), **fields}, AdapterConfig, where)
    name = "adapter" + source.weights.suffix
    if name not in forms.ADAPTER_FILES:
        raise UsageError(f"adapters are {' or '.join(forms.ADAPTER_FILES)}", str(source.weights))
    weights = layout.blob(_checked(source.weights, name))
    check_adapter(source.weights, config)
    files = {
        name: (forms.ADAPTER_FILES[name], weights),
        forms.PROBES_FILE: (forms.WEIGHT_CONFIG, layout.blob(probe_bytes(source.probes, None, adapter=True))),
    }
    for title, path in source.docs.items():
        files[title] = (forms.DOC, layout.blob(path))
    manifest = Manifest(
        schema_version=2,
        media_type=forms.OCI_MANIFEST,
        artifact_type=forms.ADAPTER,
        config=_descriptor(forms.ADAPTER_CONFIG, layout.blob(jsonio.encode(config))),
        layers=_layers(files),
        # An adapter's config is read by devices and has no place for it; registries show this key.
        annotations={_LICENCES: " AND ".join(source.licences)} if source.licences else {},
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
    )
    return _manifest_descriptor(manifest, layout, f"adapter-{source.name}")


def _layers(files: dict[str, tuple[str, PackageFile]]) -> tuple[Descriptor, ...]:
    """Layers by name, so that the order in which a recipe names its files changes nothing."""
    return tuple(
        _descriptor(media_type, part, {forms.FILE_PATH: name}) for name, (media_type, part) in sorted(files.items())
    )


def _descriptor(media_type: str, part: PackageFile, annotations: dict[str, str] | None = None) -> Descriptor:
    return Descriptor(media_type=media_type, digest=part.digest, size=part.size, annotations=annotations or {})


def _manifest_descriptor(manifest: Manifest, layout: Layout, ref: str) -> Descriptor:
    part = layout.blob(jsonio.encode(manifest))
    return Descriptor(
        media_type=forms.OCI_MANIFEST,
        digest=part.digest,
        size=part.size,
        artifact_type=manifest.artifact_type,
        annotations={forms.REF_NAME: ref[:REF_CHARS]},
    )


def _unique_refs(entries: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """The entries; of those with one name (variants of one runtime and format for several boards) the second and later
    get a number, since skopeo and umoci take a name that two manifests have for an error."""
    taken: set[str] = set()
    named = []
    for entry in entries:
        first = ref = entry.annotations[forms.REF_NAME]
        number = 1
        while ref in taken:
            number += 1
            ref = f"{first}-{number}"
        taken.add(ref)
        named.append(msgspec.structs.replace(entry, annotations={**entry.annotations, forms.REF_NAME: ref}))
    return tuple(named)


def _checked(path: Path, name: str) -> Path:
    """The path, when its contents are what `name` says. Raises UsageError that names the file."""
    try:
        weight_files.check_file(path, name)
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", str(path)) from error
    except PackageError as error:
        raise UsageError(error.what, str(path)) from error
    return path


def _read_back(out: Path) -> Contents:
    """Read what was written with the device's own reader: what it would refuse is never shipped."""
    with open_package(out) as package:
        return read_package(package, read_release(package, None, allow_unsigned=True).release)


def build_base_package(
    out: Path,
    model: ModelSource,
    release: ReleaseSource,
    keys: Sequence[Path] = (),
) -> BuiltPackage:
    """A base in its variants. The same inputs give the same bytes. Raises UsageError."""
    if model.merged_from:
        raise UsageError("this is a merged model", f"model {model.name}", "use build_merged_package")
    return build(out, release, model, keys=keys)


def build_merged_package(out: Path, model: ModelSource, release: ReleaseSource) -> BuiltPackage:
    """A model with its adapter folded in; `merged_from` must say which. Raises UsageError."""
    if not model.merged_from:
        raise UsageError("a merged model says what it was merged from", f"model {model.name}", "set merged_from")
    return build(out, release, model)


def build_adapter_package(
    out: Path,
    adapters: Sequence[AdapterPackageSource],
    base_package: Path,
    release: ReleaseSource,
) -> BuiltPackage:
    """Adapters alone, a few megabytes: the base's weights are on the device already. Raises UsageError."""
    if not adapters:
        raise UsageError("there is no adapter", "package")
    subject = base_descriptor(base_package, adapters[0].base_id)
    return build(out, release, None, adapters, subject=subject)
