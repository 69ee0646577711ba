"""Which of a package's variants this device runs, decided by trying them: each is loaded, probed and measured once.

A variant whose golden probes do not hold here is out; among the rest `select` decides by the measured figures. Where
only one can run there is nothing to decide, and its trial is all that happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from edge_agent.base.errors import BackendError, ProbeError, WorkerError
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.contents import read_probes
from edge_agent.bundle.probes import ProbeFile, Verdict, judge
from edge_agent.store.blobs import Blobs
from edge_agent.store.install_context import ProbeOutcome, Prober, ProbeRequest
from edge_agent.store.install_plan import ModelChange
from edge_agent.store.installed_models import adapter_item, installed, measured, variant_item
from edge_agent.store.state_file import Measurements
from edge_agent.store.variant_selection import Hardware, SelectionPolicy, VariantChoice, choose


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that held: the model as it will be, a verdict per adapter (None: the model), what was measured, also of
    each adapter."""

    model: InstalledModel
    verdicts: tuple[tuple[str | None, Verdict], ...]
    measured: Measurements
    adapters: Mapping[str, Measurements]


def run_trial(change: ModelChange, blobs: Blobs, prober: Prober) -> Trial:
    """Probe a change. Raises ProbeError that says which probe failed, by how much."""
    model = installed(change.slot, blobs)
    files = {name: _probe_file(name, change, blobs) for name in change.probe}
    outcome = _probe(model, files, prober)
    verdicts, at = [], 0
    for name, file in files.items():
        own = outcome.measured[at]
        base = outcome.measured[at + 1] if name is not None else None
        at += 1 if name is None else 2
        verdict = judge(file, model.variant.name, own, base)
        if verdict.code is not None:
            raise ProbeError(
                f"{verdict.code}: {verdict.reason}", _place(model, name), "the version before stays active"
            )
        verdicts.append((name, verdict))
    measured = Measurements(
        load_s=outcome.load_s,
        peak_bytes=outcome.peak_bytes,
        latency_ms=outcome.latency_ms,
        text_bytes=outcome.text_bytes,
        joules=outcome.joules,
        energy_method=outcome.energy_method,
    )
    adapters = {name: Measurements(latency_ms=ms, text_bytes=size) for name, (ms, size) in outcome.adapters.items()}
    return Trial(model, tuple(verdicts), measured, adapters)


def _probe(model: InstalledModel, files: dict[str | None, ProbeFile], prober: Prober) -> ProbeOutcome:
    requests: list[ProbeRequest] = []
    for name, file in files.items():
        requests.append(ProbeRequest(name, file.texts))
        if name is not None:
            requests.append(ProbeRequest(None, file.texts))
    try:
        outcome = prober.probe(model, tuple(requests))
    except (WorkerError, BackendError) as error:
        raise ProbeError(
            f"the golden probes could not be run: {error.what}", _place(model, None), error.remedy
        ) from error
    if len(outcome.measured) != len(requests):
        raise ProbeError(f"{len(outcome.measured)} of {len(requests)} probes were answered", _place(model, None))
    return outcome


def _probe_file(name: str | None, change: ModelChange, blobs: Blobs) -> ProbeFile:
    if name is None:
        chosen = next(ref for ref in change.slot.variants if ref.digest == change.slot.chosen)
        return read_probes(variant_item(chosen, blobs.fetch), blobs.fetch)
    record = next(one for one in change.slot.adapters if one.name == name)
    return read_probes(adapter_item(record.manifest, blobs.fetch), blobs.fetch)


def _place(model: InstalledModel, adapter: str | None) -> str:
    what = f"model {model.name}" if adapter is None else f"adapter {adapter} on {model.name}"
    return f"{what}, variant {model.variant.name}"


@dataclass(frozen=True, slots=True)
class TrialRules:
    """By what a winner is chosen, and whether those that also passed keep their weights."""

    hardware: Hardware
    wishes: SelectionPolicy
    keep_all: bool


def try_change(change: ModelChange, blobs: Blobs, prober: Prober, rules: TrialRules) -> tuple[ModelChange, Trial]:
    """The change with the variant that won, and its trial. Raises ProbeError of the first choice when none passed."""
    if len(change.candidates) > 1:
        return _contest(change, blobs, prober, rules)
    trial = run_trial(change, blobs, prober)
    if not change.slot.kept:
        return change, trial
    # New adapters of a model that keeps several variants must hold on each of them.
    passed = tuple(digest for digest in change.slot.kept if _holds(_with(change, digest), blobs, prober))
    return replace(change, slot=msgspec.structs.replace(change.slot, kept=passed)), trial


def _contest(change: ModelChange, blobs: Blobs, prober: Prober, rules: TrialRules) -> tuple[ModelChange, Trial]:
    trials: dict[str, Trial] = {}
    failed: list[tuple[str, str]] = []
    first: ProbeError | None = None
    for variant in change.candidates:
        try:
            trials[variant.digest] = run_trial(_with(change, variant.digest), blobs, prober)
        except ProbeError as error:
            first = first or error
            failed.append((variant.name, error.what))
    if not trials:
        raise first if first is not None else ProbeError("there is no variant to try", change.model)
    passed = [
        replace(one, measured=measured(trials[one.digest].measured))
        for one in change.candidates
        if one.digest in trials
    ]
    choice = choose(passed, rules.hardware, rules.wishes)
    refused = [] if change.choice is None else list(change.choice.refused)
    known = {name for name, _ in (*choice.refused, *failed)} | {choice.variant.name}
    choice = VariantChoice(
        choice.variant,
        choice.why.replace(f" of {len(passed)} ", f" of {len(passed) + len(failed)} ", 1),
        (*(one for one in refused if one[0] not in known), *failed, *choice.refused),
    )
    chosen = choice.variant.digest
    slot = msgspec.structs.replace(
        change.slot,
        chosen=chosen,
        choice=choice.text(),
        kept=tuple(digest for digest in trials if digest != chosen) if rules.keep_all else (),
        offered={digest: trial.measured for digest, trial in trials.items()},
    )
    return replace(change, slot=slot, choice=choice), trials[chosen]


def _with(change: ModelChange, digest: str) -> ModelChange:
    return replace(change, slot=msgspec.structs.replace(change.slot, chosen=digest))


def _holds(change: ModelChange, blobs: Blobs, prober: Prober) -> bool:
    try:
        run_trial(change, blobs, prober)
    except ProbeError:
        return False
    return True
