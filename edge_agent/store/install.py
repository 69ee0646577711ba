"""The install: verify, stage, probe, switch. At every moment the store shows the old state or the new one.

A refused install leaves nothing behind. Blobs are written whole, hashed and checked before they get their name.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.runtimes import traits
from edge_agent.base.units import bytes_text
from edge_agent.bundle import statement, weight_files
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.bundle.contents import Contents, VariantItem
from edge_agent.bundle.gguf_header import header_of
from edge_agent.bundle.gguf_memory import GgufHeader
from edge_agent.bundle.layout import Package, blob_name, open_package
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.verify import Verified, check_blob, read_package, read_release
from edge_agent.bundle.weight_files import check_adapter
from edge_agent.store.crash_points import At
from edge_agent.store.disk import Blobs, replace_file
from edge_agent.store.install_plan import (
    BlobRequest,
    InstallContext,
    InstallPlan,
    ModelChange,
    PlanContext,
    Progress,
    plan,
)
from edge_agent.store.state_file import AdapterRecord, Committed, Measurements, ModelRecord, Record, StateFile
from edge_agent.store.variant_trials import Trial, TrialRules, try_change

# Room for records, folders and the file system's metadata beside the blobs.
OVERHEAD_BYTES = limits.MIB

log = logging.getLogger("edge_agent.store")


@dataclass(frozen=True, slots=True)
class InstallReport:
    """What an install did. `package`: the digest of its index. `changed` is False where exactly these contents were
    already active."""

    product: str
    channel: str
    counter: int
    package: str
    models: tuple[InstalledModel, ...]
    changed: bool
    written_bytes: int
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


class Installer:
    """One install; made anew for each. The caller holds the change lock and has recovered the store."""

    def __init__(self, root: Path, state: StateFile, blobs: Blobs, context: InstallContext, progress: Progress) -> None:
        self._root = root
        self._state = state
        self._blobs = blobs
        self._context = context
        self._progress = progress
        self._headers: dict[str, GgufHeader | None] = {}

    def run(self, path: Path, descriptor: int | None = None, digest: str | None = None) -> InstallReport:
        """Install a package, `digest`: only the one with this digest of its index. Raises PackageError or StoreError;
        then nothing has changed."""
        with open_package(path, descriptor) as package:
            self._at("opened")
            record = self._state.read()
            verified = self._check_release(package, record)
            if digest is not None and verified.release.index.digest != digest:
                text = f"this is package {verified.release.index.digest}, {digest} was asked for"
                raise PackageError(text, package.where, "another package lies there", Cause.SOURCE)
            contents = read_package(package, verified.release, self._blobs.fetch)
            steps = self._plan(package, contents, verified, record)
            self._check_trials(verified.release.index.digest)
            self._check_room(package, steps)
            self._at("verified")
            written = self._stage(package, steps)
            for item in contents.adapters:
                check_adapter(self._blobs.path(item.weight.digest), item.config)
            self._at("staged")
        changes = [change for change in steps.changes if not _already(change, record)]
        trials = self._try(changes, verified.release.index.digest)
        after = _after(record, verified, trials, self._context.trial)
        if after != record or verified.new_roots or written:
            self._switch(after, verified)
        return self._report(verified, trials, written)

    def _at(self, point: str) -> None:
        self._context.at(point)
        self._progress(point, 0, 0)

    def _check_release(self, package: Package, record: Record) -> Verified:
        context = self._context
        verified = read_release(package, newest_trust(self._root, context.trust), context.allow_unsigned)
        release = verified.release
        if verified.warning:
            log.warning("UNSIGNED PACKAGE %s: %s", package.where, verified.warning)
        floor_s = record.newest_issued_s if _still_signed(record.newest_issued_by, verified.trust) else 0.0
        now = statement.Now(context.clock.wall_s(), context.time_trusted(), floor_s)
        statement.check_time(release, now)
        mark = record.committed.get(release.line)
        if mark is not None and verified.warning is None and _still_signed(mark.signers, verified.trust):
            statement.check_counter(release, mark.counter, mark.index)
        if not statement.matches_hardware(release.hardware, context.hardware.names):
            raise PackageError(
                f"the package is for other hardware: {', '.join(release.hardware)}; this is {context.hardware.board}",
                package.where,
                "take the package for this board",
            )
        return verified

    def _plan(self, package: Package, contents: Contents, verified: Verified, record: Record) -> InstallPlan:
        """With all variants that can run here, so that they are tried; with the first choice alone where the disk is
        too small for all."""
        context = self._plan_context(package, verified, record)
        steps = plan(contents, context)
        if self._context.measure and self._lacking(package, steps) > 0:
            return plan(contents, replace(context, measure=False))
        return steps

    def _header(self, package: Package, item: VariantItem) -> GgufHeader | None:
        """The header of a generator's weights, read before anything is staged; None for a damaged file, which is
        refused later. Its digest is checked first: until then the bytes are unsigned."""
        digest = item.weight.digest
        if not traits(item.info.runtime).context_sized or blob_name(digest) not in package:
            return None
        if digest not in self._headers:
            try:
                check_blob(package, digest)
                with package.file(blob_name(digest)) as file:
                    self._headers[digest] = header_of(file, digest, item.weight.size)
            except PackageError:
                self._headers[digest] = None
        return self._headers[digest]

    def _plan_context(self, package: Package, verified: Verified, record: Record) -> PlanContext:
        context = self._context
        return PlanContext(
            release=verified.release,
            record=record,
            blobs=self._blobs,
            fetch=self._blobs.fetch,
            hardware=context.hardware,
            selection=context.selection,
            keep_all=context.keep_all,
            measure=context.measure,
            signed=verified.warning is None,
            at_s=context.clock.wall_s(),
            header=lambda item: self._header(package, item),
        )

    def _check_trials(self, package: str) -> None:
        cut_off = self._state.trials(package)
        if cut_off >= limits.INSTALL_TRIALS and not self._context.again:
            raise StoreError(
                f"the trial of this package was cut off {cut_off} times on this device (power, or the kernel)",
                remedy="look at `dmesg`, then `edge-agent install --again PACKAGE`",
            )

    def _needed(self, package: Package, steps: InstallPlan) -> int:
        sizes = package.blobs()
        missing = [one.descriptor for one in steps.blobs if not self._blobs.whole(one.descriptor)]
        return sum(found.size for found in missing if found.digest in sizes) + OVERHEAD_BYTES

    def _lacking(self, package: Package, steps: InstallPlan) -> int:
        free = self._context.free_bytes(self._root)
        return self._needed(package, steps) + self._context.reserve_bytes - free

    def _check_room(self, package: Package, steps: InstallPlan) -> None:
        needed, reserve = self._needed(package, steps), self._context.reserve_bytes
        if (lacking := self._lacking(package, steps)) > 0:
            free = needed + reserve - lacking
            raise StoreError(
                f"the disk is too full: {bytes_text(needed)} are needed and {bytes_text(reserve)} stay reserved, "
                f"{bytes_text(free)} are free; nothing was changed",
                str(self._root),
                "free some space, or remove a model",
                Cause.DISK_FULL,
            )

    def _stage(self, package: Package, steps: InstallPlan) -> int:
        total = sum(one.descriptor.size for one in steps.blobs)
        done = written = 0
        for one in steps.blobs:
            if _stage_blob(self._blobs, package, one, self._context.at):
                written += one.descriptor.size
            done += one.descriptor.size
            self._progress("staging", done, total)
        # Blobs that this device does not keep are hashed too: a package with a damaged part is refused whole.
        for digest in set(package.blobs()) - {one.descriptor.digest for one in steps.blobs}:
            check_blob(package, digest)
        self._blobs.sync()
        return written

    def _try(self, changes: list[ModelChange], package: str) -> tuple[tuple[ModelChange, Trial], ...]:
        if not changes:
            return ()
        try:
            self._state.begin_trial(package)
            self._at("trial-recorded")
            self._at("probing")
            rules = TrialRules(self._context.hardware, self._context.selection, self._context.keep_all)
            trials = tuple(try_change(change, self._blobs, self._context.prober, rules) for change in changes)
            self._at("probed")
        finally:
            # The trial ended by itself, passed or not. Only one that was cut off (power, a kill) stays counted.
            self._state.end_trial(package)
        self._at("trial-cleared")
        return trials

    def _switch(self, after: Record, verified: Verified) -> None:
        """Write the new state. Also done where only the counter rises or files were repaired, so that every reader of
        the store sees a new generation and reads again."""
        for trust in verified.new_roots:
            replace_file(_root_file(self._root, trust.root.version), trust.data)
        self._at("root-stored")
        self._state.write(after, lambda: self._at("record-written"))
        self._at("switched")

    def _report(self, verified: Verified, trials: tuple[tuple[ModelChange, Trial], ...], written: int) -> InstallReport:
        lines = []
        for change, trial in trials:
            if change.choice is not None:
                lines.append(f"{change.model}: {change.choice.why}")
                lines.extend(f"{change.model}: not {one.text()}" for one in change.choice.refused)
            lines.extend(f"{change.model}: adapter {name} does not fit and stays behind" for name in change.left_behind)
            for name, verdict in trial.verdicts:
                lines.append(f"{change.model}{'' if name is None else f', adapter {name}'}: {verdict.reason}")
        release = verified.release
        return InstallReport(
            product=release.product,
            channel=release.channel,
            counter=release.counter,
            package=release.index.digest,
            models=tuple(trial.model for _, trial in trials),
            changed=bool(trials),
            written_bytes=written,
            lines=tuple(lines),
            warnings=() if verified.warning is None else (verified.warning,),
        )


def _still_signed(signers: Sequence[str], trust: Trust | None) -> bool:
    """Whether the keys that signed what was committed would still do. Whoever stole release keys can sign the highest
    counter and a far issue time; once they are revoked neither may keep genuine releases out (TUF 5.3.11)."""
    if trust is None or not signers:
        return True
    release = trust.root.roles.release
    left = {*signers} & {*release.keys}
    # Where no key of theirs was revoked, a raised threshold says nothing against what they signed under the old one.
    return left == {*signers} or len(left) >= release.threshold


def newest_trust(root: Path, trust: Trust | None) -> Trust | None:
    """The operator's root, or the newest one in the chain that packages brought. Raises SignatureError for a bad
    link."""
    while trust is not None:
        path = _root_file(root, trust.root.version + 1)
        if not path.exists():
            break
        trust = trust.next(path.read_bytes(), str(path))
    return trust


def _stage_blob(blobs: Blobs, package: Package, request: BlobRequest, at: At) -> bool:
    """Have the blob in the store, from the package where it is not there intact. True when it was written.

    Raises PackageError when it is damaged, not what its name says, or in neither of the two.
    """
    found = request.descriptor
    name = blob_name(found.digest)
    if blobs.intact(found):
        if name in package:
            check_blob(package, found.digest)
        return False
    where = f"{request.name} (blob {found.digest[7:19]})"
    if name not in package:
        raise PackageError("it is neither in the package nor intact in the store", where, "install the full package")
    temporary = blobs.unfinished / found.digest.removeprefix("sha256:")
    if _copy(package, name, temporary, at) != found.digest:
        raise PackageError("its SHA-256 is not its name: damaged or exchanged", where, "fetch the package again")
    weight_files.check_file(temporary, request.name)
    at("blob-written")
    temporary.replace(blobs.path(found.digest))
    at("blob-placed")
    return True


def _copy(package: Package, name: str, temporary: Path, at: At) -> str:
    """Copy a file of the package to `temporary`, durably; returns its digest."""
    running = hashlib.sha256()
    with temporary.open("wb") as file:
        for chunk in package.stream(name):
            running.update(chunk)
            file.write(chunk)
            at("blob-begun")
        file.flush()
        os.fsync(file.fileno())
    return "sha256:" + running.hexdigest()


def _with_figures(adapter: AdapterRecord, figures: TrialFigures | None) -> AdapterRecord:
    return adapter if figures is None else msgspec.structs.replace(adapter, measured=Measurements.of(figures))


def _root_file(root: Path, version: int) -> Path:
    return root / "roots" / f"{version}.json"


def _already(change: ModelChange, record: Record) -> bool:
    """True where the same files are active, or a variant of the same package that trials chose under the same
    selection policy."""
    existing = record.models.get(change.model)
    if existing is None:
        return False
    version, current = change.version, existing.current
    if current.offered and version.selection == current.selection:
        version = msgspec.structs.replace(version, chosen=current.chosen)
    return version.same_contents(current)


def _after(
    record: Record, verified: Verified, trials: tuple[tuple[ModelChange, Trial], ...], terms: str = ""
) -> Record:
    models = dict(record.models)
    for change, trial in trials:
        before = models.get(change.model)
        adapters = tuple(_with_figures(one, trial.adapters.get(one.name)) for one in change.version.adapters)
        measured = Measurements.of(trial.figures)
        tried = msgspec.structs.replace(change.version, measured=measured, adapters=adapters)
        # A version that is still on trial is not kept: the one that answers is.
        previous = None if before is None else before.proven
        tried = msgspec.structs.replace(tried, trial="" if previous is None else terms)
        models[change.model] = ModelRecord(current=tried, previous=previous, last_version=change.version.version)
    if verified.warning is not None:
        return msgspec.structs.replace(record, models=models)
    release = verified.release
    signers = tuple(sorted(verified.signers))
    mark = Committed(counter=release.counter, index=release.index.digest, signers=signers)
    issued_s, issued_by = statement.seconds(release.issued_at), signers
    if record.newest_issued_s > issued_s and _still_signed(record.newest_issued_by, verified.trust):
        issued_s, issued_by = record.newest_issued_s, record.newest_issued_by
    committed = {**record.committed, release.line: mark}
    return Record(models=models, committed=committed, newest_issued_s=issued_s, newest_issued_by=issued_by)
