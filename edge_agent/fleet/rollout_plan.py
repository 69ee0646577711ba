"""From a plan to waves of devices and to what each device is given, and brought back to. Pure.

A device's desired state keeps what the plan does not name. What brings it back is its earlier desired state, and beside
it the packages that it held of what the plan names and the earlier state did not: a desired state that says nothing of
a model leaves the new one there.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec
from msgspec import UnsetType

from edge_agent.base.errors import UsageError, brief
from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.core.desired_state import Key
from edge_agent.protocol.decode import DesiredRefused, decode_desired
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import (
    Desired,
    DesiredAdapter,
    DesiredModel,
    DesiredPolicy,
    DesiredSource,
    InstalledEntry,
)
from edge_agent.protocol.rollout_messages import RolloutPlan, RolloutRecord, RolloutState
from edge_agent.protocol.topics import NAME, RESERVED

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?) ?%")
LONGEST_S = 30 * 86400.0
WAVES = 64
CLAIM_CHARS = 256
LONGEST_RUN_S = 10 * LONGEST_S
"""Of a wave: a rollout may stand still for the watch of devices that never come back."""


class CannotGive(Exception):
    """A device cannot be given the plan; the sentence says why."""


def check_plan(plan: RolloutPlan) -> None:
    """Raise UsageError for a plan that no rollout can follow; the key is named."""
    if not plan.models:
        raise UsageError("models is empty: a rollout gives at least one", "plan")
    sound = decode_desired(Inbound("", msgspec.json.encode(_desired(1, plan.models, plan.sources, plan.policy))))
    if isinstance(sound, DesiredRefused):
        raise UsageError(sound.reason, "plan")
    stop = plan.stop
    shares = {"stop.applied": stop.applied, "stop.failed": stop.failed, "stop.refused": stop.refused}
    for key, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{key} is {share:g}; a share from 0 to 1 is needed", "plan")
    for key, seconds in {"within_s": plan.within_s, "watch_s": plan.watch_s}.items():
        if not 0 <= seconds <= LONGEST_S:
            raise UsageError(f"{key} is {seconds:g}; 0 to {LONGEST_S:.0f} seconds are possible", "plan")
    if stop.least_requests < 1:
        raise UsageError(f"stop.least_requests is {stop.least_requests}; 1 or more are needed", "plan")
    if not 0 < len(plan.waves) <= WAVES:
        raise UsageError(f"waves has {len(plan.waves)} entries; 1 to {WAVES} are possible", "plan")
    for place, wave in enumerate(plan.waves):
        if isinstance(wave, str):
            _share(wave, place)
        elif not wave:
            raise UsageError(f"waves[{place}] names no device", "plan")


def state_fault(state: RolloutState) -> str | None:
    """Why the state at the broker is none that a rollout can go on from; None where it is one. Who may publish there
    need not be this command, and what it names becomes topics, places in lists and numbers."""
    names = [name for wave in state.waves for name in wave]
    wrong = next((name for name in names if not NAME.fullmatch(name) or name in RESERVED), None)
    claimed = () if state.claim is None else (state.claim.by, state.claim.who)
    if not NAME.fullmatch(state.rollout) or any(len(text) > CLAIM_CHARS for text in claimed):
        return "its name, or that of who has claimed it, is none"
    if wrong is not None:
        return f"waves: {brief(wrong)} is the name of no device"
    if not all(state.waves) or len(set(names)) != len(names):
        return "waves: one is empty, or a device stands in two"
    if not 0 <= state.wave < len(state.waves):
        return f"wave {brief(state.wave)} is none of {len(state.waves)}"
    if not 0 <= state.seq < 2**53 or not 0 <= state.spent_s <= LONGEST_RUN_S:
        return "seq or spent_s is out of range"
    try:
        check_plan(state.plan)
    except UsageError as error:
        return str(error)
    return None


def record_fault(record: RolloutRecord) -> str | None:
    """The same of the record of a device."""
    if record.back_version is not None and not 0 < record.back_version < 2**53:
        return "back_version is out of range"
    # The earlier version is 0 where there was none; it is published with another one.
    for what, given in (("give", record.give), ("back", msgspec.structs.replace(record.back, version=1))):
        sound = decode_desired(Inbound("", msgspec.json.encode(given)))
        if isinstance(sound, DesiredRefused):
            return f"{what}: {sound.reason}"
    return None


def plan_waves(plan: RolloutPlan, known: Mapping[str, bool], seed: str) -> list[list[str]]:
    """The devices of each wave, by name; `known` says of each device that was heard whether it is there now. Shares are
    drawn by `seed`, those that are there first. Raises UsageError where a name fits no device."""
    chosen = [name for name in known if any(fnmatchcase(name, pattern) for pattern in plan.devices)]
    for pattern in plan.devices:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"devices: {brief(pattern)} fits no device that was heard", "plan")
    drawn = sorted(chosen, key=lambda name: (not known[name], hashlib.sha256(f"{seed} {name}".encode()).digest()))
    taken: list[str] = []
    waves = []
    for place, wave in enumerate(plan.waves):
        if isinstance(wave, str):
            most = math.ceil(len(chosen) * _share(wave, place) - 1e-9)
            found = [name for name in drawn if name not in taken][: max(0, most - len(taken))]
        else:
            found = _named(wave, chosen, taken, place)
        taken += found
        if found:
            waves.append(found)
    return waves


def _share(text: str, place: int) -> float:
    match = _SHARE.fullmatch(text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise UsageError(f'waves[{place}] is {brief(text)}; a share such as "25%" or a list of names is needed', "plan")
    return float(match[1]) / 100


def _named(patterns: Sequence[str], chosen: Collection[str], taken: Collection[str], place: int) -> list[str]:
    found = []
    for pattern in patterns:
        fits = sorted(name for name in chosen if fnmatchcase(name, pattern))
        if not fits:
            raise UsageError(f"waves[{place}]: {brief(pattern)} fits no device that was heard and is chosen", "plan")
        found += [name for name in fits if name not in taken and name not in found]
    return found


def plan_keys(plan: RolloutPlan) -> list[Key]:
    """The models and adapters that the plan names."""
    found: list[Key] = []
    for model in plan.models:
        if not isinstance(model.package, UnsetType):
            found.append((model.model, None))
        found += [(model.model, one.adapter) for one in model.adapters]
    return found


def contents(
    plan: RolloutPlan, before: Desired | None, installed: Iterable[InstalledEntry] | None, version: int
) -> tuple[Desired, Desired]:
    """(what a device is given, with this version; what brings it back, with its earlier version or 0). Raises
    CannotGive."""
    old = {model.model: model for model in before.models} if before is not None else {}
    given = dict(old)
    for model in plan.models:
        given[model.model] = _merged(old.get(model.model), model)
    policy = plan.policy if not isinstance(plan.policy, UnsetType) else before.policy if before else DesiredPolicy()
    sources = [*(before.sources if before is not None else []), *plan.sources]
    give = _desired(version, list(given.values()), sources, policy)
    held = None if installed is None else {(one.model, one.adapter): one.package for one in installed}
    back = dict(old)
    for model in plan.models:
        back[model.model] = _returned(old.get(model.model), model, held)
    earlier = 0 if before is None else before.version
    back_policy = before.policy if before is not None else policy
    returned = _desired(earlier, list(back.values()), before.sources if before is not None else [], back_policy)
    for made in (give, msgspec.structs.replace(returned, version=version + 1)):
        sound = decode_desired(Inbound("", msgspec.json.encode(made)))
        if isinstance(sound, DesiredRefused):
            raise CannotGive(f"together with what it holds the desired state cannot be: {sound.reason}")
    if len(msgspec.json.encode([give, returned])) > MESSAGE_BYTES - 1024:
        raise CannotGive("its desired state before and after does not fit one message")
    return give, returned


def _merged(old: DesiredModel | None, new: DesiredModel) -> DesiredModel:
    """The plan's entry with the adapters that the earlier one names beside it. One that came with the earlier package
    is left out where the package changes: what the new one brings takes its place."""
    if old is None or new.package is None:
        return new
    changes = not isinstance(new.package, UnsetType) and new.package != old.package
    named = {one.adapter for one in new.adapters}
    kept = [
        one
        for one in old.adapters
        if one.adapter not in named and not (changes and one.package is not None and one.package == old.package)
    ]
    package = old.package if isinstance(new.package, UnsetType) else new.package
    if package is None:
        raise CannotGive(f"its desired state removes {new.model!r}, of which the plan names adapters alone")
    return DesiredModel(model=new.model, package=package, adapters=[*kept, *new.adapters])


def _returned(old: DesiredModel | None, new: DesiredModel, held: Mapping[Key, str] | None) -> DesiredModel:
    """The earlier entry, and of what only the plan names what the device holds now."""

    def before(adapter: str | None) -> str | None:
        if held is None:
            raise CannotGive("it does not say what it holds, so nothing could bring it back")
        return held.get((new.model, adapter))

    package: str | UnsetType | None = msgspec.UNSET if old is None else old.package
    if isinstance(package, UnsetType) and not isinstance(new.package, UnsetType):
        package = before(None)
    if package is None:
        return DesiredModel(model=new.model, package=None)
    adapters = [] if old is None else list(old.adapters)
    named = {one.adapter for one in adapters}
    for one in new.adapters:
        if one.adapter in named:
            continue
        found = before(one.adapter)
        if found is None or found != (held or {}).get((new.model, None)):  # else it comes with its model
            adapters.append(DesiredAdapter(adapter=one.adapter, package=found))
    return DesiredModel(model=new.model, package=package, adapters=adapters)


def _desired(
    version: int,
    models: list[DesiredModel],
    sources: Iterable[DesiredSource],
    policy: DesiredPolicy | UnsetType,
) -> Desired:
    """With the sources of packages that it names, each once."""
    packages: set[object] = {model.package for model in models}
    packages |= {one.package for model in models for one in model.adapters}
    kept = {(one.package, one.url): one for one in sources if one.package in packages}
    return Desired(
        version=version,
        models=models,
        sources=list(kept.values()),
        policy=DesiredPolicy() if isinstance(policy, UnsetType) else policy,
    )
