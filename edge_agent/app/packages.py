"""Changes to the store: install, roll back, remove; and what is installed. Runs in a process of its own."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app import wiring
from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError, PackageError, SignatureError, UsageError
from edge_agent.base.limits import KIB, MANIFEST_BYTES, STATEMENT_BYTES
from edge_agent.base.shown_text import one_line
from edge_agent.base.units import bytes_text
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.bundle.jsonio import read_file
from edge_agent.bundle.layout import Package, package_descriptor
from edge_agent.bundle.manifest import Digest
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.verify import read_release
from edge_agent.config.load import load
from edge_agent.config.settings import Settings
from edge_agent.core import adapter_routing
from edge_agent.core.residency import HostMemory
from edge_agent.protocol.trial_terms import read_trial, trial_text
from edge_agent.protocol.worker_messages import RuntimeAvailable, StepLimits
from edge_agent.sensors.boards import read_cpu_features
from edge_agent.sensors.suite import SensorSuite
from edge_agent.sensors.time_sync import ClockSync, clock_sync
from edge_agent.store.install import InstallReport, newest_trust
from edge_agent.store.install_plan import InstallContext, Progress, silent
from edge_agent.store.model_store import ModelStore
from edge_agent.store.old_downloads import DOWNLOADS
from edge_agent.store.state_folder import be_owner, become_owner, check_interpreter, running_daemon
from edge_agent.worker import one_shot as workers


def trust(settings: Settings) -> Trust | None:
    """The operator's trust root, None where the file does not exist. Raises PackageError for one that is not sound."""
    try:
        return Trust.from_operator(
            read_file(settings.store.trust_root, STATEMENT_BYTES), str(settings.store.trust_root)
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PackageError(f"cannot be read: {error.strerror}", str(settings.store.trust_root)) from error


def open_library(settings: Settings, again: bool = False, trial: str = "") -> ModelStore:
    """The store, ready to be changed: with trust, board, runtimes and a prober."""
    suite = SensorSuite(settings.sensors.sysroot, time.monotonic)
    names = list(settings.worker.backends)
    backends = workers.available_backends(wiring.spawn_options(settings), names)
    runtimes = tuple(name for name in names if isinstance(backends[name], RuntimeAvailable))
    ram_bytes = _ceiling_bytes(settings, suite)
    features = read_cpu_features(settings.sensors.sysroot) or None
    context = InstallContext(
        prober=_prober(settings, suite, ram_bytes),
        hardware=wiring.hardware(suite.board, runtimes, features, ram_bytes),
        trust=trust(settings),
        allow_unsigned=settings.store.allow_unsigned,
        # Only a proven synchronisation may call a release expired.
        time_trusted=lambda: clock_sync(settings.sensors.sysroot) is ClockSync.SYNCHRONISED,
        reserve_bytes=settings.store.reserve_bytes,
        selection=wiring.selection_policy(settings),
        keep_all=settings.models.keep == "all",
        measure=settings.models.measure,
        again=again,
        trial=trial,
    )
    return ModelStore(wiring.store_dir(settings), context)


def _prober(settings: Settings, suite: SensorSuite, ram_bytes: int | None) -> workers.WorkerProber:
    """A prober that starts workers as the daemon does."""
    worker = settings.worker
    return workers.WorkerProber(
        wiring.spawn_options(settings),
        StepLimits(worker.max_rows, wiring.threads(settings), worker.decode_threads or 0),
        wiring.generators(settings),
        suite.sample_power,
        wiring.utilisation(suite.board) if suite.board.power is None else None,
        ram_bytes,
    )


def _ceiling_bytes(settings: Settings, suite: SensorSuite) -> int | None:
    """Bytes that all models together may take on this board; None where its memory is not known."""
    total_bytes = int(suite.sample()["ram_total"].value or 0)
    memory = HostMemory(total_bytes, total_bytes, settings.memory.reserve_bytes, settings.memory.models_bytes)
    return memory.ceiling_bytes if total_bytes else None


def _check_trust(settings: Settings) -> None:
    """Raise PackageError where no signature can be checked."""
    if not settings.store.allow_unsigned and trust(settings) is None:
        root = str(settings.store.trust_root)
        remedy = "put the root.json of `edge-forge keygen` there"
        raise PackageError("is missing, so no signature can be checked", root, remedy, Cause.NO_TRUST_ROOT)


def install(
    config: Path | None,
    package: Path,
    progress: Progress = silent,
    again: bool = False,
    digest: str | None = None,
    trial: str | None = None,
) -> dict[str, Any]:
    """Verify, probe and activate a package; `digest`: of its index, None takes any; `trial`: the terms on which the
    daemon tries a new version on requests first. Raises UsageError, PackageError, StoreError; then nothing has
    changed."""
    check_digest(digest)
    terms = _trial_terms(trial)
    descriptor = package_descriptor(package)
    try:
        settings = _settings_of_owner(config)
        _check_trust(settings)
        report = open_library(settings, again, terms).install(package, progress, descriptor, digest)
    finally:
        os.close(descriptor)
    fields = report_fields(report)
    if report.changed:
        journal(f"installed {fields['what']} from {package.name}")
    notes = [*fields["lines"], *(f"warning: {warning}" for warning in fields["warnings"])]
    return {"text": "\n  ".join([f"installed {fields['what']}", *notes, *_heard_by(settings)]), **fields}


def _trial_terms(text: str | None) -> str:
    """The terms of `--trial` in the form of the store's record; '' for none. Raises UsageError."""
    try:
        return "" if text is None else trial_text(read_trial(text))
    except ValueError as error:
        shown = one_line(str(error))
        remedy = "give JSON such as '{}' or '{\"least\": 100, \"slower\": 1.2}' (docs/desired.md)"
        raise UsageError(f"--trial: {shown}", None, remedy) from error


def check_digest(digest: str | None) -> None:
    """Raise UsageError for what is no digest of a package's index."""
    try:
        msgspec.convert(digest, Digest | None)
    except msgspec.ValidationError:
        text = f"--digest {one_line(digest)} is no digest: sha256: and 64 hexadecimal digits in small letters"
        raise UsageError(text, None, "take it from `edge-agent install --json`, or leave it out") from None


def install_url(
    config: Path | None,
    url: str,
    digest: str | None = None,
    progress: Progress = silent,
    again: bool = False,
    trial: str | None = None,
) -> dict[str, Any]:
    """Fetch a package from an HTTP server or an OCI registry, then as `install`; `digest`: of its index, None takes
    any. Raises UsageError, PackageError, StoreError; then nothing has changed, and what was fetched is kept for the
    next try."""
    # Imported here: urllib costs time and memory, and other installs need it not.
    from edge_agent.store.download_folder import RoomOptions, Wishes
    from edge_agent.store.package_download import PackageDownload
    from edge_agent.store.registry import SCHEME, RegistryPlace, credentials
    from edge_agent.store.registry_download import RegistryDownload
    from edge_agent.store.remote_file import TransferOptions, check_url

    place = RegistryPlace.parse(url) if url.startswith(SCHEME) else None
    if place is None:
        check_url(url)
    check_digest(digest)
    terms = _trial_terms(trial)
    settings = _settings_of_owner(config)
    _check_trust(settings)
    limit = settings.store.download_kib_s
    transfer = TransferOptions(None if limit is None else limit * KIB)
    wishes = Wishes(_early_check(settings, digest), RoomOptions(settings.store.reserve_bytes), digest, progress)
    folder, root = settings.store.state_dir / DOWNLOADS, wiring.store_dir(settings)
    download: PackageDownload | RegistryDownload
    if place is None:
        download = PackageDownload(url, folder, root, transfer, wishes)
    else:
        plain, basic = settings.store.registries_plain, credentials(settings.store.registry_auth, place.host)
        download = RegistryDownload(place, folder, root, transfer, wishes, plain=plain, basic=basic)
    report = open_library(settings, again, terms).install(download.fetch(), progress, digest=digest)
    download.done()
    fields = {**report_fields(report), "moved_bytes": download.moved_bytes}
    if report.changed:
        journal(f"installed {fields['what']} from {url}")
    notes = [f"{bytes_text(download.moved_bytes)} were fetched", *fields["lines"]]
    notes += [f"warning: {warning}" for warning in fields["warnings"]]
    return {"text": "\n  ".join([f"installed {fields['what']}", *notes, *_heard_by(settings)]), **fields}


def _early_check(settings: Settings, digest: str | None) -> Callable[[Package], None]:
    """What is known of a package before its blobs are there: whether it is the wanted one, and who signed it."""

    def check(package: Package) -> None:
        trusted = newest_trust(wiring.store_dir(settings), trust(settings))
        release = read_release(package, trusted, settings.store.allow_unsigned).release
        if digest is not None and release.index.digest != digest:
            text = f"this is package {release.index.digest}, {digest} was asked for"
            raise PackageError(text, package.where, "another package lies at this URL", Cause.SOURCE)
        if "sha256:" + hashlib.sha256(package.read("index.json", MANIFEST_BYTES)).hexdigest() != release.index.digest:
            raise SignatureError("its SHA-256 is not the one that was signed", "index.json", "fetch the package again")

    return check


def install_waiting(config: Path | None, folder: Path) -> dict[str, Any]:
    """Install every package (.tar) of a folder in the order of their names, as put there before the board was flashed.

    One that was installed is removed from the folder. One that is refused stays, beside NAME.refused with the reason,
    and is not tried again while that file is there. One that could not be tried (a full disk, no trust root, another
    install at work) stays for the next call. Each ends for itself: a bad one keeps no other from being installed.
    """
    if not folder.is_dir():
        raise UsageError("is no folder", str(folder), "name the folder that packages wait in")
    lines, installed, refused = [], [], []
    for package in sorted(folder.glob("*.tar")):
        verdict = package.with_suffix(".refused")
        if verdict.exists():
            continue
        try:
            lines.append(install(config, package)["text"])
            package.unlink()
            installed.append(package.name)
        except EdgeError as error:
            lines.append(f"{package.name} is not installed: {error}")
            refused.append(package.name)
            if isinstance(error, PackageError) and error.cause not in (Cause.NO_TRUST_ROOT, Cause.SOURCE):
                verdict.write_text(f"{error}\n", encoding="utf-8")
    text = "\n".join(lines) or f"no package waits in {folder}"
    return {"text": text, "installed": installed, "refused": refused}


_STARTED_AS = os.getuid()
"""Who started this process: later it is the owner of the state folder."""


def journal(text: str) -> None:
    """A line in the system's journal on a change that a person made here, and who it was. The daemon reports what its
    own processes change, and sends an event for every change."""
    if "JOURNAL_STREAM" in os.environ:
        return
    import syslog  # only commands that change something need it

    who = os.environ.get("SUDO_USER") or ("root" if _STARTED_AS == 0 else str(_STARTED_AS))
    syslog.openlog("edge-agent", syslog.LOG_PID)
    syslog.syslog(syslog.LOG_NOTICE, f"{one_line(text)} (by {one_line(who)})")


def _heard_by(settings: Settings) -> list[str]:
    """Where a daemon runs: a note that it takes the change over."""
    pid = running_daemon(settings.store.state_dir)
    return [] if pid is None else [f"the running daemon (pid {pid}) takes it over within a second"]


def _settings_of_owner(config: Path | None) -> Settings:
    """The settings. Becomes the owner of the state folder first: the daemon could not change files that root wrote."""
    settings = load(config)
    become_owner(settings.store.state_dir)
    check_interpreter()
    return settings


def report_fields(report: InstallReport) -> dict[str, Any]:
    """An install report as plain values, with one line for a person."""
    names = ", ".join(f"{model.name} version {model.version}" for model in report.models)
    what = f"{report.product} release {report.counter}" + (f": {names}" if names else "")
    return {
        "what": what + ("" if report.changed else " (was active already)"),
        "product": report.product,
        "counter": report.counter,
        "package": report.package,
        "changed": report.changed,
        "models": [model.name for model in report.models],
        "lines": list(report.lines),
        "warnings": list(report.warnings),
    }


def rollback(config: Path | None, model: str, trial: str | None = None) -> dict[str, Any]:
    """Return a model to the version before; with `trial` it answers only after a trial, as in `install`."""
    terms = _trial_terms(trial)
    settings = _settings_of_owner(config)
    before = next((one for one in ModelStore(wiring.store_dir(settings)).active() if one.name == model), None)
    returned = ModelStore(wiring.store_dir(settings)).rollback(model, terms)
    lost = {one.name for one in before.adapters} - {one.name for one in returned.adapters} if before else set()
    notes = [f"without {', '.join(sorted(lost))}"] if lost else []
    text = f"{model} is back at version {returned.version} ({returned.variant.name})"
    journal(text)
    return {
        "text": "\n  ".join([text, *notes, *_heard_by(settings)]),
        "model": model,
        "version": returned.version,
    }


def promote(config: Path | None, model: str) -> dict[str, Any]:
    """End the trial of a model's new version: it answers from now on."""
    settings = _settings_of_owner(config)
    promoted = ModelStore(wiring.store_dir(settings)).promote(model)
    text = f"{model} version {promoted.version} ({promoted.variant.name}) answers from now on"
    journal(text)
    return {
        "text": "\n  ".join([text, *_heard_by(settings)]),
        "model": model,
        "version": promoted.version,
    }


def remove(config: Path | None, model: str, adapter: str | None) -> dict[str, Any]:
    """Remove a model, or one of its adapters."""
    settings = _settings_of_owner(config)
    ModelStore(wiring.store_dir(settings)).remove(model, adapter)
    what = f"adapter {adapter} of {model}" if adapter else model
    journal(f"removed {what}")
    return {"text": "\n  ".join([f"removed {what}", *_heard_by(settings)]), "model": model, "adapter": adapter}


def models(config: Path | None) -> list[dict[str, Any]]:
    """The installed models, active or damaged."""
    settings = load(config)
    be_owner(settings.store.state_dir)
    library = ModelStore(wiring.store_dir(settings))
    reasons = {history.name: history.why for history in library.models()}
    active = library.active()
    suite = SensorSuite(settings.sensors.sysroot, time.monotonic)
    found = adapter_routing.route_adapters(
        active, wiring.routing_policy(settings), lambda: _ceiling_bytes(settings, suite)
    )
    return [_model_fields(model, reasons.get(model.name, ""), found) for model in active] + [
        {"name": "?", "version": 0, "task": "", "variant": "", "why": problem, "choice": "", "adapters": []}
        for problem in library.problems()
    ]


def _figure_fields(figures: TrialFigures) -> dict[str, Any]:
    """A trial's figures as JSON has them; that energy is an estimate stands in `energy_method`."""
    fields = asdict(figures)
    del fields["energy_estimated"]
    return fields


def _route_fields(route: adapter_routing.AdapterRoute | None) -> dict[str, Any]:
    """Where the adapter is also installed merged into its base: which of the two runs, and why."""
    return {} if route is None else {"merged": route.merged, "form": route.why}


def _model_fields(
    model: InstalledModel, choice: str, found: Mapping[adapter_routing.Key, adapter_routing.AdapterRoute]
) -> dict[str, Any]:
    variant = model.variant
    return {
        "name": model.name,
        "version": model.version,
        "task": model.task.kind,
        "variant": variant.name,
        "digest": variant.digest,
        "on_trial": bool(model.trial),
        "why": f"{bytes_text(variant.size_bytes)}, chosen of {len(model.variants)}",
        "choice": choice,
        "variants": [
            {
                "name": one.name,
                "accuracy": one.accuracy,
                "size_bytes": one.size_bytes,
                "kept": bool(one.files),
                "measured": None if one.measured is None else _figure_fields(one.measured),
            }
            for one in model.variants
        ],
        "adapters": [
            {
                "name": adapter.name,
                "rank": adapter.rank,
                "digest": adapter.digest,
                "task": adapter.task.kind
                + (f", {len(adapter.task.labels)} labels" if adapter.task.labels else "")
                + ", pairs" * adapter.task.pairs,
                **_route_fields(found.get((model.name, adapter.name))),
            }
            for adapter in model.adapters
        ],
    }


def models_text(listed: list[dict[str, Any]], why: bool) -> str:
    """The installed models; with `why`, why this variant of each."""
    if not listed:
        return "nothing is installed; `edge-agent install PACKAGE` installs a package"
    lines = []
    for model in listed:
        lines.append(
            f"{model['name']}  version {model['version']}  {model['task']}  {model['variant']}  {model['why']}"
        )
        if model.get("on_trial"):
            lines.append("  on trial: the version before answers; `edge-agent promote` and `rollback` end it")
        if why and model["choice"]:
            lines.append(f"  because: {model['choice']}")
        lines += _energy_lines(model.get("variants", [])) if why else []
        for adapter in model["adapters"]:
            runs = f"  runs as {adapter['merged']}" if adapter.get("merged") else ""
            form = f"rank {adapter['rank']}" if adapter["rank"] else "head alone"
            lines.append(f"  + {adapter['name']}  {form}  {adapter['task']}{runs}")
            if why and adapter.get("form"):
                lines.append(f"    because: {adapter['form']}")
    return "\n".join(lines)


def _energy_lines(variants: list[dict[str, Any]]) -> list[str]:
    """How the energy of each tried variant was measured, or why it is not known; equal reasons once."""
    tried = {one["name"]: one["measured"] for one in variants if one["measured"] and one["measured"]["energy_method"]}
    known = [f"  energy of a text, {name}: {one['energy_method']}" for name, one in tried.items()
             if one["joules"] is not None]  # fmt: skip
    reasons = dict.fromkeys(one["energy_method"] for one in tried.values() if one["joules"] is None)
    return [*known, *(f"  energy of a text is not known: {reason}" for reason in reasons)]
