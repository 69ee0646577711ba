"""The documents of a package: OCI index and manifests, ModelPack config, variant, model and adapter descriptions.

A base or a merged model is a plain CNCF ModelPack manifest per variant, so that registries and their tools carry it;
what is ours travels in one annotation and in files of type 'weight config'. An adapter is a manifest with `subject`.
Sources: OCI image-spec 1.1.1 (manifest.md, descriptor.md), ModelPack 0.0.7 (specs-go/v1).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from msgspec import Meta, field

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle.catalog import TaskSpec
from edge_agent.bundle.jsonio import Document

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MODEL: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
ENGINE = "application/vnd.edge-agent.engine.v1"
"""An engine that a device compiled from the variant's weights, for devices of the same kind."""
ADAPTER: Final = "application/vnd.edge-agent.adapter.v1+json"
ADAPTER_CONFIG = "application/vnd.edge-agent.adapter.config.v1+json"
ADAPTER_WEIGHT = "application/vnd.edge-agent.adapter.weight.v1.safetensors"
ADAPTER_GGUF = "application/vnd.edge-agent.adapter.weight.v1.gguf"

FILE_PATH = "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"
"""Tools of registries address a manifest by this annotation of its descriptor in `index.json` (OCI annotations.md)."""
TITLE = "org.opencontainers.image.title"
VARIANT = "edge-agent.variant+json"
PACKAGE: Final = "application/vnd.edge-agent.package.v1+json"
PACKAGE_FILE: Final = "application/vnd.edge-agent.package.file.v1"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
"""In a registry a package is one artefact of the type PACKAGE whose layers are its files, each named by TITLE."""

MODEL_FILE = "edge/model.json"
PROBES_FILE = "edge/probes.json"
TOKENIZER_FILE = "tokenizer.json"
ADAPTER_FILE = "adapter.safetensors"
ADAPTER_GGUF_FILE = "adapter.gguf"
ADAPTER_FILES = {ADAPTER_FILE: ADAPTER_WEIGHT, ADAPTER_GGUF_FILE: ADAPTER_GGUF}
"""An adapter's one weights file, by name, with its media type."""

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

REQUIRES = frozenset({"adapter-bank/1", "adapter-bank/2", "golden-probes/1"})
"""What this agent understands; a package that requires another word is refused."""

# Patterns end in \Z: `$` would let a line break through at the end.
Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}\\Z")]
Name = Annotated[
    str, Meta(pattern=f"^[a-z0-9]([a-z0-9._-]{{0,{limits.NAME_CHARACTERS - 2}}}[a-z0-9])?\\Z")
]  # as checked by edge_forge.recipe.schema.check_name
Word = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._/+,:-]{0,63}\\Z")]
Text = Annotated[str, Meta(max_length=4096)]
Label = Annotated[str, Meta(min_length=1, max_length=limits.LABEL_CHARACTERS)]
Bytes = Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Words = Annotated[tuple[Word, ...], Meta(max_length=64)]
Texts = Annotated[
    dict[Annotated[str, Meta(max_length=128)], Annotated[str, Meta(max_length=65536)]], Meta(max_length=64)
]


class Descriptor(Document, frozen=True, kw_only=True, rename="camel"):
    """A pointer to a blob: type, digest, exact size. `urls` is named here only to be refused."""

    media_type: Annotated[str, Meta(max_length=128)]
    digest: Digest
    size: Bytes
    artifact_type: Annotated[str, Meta(max_length=128)] | None = None
    annotations: Texts = field(default_factory=dict)
    urls: tuple[Text, ...] | None = None


class Index(Document, frozen=True, kw_only=True, rename="camel"):
    """`index.json`: one descriptor per manifest."""

    schema_version: Literal[2]
    # None where a writer left it out (the standard says SHOULD). The default is no constant, since defaults are not
    # written.
    media_type: Literal["application/vnd.oci.image.index.v1+json"] | None = None
    manifests: Annotated[tuple[Descriptor, ...], Meta(min_length=1, max_length=limits.INDEX_ENTRIES)]
    annotations: Texts = field(default_factory=dict)


class Manifest(Document, frozen=True, kw_only=True, rename="camel"):
    """One variant of a model, or one adapter (`subject` set)."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.cncf.model.manifest.v1+json", "application/vnd.edge-agent.adapter.v1+json"]
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(min_length=1, max_length=limits.LAYERS)]
    subject: Descriptor | None = None
    annotations: Texts = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """True for an adapter, False for a variant of a model."""
        return self.artifact_type == ADAPTER

    def descriptors(self) -> tuple[Descriptor, ...]:
        """Config and layers: everything that the manifest needs beside itself."""
        return (self.config, *self.layers)


class Artefact(Document, frozen=True, kw_only=True, rename="camel"):
    """A package in a registry: every file of it is a layer."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.edge-agent.package.v1+json"]
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(min_length=1, max_length=limits.PACKAGE_MEMBERS)]
    annotations: Texts = field(default_factory=dict)


class VariantInfo(Document, frozen=True, kw_only=True):
    """The annotation `edge-agent.variant+json`: how to run this variant and what the host measured.

    `accuracy` is a fraction on the recipe's test set. `peak_bytes` is the predicted resident memory of the worker.
    `features` are CPU or GPU features as the kernel names them, `hardware` boards ('' none: any); `metrics` are figures
    for people (macro F1, latency on the host and so on).
    """

    runtime: Name
    dtype: Name
    peak_bytes: Bytes
    accuracy: Share | None = None
    features: Words = ()
    hardware: Words = ()
    requires: Words = ()
    options: Annotated[dict[Word, bool | int | float | str], Meta(max_length=32)] = field(default_factory=dict)
    metrics: Annotated[dict[Word, float], Meta(max_length=64)] = field(default_factory=dict)


class TaskDoc(Document, frozen=True, kw_only=True):
    """A task as JSON; see `catalog.TaskSpec`."""

    kind: Literal["classify", "slots", "answers", "embed", "generate"]
    labels: Annotated[tuple[Label, ...], Meta(max_length=limits.LABELS)] = ()
    max_tokens: Annotated[int, Meta(ge=1, le=limits.CONTEXT_TOKENS)] = 128
    threshold: Share = 0.0
    out_of_scope: Label | None = None
    prompt: Annotated[str, Meta(max_length=1024)] = ""
    pairs: bool = False
    window_overlap: Annotated[int, Meta(ge=0, le=limits.TASK_TOKENS)] = 0
    answer_tokens: Annotated[int, Meta(ge=0, le=limits.ANSWER_TOKENS)] = 0
    no_answer: bool = False

    def spec(self) -> TaskSpec:
        """The form that the agent uses."""
        return TaskSpec(
            self.kind, self.labels, self.max_tokens, self.threshold, self.out_of_scope, self.prompt, self.pairs,
            self.window_overlap, self.answer_tokens, self.no_answer,
        )  # fmt: skip


class ModelDoc(Document, frozen=True, kw_only=True):
    """`edge/model.json`, the same blob in every variant of a model.

    A 'base' takes adapters of its `base_id`; a 'merged' model takes none, its `base_id` is that of its own folded
    weights and `merged_from` says what was folded.
    """

    schema: Literal[1]
    name: Name
    kind: Literal["base", "merged"]
    base_id: Digest
    task: TaskDoc
    merged_from: Annotated[dict[Word, Text], Meta(max_length=8)] = field(default_factory=dict)
    requires: Words = ()


class AdapterConfig(Document, frozen=True, kw_only=True):
    """The config of an adapter manifest. `base_id` decides which model it fits."""

    schema: Literal[1]
    name: Name
    base_id: Digest
    rank: Annotated[int, Meta(ge=1, le=1024)]
    alpha: Annotated[float, Meta(gt=0)]
    targets: Annotated[tuple[Annotated[str, Meta(max_length=255)], ...], Meta(max_length=4096)]
    dtype: Literal["float32", "float16", "f32", "f16"]
    task: TaskDoc
    accuracy: Share | None = None
    requires: Words = ()
    metrics: Annotated[dict[Word, float], Meta(max_length=64)] = field(default_factory=dict)


_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def runs_only(layer: Descriptor, path: str) -> bool:
    """Whether a file is needed only where its variant runs: weights, tokenizer, engines. The rest describes it."""
    return layer.media_type in (WEIGHT, ENGINE) or path == TOKENIZER_FILE


def file_path(layer: Descriptor, where: str) -> str:
    """The checked relative path that a layer is named by. Raises PackageError."""
    path = layer.annotations.get(FILE_PATH)
    if path is None:
        raise PackageError(f"a layer lacks the annotation {FILE_PATH}", where)
    if len(path.encode()) > limits.PATH_BYTES or not all(_PART.fullmatch(part) for part in path.split("/")):
        raise PackageError(f"the file path {path[:80]!r} is not a plain relative path", where)
    return path


def check_requires(words: tuple[str, ...], where: str, agent_version: str) -> None:
    """Refuse what this agent does not understand, instead of running it half."""
    unknown = [word for word in words if word not in REQUIRES]
    if unknown:
        raise PackageError(
            f"it requires {unknown[0]!r}, which edge-agent {agent_version} does not know", where, "update edge-agent"
        )


def check_descriptor(found: Descriptor, where: str) -> None:
    """Refuse a descriptor that points outside the package."""
    if found.urls is not None:
        raise PackageError("a descriptor carries `urls`; blobs come from the package or the store only", where)
