"""A rollout as it is decided: which device is given what next, when a wave has held, when all return. Pure.

What is known of a device is read anew at every look from what the broker retains: its record (`RolloutRecord`), its
desired state, what it reports. Nothing is believed because this program did it, so a rollout that was killed at any
point goes on from there. Rules:
- A record is written, and seen at the broker, before a device is given anything.
- A device's desired state is only ever replaced by a higher version, and never where somebody else has published one
  above ours: such a device counts as failed, and is left alone.
- A wave ends: `within_s` after its begin what has not applied is late, and `within_s + 2 * watch_s` after it at the
  latest the wave has held or the rollout returns. The return ends `within_s` after its begin at the latest.
- A return goes to every device with a record, also to one that was seen with nothing yet: it may be on its way.
- Time is that of the command while it runs; the watch of a wave begins anew when another run takes over.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from edge_agent.core.desired_state import Key
from edge_agent.fleet.rollout_plan import plan_keys
from edge_agent.protocol.messages import Desired, Reported, ReportedItem, Status, Telemetry
from edge_agent.protocol.rollout_messages import Phase, RolloutPlan, RolloutRecord, RolloutState, StopRules

TRIAL_BEGINS_S = 60.0
"""A trial begins at most so long before its package counts as applied, by the device's wall clock."""
SILENT_S = 30.0
"""So long a return waits for devices that are not there; they find their desired state when they come back."""


class DeviceProgress(Enum):
    """How far a device is."""

    UNTOUCHED = "not given yet"
    RECORDED = "is given now"
    UNANSWERED = "not answered yet"
    WAITING = "not applied yet"
    APPLIED = "applied"
    FAILED = "failed"
    OVERTAKEN = "given something else"


class Step(Enum):
    """What is to be published for a device."""

    RECORD = "record"
    GIVE = "give"
    RECORD_BACK = "record back"
    GIVE_BACK = "give back"


@dataclass(slots=True)
class DeviceFacts:
    """The newest of what the broker holds of a device. `unreadable` says why its desired state cannot be read; `unfit`
    why it cannot be given the plan. `up`: its status is there and not old."""

    record: RolloutRecord | None = None
    desired: Desired | None = None
    unreadable: str = ""
    unfit: str = ""
    reported: Reported | None = None
    status: Status | None = None
    up: bool = False

    @property
    def version(self) -> int:
        """The highest version of a desired state that is known of it; 0: none."""
        said = () if self.reported is None or self.reported.version is None else (self.reported.version,)
        return max(0 if self.desired is None else self.desired.version, *said, 0)


@dataclass(slots=True)
class Health:
    """What a device's reports say since it has applied."""

    reports: int = 0
    last: tuple[str, int] = ("", -1)
    requests: int = 0
    failed: int = 0
    refused: int = 0
    wrong: str = ""

    def take(self, body: Telemetry, rules: StopRules, models: Collection[str]) -> None:
        """A report. The first one also covers what was before, and counts for nothing."""
        if (body.boot_id, body.seq) == self.last:
            return
        self.last = (body.boot_id, body.seq)
        self.reports += 1
        if self.reports == 1:
            return
        for name, model in body.models.items():
            if name in models:
                answered, failed = _count(model.requests), _count(model.failed)
                self.requests += answered + failed
                self.failed += failed
        self.refused += sum(map(_count, body.refusals.values()))
        self.wrong = self.wrong or next(iter(_wrong(body, rules, models)), "")


def _count(said: int) -> int:
    """A count that a report can hold: a device may say any number, also one below 0 or of 400 digits."""
    return min(max(said, 0), 2**32)


def _wrong(body: Telemetry, rules: StopRules, models: Collection[str]) -> Iterable[str]:
    heat = body.sensors.get("temperature")
    if rules.temperature_c is not None and heat is not None and (heat.value or -math.inf) > rules.temperature_c:
        yield f"its temperature is {heat.value:.0f} °C, above {rules.temperature_c:g}"
    for name, model in body.models.items():
        for drift in model.drift.values() if name in models and rules.drift_psi is not None else ():
            worst = max(drift.confidence_psi or 0.0, drift.fragmentation_psi or 0.0)
            if worst > (rules.drift_psi or 0.0):
                yield f"the drift of {name} is {worst:.2f}, above {rules.drift_psi:g}"
    for name, canary in body.canaries.items():
        failed = canary.ok is False or any(probe.ok is False for probe in canary.adapters.values())
        if name in models and rules.probes and failed:
            yield f"the golden probes of {name} fail"


def progress(facts: DeviceFacts, keys: Sequence[Key]) -> tuple[DeviceProgress, str]:
    """How far a device is with what it was given, and the reason where it is not applied."""
    record, reported = facts.record, facts.reported
    if record is None:
        return (DeviceProgress.FAILED, facts.unfit) if facts.unfit else (DeviceProgress.UNTOUCHED, "")
    version = record.give.version
    if facts.version > version:
        return DeviceProgress.OVERTAKEN, f"somebody else has given it version {facts.version}"
    if facts.desired is not None and facts.desired.version == version and facts.desired != record.give:
        return DeviceProgress.OVERTAKEN, f"somebody else has given it a version {version}"
    if reported is None or reported.version != version:
        if facts.desired is None or facts.desired.version < version:
            return DeviceProgress.RECORDED, ""
        refused = None if reported is None else reported.not_taken
        if refused is not None and refused.version == version:
            return DeviceProgress.FAILED, f"it does not take it: {refused.reason}"
        return DeviceProgress.UNANSWERED, ""
    how, why = _of_items([item for item in reported.items if (item.model, item.adapter) in keys], reported)
    return _of_trials(reported, record.give) if how is DeviceProgress.APPLIED else (how, why)


def _of_items(items: Sequence[ReportedItem], reported: Reported) -> tuple[DeviceProgress, str]:
    """Of what the plan names alone: what else the device holds may be pending or refused as it was before."""
    wrong = [item for item in items if item.state in ("refused", "rolled-back")]
    if wrong:
        item = wrong[0]
        what = item.model if item.adapter is None else f"{item.model} + {item.adapter}"
        return DeviceProgress.FAILED, f"{what} {item.state}: {item.reason or 'without a reason'}"
    pending = [item for item in items if item.state == "pending"]
    if pending or (not items and reported.state == "pending"):
        return DeviceProgress.WAITING, (pending[0].next or pending[0].reason or "pending") if pending else "pending"
    if not items and reported.state != "applied":
        return DeviceProgress.FAILED, f"its desired state is {reported.state}"
    return DeviceProgress.APPLIED, ""


def _of_trials(reported: Reported, given: Desired) -> tuple[DeviceProgress, str]:
    """A package that is installed may still be on trial on requests: it is applied once that is over. The trial of an
    earlier time, which the device still reports, says nothing of a package that was given again."""
    packages = {model.package for model in given.models}
    applied_s = {(item.model, item.package): item.since for item in reported.items if item.adapter is None}
    for trial in reported.trials:
        # One that runs is of now, whatever a clock that was set in the middle says.
        if (
            trial.state != "running"
            and trial.since < applied_s.get((trial.model, trial.package), -math.inf) - TRIAL_BEGINS_S
        ):
            continue
        if trial.package in packages and trial.state == "running":
            return DeviceProgress.WAITING, f"{trial.model} is on trial"
        if trial.package in packages and trial.state == "returned":
            return (
                DeviceProgress.FAILED,
                f"the trial of {trial.model} returned it: {trial.reason or 'without a reason'}",
            )
    return DeviceProgress.APPLIED, ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found: the state to be kept, what to publish, and how far each device is."""

    state: RolloutState
    steps: tuple[tuple[str, Step], ...]
    devices: Mapping[str, tuple[DeviceProgress, str]] = field(default_factory=dict)


class Rollout:
    """One run of the command over one rollout. Other modules call the methods and only read."""

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan
        self._keys = plan_keys(plan)
        self._models = {model.model for model in plan.models}
        self._health: dict[str, Health] = {}
        self._watched_s: float | None = None

    def report(self, device: str, body: Telemetry) -> None:
        """A device's report; it counts once the device was seen to have applied."""
        if device in self._health:
            self._health[device].take(body, self._plan.stop, self._models)

    def look(self, state: RolloutState, devices: Mapping[str, DeviceFacts]) -> Look:
        """What is to be done now, and the state after it; `state.spent_s` is up to date."""
        if state.phase == "rolling":
            return self._rolling(state, devices)
        if state.phase == "returning":
            return self._returning(state, devices)
        return Look(state, ())

    # ---- out -------------------------------------------------------------------------------------------------------

    def _rolling(self, state: RolloutState, devices: Mapping[str, DeviceFacts]) -> Look:
        given = [name for wave in state.waves[: state.wave + 1] for name in wave]
        found = {name: self._judged(name, devices.get(name) or DeviceFacts()) for name in given}
        steps = [
            (name, Step.RECORD if how is DeviceProgress.UNTOUCHED else Step.GIVE)
            for name, (how, _) in found.items()
            if how in (DeviceProgress.UNTOUCHED, DeviceProgress.RECORDED)
        ]
        state = self._late(state, found, devices)
        counted = [name for name in given if name not in state.left_out]
        failed = [name for name in counted if found[name][0] in (DeviceProgress.FAILED, DeviceProgress.OVERTAKEN)]
        allowed = math.floor((1 - self._plan.stop.applied) * len(counted) + 1e-9)
        why = self._requests_wrong(counted)
        if len(failed) > allowed:
            why = _sentence(failed, found, len(counted), allowed)
        if why:
            return Look(_turned(state, "returning", why), (), found)
        return Look(self._advanced(state, found, devices), tuple(steps), found)

    def _judged(self, name: str, facts: DeviceFacts) -> tuple[DeviceProgress, str]:
        how, why = progress(facts, self._keys)
        if how is DeviceProgress.APPLIED:
            health = self._health.setdefault(name, Health())
            why = health.wrong or self._shares_wrong(health.requests, health.failed, health.refused)
            how = DeviceProgress.FAILED if why else how
        return how, why

    def _shares_wrong(self, requests: int, failed: int, refused: int) -> str:
        stop = self._plan.stop
        if stop.failed is not None and requests >= stop.least_requests and failed > stop.failed * requests:
            return f"{failed} of {requests} requests failed, more than {stop.failed:.0%}"
        asked = requests + refused
        if stop.refused is not None and asked >= stop.least_requests and refused > stop.refused * asked:
            return f"{refused} of {asked} requests were refused, more than {stop.refused:.0%}"
        return ""

    def _requests_wrong(self, names: Iterable[str]) -> str:
        """Over all devices together: each may have too few requests to tell."""
        known = [self._health[name] for name in names if name in self._health]
        # Those that are judged alone can only hide the others, by whatever number of good requests they state.
        few = [one for one in known if one.requests < self._plan.stop.least_requests]
        for found in (known, few):
            requests, failed, refused = (
                sum(one.requests for one in found), sum(one.failed for one in found), sum(one.refused for one in found)
            )  # fmt: skip
            if why := self._shares_wrong(requests, failed, refused):
                return f"on {len(found)} devices together {why}"
        return ""

    def _late(
        self,
        state: RolloutState,
        found: dict[str, tuple[DeviceProgress, str]],
        devices: Mapping[str, DeviceFacts],
    ) -> RolloutState:
        """Once the time of the wave is up, devices that have not applied fail, or are left out where they never
        answered and the plan says so; and once that of the watch is up those that are not there any more."""
        left = list(state.left_out)
        over = state.spent_s >= self._plan.within_s + self._plan.watch_s
        for name in state.waves[state.wave] if state.spent_s >= self._plan.within_s else ():
            how, why = found[name]
            up = name in devices and devices[name].up
            silent = not up or how is DeviceProgress.UNANSWERED
            held = how is DeviceProgress.APPLIED and (up or not over)
            if held or name in left or how in (DeviceProgress.FAILED, DeviceProgress.OVERTAKEN):
                continue
            if silent and self._plan.stop.silent == "skip":
                left.append(name)
            elif how is DeviceProgress.APPLIED:
                found[name] = (DeviceProgress.FAILED, "it has applied it and is not there any more")
            else:
                what = "it never answered" if silent else why or how.value
                found[name] = (DeviceProgress.FAILED, f"not applied within {self._plan.within_s:.0f} s: {what}")
        return state if left == state.left_out else replace(state, left_out=left)

    def _advanced(
        self, state: RolloutState, found: Mapping[str, tuple[DeviceProgress, str]], devices: Mapping[str, DeviceFacts]
    ) -> RolloutState:
        """The next wave, or the end, where this one has held."""
        wave = [name for name in state.waves[state.wave] if name not in state.left_out]
        applied = [name for name in wave if found[name][0] is DeviceProgress.APPLIED]
        if not wave or (not applied and all(found[name][0] in _SETTLED for name in wave)):
            return _turned(state, "returning", f"no device of wave {state.wave + 1} has applied it")
        if not all(found[name][0] in _SETTLED for name in wave) or not all(devices[name].up for name in applied):
            return state
        if self._watched_s is None:
            self._watched_s = state.spent_s
        if state.spent_s - self._watched_s < self._plan.watch_s:
            return state
        self._watched_s = None
        if state.wave + 1 < len(state.waves):
            return replace(state, wave=state.wave + 1, spent_s=0.0)
        return _turned(state, "done", "")

    # ---- back ------------------------------------------------------------------------------------------------------

    def _returning(self, state: RolloutState, devices: Mapping[str, DeviceFacts]) -> Look:
        found: dict[str, tuple[DeviceProgress, str]] = {}
        steps: list[tuple[str, Step]] = []
        waiting = False
        for name, facts in devices.items():
            if facts.record is None or facts.record.rollout != state.rollout:
                continue
            step, found[name] = _way_back(facts.record, facts, self._keys)
            if step is not None:
                steps.append((name, step))
            late = state.spent_s >= (self._plan.within_s if facts.up else min(SILENT_S, self._plan.within_s))
            waiting = waiting or step is not None or (found[name][0] in _OPEN and not late)
        if waiting:
            return Look(state, tuple(steps), found)
        return Look(_turned(state, "returned", state.reason), (), found)


_OPEN = frozenset({DeviceProgress.UNANSWERED, DeviceProgress.WAITING})
_SETTLED = frozenset({DeviceProgress.APPLIED, DeviceProgress.FAILED, DeviceProgress.OVERTAKEN})


def _way_back(
    record: RolloutRecord, facts: DeviceFacts, keys: Sequence[Key]
) -> tuple[Step | None, tuple[DeviceProgress, str]]:
    """What to publish next to bring a device back, and how far it is."""
    if record.back_version is None:
        how, why = progress(facts, keys)
        if how is DeviceProgress.OVERTAKEN:
            return None, (how, why)
        return Step.RECORD_BACK, (DeviceProgress.WAITING, "is returned now")
    given_back = RolloutRecord(
        rollout=record.rollout, give=replace(record.back, version=record.back_version), back=record.back
    )
    how, why = progress(DeviceFacts(given_back, facts.desired, "", "", facts.reported), _named(record.back))
    return (Step.GIVE_BACK if how is DeviceProgress.RECORDED else None), (
        (DeviceProgress.WAITING, "is returned now") if how is DeviceProgress.RECORDED else (how, why)
    )


def _named(desired: Desired) -> list[Key]:
    found: list[Key] = [(model.model, None) for model in desired.models]
    return found + [(model.model, one.adapter) for model in desired.models for one in model.adapters]


def _turned(state: RolloutState, phase: Phase, reason: str) -> RolloutState:
    return replace(state, phase=phase, reason=reason, spent_s=0.0)


def _sentence(failed: Sequence[str], found: Mapping[str, tuple[DeviceProgress, str]], of: int, allowed: int) -> str:
    shown = "; ".join(f"{name}: {found[name][1]}" for name in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {of} devices failed, {allowed} may: {shown}{more}"
