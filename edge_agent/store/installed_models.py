"""Installed models from the store's record: reads manifests and documents out of the blobs, never weights."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.runtimes import ENGINE_ROLE
from edge_agent.bundle import manifest as forms
from edge_agent.bundle.catalog import Adapter, InstalledModel, TrialFigures, Variant
from edge_agent.bundle.contents import AdapterItem, Fetch, VariantItem, read_item
from edge_agent.bundle.manifest import Descriptor
from edge_agent.store.disk import Blobs
from edge_agent.store.state_file import AdapterRecord, InstalledVersion, Ref


def descriptor(ref: Ref) -> Descriptor:
    """The OCI form of a reference to a manifest."""
    return Descriptor(media_type=forms.OCI_MANIFEST, digest=ref.digest, size=ref.size)


def variant_item(ref: Ref, fetch: Fetch) -> VariantItem:
    """A variant's manifest and documents. Raises PackageError."""
    item = read_item(descriptor(ref), fetch)
    if isinstance(item, AdapterItem):
        raise StoreError("the record takes an adapter for a model", ref.digest)
    return item


def adapter_item(ref: Ref, fetch: Fetch) -> AdapterItem:
    """An adapter's manifest and documents. Raises PackageError."""
    item = read_item(descriptor(ref), fetch)
    if isinstance(item, VariantItem):
        raise StoreError("the record takes a model for an adapter", ref.digest)
    return item


def catalog_variant(item: VariantItem, blobs: Blobs) -> Variant:
    """The catalog's form of a variant; `files` is empty unless all of them are in the store."""
    files = {"model": item.weight}
    if forms.TOKENIZER_FILE in item.files:
        files["tokenizer"] = item.files[forms.TOKENIZER_FILE]
    kept = all(blobs.whole(found) for found in files.values())
    # A damaged engine is one less: its runtime compiles the weights.
    files |= {ENGINE_ROLE + key: found for key, found in item.engines.items() if blobs.whole(found)}
    return Variant(
        digest=item.descriptor.digest,
        runtime=item.info.runtime,
        dtype=item.info.dtype,
        files={role: str(blobs.path(found.digest)) for role, found in files.items()} if kept else {},
        size_bytes=item.size_bytes,
        peak_bytes=item.info.peak_bytes,
        accuracy=item.info.accuracy,
        options=item.info.options,
        features=item.info.features,
        hardware=item.info.hardware,
        metrics=item.info.metrics,
    )


def installed_model(version: InstalledVersion, blobs: Blobs, fetch: Fetch | None = None) -> InstalledModel:
    """The model of an installed version. Raises PackageError when a document or a file is missing or damaged."""
    fetch = fetch or blobs.fetch
    items = [variant_item(ref, fetch) for ref in version.variants]
    variants = tuple(replace(catalog_variant(item, blobs), measured=_figures(item, version)) for item in items)
    chosen = next(found for found in variants if found.digest == version.chosen)
    model = items[0].model
    if not chosen.files:
        raise PackageError(
            f"a file of variant {chosen.name} is missing or cut off", model.name, "install its package again"
        )
    return InstalledModel(
        name=model.name,
        base_id=model.base_id,
        version=version.version,
        variant=chosen,
        variants=variants,
        task=model.task.spec(),
        adapters=tuple(_adapter(one, blobs, fetch) for one in version.adapters),
        kind=model.kind,
        merged_from=model.merged_from,
        trial=version.trial,
    )


def referenced(version: InstalledVersion, blobs: Blobs) -> set[str]:
    """The digests of every blob that a version needs. Raises PackageError when a manifest cannot be read."""
    found: set[str] = set()
    for ref in version.manifests():
        item = read_item(descriptor(ref), blobs.fetch)
        found.add(ref.digest)
        runs = ref.digest == version.chosen or ref.digest in version.kept
        heavy = _heavy(item) if isinstance(item, VariantItem) and not runs else set()
        found.update(one.digest for one in item.manifest.descriptors() if one.digest not in heavy)
    return found


def _heavy(item: VariantItem) -> set[str]:
    """The blobs that are not kept of a variant that does not run here."""
    return {layer.digest for path, layer in item.files.items() if forms.runs_only(layer, path)}


def _figures(item: VariantItem, version: InstalledVersion) -> TrialFigures | None:
    """The figures of the variant's trial on this device; None where it was not tried, or not timed."""
    digest = item.descriptor.digest
    found = version.offered.get(digest, version.measured if digest == version.chosen else None)
    return None if found is None else found.figures()


def _adapter(record: AdapterRecord, blobs: Blobs, fetch: Fetch) -> Adapter:
    item = adapter_item(record.manifest, fetch)
    if not blobs.whole(item.weight):
        raise PackageError("its file is missing or cut off", f"adapter {record.name}", "install its package again")
    return Adapter(
        name=item.config.name,
        digest=item.descriptor.digest,
        path=str(blobs.path(item.weight.digest)),
        base_id=item.config.base_id,
        task=item.config.task.spec(),
        # The manifest's rank is at least 1, also of a head alone.
        rank=item.config.rank if item.config.targets else 0,
        size_bytes=item.weight.size,
        version=record.counter,
        metrics=item.config.metrics,
        file_digest=item.weight.digest,
        accuracy=item.config.accuracy,
        measured=record.measured.figures(),
    )
