"""Messages of the right form with values that no device, and no rollout, has: every reader takes them, or refuses them
by a sentence. A device owns its topics, so what it says must not end the operator's command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edge_agent.base.errors import UsageError
from edge_agent.exporter.device_metrics import KINDS as EXPORTED
from edge_agent.exporter.device_metrics import DeviceMetrics
from edge_agent.fleet.device_table import KINDS, DeviceTable, table_text
from edge_agent.fleet.rollout import DeviceFacts, Rollout
from edge_agent.fleet.rollout_driver import Intent, RolloutDriver
from edge_agent.protocol import messages
from edge_agent.protocol.decode import Command, DesiredRefused, decode, decode_desired
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.rollout_messages import RolloutPlan, RolloutRecord, RolloutState, StopRules
from edge_agent.protocol.topics import Topics
from tests.support import told_devices as told
from tests.support.extreme_messages import extremes, ordinary
from tests.unit.fleet.test_rollout_driver import NEW, STATE, WALL_S, Kept, begun, driver, reported, status, turn

TOPICS = Topics("edge/v1", "pi")
RECORD = "edge/v1/group/rollout/device/d"
DESIRED: dict[str, Any] = {
    "version": 3,
    "models": [{"model": "m", "package": NEW, "adapters": [{"adapter": "a", "package": NEW}]}],
    "sources": [{"package": NEW, "url": "https://host/m.tar"}],
    "policy": {"within_s": 100, "others": "keep", "trial": {}},
}  # fmt: skip


def test_orders_and_desired_states_never_raise() -> None:
    """A desired state is retained: one that raises would end the daemon at every start."""
    taken = 0
    for name, kind in messages.ORDERS.items():
        whole = {**ordinary(kind), "deadline_s": 5.0, "id": "1", "reply_to": "edge/v1/client/me/reply"}
        whole |= {"trial": {}} if name == "install" else {}
        for payload in extremes(kind, whole):
            taken += isinstance(decode(Inbound(TOPICS.command(name), payload), topics=TOPICS, now_s=1.0), Command)
    for payload in extremes(messages.Desired, DESIRED):
        found = decode_desired(Inbound(TOPICS.desired, payload))
        taken += isinstance(found, messages.Desired)
        if isinstance(found, DesiredRefused):  # what is said of it has the form that it is to have
            said = msgspec.json.encode(messages.NotTaken(version=found.version, reason=found.reason))
            assert msgspec.json.decode(said, type=messages.NotTaken).reason == found.reason
    assert taken > 20  # the base of the changes is valid, so that later checks are reached


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_devices_shows_whatever_they_say(kind: str) -> None:
    for payload in extremes(KINDS[kind]):
        table = DeviceTable()
        table.take("pi", "status", status(), 1.0)
        table.take("pi", kind, payload, 1.0)
        rows = table.rows(2.0, WALL_S)
        assert table_text(rows, 80)
        assert json.dumps([row.plain() for row in rows])


@pytest.mark.parametrize("kind", EXPORTED)
def test_the_exporter_counts_whatever_they_say(kind: str) -> None:
    for payload in extremes(EXPORTED[kind]):
        metrics = DeviceMetrics()
        metrics.take("pi", "status", status(), 1.0)
        for _ in range(2):
            metrics.take("pi", kind, payload, 1.0)
        for family in metrics.collect(2.0):
            assert all(isinstance(sample.value, float) for sample in family.samples)


def drive(kept: Kept, intent: Intent, *live: bytes) -> RolloutDriver | None:
    """A run over what the broker holds; None where it refuses with a sentence."""
    shown = dict(kept)
    try:
        found = driver(intent, shown)
        for now_s in (0.0, 0.1, 0.2, 0.3, 0.4, 40.0, 90.0):
            turn(found, shown, now_s)
            for payload in live:
                found.take("edge/v1/d/telemetry", payload, now_s, WALL_S + now_s)
    except UsageError as error:
        assert len(str(error)) < 1000
        return None
    for topic in shown:
        assert all(mark not in topic for mark in "+#"), topic
    return found


def released() -> Kept:
    one, kept = begun()
    for message in one.release(WALL_S):
        kept[message.topic] = message.payload
    return kept


@pytest.mark.parametrize("intent", [Intent.SHOW, Intent.RESUME, Intent.ABORT])
@pytest.mark.parametrize(
    ("topic", "kind"),
    [(STATE, RolloutState), (RECORD, RolloutRecord), ("edge/v1/d/reported", messages.Reported)],
)
def test_a_rollout_goes_on_from_what_is_sound_alone(topic: str, kind: type, intent: Intent) -> None:
    kept = released()
    whole = json.loads(kept[topic])
    if kind is messages.Reported:
        whole = {**ordinary(kind), **whole, "version": 1, "state": "applied"}
    runs = [drive({**kept, topic: payload}, intent) for payload in extremes(kind, whole)]
    assert any(run is not None for run in runs)


def test_what_devices_report_ends_no_rollout() -> None:
    kept = released()
    record = msgspec.json.decode(kept[RECORD], type=RolloutRecord)
    items = [{"model": "m", "adapter": None, "package": NEW, "state": "applied", "since": 1.0}]
    applied = {**json.loads(reported(record.give.version)), "state": "applied", "items": items}
    kept["edge/v1/d/reported"] = json.dumps(applied).encode()
    state = msgspec.json.decode(kept[STATE], type=RolloutState)
    stop = StopRules(refused=0.2, temperature_c=50.0, drift_psi=0.2, least_requests=1)
    kept[STATE] = msgspec.json.encode(replace(state, plan=replace(state.plan, stop=stop, watch_s=1000.0)))
    first = msgspec.json.encode(told.telemetry())
    for number, payload in enumerate(extremes(messages.Telemetry, json.loads(first))):
        bodies = [json.dumps({**json.loads(payload), "boot_id": "x", "seq": 2 * number + at}).encode() for at in (1, 2)]
        drive(kept, Intent.RESUME, first, *bodies)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wave": 1}, "wave 1 is none of 1"),
        ({"wave": -1}, "wave -1 is none of 1"),
        ({"waves": [["+"]]}, "'\\+' is the name of no device"),
        ({"waves": [["group"]]}, "'group' is the name of no device"),
        ({"waves": [["d"], ["d"]]}, "a device stands in two"),
        ({"spent_s": -1.0}, "out of range"),
        ({"rollout": "x\x1b[2J"}, "its name"),
    ],
)
def test_a_state_that_no_rollout_can_have_is_named(change: dict[str, Any], said: str) -> None:
    kept = released()
    kept[STATE] = json.dumps({**json.loads(kept[STATE]), **change}).encode()
    with pytest.raises(UsageError, match=said):
        driver(Intent.RESUME, kept).tick(0.0, WALL_S)


def test_a_record_that_cannot_be_read_is_said() -> None:
    kept = released()
    kept[RECORD] = json.dumps({**json.loads(kept[RECORD]), "back_version": 2**60}).encode()
    assert any("nothing brings it back" in note for note in driver(Intent.ABORT, kept).notes)


def judged(*shares: tuple[int, int]) -> str:
    """Why a rollout stops, where each device answers and fails so many requests."""
    names = [f"d{at}" for at in range(len(shares))]
    plan = RolloutPlan(models=[messages.DesiredModel(model="m", package=NEW)], waves=["100%"], watch_s=600.0)
    give = messages.Desired(version=1, models=plan.models)
    record = RolloutRecord(rollout="r", give=give, back=replace(give, version=0))
    item = messages.ReportedItem(model="m", adapter=None, package=NEW, state="applied", since=0.0)
    said = msgspec.json.decode(reported(1), type=messages.Reported)
    facts = DeviceFacts(record, give, "", "", replace(said, state="applied", items=[item]), None, True)
    state = RolloutState(
        form=1, rollout="r", seq=1, ts=0.0, phase="rolling", wave=0, spent_s=1.0, waves=[names], plan=plan
    )  # fmt: skip
    rollout = Rollout(plan)
    rollout.look(state, dict.fromkeys(names, facts))
    for name, (requests, failed) in zip(names, shares, strict=True):
        model = messages.ModelTelemetry(
            requests=requests, failed=failed, total_ms=None, compute_ms=None, batch_mean=None, joules=None
        )  # fmt: skip
        for seq in (1, 2):
            rollout.report(name, told.telemetry(seq=seq, models={"m": model}))
    return rollout.look(state, dict.fromkeys(names, facts)).state.reason


FEW: Sequence[tuple[int, int]] = [(5, 5), (5, 5), (5, 5)]


@pytest.mark.parametrize("boast", [(2**31, 0), (10**400, 0), (-(10**9), 0), (10**9, -(10**9))])
def test_no_device_hides_the_failures_of_others_by_what_it_states(boast: tuple[int, int]) -> None:
    assert "15 of 30 requests failed" in judged(*FEW)
    assert "failed, more than" in judged(*FEW, boast)
    assert judged((5, 0), (5, 0), (5, 0), boast) == ""
