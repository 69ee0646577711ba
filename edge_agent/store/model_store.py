"""The packages on this device: install, roll back, remove, list, scrub, collect. The interface of the store.

Reading (`active`, `generation`, `models`) needs no lock and no context; the daemon does only that. Every change takes
the change lock, first cleans up after one that was cut off, and ends with the old state or the new one. To open a store
writes nothing: who only looks, root for example, leaves no files behind.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.bundle.catalog import Adapter, InstalledModel, InstalledState
from edge_agent.bundle.contents import AdapterItem, read_item, read_probes
from edge_agent.bundle.probes import ProbeFile
from edge_agent.core.desired_state import InstalledPackages
from edge_agent.store import installed_models
from edge_agent.store.crash_points import At, nowhere
from edge_agent.store.disk import Blobs, make_folder, translated
from edge_agent.store.state_file import InstalledVersion, ModelRecord, Record, StateFile
from edge_agent.store.state_folder import change_lock

if TYPE_CHECKING:
    from edge_agent.store.install import InstallReport
    from edge_agent.store.install_plan import InstallContext, Progress

log = logging.getLogger("edge_agent.store")


@dataclass(frozen=True, slots=True)
class ModelHistory:
    """A model with its current and previous version. `problem`: why the current one cannot run, None when it can."""

    name: str
    current: InstalledVersion
    previous: InstalledVersion | None
    problem: str | None

    @property
    def why(self) -> str:
        """Why this variant runs, in a sentence with numbers."""
        return self.current.choice


@dataclass(frozen=True, slots=True)
class Damage:
    """A blob that is missing or whose bytes are not its digest, the models that need it, and the packages (digests of
    their indexes) by which versions that are current came to it."""

    digest: str
    models: tuple[str, ...]
    problem: str
    packages: tuple[str, ...] = ()


class ModelStore:
    """The store under `root`. Without `context` it can be read, rolled back and cleaned, but nothing installed."""

    def __init__(self, root: Path, context: InstallContext | None = None) -> None:
        self._root = root
        self._context = context
        self._at: At = nowhere if context is None else context.at
        self._state = StateFile(root)
        self._blobs = Blobs(root)
        self._seen: tuple[int, tuple[InstalledModel, ...], tuple[str, ...]] | None = None
        self._packages: tuple[int, InstalledPackages] | None = None

    def recover(self) -> None:
        """Make the folders, and clean up after a change that was cut off. Every change begins with that, too.

        Nothing to do while another process changes the store; a damaged record is reported by readers; a disk that
        cannot be written is reported by the changes.
        """
        with contextlib.suppress(StoreError), self._changing():
            log.debug("store %s is whole", self._root)

    def active(self) -> tuple[InstalledModel, ...]:
        """Every model that can run, as it is now; what cannot is in `problems()`. Cached until `generation` changes."""
        return self._read()[0]

    def problems(self) -> tuple[str, ...]:
        """One sentence for every installed model that cannot run because a document or file, of it or of one of its
        adapters, is missing or damaged."""
        return self._read()[1]

    def probes(self, model: InstalledModel, adapter: str | None = None) -> ProbeFile | None:
        """The golden probes of the variant that runs, or of an adapter; None when another version has become current.

        Raises StoreError, PackageError for what cannot be read any more.
        """
        record = self._state.read().models.get(model.name)
        if record is None:
            return None
        if adapter is not None:
            return self._adapter_probes(record.current, model.adapter(adapter))
        chosen = next((ref for ref in record.current.variants if ref.digest == model.variant.digest), None)
        return (
            None
            if chosen is None
            else read_probes(installed_models.variant_item(chosen, self._blobs.fetch), self._blobs.fetch)
        )

    def _adapter_probes(self, version: InstalledVersion, adapter: Adapter | None) -> ProbeFile | None:
        digest = None if adapter is None else adapter.digest
        found = next((one.manifest for one in version.adapters if one.manifest.digest == digest), None)
        return (
            None
            if found is None
            else read_probes(installed_models.adapter_item(found, self._blobs.fetch), self._blobs.fetch)
        )

    def generation(self) -> int:
        """A number that changes whenever `active()` may have changed; one stat."""
        return self._state.generation()

    def installed(self) -> Mapping[str, InstalledState]:
        """Every installed model, also a damaged one, by what tells its states apart. Raises StoreError."""
        return {
            name: InstalledState(
                model.current.version, model.current.chosen, tuple(one.name for one in model.current.adapters)
            )
            for name, model in self._state.read().models.items()
        }

    def packages(self) -> InstalledPackages:
        """From which packages the models that can run and their adapters came. Raises StoreError."""
        generation = self._state.generation()
        if self._packages is None or self._packages[0] != generation:
            models = self._state.read().models
            current: dict[tuple[str, str | None], str] = {}
            damaged: set[tuple[str, str | None]] = set()
            runs = {model.name for model in self.active()}
            for name, model in models.items():
                found: dict[tuple[str, str | None], str] = {(name, None): model.current.package}
                found |= {(name, one.name): one.package for one in model.current.adapters}
                if name in runs:
                    current |= found
                else:
                    damaged |= found.keys()
            previous = {name: one.previous.package for name, one in models.items() if one.previous is not None}
            self._packages = (generation, InstalledPackages(current, previous, damaged))
        return self._packages[1]

    def models(self) -> tuple[ModelHistory, ...]:
        """Every model with its current and previous version."""
        found = []
        for name, model in sorted(self._state.read().models.items()):
            found.append(ModelHistory(name, model.current, model.previous, self._problem(model.current)))
        return tuple(found)

    def install(
        self,
        package: Path,
        progress: Progress | None = None,
        descriptor: int | None = None,
        digest: str | None = None,
    ) -> InstallReport:
        """Install a package (tar or folder; `descriptor`: opened already; `digest`: no other one). Raises PackageError
        or StoreError; then everything is as it was. Where a digest is asked for and the file is not that package,
        whole, the cause is SOURCE."""
        if self._context is None:
            raise StoreError("this store was opened for reading only", str(self._root))
        # Imported here, because the daemon only reads and every imported module costs it memory.
        from edge_agent.store.install import Installer
        from edge_agent.store.install_plan import silent
        from edge_agent.store.refusal import of_source, read_marks

        report_to, before = progress or silent, read_marks(package, descriptor)
        with self._changing():
            try:
                report = Installer(self._root, self._state, self._blobs, self._context, report_to).run(
                    package, descriptor, digest
                )
            except PackageError as error:
                changed = read_marks(package, descriptor) != before
                if digest is not None and of_source(error, package, digest, self._blobs, descriptor, changed=changed):
                    raise PackageError(error.what, error.where, error.remedy, Cause.SOURCE) from error
                raise
            finally:
                self._collect()
            self._at("collected")
            self._at("committed")
            report_to("committed", report.written_bytes, report.written_bytes)
            return report

    def rollback(self, model: str, trial: str = "") -> InstalledModel:
        """Make the previous version of a model current again (and the current one previous). Always allowed. `trial`:
        the terms on which it is tried on requests first, as after an install; not one that answers now."""
        with self._changing():
            record = self._state.read()
            found = self._model(record, model)
            if found.previous is None:
                text = f"there is no version of {model!r} before version {found.current.version}"
                raise StoreError(text, "rollback", cause=Cause.NO_EARLIER_VERSION)
            returned = self._runnable(found.previous)
            # Without terms, whoever returns to a version that was on trial wants it to answer.
            terms = "" if found.current.trial else trial
            current = msgspec.structs.replace(found.previous, trial=terms)
            previous = msgspec.structs.replace(found.current, trial="")
            swapped = ModelRecord(current=current, previous=previous, last_version=found.last_version)
            self._write(record, {**record.models, model: swapped})
            return returned

    def promote(self, model: str) -> InstalledModel:
        """End the trial of a model's current version: it answers from now on."""
        with self._changing():
            record = self._state.read()
            found = self._model(record, model)
            if not found.current.trial:
                raise StoreError(f"version {found.current.version} of {model!r} is not on trial", "promote")
            kept = msgspec.structs.replace(found.current, trial="")
            promoted = self._runnable(kept)
            self._write(record, {**record.models, model: msgspec.structs.replace(found, current=kept)})
            return promoted

    def proven(self, model: str) -> InstalledModel | None:
        """The version that answers while the current one is on trial; None where there is none that can run. Raises
        StoreError."""
        found = self._state.read().models.get(model)
        if found is None or not found.current.trial or found.previous is None:
            return None
        try:
            return installed_models.installed_model(found.previous, self._blobs)
        except PackageError as error:
            log.warning("model %r: the version before the one on trial cannot run: %s", model, error)
            return None

    def remove(self, model: str, adapter: str | None = None) -> None:
        """Remove a model with both versions, or one adapter of it (a new version; rollback brings it back).

        Works on a full disk, too: the new state then takes the room of the files that it no longer needs.
        """
        with self._changing():
            record = self._state.read()
            found = self._model(record, model)
            models = dict(record.models)
            if adapter is None:
                del models[model]
            else:
                models[model] = _without(found, model, adapter)
            try:
                self._write(record, models)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # A power cut between the two leaves the model damaged, which the readers report; removing it again
                # works.
                self._collect(msgspec.structs.replace(record, models=models))
                self._write(record, models)

    def scrub(self, pace: Callable[[], None] = lambda: None) -> tuple[Damage, ...]:
        """Hash every blob that a version needs and name the damaged ones; installing again repairs them. `pace` is
        called after each MiB that was read."""
        found: dict[str, Damage] = {}
        for name, model in self._state.read().models.items():
            for version in model.versions():
                for digest, problem, package in self._damaged(version, pace):
                    known = found.get(digest, Damage(digest, (), problem))
                    packages = {*known.packages, *((package,) if version is model.current else ())}
                    models = tuple(sorted({*known.models, name}))
                    found[digest] = Damage(digest, models, known.problem, tuple(sorted(packages)))
        return tuple(found[digest] for digest in sorted(found))

    def collect(self) -> int:
        """Delete what no version needs; returns the bytes that came free."""
        with self._changing():
            return self._collect()

    def forget_trials(self, package: str) -> None:
        """Let a package (digest of its index) be tried again whose trials were cut off too often."""
        with self._changing():
            self._state.end_trial(package)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with translated(self._root):
            make_folder(self._root)
            with change_lock(self._root):
                self._blobs.create()
                make_folder(self._root / "roots")
                self._recover()
                yield

    def _recover(self) -> None:
        """Clean up after a change that was cut off: what it wrote is either unreferenced or already the new state."""
        for path in self._root.rglob("*.tmp"):
            path.unlink()
        self._collect()

    def _collect(self, record: Record | None = None) -> int:
        """Delete what the state does not need; `record`: the state that is about to be written."""
        kept: set[str] = set()
        for version in (record or self._state.read()).versions():
            try:
                kept |= installed_models.referenced(version, self._blobs)
            except PackageError as error:
                log.warning("nothing is collected: what a version needs cannot be read: %s", error)
                return 0
        return self._blobs.keep_only(kept)

    def _write(self, record: Record, models: dict[str, ModelRecord]) -> None:
        new = msgspec.structs.replace(record, models=models)
        self._state.write(new, lambda: self._at("record-written"))
        self._at("switched")
        self._collect()
        self._at("collected")

    def _read(self) -> tuple[tuple[InstalledModel, ...], tuple[str, ...]]:
        generation = self._state.generation()
        if self._seen is None or self._seen[0] != generation:
            models, problems = [], []
            for name, model in sorted(self._state.read().models.items()):
                try:
                    models.append(installed_models.installed_model(model.current, self._blobs))
                except PackageError as error:
                    problems.append(f"{name}: {error}")
            self._seen = (generation, tuple(models), tuple(problems))
        return self._seen[1], self._seen[2]

    def _problem(self, version: InstalledVersion) -> str | None:
        try:
            installed_models.installed_model(version, self._blobs)
        except PackageError as error:
            return str(error)
        return None

    def _runnable(self, version: InstalledVersion) -> InstalledModel:
        try:
            return installed_models.installed_model(version, self._blobs)
        except PackageError as error:
            raise StoreError(
                f"the version before cannot run: {error}", "rollback", "install its package again"
            ) from error

    def _model(self, record: Record, name: str) -> ModelRecord:
        if name not in record.models:
            there = ", ".join(sorted(record.models)) or "none"
            raise StoreError(f"there is no model {name!r} (installed: {there})", cause=Cause.UNKNOWN_MODEL)
        return record.models[name]

    def _damaged(self, version: InstalledVersion, pace: Callable[[], None]) -> Iterator[tuple[str, str, str]]:
        """(digest, problem, package) of each."""
        came_by = {one.manifest.digest: one.package for one in version.adapters}
        for ref in version.manifests():
            package = came_by.get(ref.digest, version.package)
            try:
                item = read_item(installed_models.descriptor(ref), self._blobs.fetch)
            except PackageError as error:
                yield ref.digest, str(error), package
                continue
            kept = ref.digest == version.chosen or isinstance(item, AdapterItem)
            for found in item.manifest.descriptors():
                if not self._blobs.intact(found, pace) and (kept or self._blobs.there(found)):
                    yield found.digest, "missing or changed on disk", package


def _without(found: ModelRecord, model: str, adapter: str) -> ModelRecord:
    current = found.current
    if adapter not in {one.name for one in current.adapters}:
        there = ", ".join(one.name for one in current.adapters) or "none"
        raise StoreError(f"{model!r} has no adapter {adapter!r} (it has: {there})", cause=Cause.UNKNOWN_ADAPTER)
    number = found.last_version + 1
    adapters = tuple(one for one in current.adapters if one.name != adapter)
    changed = msgspec.structs.replace(current, adapters=adapters, version=number)
    return ModelRecord(current=changed, previous=found.proven, last_version=number)
