"""Which of a package's variants this device runs, decided by trying them: each is loaded, probed and measured once.

A variant whose golden probes do not hold here is out; among the rest `select` decides by the measured figures. Where
only one can run there is nothing to decide, and its trial is all that happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from edge_agent.base.errors import ProbeError
from edge_agent.store.blobs import Blobs
from edge_agent.store.install_context import Prober
from edge_agent.store.install_plan import ModelChange
from edge_agent.store.installed_models import measured
from edge_agent.store.trial import Trial, run_trial
from edge_agent.store.variant_selection import Hardware, SelectionPolicy, VariantChoice, choose


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
