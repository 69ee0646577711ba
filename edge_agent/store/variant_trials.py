"""Trials of a new version: its golden probes run in a worker on this device before anything becomes active.

Where several variants of a package can run, each is loaded, probed and measured; a variant whose probes do not hold is
out. The rest are timed in turns, so that whatever else the board does meanwhile slows all of them alike, and
`variant_selection` decides. Where only one can run, its trial is all that happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from edge_agent.base.errors import BackendError, ProbeError, WorkerError
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.bundle.contents import read_probes
from edge_agent.bundle.probes import ProbeFile, ProbeOutcome, ProbeRequest, Verdict, judge
from edge_agent.core.paired_times import PairedTimes
from edge_agent.store.disk import Blobs
from edge_agent.store.install_plan import ModelChange, Prober
from edge_agent.store.installed_models import adapter_item, installed_model, variant_item
from edge_agent.store.state_file import Measurements
from edge_agent.store.variant_selection import Hardware, RefusalCause, RefusedVariant, SelectionPolicy, choose


@dataclass(frozen=True, slots=True)
class TrialRules:
    """By what a variant is chosen, and whether the others that passed keep their weights."""

    hardware: Hardware
    selection: SelectionPolicy
    keep_all: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial whose probes held: the model as it will be, a verdict per adapter (None: the model), and the figures of
    the model (None: it was not timed) and of each adapter."""

    model: InstalledModel
    verdicts: tuple[tuple[str | None, Verdict], ...]
    figures: TrialFigures | None
    adapters: Mapping[str, TrialFigures]


def try_change(change: ModelChange, blobs: Blobs, prober: Prober, rules: TrialRules) -> tuple[ModelChange, Trial]:
    """The change with the variant that was chosen, and its trial. Raises the first ProbeError when none passed."""
    if len(change.candidates) > 1:
        return _try_candidates(change, blobs, prober, rules)
    trial = run_trial(change, blobs, prober)
    kept = change.version.kept
    if not kept:
        return change, trial
    # The model may switch to any of its kept variants later, so new adapters must hold on each of them.
    passed = tuple(digest for digest in kept if _passes(_with_variant(change, digest), blobs, prober))
    return replace(change, version=msgspec.structs.replace(change.version, kept=passed)), trial


def _try_candidates(change: ModelChange, blobs: Blobs, prober: Prober, rules: TrialRules) -> tuple[ModelChange, Trial]:
    trials: dict[str, Trial] = {}
    failed: list[RefusedVariant] = []
    first: ProbeError | None = None
    for variant in change.candidates:
        try:
            trials[variant.digest] = run_trial(_with_variant(change, variant.digest), blobs, prober)
        except ProbeError as error:
            first = first or error
            failed.append(RefusedVariant(variant.name, RefusalCause.TRIAL_FAILED, error.what))
    if not trials:
        raise first if first is not None else ProbeError("there is no variant to try", change.model)
    passed = [replace(one, measured=trials[one.digest].figures) for one in change.candidates if one.digest in trials]
    times, problem = _in_turns(change, trials, blobs, prober)
    if times is not None:
        trials = {digest: _timed(trial, times.median_ms(digest)) for digest, trial in trials.items()}
        passed = [replace(one, measured=trials[one.digest].figures) for one in passed]
    choice = choose(passed, rules.hardware, rules.selection, times)
    if problem:
        choice = replace(choice, sure=f"usual on {rules.hardware.board_class}; {problem}")
    # A refusal before the trials (it cannot run here) stays; the trials replace what was only ranked by its format.
    tried = {one.name for one in (*choice.refused, *failed)} | {choice.variant.name}
    before = () if change.choice is None else change.choice.refused
    choice = replace(
        choice,
        considered=len(passed) + len(failed),
        refused=(*(one for one in before if one.name not in tried), *failed, *choice.refused),
    )
    chosen = choice.variant.digest
    fallback = () if choice.fallback is None else (choice.fallback.digest,)
    version = msgspec.structs.replace(
        change.version,
        chosen=chosen,
        choice=choice.text(),
        kept=tuple(digest for digest in trials if digest != chosen) if rules.keep_all else fallback,
        offered={digest: Measurements.of(trial.figures) for digest, trial in trials.items()},
    )
    return replace(change, version=version, choice=choice), trials[chosen]


def _in_turns(
    change: ModelChange, trials: Mapping[str, Trial], blobs: Blobs, prober: Prober
) -> tuple[PairedTimes | None, str]:
    """The times of the variants that passed, measured in turns; None and the reason where they cannot be compared."""
    if len(trials) < 2 or any(trial.figures is None for trial in trials.values()):
        return None, ""
    models = [
        replace(trial.model, variant=replace(trial.model.variant, measured=trial.figures)) for trial in trials.values()
    ]
    text = _probe_file(None, _with_variant(change, models[0].variant.digest), blobs).texts[0]
    try:
        return prober.compare_times(models, text), ""
    except (WorkerError, BackendError) as error:
        return None, f"their times could not be compared: {error.what}"


def _timed(trial: Trial, latency_ms: float) -> Trial:
    """The trial with the time that was measured in turns with the others'."""
    return trial if trial.figures is None else replace(trial, figures=replace(trial.figures, latency_ms=latency_ms))


def _with_variant(change: ModelChange, digest: str) -> ModelChange:
    return replace(change, version=msgspec.structs.replace(change.version, chosen=digest))


def _passes(change: ModelChange, blobs: Blobs, prober: Prober) -> bool:
    try:
        run_trial(change, blobs, prober)
    except ProbeError:
        return False
    return True


def run_trial(change: ModelChange, blobs: Blobs, prober: Prober) -> Trial:
    """Probe the chosen variant of a change. Raises ProbeError that says which probe failed, by how much."""
    model = installed_model(change.version, blobs)
    files = {name: _probe_file(name, change, blobs) for name in change.probe}
    outcome = _probe(model, files, prober)
    verdicts, at = [], 0
    for name, file in files.items():
        own = outcome.outputs[at]
        base = outcome.outputs[at + 1] if name is not None else None
        at += 1 if name is None else 2
        verdict = judge(file, model.variant.name, own, base)
        if verdict.code is not None:
            raise ProbeError(
                f"{verdict.code}: {verdict.reason}", _place(model, name), "the version before stays active"
            )
        verdicts.append((name, verdict))
    return Trial(model, tuple(verdicts), outcome.figures, outcome.adapters)


def _probe(model: InstalledModel, files: dict[str | None, ProbeFile], prober: Prober) -> ProbeOutcome:
    """Run the texts of every probe file; for an adapter also without it, because its effect is judged too."""
    requests: list[ProbeRequest] = []
    for name, file in files.items():
        requests.append(ProbeRequest(name, file.texts, company=True))
        if name is not None:
            requests.append(ProbeRequest(None, file.texts))
    try:
        outcome = prober.probe(model, tuple(requests))
    except (WorkerError, BackendError) as error:
        raise ProbeError(
            f"the golden probes could not be run: {error.what}", _place(model, None), error.remedy
        ) from error
    if len(outcome.outputs) != len(requests):
        raise ProbeError(f"{len(outcome.outputs)} of {len(requests)} probes were answered", _place(model, None))
    return outcome


def _probe_file(name: str | None, change: ModelChange, blobs: Blobs) -> ProbeFile:
    if name is None:
        chosen = next(ref for ref in change.version.variants if ref.digest == change.version.chosen)
        return read_probes(variant_item(chosen, blobs.fetch), blobs.fetch)
    record = next(one for one in change.version.adapters if one.name == name)
    return read_probes(adapter_item(record.manifest, blobs.fetch), blobs.fetch)


def _place(model: InstalledModel, adapter: str | None) -> str:
    what = f"model {model.name}" if adapter is None else f"adapter {adapter} on {model.name}"
    return f"{what}, variant {model.variant.name}"
