"""The store's state file: which versions of which models are installed, and the anti-rollback counters.

Versions, counters and the newest issue time are in one file that one rename replaces, so a switch and its commit are
one event (docs/decisions/0041). The count of trials has a file of its own, because it must be durable before a trial
begins and must not touch the other file. Both files end in a SHA-256 of their body: a flipped bit is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta, field

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError, StoreError
from edge_agent.bundle.catalog import TrialFigures
from edge_agent.bundle.jsonio import Document, decode, encode, read_file
from edge_agent.bundle.manifest import Digest, Name
from edge_agent.store.disk import remove_file, replace_file, translated

RECORD_FILE = "record.json"
TRIALS_FILE = "trials.json"
TRIALS_KEPT = 16
RECORD_BYTES = 4 * limits.MIB
# How `core.energy.UtilisationModel.method` begins. The file has the sentence only, and a new field would make it
# unreadable to earlier releases, which refuse unknown fields; so `Measurements.figures` restores the meaning from it.
_ESTIMATED = "estimated"
# msgspec leaves out a float that is the default object itself; an equal one would be written.
_NOT_LOADED_S = 0.0


class Ref(Document, frozen=True, kw_only=True):
    """A manifest in the store."""

    digest: Digest
    size: int


class Measurements(Document, frozen=True, kw_only=True):
    """A `TrialFigures` on disk; `latency_ms` None: the trial measured no time. `joules` of one text; None:
    `energy_method` is the reason."""

    load_s: float = _NOT_LOADED_S
    peak_bytes: int | None = None
    latency_ms: float | None = None
    text_bytes: int = 0
    joules: float | None = None
    energy_method: str = ""

    @classmethod
    def of(cls, figures: TrialFigures | None) -> Measurements:
        """The form on disk of what a trial measured."""
        if figures is None:
            return cls()
        return cls(
            load_s=figures.load_s or _NOT_LOADED_S,
            peak_bytes=figures.peak_bytes or None,
            latency_ms=figures.latency_ms,
            text_bytes=figures.text_bytes,
            joules=figures.joules,
            energy_method=figures.energy_method,
        )

    def figures(self) -> TrialFigures | None:
        """What the trial measured; None where it measured no time."""
        if self.latency_ms is None:
            return None
        return TrialFigures(
            self.latency_ms,
            self.peak_bytes or 0,
            self.load_s,
            self.text_bytes,
            self.joules,
            self.energy_method,
            energy_estimated=self.energy_method.startswith(_ESTIMATED),
        )


class AdapterRecord(Document, frozen=True, kw_only=True):
    """An adapter of an installed version: the release that brought it, by line (product and channel) and counter, and
    the figures of a text with it on the chosen variant."""

    name: Name
    manifest: Ref
    counter: int
    package: Digest
    line: str = ""
    measured: Measurements = Measurements()


class InstalledVersion(Document, frozen=True, kw_only=True, rename={"selection": "wishes"}):
    """One version of a model on this device.

    `kept` are variants whose weights stay beside the chosen one's. `offered` has the figures of every variant that was
    tried, `selection` the `SelectionPolicy` by which one was chosen (as its `text`), `choice` the sentence that says
    why. `trial`: the terms (JSON, `protocol.messages.TrialOrder`) on which the daemon tries it on requests beside the
    version before, which answers until then; '' where it answers itself.
    """

    version: int
    package: Digest
    line: str
    counter: int
    chosen: Digest
    variants: Annotated[tuple[Ref, ...], Meta(min_length=1)]
    adapters: tuple[AdapterRecord, ...] = ()
    signed: bool = True
    installed_at_s: float = 0.0
    choice: str = ""
    measured: Measurements = Measurements()
    kept: tuple[Digest, ...] = ()
    offered: dict[Digest, Measurements] = field(default_factory=dict)
    selection: str = ""
    trial: str = ""

    def manifests(self) -> tuple[Ref, ...]:
        """Every manifest that the version needs."""
        return (*self.variants, *(adapter.manifest for adapter in self.adapters))

    def same_contents(self, other: InstalledVersion | None) -> bool:
        """True where `other` runs the same files, whatever its version number."""
        if other is None:
            return False
        return self._contents() == other._contents()

    def _contents(self) -> tuple[object, ...]:
        adapters = [(one.name, one.manifest, one.counter, one.package) for one in self.adapters]
        return (self.package, self.chosen, self.variants, adapters)


class ModelRecord(Document, frozen=True, kw_only=True):
    """The current version of a model and the one before it."""

    current: InstalledVersion
    previous: InstalledVersion | None = None
    last_version: int

    def versions(self) -> tuple[InstalledVersion, ...]:
        """Current, then previous where there is one."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    @property
    def proven(self) -> InstalledVersion:
        """The version that answers: the current one, and while that is on trial the one before."""
        return self.previous if self.current.trial and self.previous is not None else self.current


Signers = Annotated[tuple[str, ...], Meta(max_length=16)]
"""Ids of release keys; none where an earlier state of the program wrote the file."""


class Committed(Document, frozen=True, kw_only=True):
    """The anti-rollback mark of one product and channel, and the release keys that signed it."""

    counter: int
    index: Digest
    signers: Signers = ()


class Record(Document, frozen=True, kw_only=True):
    """The whole state of the store."""

    schema: Literal[1] = 1
    models: dict[Name, ModelRecord] = field(default_factory=dict)
    committed: dict[str, Committed] = field(default_factory=dict)
    newest_issued_s: float = 0.0
    newest_issued_by: Signers = ()

    def versions(self) -> tuple[InstalledVersion, ...]:
        """Every installed version of every model."""
        return tuple(version for model in self.models.values() for version in model.versions())


class Trials(Document, frozen=True, kw_only=True):
    """Package -> number of trials on this device that began and did not end by themselves."""

    begun: dict[Digest, int] = field(default_factory=dict)


class StateFile:
    """Reads and replaces the state file and the file of trials of a store."""

    def __init__(self, root: Path) -> None:
        self._record = root / RECORD_FILE
        self._trials = root / TRIALS_FILE

    def read(self) -> Record:
        """The state; an empty one for a new store. Raises StoreError when the file is damaged."""
        return _read(self._record, Record)

    def write(self, record: Record, written: Callable[[], None]) -> None:
        """Replace the state: the switch. `written` is called with the new file durable but not yet in place."""
        replace_file(self._record, _sealed(encode(record)), written)

    def generation(self) -> int:
        """A number that every `write` changes; one stat. Raises StoreError when the disk does not answer."""
        with translated(self._record):
            try:
                found = self._record.stat()
            except FileNotFoundError:
                return 0
        return found.st_mtime_ns * 65_537 + found.st_ino

    def trials(self, package: str) -> int:
        """How many trials of a package were begun and cut off."""
        return _read(self._trials, Trials).begun.get(package, 0)

    def begin_trial(self, package: str) -> None:
        """Count a trial, durably, before it begins."""
        begun = dict(_read(self._trials, Trials).begun)
        count = begun.pop(package, 0) + 1
        kept = dict(list(begun.items())[-(TRIALS_KEPT - 1) :])
        replace_file(self._trials, _sealed(encode(Trials(begun={**kept, package: count}))))

    def end_trial(self, package: str) -> None:
        """Forget the trials of a package: one came to an end, good or bad."""
        begun = dict(_read(self._trials, Trials).begun)
        if begun.pop(package, None) is None:
            return
        if begun:
            replace_file(self._trials, _sealed(encode(Trials(begun=begun))))
        else:
            remove_file(self._trials)


T = TypeVar("T", Record, Trials)


def _read(path: Path, kind: type[T]) -> T:
    try:
        data = read_file(path, 2 * RECORD_BYTES)
    except FileNotFoundError:
        return kind()
    except EdgeError as error:
        raise StoreError(error.what, error.where, "move it aside, and install the packages again") from error
    body, _, seal = data.rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise StoreError(
            "the record is damaged (its checksum does not fit)",
            str(path),
            "check the disk, move it aside, and install the packages again",
        )
    try:
        return decode(body, kind, str(path), RECORD_BYTES)
    except EdgeError as error:
        raise StoreError(f"this edge-agent cannot read the record: {error.what}", str(path)) from error


def _sealed(body: bytes) -> bytes:
    """The body, a line break and its SHA-256 in hex."""
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"
