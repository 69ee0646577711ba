"""The install: stage, verify, probe, switch. Old or new at every moment, and nothing left over when it is refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_agent.base import limits
from edge_agent.base.errors import PackageError, StoreError
from edge_agent.base.runtimes import traits
from edge_agent.base.units import bytes_text
from edge_agent.bundle import statement
from edge_agent.bundle.adapter_file import check_adapter
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.contents import Contents, VariantItem
from edge_agent.bundle.gguf_header import header_of
from edge_agent.bundle.gguf_memory import GgufHeader
from edge_agent.bundle.layout import Package, blob_name, open_package
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.verify import Verified, check_blob, read_package, read_release
from edge_agent.store.blobs import Blobs
from edge_agent.store.disk import replace_file
from edge_agent.store.install_context import InstallContext, Progress
from edge_agent.store.install_plan import InstallPlan, ModelChange, PlanContext, plan
from edge_agent.store.staging import stage
from edge_agent.store.state_file import Committed, ModelRecord, Record, StateFile
from edge_agent.store.variant_trials import Trial, TrialRules, try_change

# What records, folders and the file system's own books may take beside the blobs.
OVERHEAD_BYTES = limits.MIB

log = logging.getLogger("edge_agent.store")


@dataclass(frozen=True, slots=True)
class InstallReport:
    """What an install did. `changed` is False where the very same contents were already active."""

    product: str
    channel: str
    counter: int
    models: tuple[InstalledModel, ...]
    changed: bool
    written_bytes: int
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


class Installer:
    """One install; made anew for each. The caller holds the change lock and has recovered the store."""

    def __init__(self, root: Path, journal: StateFile, blobs: Blobs, setup: InstallContext, progress: Progress) -> None:
        self._root = root
        self._journal = journal
        self._blobs = blobs
        self._setup = setup
        self._progress = progress
        self._headers: dict[str, GgufHeader | None] = {}

    def run(self, path: Path) -> InstallReport:
        """Install a package. Raises PackageError or StoreError; then nothing has changed."""
        with open_package(path) as package:
            self._at("opened")
            record = self._journal.read()
            verified = self._check_release(package, record)
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
        after = _after(record, verified, trials)
        if after != record or verified.new_roots or written:
            self._switch(after, verified)
        return self._report(verified, trials, written)

    def _at(self, point: str) -> None:
        self._setup.at(point)
        self._progress(point, 0, 0)

    def _check_release(self, package: Package, record: Record) -> Verified:
        setup = self._setup
        verified = read_release(package, newest_trust(self._root, setup.trust), setup.allow_unsigned)
        release = verified.release
        if verified.warning:
            log.warning("UNSIGNED PACKAGE %s: %s", package.where, verified.warning)
        now = statement.Now(setup.clock.wall_s(), setup.time_trusted(), record.newest_issued_s)
        statement.check_time(release, now)
        mark = record.committed.get(release.line)
        if mark is not None and verified.warning is None:
            statement.check_counter(release, mark.counter, mark.index)
        if not statement.matches_hardware(release.hardware, setup.hardware.names):
            raise PackageError(
                f"the package is for other hardware: {', '.join(release.hardware)}; this is {setup.hardware.board}",
                package.where,
                "take the package for this board",
            )
        return verified

    def _plan(self, package: Package, contents: Contents, verified: Verified, record: Record) -> InstallPlan:
        """With all variants that can run here, to try them; with the first choice alone where the disk is too small."""
        context = self._context(package, verified, record)
        steps = plan(contents, context)
        if self._setup.measure and self._lacking(package, steps) > 0:
            return plan(contents, replace(context, measure=False))
        return steps

    def _header(self, package: Package, item: VariantItem) -> GgufHeader | None:
        """The head of a generator's weights, read before anything is staged; a damaged file is refused later, by its
        digest."""
        digest = item.weight.digest
        if not traits(item.info.runtime).context_sized or blob_name(digest) not in package:
            return None
        if digest not in self._headers:
            try:
                with package.file(blob_name(digest)) as file:
                    self._headers[digest] = header_of(file, digest, item.weight.size)
            except PackageError:
                self._headers[digest] = None
        return self._headers[digest]

    def _context(self, package: Package, verified: Verified, record: Record) -> PlanContext:
        setup = self._setup
        return PlanContext(
            release=verified.release,
            record=record,
            blobs=self._blobs,
            fetch=self._blobs.fetch,
            hardware=setup.hardware,
            wishes=setup.wishes,
            keep_all=setup.keep_all,
            measure=setup.measure,
            signed=verified.warning is None,
            at_s=setup.clock.wall_s(),
            header=lambda item: self._header(package, item),
        )

    def _check_trials(self, package: str) -> None:
        cut_off = self._journal.trials(package)
        if cut_off >= limits.INSTALL_TRIALS and not self._setup.again:
            raise StoreError(
                f"the trial of this package was cut off {cut_off} times on this device (power, or the kernel)",
                remedy="look at `dmesg`, then `edge-agent install --again PACKAGE`",
            )

    def _needed(self, package: Package, steps: InstallPlan) -> int:
        sizes = package.blobs()
        missing = [one.descriptor for one in steps.wanted if not self._blobs.whole(one.descriptor)]
        return sum(found.size for found in missing if found.digest in sizes) + OVERHEAD_BYTES

    def _lacking(self, package: Package, steps: InstallPlan) -> int:
        free = self._setup.free_bytes(self._root)
        return self._needed(package, steps) + self._setup.reserve_bytes - free

    def _check_room(self, package: Package, steps: InstallPlan) -> None:
        needed, reserve = self._needed(package, steps), self._setup.reserve_bytes
        if (lacking := self._lacking(package, steps)) > 0:
            free = needed + reserve - lacking
            raise StoreError(
                f"the disk is too full: {bytes_text(needed)} are needed and {bytes_text(reserve)} stay reserved, "
                f"{bytes_text(free)} are free; nothing was changed",
                str(self._root),
                "free some space, or remove a model",
            )

    def _stage(self, package: Package, steps: InstallPlan) -> int:
        total = sum(one.descriptor.size for one in steps.wanted)
        done = written = 0
        for one in steps.wanted:
            if stage(self._blobs, package, one, self._setup.at):
                written += one.descriptor.size
            done += one.descriptor.size
            self._progress("staging", done, total)
        # What this device does not keep is read all the same: a package with a damaged part is not taken in part.
        for digest in set(package.blobs()) - {one.descriptor.digest for one in steps.wanted}:
            check_blob(package, digest)
        self._blobs.sync()
        return written

    def _try(self, changes: list[ModelChange], package: str) -> tuple[tuple[ModelChange, Trial], ...]:
        if not changes:
            return ()
        try:
            self._journal.begin_trial(package)
            self._at("trial-recorded")
            self._at("probing")
            rules = TrialRules(self._setup.hardware, self._setup.wishes, self._setup.keep_all)
            trials = tuple(try_change(change, self._blobs, self._setup.prober, rules) for change in changes)
            self._at("probed")
        finally:
            # Held or refused: the device lived through it. Only a trial that was cut off stays on the record.
            self._journal.end_trial(package)
        self._at("trial-cleared")
        return trials

    def _switch(self, after: Record, verified: Verified) -> None:
        """Also where only the counter rises or files were repaired: whoever reads the store must look again."""
        for trust in verified.new_roots:
            replace_file(_root_file(self._root, trust.root.version), trust.data)
        self._at("root-stored")
        self._journal.write(after, lambda: self._at("record-written"))
        self._at("switched")

    def _report(self, verified: Verified, trials: tuple[tuple[ModelChange, Trial], ...], written: int) -> InstallReport:
        lines = []
        for change, trial in trials:
            if change.choice is not None:
                lines.append(f"{change.model}: {change.choice.why}")
                lines.extend(f"{change.model}: not {name}: {reason}" for name, reason in change.choice.refused)
            lines.extend(f"{change.model}: adapter {name} does not fit and stays behind" for name in change.left_behind)
            for name, verdict in trial.verdicts:
                lines.append(f"{change.model}{'' if name is None else f', adapter {name}'}: {verdict.reason}")
        release = verified.release
        return InstallReport(
            product=release.product,
            channel=release.channel,
            counter=release.counter,
            models=tuple(trial.model for _, trial in trials),
            changed=bool(trials),
            written_bytes=written,
            lines=tuple(lines),
            warnings=() if verified.warning is None else (verified.warning,),
        )


def newest_trust(root: Path, trust: Trust | None) -> Trust | None:
    """The operator's root, or the newest one that packages led to from it. Raises SignatureError for a bad link."""
    while trust is not None:
        path = _root_file(root, trust.root.version + 1)
        if not path.exists():
            break
        trust = trust.next(path.read_bytes(), str(path))
    return trust


def _root_file(root: Path, version: int) -> Path:
    return root / "roots" / f"{version}.json"


def _already(change: ModelChange, record: Record) -> bool:
    """The same files are active, or a variant of the same package that was chosen by the same wishes from trials."""
    existing = record.models.get(change.model)
    if existing is None:
        return False
    slot, current = change.slot, existing.current
    if current.offered and slot.wishes == current.wishes:
        slot = msgspec.structs.replace(slot, chosen=current.chosen)
    return slot.same_contents(current)


def _after(record: Record, verified: Verified, trials: tuple[tuple[ModelChange, Trial], ...]) -> Record:
    models = dict(record.models)
    for change, trial in trials:
        before = models.get(change.model)
        adapters = tuple(
            msgspec.structs.replace(one, measured=trial.adapters.get(one.name, one.measured))
            for one in change.slot.adapters
        )
        tried = msgspec.structs.replace(change.slot, measured=trial.measured, adapters=adapters)
        models[change.model] = ModelRecord(
            current=tried, previous=None if before is None else before.current, last_version=change.slot.version
        )
    if verified.warning is not None:
        return Record(models=models, committed=record.committed, newest_issued_s=record.newest_issued_s)
    release = verified.release
    mark = Committed(counter=release.counter, index=release.index.digest)
    issued_s = max(record.newest_issued_s, statement.seconds(release.issued_at))
    return Record(models=models, committed={**record.committed, release.line: mark}, newest_issued_s=issued_s)
