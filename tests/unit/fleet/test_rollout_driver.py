"""A rollout over messages: what is refused before anything begins, and who may carry it out."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from edge_agent.base.errors import UsageError
from edge_agent.fleet import rollout_driver
from edge_agent.fleet.rollout_driver import CLAIM_S, Intent, RolloutDriver
from edge_agent.protocol import messages
from edge_agent.protocol.rollout_messages import RolloutClaim, RolloutPlan, RolloutState
from tests.support import told_devices as told

NEW = f"sha256:{'a' * 64}"
PLAN = RolloutPlan(models=[messages.DesiredModel(model="m", package=NEW)], waves=["100%"], within_s=60.0, watch_s=0.0)
STATE = "edge/v1/group/rollout/state"
WALL_S = 1_790_000_000.0
Kept = dict[str, bytes]


def reported(version: int | None = None, installed: list[messages.InstalledEntry] | None = None) -> bytes:
    body = messages.Reported(
        ts=0.0, boot_id="b", seq=1, version=version, state=None, items=[], installed=installed or []
    )  # fmt: skip
    return msgspec.json.encode(body)


def status() -> bytes:
    return msgspec.json.encode(told.status(ts=WALL_S))


def driver(intent: Intent, kept: Kept, name: str = "one", now_s: float = 0.0) -> RolloutDriver:
    found = RolloutDriver(
        "edge/v1", intent, RolloutClaim(by=name, who=name), PLAN if intent is Intent.BEGIN else None
    )  # fmt: skip
    for topic, payload in kept.items():
        found.take(topic, payload, now_s, WALL_S + now_s)
    return found


def turn(one: RolloutDriver, kept: Kept, now_s: float, *others: RolloutDriver) -> list[str]:
    """A tick; the broker shows what was published to all. The topics of what it was."""
    out = one.tick(now_s, WALL_S + now_s)
    for message in out:
        if message.retain:
            kept[message.topic] = message.payload
        for each in (one, *others):
            each.take(message.topic, message.payload, now_s, WALL_S + now_s)
    return [message.topic for message in out]


def state(kept: Kept) -> RolloutState:
    return msgspec.json.decode(kept[STATE], type=RolloutState)


def begun() -> tuple[RolloutDriver, Kept]:
    kept = {"edge/v1/d/status": status(), "edge/v1/d/reported": reported()}
    one = driver(Intent.BEGIN, kept)
    assert turn(one, kept, 0.0) == [STATE]
    turn(one, kept, 0.1)
    assert turn(one, kept, 0.2) == ["edge/v1/group/rollout/device/d"]
    assert turn(one, kept, 0.3) == ["edge/v1/d/desired"]
    return one, kept


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"edge/v1/d/status": status()}, "d: it has never reported what it holds"),
        (
            {"edge/v1/d/status": status(), "edge/v1/d/reported": reported(7)},
            "d: the broker does not show the desired state of version 7 that it reports",
        ),
        (
            {"edge/v1/d/status": status(), "edge/v1/d/reported": reported(), "edge/v1/d/desired": b'{"version": 1}'},
            "d: its desired state cannot be read",
        ),
        ({}, "fits no device that was heard"),
        ({STATE: b'{"form": 2}'}, "cannot be read"),
    ],
)
def test_nothing_begins_where_a_device_could_not_be_brought_back(kept: Kept, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        driver(Intent.BEGIN, kept).tick(0.0, WALL_S)


def test_a_device_that_knows_that_its_desired_state_was_withdrawn_is_given_a_higher_version() -> None:
    body = msgspec.json.decode(reported(7), type=messages.Reported)
    said = msgspec.json.encode(msgspec.structs.replace(body, withdrawn=True))
    kept = {"edge/v1/d/status": status(), "edge/v1/d/reported": said}
    one = driver(Intent.BEGIN, kept)
    for at_s in (0.0, 0.1, 0.2, 0.3):
        turn(one, kept, at_s)
    assert msgspec.json.decode(kept["edge/v1/d/desired"])["version"] == 8


def test_a_state_of_another_form_is_left_alone() -> None:
    _, kept = begun()
    kept[STATE] = msgspec.json.encode(replace(state(kept), form=2))
    with pytest.raises(UsageError, match="it has form 2, not 1"):
        driver(Intent.RESUME, kept).tick(0.0, WALL_S)


def test_a_second_rollout_is_refused_while_one_has_not_ended() -> None:
    one, kept = begun()
    for message in one.release(WALL_S):
        kept[message.topic] = message.payload
    with pytest.raises(
        UsageError, match=r"has not ended .rolling.: take it up with --resume or return it with --abort"
    ):
        driver(Intent.BEGIN, kept).tick(1.0, WALL_S)


def test_a_claim_that_is_renewed_is_not_taken_and_one_that_is_not_ends() -> None:
    one, kept = begun()
    two = driver(Intent.RESUME, kept, "two", 1.0)
    assert turn(two, kept, 1.0) == []
    turn(one, kept, 11.0, two)
    with pytest.raises(UsageError, match=r"one carries rollout .* out now"):
        two.tick(12.0, WALL_S + 12.0)
    three = driver(Intent.RESUME, kept, "three", 20.0)  # "one" was killed
    assert turn(three, kept, 20.0) == []
    assert turn(three, kept, 20.0 + CLAIM_S - 0.1) == []
    assert turn(three, kept, 20.0 + CLAIM_S) == [STATE]
    claim = state(kept).claim
    assert claim is not None
    assert claim.by == "three"


def test_a_holder_that_slept_gives_nothing_until_the_broker_has_shown_its_claim_anew() -> None:
    one, kept = begun()
    two = driver(Intent.RESUME, kept, "two", 1.0)
    turn(two, kept, 1.0)
    late_s = 1.0 + CLAIM_S
    assert turn(two, kept, late_s) == [STATE]
    claimed = kept[STATE]
    assert [message.topic for message in one.tick(late_s + 1.0, WALL_S + late_s + 1.0)] == [STATE]
    one.take(STATE, claimed, late_s + 1.1, WALL_S + late_s + 1.1)
    assert one.ended
    assert "two carries a rollout out" in (one.failure or "")
    # The wall clock alone shows it, too, where the monotonic one stood still.
    other, _ = begun()
    assert [message.topic for message in other.tick(0.4, WALL_S + 100.0)] == [STATE]


def test_an_abort_is_carried_out_by_the_one_at_work() -> None:
    one, kept = begun()
    kept["edge/v1/d/reported"] = reported(1)
    two = driver(Intent.ABORT, kept, "two", 1.0)
    one.take("edge/v1/d/reported", kept["edge/v1/d/reported"], 1.0, WALL_S + 1.0)
    assert turn(two, kept, 1.0, one) == ["edge/v1/group/rollout/abort"]
    for step in range(2, 6):
        turn(one, kept, float(step), two)
    turn(two, kept, 6.0)
    assert (two.ended, two.failure) == (True, None)
    assert state(kept).phase == "returning"
    given = msgspec.json.decode(kept["edge/v1/d/desired"], type=messages.Desired)
    assert given == messages.Desired(version=2, models=[messages.DesiredModel(model="m", package=None)])


def test_what_the_broker_does_not_show_is_published_again_and_said() -> None:
    kept = {"edge/v1/d/status": status(), "edge/v1/d/reported": reported()}
    one = driver(Intent.BEGIN, kept)
    turn(one, kept, 0.0)
    turn(one, kept, 0.1)
    topics = [[message.topic for message in one.tick(at_s, WALL_S + at_s)] for at_s in (1.0, 3.0, 6.1)]
    record = "edge/v1/group/rollout/device/d"
    assert topics == [[record], [], [record]]
    assert any(f"does not show what was published on {record}" in note for note in one.notes)


def test_devices_that_are_known_are_heard_where_no_more_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_driver, "DEVICES_WATCHED", 1)
    one, kept = begun()
    kept["edge/v1/d/reported"] = reported(1)
    one.take("edge/v1/d/reported", kept["edge/v1/d/reported"], 1.0, WALL_S + 1.0)
    two = driver(Intent.ABORT, kept, "two", 1.0)
    turn(two, kept, 1.0, one)
    for step in range(2, 6):
        turn(one, kept, float(step), two)
    given = msgspec.json.decode(kept["edge/v1/d/desired"], type=messages.Desired)
    assert given.version == 2, "the record of the way back was heard"
    for step in range(6, 8):
        assert "edge/v1/d/desired" not in turn(one, kept, float(step) * 10.0, two), "what the broker shows was heard"
