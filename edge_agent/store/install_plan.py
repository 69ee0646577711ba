"""What an install would change: from a package's contents and the store's record to new versions and needed blobs.

A model package makes a new version of its model and carries over the installed adapters that fit. An adapter package
makes a new version of every base model whose `base_id` it has. Nothing is written here. `InstallContext` is what a
change of the store needs from the rest of the device: prober, board, trust, clock, the operator's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent.base import limits
from edge_agent.base.clock import Clock, SystemClock
from edge_agent.base.errors import PackageError
from edge_agent.base.texts import Text
from edge_agent.bundle import manifest as forms
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.bundle.contents import AdapterItem, Contents, Fetch, Item, VariantItem
from edge_agent.bundle.gguf_memory import GgufHeader
from edge_agent.bundle.manifest import Descriptor, ModelDoc
from edge_agent.bundle.probes import ProbeOutcome, ProbeRequest
from edge_agent.bundle.statement import RELEASE_FILE, Release
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.variant_sizing import sized
from edge_agent.core.paired_times import PairedTimes
from edge_agent.store.crash_points import At, nowhere
from edge_agent.store.disk import Blobs, FreeBytes, free_bytes
from edge_agent.store.installed_models import adapter_item, catalog_variant, variant_item
from edge_agent.store.state_file import AdapterRecord, InstalledVersion, ModelRecord, Record, Ref
from edge_agent.store.variant_selection import Hardware, SelectionPolicy, VariantChoice, choose


class Prober(Protocol):
    """Runs a model that is not active yet in a worker of its own. Implemented by `worker.one_shot.WorkerProber`."""

    def probe(self, model: InstalledModel, requests: Sequence[ProbeRequest]) -> ProbeOutcome:
        """Load the chosen variant and its adapters, run the requests, unload.

        Raises WorkerError or BackendError (AdapterRefused) when that fails; must end in bounded time.
        """
        ...

    def compare_times(self, models: Sequence[InstalledModel], text: Text) -> PairedTimes:
        """Time one text with several variants of a model in turns. Raises WorkerError or BackendError; must end in
        bounded time."""
        ...


Progress = Callable[[str, int, int], None]
"""(phase, bytes done, bytes in all); called while an install goes on."""


def silent(_phase: str, _done_bytes: int, _total_bytes: int) -> None:
    """A progress report that is thrown away."""


def never_trusted() -> bool:
    """For a clock that is not known to be synchronised."""
    return False


@dataclass(frozen=True, slots=True)
class InstallContext:
    """Everything that a change of the store needs.

    `trust` is the operator's root, None where there is none (then only `allow_unsigned` lets a package in).
    `time_trusted` says whether the wall clock is synchronised. `reserve_bytes` stay free on the file system. `keep_all`
    keeps the weights of every variant that passed its trial, not only the chosen one's. `measure` tries all variants
    that can run here, to choose by what was measured. `again` tries a package whose trials were cut off too often.
    `trial`: terms of a trial on requests, for each model that has a version before ('': none). `at` and `free_bytes`
    are for tests.
    """

    prober: Prober
    hardware: Hardware
    trust: Trust | None = None
    allow_unsigned: bool = False
    clock: Clock = field(default_factory=SystemClock)
    time_trusted: Callable[[], bool] = never_trusted
    reserve_bytes: int = 256 * limits.MIB
    selection: SelectionPolicy = field(default_factory=SelectionPolicy)
    keep_all: bool = False
    measure: bool = False
    again: bool = False
    trial: str = ""
    free_bytes: FreeBytes = free_bytes
    at: At = nowhere


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A blob that an install needs; `name` is the file's name in the package, whose suffix says what it must be."""

    descriptor: Descriptor
    name: str


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A new version of one model. `probe` names the adapters (None: the model itself) whose golden probes must hold.

    `candidates` are the variants to try and to choose from by their measured figures; with one there is no choice.
    `left_behind` names the installed adapters that do not fit the new base.
    """

    model: str
    version: InstalledVersion
    probe: tuple[str | None, ...]
    choice: VariantChoice | None
    left_behind: tuple[str, ...] = ()
    candidates: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """All changes of an install, made together, and the blobs that they need."""

    changes: tuple[ModelChange, ...]
    blobs: tuple[BlobRequest, ...]


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What is planned against: release, record, store, and the board.

    `header` reads the head of a generator's weights out of the package; None where it has none.
    """

    release: Release
    record: Record
    blobs: Blobs
    fetch: Fetch
    hardware: Hardware
    selection: SelectionPolicy
    keep_all: bool
    measure: bool
    signed: bool
    at_s: float
    header: Callable[[VariantItem], GgufHeader | None] = lambda _item: None


def plan(contents: Contents, context: PlanContext) -> InstallPlan:
    """The plan of an install. Raises PackageError when nothing in the package can run here, or when it would replace
    what came by another line."""
    if contents.model is None:
        changes = _adapter_changes(contents, context)
        return InstallPlan(changes, _blob_requests(contents.adapters, lambda _item: True))
    change = _model_change(contents, contents.model, context)
    tried = {change.version.chosen, *(one.digest for one in change.candidates)}
    adapters = {item.descriptor.digest for item in contents.adapters}
    keep = _blob_requests(contents.items, lambda item: item.descriptor.digest in tried | adapters)
    return InstallPlan((change,), keep)


def base_missing(adapters: Sequence[AdapterItem], record: Record, context: PlanContext) -> PackageError:
    """The error for adapters whose base is not installed; names them, their base, and the installed bases."""
    bases = []
    for name, model in record.models.items():
        item = variant_item(model.current.variants[0], context.fetch)
        if item.model.kind == "base":
            bases.append(f"{name} ({item.model.base_id[7:19]})")
    there = f"installed bases: {', '.join(bases)}" if bases else "no base is installed"
    names = ", ".join(repr(item.config.name) for item in adapters)
    base = adapters[0].config.base_id[7:19]
    what = f"{names} {'needs' if len(adapters) == 1 else 'need'} base {base}, which is not installed; {there}"
    return PackageError(what, remedy="install the base's package first")


def _model_change(contents: Contents, model: ModelDoc, context: PlanContext) -> ModelChange:
    variants = tuple(_variant(item, model, context) for item in contents.variants)
    choice = choose(variants, context.hardware, context.selection)
    existing = context.record.models.get(model.name)
    if existing is not None:
        _check_line(f"model {model.name!r}", existing.current.line, context.release, model.name)
        _check_adapter_lines(model.name, existing, contents.adapters, context.release)
    new = tuple(_adapter_record(item, context.release) for item in contents.adapters)
    carried, left = _carried(existing, contents, context)
    version = InstalledVersion(
        version=_next_version(existing),
        package=context.release.index.digest,
        line=context.release.line,
        counter=context.release.counter,
        chosen=choice.variant.digest,
        variants=tuple(_ref(item) for item in contents.variants),
        adapters=(*new, *carried),
        signed=context.signed,
        installed_at_s=context.at_s,
        choice=choice.text(),
        selection=context.selection.text(),
    )
    alone = (choice.variant,) if choice.fallback is None else (choice.variant, choice.fallback)
    candidates = choice.possible if context.measure or context.keep_all else alone
    probe = (None, *(one.name for one in version.adapters))
    return ModelChange(model.name, version, probe, choice, left, candidates)


def _check_line(what: str, line: str, release: Release, removal: str) -> None:
    """Counters stop replays within a line alone: an old release of another one must not replace what is installed."""
    if line not in ("", release.line):
        raise PackageError(
            f"{what} is installed from {line}; this package is of {release.line}, another product or channel",
            RELEASE_FILE,
            f"`edge-agent remove {removal}` first, if it is to be replaced",
        )


def _check_adapter_lines(model: str, existing: ModelRecord, adapters: Sequence[AdapterItem], release: Release) -> None:
    lines = {one.name: one.line for one in existing.current.adapters}
    for item in adapters:
        name = item.config.name
        _check_line(f"adapter {name!r} of {model!r}", lines.get(name, ""), release, f"{model} --adapter {name}")


def _variant(item: VariantItem, model: ModelDoc, context: PlanContext) -> Variant:
    found, overrides = catalog_variant(item, context.blobs), context.selection.generators
    return sized(found, model.task.spec(), context.header(item), overrides, context.hardware.ram_bytes)


def _carried(
    existing: ModelRecord | None, contents: Contents, context: PlanContext
) -> tuple[tuple[AdapterRecord, ...], tuple[str, ...]]:
    """The installed adapters that fit the new base and are not in the package, and the names of those that do not
    fit."""
    if existing is None or contents.model is None:
        return (), ()
    brought = {item.config.name for item in contents.adapters}
    carried, left = [], []
    for record in existing.current.adapters:
        if record.name in brought:
            continue
        fits = adapter_item(record.manifest, context.fetch).config.base_id == contents.model.base_id
        if fits and contents.model.kind == "base":
            carried.append(record)
        else:
            left.append(record.name)
    return tuple(carried), tuple(left)


def _adapter_changes(contents: Contents, context: PlanContext) -> tuple[ModelChange, ...]:
    base_id = contents.adapters[0].config.base_id
    changes = []
    for name, model in context.record.models.items():
        found = variant_item(model.current.variants[0], context.fetch).model
        if found.kind == "base" and found.base_id == base_id:
            _check_adapter_lines(name, model, contents.adapters, context.release)
            changes.append(_with_adapters(name, model, contents.adapters, context))
    if not changes:
        raise base_missing(contents.adapters, context.record, context)
    return tuple(changes)


def _with_adapters(name: str, model: ModelRecord, items: tuple[AdapterItem, ...], context: PlanContext) -> ModelChange:
    new = {item.config.name: _adapter_record(item, context.release) for item in items}
    kept = tuple(record for record in model.current.adapters if record.name not in new)
    current = model.current
    version = InstalledVersion(
        version=_next_version(model),
        package=current.package,
        line=current.line,
        counter=current.counter,
        chosen=current.chosen,
        variants=current.variants,
        adapters=(*kept, *new.values()),
        signed=current.signed and context.signed,
        installed_at_s=context.at_s,
        choice=current.choice,
        measured=current.measured,
        kept=current.kept,
        offered=current.offered,
        selection=current.selection,
    )
    return ModelChange(name, version, tuple(new), None)


def _next_version(existing: ModelRecord | None) -> int:
    return 1 if existing is None else existing.last_version + 1


def _adapter_record(item: AdapterItem, release: Release) -> AdapterRecord:
    return AdapterRecord(
        name=item.config.name,
        manifest=_ref(item),
        counter=release.counter,
        package=release.index.digest,
        line=release.line,
    )


def _ref(item: Item) -> Ref:
    return Ref(digest=item.descriptor.digest, size=item.descriptor.size)


def _blob_requests(items: tuple[Item, ...], with_weights: Callable[[Item], bool]) -> tuple[BlobRequest, ...]:
    """Documents of every item, so that it can be listed; weights and tokenizer only of what will run."""
    found: dict[str, BlobRequest] = {}
    for item in items:
        found[item.descriptor.digest] = BlobRequest(item.descriptor, "manifest.json")
        found.setdefault(item.manifest.config.digest, BlobRequest(item.manifest.config, "config.json"))
        for path, layer in item.files.items():
            if not forms.runs_only(layer, path) or with_weights(item):
                found.setdefault(layer.digest, BlobRequest(layer, path))
    return tuple(found.values())
