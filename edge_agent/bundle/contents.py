"""From manifests to models and adapters: parses what a manifest points to and checks that it is consistent.

Used on a package before anything is staged and on the store whenever it is read; `fetch` gives the bytes of either. No
weights are read here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.errors import PackageError, brief
from edge_agent.base.runtimes import DEVICE_OPTIONS, WEIGHT_SUFFIXES, traits
from edge_agent.bundle import manifest as forms
from edge_agent.bundle import probes as golden
from edge_agent.bundle.engine_files import key_of_path
from edge_agent.bundle.gguf_memory import SIZE_OPTIONS, fits_range
from edge_agent.bundle.jsonio import check_size, decode
from edge_agent.bundle.manifest import AdapterConfig, Descriptor, Index, Manifest, ModelDoc, VariantInfo

Fetch = Callable[[Descriptor, int], bytes]
"""(descriptor, limit in bytes) -> verified bytes; raises PackageError when they are missing or wrong."""

_DOC_SUFFIXES = (".md", ".txt")
_CONFIG_FILES = (forms.TOKENIZER_FILE, forms.MODEL_FILE, forms.PROBES_FILE)


@dataclass(frozen=True, slots=True)
class VariantItem:
    """One variant of the package's model."""

    descriptor: Descriptor
    manifest: Manifest
    info: VariantInfo
    model: ModelDoc
    files: dict[str, Descriptor]

    @property
    def name(self) -> str:
        """How golden probes name it: 'onnx/int8'."""
        return f"{self.info.runtime}/{self.info.dtype}"

    @property
    def weight(self) -> Descriptor:
        """The one weights file."""
        return next(found for found in self.manifest.layers if found.media_type == forms.WEIGHT)

    @property
    def engines(self) -> dict[str, Descriptor]:
        """Engines by their key, each for devices of one kind."""
        keyed = ((key_of_path(path), layer) for path, layer in self.files.items())
        return {key: layer for key, layer in keyed if key is not None}

    @property
    def size_bytes(self) -> int:
        """All bytes of the variant on disk."""
        return sum(found.size for found in self.manifest.descriptors())


@dataclass(frozen=True, slots=True)
class AdapterItem:
    """One adapter."""

    descriptor: Descriptor
    manifest: Manifest
    config: AdapterConfig
    files: dict[str, Descriptor]

    @property
    def weight(self) -> Descriptor:
        """The adapter's file."""
        return next(self.files[name] for name in forms.ADAPTER_FILES if name in self.files)


Item = VariantItem | AdapterItem


@dataclass(frozen=True, slots=True)
class Contents:
    """What a package offers: at most one model, in variants, and adapters."""

    variants: tuple[VariantItem, ...]
    adapters: tuple[AdapterItem, ...]

    @property
    def model(self) -> ModelDoc | None:
        """The model, or None for an adapter-only package."""
        return self.variants[0].model if self.variants else None

    @property
    def items(self) -> tuple[Item, ...]:
        """Variants, then adapters."""
        return (*self.variants, *self.adapters)

    def descriptors(self) -> dict[str, Descriptor]:
        """Every blob by digest, manifests included."""
        found: dict[str, Descriptor] = {}
        for item in self.items:
            for one in (item.descriptor, *item.manifest.descriptors()):
                if found.setdefault(one.digest, one).size != one.size:
                    raise PackageError(f"{one.digest} is claimed with two sizes", "manifests")
        return found


def check_bytes(found: Descriptor, data: bytes, where: str) -> bytes:
    """`data` if it has exactly the descriptor's size and digest, else PackageError. Compares the size first."""
    if len(data) != found.size:
        raise PackageError(f"it has {len(data)} bytes, its descriptor says {found.size}", where)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest != found.digest:
        raise PackageError("its SHA-256 is not what its descriptor says: damaged or exchanged", where)
    return data


def read_contents(index: Index, fetch: Fetch) -> Contents:
    """All items of an index, checked one by one and against each other. Raises PackageError."""
    variants: list[VariantItem] = []
    adapters: list[AdapterItem] = []
    digests = [found.digest for found in index.manifests]
    if len(set(digests)) != len(digests):
        raise PackageError("a manifest is listed twice", "index.json")
    for found in index.manifests:
        item = read_item(found, fetch)
        if isinstance(item, AdapterItem):
            adapters.append(item)
        else:
            _check_options(item)
            _check_sizes(item)
            variants.append(item)
    _check_together(variants, adapters)
    return Contents(tuple(variants), tuple(adapters))


def read_item(found: Descriptor, fetch: Fetch) -> Item:
    """One manifest with its documents. Raises PackageError."""
    where = f"manifest {found.digest[7:19]}"
    forms.check_descriptor(found, "index.json")
    if found.media_type != forms.OCI_MANIFEST:
        raise PackageError(f"{found.media_type!r} is no manifest", "index.json")
    manifest = decode(fetch(found, limits.MANIFEST_BYTES), Manifest, where)
    files = _files(manifest, where)
    if manifest.is_adapter:
        return _adapter(found, manifest, files, fetch)
    return _variant(found, manifest, files, fetch)


def read_probes(item: Item, fetch: Fetch) -> golden.ProbeFile:
    """The golden probes of an item, consistent in themselves. Raises PackageError."""
    data = fetch(item.files[forms.PROBES_FILE], limits.MANIFEST_BYTES)
    file = decode(data, golden.ProbeFile, forms.PROBES_FILE)
    problem = golden.problem_of(file, isinstance(item, AdapterItem))
    if problem:
        raise PackageError(problem, forms.PROBES_FILE)
    task = item.config.task if isinstance(item, AdapterItem) else item.model.task
    if any(isinstance(text, tuple) != task.pairs for text in file.texts):
        asked = "pairs of texts, and a probe is a single one" if task.pairs else "one text, and a probe is a pair"
        raise PackageError(f"its task takes {asked}", forms.PROBES_FILE)
    return file


def _files(manifest: Manifest, where: str) -> dict[str, Descriptor]:
    files: dict[str, Descriptor] = {}
    for found in manifest.descriptors():
        forms.check_descriptor(found, where)
    if manifest.subject is not None:
        forms.check_descriptor(manifest.subject, where)
    for layer in manifest.layers:
        path = forms.file_path(layer, where)
        if path in files:
            raise PackageError(f"two layers are named {path!r}", where)
        _check_kind(layer, path, manifest.is_adapter, where)
        files[path] = layer
    if forms.PROBES_FILE not in files:
        raise PackageError(f"{forms.PROBES_FILE} is missing: a package proves itself by golden probes", where)
    return files


def _check_kind(layer: Descriptor, path: str, adapter: bool, where: str) -> None:
    kind = layer.media_type
    allowed = {
        forms.WEIGHT: not adapter and path.endswith(WEIGHT_SUFFIXES),
        **{form: adapter and path == name for name, form in forms.ADAPTER_FILES.items()},
        forms.ENGINE: not adapter and key_of_path(path) is not None,
        forms.WEIGHT_CONFIG: path in _CONFIG_FILES,
        forms.DOC: path.endswith(_DOC_SUFFIXES) or path == "LICENSE",
    }
    if not allowed.get(kind, False):
        raise PackageError(
            f"{path!r} as {kind!r} is not carried: only weights, engines, tokenizer.json, probes and notes", where
        )
    limit_bytes = {forms.WEIGHT_CONFIG: limits.TOKENIZER_BYTES, forms.DOC: limits.MANIFEST_BYTES}
    check_size(layer.size, limit_bytes.get(kind, limits.BLOB_BYTES), f"{where}, {path}")


def _variant(found: Descriptor, manifest: Manifest, files: dict[str, Descriptor], fetch: Fetch) -> VariantItem:
    where = f"manifest {found.digest[7:19]}"
    if manifest.config.media_type != forms.MODEL_CONFIG or manifest.subject is not None:
        raise PackageError("a model has a ModelPack config and no subject", where)
    check_size(manifest.config.size, limits.MANIFEST_BYTES, where)
    if sum(layer.media_type == forms.WEIGHT for layer in manifest.layers) != 1:
        raise PackageError("a variant has exactly one weights file", where)
    raw = manifest.annotations.get(forms.VARIANT)
    if raw is None or forms.MODEL_FILE not in files:
        raise PackageError(f"the annotation {forms.VARIANT} or {forms.MODEL_FILE} is missing", where)
    info = decode(raw.encode(), VariantInfo, f"{where}, {forms.VARIANT}")
    model = decode(fetch(files[forms.MODEL_FILE], limits.MANIFEST_BYTES), ModelDoc, forms.MODEL_FILE)
    forms.check_requires(info.requires + model.requires, where, __version__)
    _check_task(model.task, forms.MODEL_FILE)
    if not traits(info.runtime).compiles and any(map(key_of_path, files)):
        raise PackageError(f"{info.runtime} compiles no engines, and the variant carries one", where)
    return VariantItem(found, manifest, info, model, files)


def _adapter(found: Descriptor, manifest: Manifest, files: dict[str, Descriptor], fetch: Fetch) -> AdapterItem:
    where = f"manifest {found.digest[7:19]}"
    if manifest.config.media_type != forms.ADAPTER_CONFIG or manifest.subject is None:
        raise PackageError("an adapter has an adapter config and the base's manifest as its subject", where)
    if sum(name in files for name in forms.ADAPTER_FILES) != 1:
        raise PackageError(f"it needs one of {' and '.join(forms.ADAPTER_FILES)}, and not both", where)
    config = decode(fetch(manifest.config, limits.MANIFEST_BYTES), AdapterConfig, where)
    forms.check_requires(config.requires, where, __version__)
    _check_task(config.task, where)
    return AdapterItem(found, manifest, config, files)


def _check_task(task: forms.TaskDoc, where: str) -> None:
    if (task.kind in ("classify", "slots")) != bool(task.labels):
        raise PackageError("labels belong to a classifier or to slots, and to nothing else", where)
    if task.kind == "slots" and len(task.labels) > limits.SLOT_LABELS:
        raise PackageError(f"slots have {len(task.labels)} labels, at most {limits.SLOT_LABELS} are possible", where)
    if task.kind == "slots" and (task.threshold or task.out_of_scope is not None):
        raise PackageError("threshold and out_of_scope belong to a classifier", where)
    if len(set(task.labels)) != len(task.labels):
        raise PackageError("a label stands twice", where)
    if task.kind != "generate" and task.max_tokens > limits.TASK_TOKENS:
        raise PackageError(f"max_tokens above {limits.TASK_TOKENS} belong to a generator", where)
    if task.kind == "answers":
        _check_answers(task, where)
    elif task.window_overlap or task.answer_tokens or task.no_answer:
        raise PackageError("window_overlap, answer_tokens and no_answer belong to answers", where)
    if task.pairs and task.kind not in ("classify", "answers"):
        raise PackageError("pairs belong to a classifier or to answers", where)
    if task.out_of_scope is not None and not task.labels:
        raise PackageError("out_of_scope needs labels", where)


def _check_answers(task: forms.TaskDoc, where: str) -> None:
    if not task.pairs:
        raise PackageError("answers need pairs: a question and its context", where)
    if not task.answer_tokens or task.window_overlap >= task.max_tokens:
        raise PackageError("answers need answer_tokens, and a window_overlap below max_tokens", where)
    if task.threshold or task.out_of_scope is not None:
        raise PackageError("threshold and out_of_scope belong to a classifier", where)


def _check_options(item: VariantItem) -> None:
    """Refuse an option that a package does not set for its runtime."""
    where = f"manifest {item.descriptor.digest[7:19]}"
    taken = sorted(DEVICE_OPTIONS & set(item.info.options))
    if taken:
        what = f"variant {item.name} sets the option {taken[0]!r}, which the device decides"
        raise PackageError(what, where, "build it without this option")
    known = traits(item.info.runtime).package_options
    unknown = sorted(set(item.info.options) - known) if known is not None else []
    if known is not None and unknown:
        what = f"variant {item.name} sets the option {unknown[0]!r}, which {item.info.runtime} does not have"
        raise PackageError(what, where, f"it has: {', '.join(sorted(known))}")


def _check_sizes(item: VariantItem) -> None:
    """Refuse figures by which a generator's memory would be predicted as something that no load takes."""
    if not traits(item.info.runtime).context_sized:
        return
    where = f"manifest {item.descriptor.digest[7:19]}"
    for name, (lowest, highest) in SIZE_OPTIONS.items():
        value = item.info.options.get(name)
        if value is not None and not fits_range(name, value):
            raise PackageError(
                f"variant {item.name} sets the option {name!r} to {brief(value)}, {lowest} to {highest} are possible",
                where,
            )
    for name, figure in item.info.metrics.items():
        if name.startswith("peak_bytes") and not 0.0 <= figure <= limits.BLOB_BYTES:
            raise PackageError(f"variant {item.name} states {name} as {figure:g} bytes", where)


def _check_together(variants: list[VariantItem], adapters: list[AdapterItem]) -> None:
    if len({item.files[forms.MODEL_FILE].digest for item in variants}) > 1:
        raise PackageError(f"its variants carry different {forms.MODEL_FILE}: one package, one model", "index.json")
    names = [item.config.name for item in adapters]
    if len(set(names)) != len(names):
        raise PackageError("two adapters have the same name", "index.json")
    if len({item.config.base_id for item in adapters}) > 1:
        raise PackageError("its adapters belong to different bases", "index.json")
    if variants and adapters:
        model = variants[0].model
        if model.kind != "base" or adapters[0].config.base_id != model.base_id:
            raise PackageError(f"its adapters do not belong to its model {model.name!r}", "index.json")
