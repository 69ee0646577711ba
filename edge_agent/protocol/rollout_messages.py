"""The bodies of a rollout's topics (docs/fleet.md): what `edge-agent fleet rollout` keeps at the broker.

A file of its own because no device reads them: the daemon pays no memory for these types.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from edge_agent.protocol.messages import Desired, DesiredModel, DesiredPolicy, DesiredSource

FORM = 1
Phase = Literal["rolling", "returning", "done", "returned"]


class StopRules(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """When a rollout stops and returns. `applied`: least share of the devices that were given it; `silent`: whether a
    device that never answers counts as failed or is left out; `failed` and `refused`: greatest share of requests, once
    there were `least_requests`; `temperature_c`, `drift_psi`: greatest value on a device, null for none; `probes`:
    whether golden probes that fail count."""

    applied: float = 1.0
    silent: Literal["fail", "skip"] = "fail"
    failed: float | None = 0.05
    refused: float | None = None
    least_requests: int = 20
    temperature_c: float | None = None
    drift_psi: float | None = None
    probes: bool = True


class RolloutPlan(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """What goes to whom. `models`, `sources`, `policy` as in `desired`; whatever else a device's desired state names
    stays. `devices`: names with * and ?. `waves`: shares of all devices ("5%", counting those before), or lists of
    names. A wave must be applied in `within_s`, and is then watched for `watch_s` before the next one."""

    models: list[DesiredModel]
    sources: list[DesiredSource] = msgspec.field(default_factory=list)
    policy: DesiredPolicy | UnsetType = UNSET
    devices: list[str] = msgspec.field(default_factory=lambda: ["*"])
    waves: list[str | list[str]] = msgspec.field(default_factory=lambda: ["5%", "25%", "100%"])
    within_s: float = 3600.0
    watch_s: float = 600.0
    stop: StopRules = StopRules()


class RolloutClaim(Struct, frozen=True, kw_only=True):
    """Who carries it out: `by` is drawn for each run of the command, `who` is for people. The claim ends when the
    message was not renewed for 30 s."""

    by: str
    who: str


class RolloutState(Struct, frozen=True, kw_only=True):
    """How far a rollout is (retained). `wave` counts from 0; `spent_s`: running time of the command on this wave, or on
    the return; `left_out`: devices that never answered; `reason`: why it stopped. `claim` is null while nobody carries
    it out."""

    form: int
    rollout: str
    seq: int
    ts: float
    phase: Phase
    wave: int
    spent_s: float
    waves: list[list[str]]
    plan: RolloutPlan
    claim: RolloutClaim | None = None
    reason: str = ""
    left_out: list[str] = msgspec.field(default_factory=list)


class RolloutRecord(Struct, frozen=True, kw_only=True):
    """Of one device (retained), written before it is given anything: `give` is what it gets, `back` what it had, with
    what else must be named to bring it back; `back_version` is the version of the return, null before there is one."""

    rollout: str
    give: Desired
    back: Desired
    back_version: int | None = None


class RolloutAbort(Struct, frozen=True, kw_only=True):
    """Asks whoever carries the rollout out to return all devices."""

    rollout: str
