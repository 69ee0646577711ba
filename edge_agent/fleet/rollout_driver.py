"""Carries a rollout out: messages in, messages out, no socket, no clock. `app.fleet_rollout` connects it to a broker.

Three topics hold everything: the state, one record for each device, and requests to abort; all but the last retained.
What is published counts when the broker shows it, so a message that an access list refuses, or a connection that is
lost, stops the rollout where it is and nothing is believed.

**The claim.** The state names who carries it out and is published again three times in `CLAIM_S`. Whoever wants to take
it over listens for `CLAIM_S`: a claim that is not renewed has ended (no clock is compared with another one's). It is
then taken by publishing the state with one's own claim; the broker keeps the order of messages, so of two at once both
see whose came first: that one publishes its state again, and the other one stops. A holder acts only while the broker
has shown its own claim within `CLAIM_S`, by the monotonic and by the wall clock: a computer that slept does not go on
with a claim that somebody else has taken.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from enum import Enum

import msgspec
from msgspec.structs import replace

from edge_agent.base.errors import UsageError, brief
from edge_agent.base.limits import DEVICES_WATCHED, MESSAGE_BYTES
from edge_agent.base.shown_text import one_line
from edge_agent.client.request_client import UNREADABLE
from edge_agent.fleet.device_table import DeviceTable
from edge_agent.fleet.rollout import DeviceFacts, DeviceProgress, Look, Rollout, Step
from edge_agent.fleet.rollout_plan import CannotGive, contents, plan_waves, record_fault, state_fault
from edge_agent.protocol.decode import DesiredRefused, decode_desired
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import Desired, Telemetry
from edge_agent.protocol.rollout_messages import (
    FORM,
    RolloutAbort,
    RolloutClaim,
    RolloutPlan,
    RolloutRecord,
    RolloutState,
)
from edge_agent.protocol.topics import NAME, RESERVED, RolloutTopics, Subscription

CLAIM_S = 30.0
"""It is renewed three times in that."""
AGAIN_S = 5.0
"""What the broker does not show is published again after so long."""
NOTES = 4096
NAMES_SHOWN = 8


class Intent(Enum):
    """What the command is to do."""

    BEGIN = "begin"
    RESUME = "resume"
    ABORT = "abort"
    SHOW = "show"


class _Stage(Enum):
    LISTENING = "listening"
    CLAIMING = "claiming"
    HOLDING = "holding"
    LEAVING = "leaving"
    ENDED = "ended"


def subscriptions(prefix: str) -> list[Subscription]:
    """What a rollout listens to."""
    kept = [f"{prefix}/+/{kind}" for kind in ("desired", "reported", "status")]
    topics = RolloutTopics(prefix)
    kept += [topics.state, topics.records]
    live = [Subscription(topics.abort), Subscription(f"{prefix}/+/telemetry", qos=0)]
    return [*(Subscription(topic, replay=True) for topic in kept), *live]


class RolloutDriver:
    """`take` every message, `tick` several times a second once the retained ones have come, publish what it returns."""

    def __init__(
        self,
        prefix: str,
        intent: Intent,
        claim: RolloutClaim,
        plan: RolloutPlan | None = None,
        claim_s: float = CLAIM_S,
    ) -> None:
        """`plan` for BEGIN. `claim.by` is drawn anew for each run; all runs have the same `claim_s`."""
        self._claim_s = claim_s
        self._renew_s = claim_s / 3
        self._prefix = prefix
        self._topics = RolloutTopics(prefix)
        self._intent = intent
        self._claim = claim
        self._plan = plan
        self._table = DeviceTable()
        self._desired: dict[str, Desired | DesiredRefused | None] = {}
        self._records: dict[str, RolloutRecord] = {}
        self._state: RolloutState | None = None  # the newest at the broker
        self._unreadable = ""
        self._own: RolloutState | None = None  # as it was published last, or is to be
        self._stage = _Stage.LISTENING
        self._since_s: float | None = None  # when the stage, or the silence of another's claim, began
        self._echo: tuple[float, float] = (-math.inf, -math.inf)
        self._sent_s = self._ticked_s = -math.inf
        self._rollout: Rollout | None = None
        self._steps: dict[tuple[str, Step], tuple[float, int]] = {}
        self._unfit: dict[str, str] = {}
        self._abort = intent is Intent.ABORT
        self._renewed = self._listens = False
        self._shown: dict[str, tuple[DeviceProgress, str]] = {}
        self.look: Look | None = None
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.failure: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self._stage is _Stage.ENDED

    @property
    def state(self) -> RolloutState | None:
        """The newest state that the broker has shown, or that is to be shown by it."""
        return self._own or self._state

    @property
    def _confirmed(self) -> bool:
        """Whether the broker has shown the claim since it was published."""
        return self._since_s is not None and self._echo[0] >= self._since_s

    # ---- what arrives ----------------------------------------------------------------------------------------------

    def take(self, topic: str, payload: bytes, now_s: float, wall_s: float) -> None:
        """A message, retained or not; an empty one withdraws."""
        match topic.removeprefix(self._prefix + "/").split("/"):
            case ["group", "rollout", "state"]:
                self._take_state(payload, now_s, wall_s)
            case ["group", "rollout", "device", name]:
                self._take_record(name, payload)
            case ["group", "rollout", "abort"]:
                self._take_abort(payload)
            case [device, "desired"] if not payload:
                self._desired.pop(device, None)
            case [device, "desired"]:
                room = device in self._desired or len(self._desired) < DEVICES_WATCHED
                if room and NAME.fullmatch(device) and device not in RESERVED:
                    self._desired[device] = decode_desired(Inbound(topic, payload))
            case [device, kind]:
                body = self._table.take(device, kind, payload, now_s) if payload else None
                if isinstance(body, Telemetry) and self._rollout is not None:
                    self._rollout.report(device, body)

    def _take_record(self, name: str, payload: bytes) -> None:
        if not NAME.fullmatch(name) or name in RESERVED:
            return
        try:
            found = msgspec.json.decode(payload, type=RolloutRecord) if payload else None
            wrong = None if found is None else record_fault(found)
        except UNREADABLE as error:
            found, wrong = None, one_line(str(error))[:200]
        if wrong is not None:
            self.notes.append(f"the record of {name} cannot be read, so nothing brings it back: {wrong}")
            found = None
        if found is None:
            self._records.pop(name, None)
        elif name in self._records or len(self._records) < DEVICES_WATCHED:
            self._records[name] = found

    def _take_abort(self, payload: bytes) -> None:
        try:
            asked = msgspec.json.decode(payload, type=RolloutAbort)
        except UNREADABLE:
            return
        if self._own is not None and asked.rollout == self._own.rollout:
            self._abort = True

    def _take_state(self, payload: bytes, now_s: float, wall_s: float) -> None:
        try:
            found = msgspec.json.decode(payload, type=RolloutState) if payload else None
            self._unreadable = "" if found is None else _fault(found)
        except UNREADABLE as error:
            found, self._unreadable = None, one_line(str(error))[:200]
        found = None if self._unreadable else found
        before, self._state = self._state, found
        mine = found is not None and found.claim is not None and found.claim.by == self._claim.by
        if self._stage in (_Stage.CLAIMING, _Stage.HOLDING, _Stage.LEAVING):
            released = self._stage is _Stage.LEAVING and found is not None and found.claim is None
            if mine or (released and self._own is not None and found == self._own):
                self._echo = (now_s, wall_s)
            elif self._stage is _Stage.CLAIMING and not self._confirmed:
                self._lose(found)
            else:
                self._sent_s = -math.inf  # it came after ours, so it does not hold: ours is put back
            return
        if found is not None and before is not None and found.seq != before.seq and self._since_s is not None:
            self._renewed = True
        if found is not None and found != before:
            self._since_s = None

    def _lose(self, found: RolloutState | None) -> None:
        who = "somebody else" if found is None or found.claim is None else one_line(found.claim.who)
        self._end(f"{who} carries a rollout out since the same moment; look at it with --status")

    def _end(self, failure: str | None) -> None:
        self._stage, self.failure = _Stage.ENDED, failure

    # ---- what is done ----------------------------------------------------------------------------------------------

    def tick(self, now_s: float, wall_s: float) -> list[Outbound]:
        """What is to be published now. Raises UsageError where the command cannot be carried out."""
        passed_s = max(0.0, now_s - self._ticked_s) if self._ticked_s > -math.inf else 0.0
        self._ticked_s = now_s
        if self._stage is _Stage.LISTENING:
            return self._listen(now_s, wall_s)
        if self._stage is _Stage.ENDED or self._own is None:
            return []
        fresh = max(now_s - self._echo[0], wall_s - self._echo[1]) <= self._claim_s
        if self._stage is _Stage.CLAIMING:
            return self._claiming(fresh, now_s, wall_s)
        if self._stage is _Stage.LEAVING:
            if self._state == self._own or now_s - (self._since_s or now_s) > AGAIN_S:
                self._end(self.failure)
            return []
        if not fresh:
            self.notes.append("the broker has not shown the claim for a while: it is taken anew")
            self._stage, self._since_s = _Stage.CLAIMING, now_s
            return [self._publish_state(self._own, now_s, wall_s)]
        return self._hold(passed_s, now_s, wall_s)

    def _listen(self, now_s: float, wall_s: float) -> list[Outbound]:
        if self._unreadable:
            raise UsageError(f"the state of the rollout at the broker cannot be read: {self._unreadable}", "rollout")
        state = self._state
        if self._intent is Intent.SHOW:
            self.look = None if state is None else Rollout(state.plan).look(state, self._facts(state, now_s, wall_s))
            self._end(None)
            return []
        if state is not None and state.claim is not None:
            wait = self._wait_for_claim(state, now_s)
            if wait is not None:
                return wait
        if self._intent is Intent.BEGIN:
            return self._begin(now_s, wall_s)
        if state is None:
            raise UsageError("the broker holds no rollout", "rollout")
        if state.phase == "returned" or (state.phase == "done" and self._intent is Intent.RESUME):
            raise UsageError(f"the rollout {state.rollout} has ended: {state.phase}", "rollout")
        if self._intent is Intent.ABORT and state.phase != "returning":
            state = replace(state, phase="returning", reason=f"aborted by {self._claim.who}", spent_s=0.0)
        self.notes.append(
            f"rollout {state.rollout} goes on: {state.phase}, wave {state.wave + 1} of {len(state.waves)}"
        )
        return [self._take_claim(state, now_s, wall_s)]

    def _wait_for_claim(self, state: RolloutState, now_s: float) -> list[Outbound] | None:
        """None once the claim of another has ended."""
        who = one_line(state.claim.who if state.claim is not None else "")
        if self._since_s is None:
            self._since_s = now_s
        if not self._listens:
            self._listens = True
            self.notes.append(f"{who} has claimed rollout {state.rollout}: listening for up to {self._claim_s:.0f} s")
        if self._renewed and self._intent is not Intent.ABORT:
            raise UsageError(
                f"{who} carries rollout {state.rollout} out now; it is returned by --abort, and shown by --status",
                "rollout",
            )
        if self._renewed and state.phase == "returning":
            self.notes.append(f"{who} returns the devices of rollout {state.rollout} now")
            self._end(None)
            return []
        if now_s - self._since_s >= self._claim_s:
            return None
        if self._intent is Intent.ABORT and now_s - self._sent_s >= AGAIN_S:
            self._sent_s = now_s
            body = msgspec.json.encode(RolloutAbort(rollout=state.rollout))
            return [Outbound(self._topics.abort, body)]
        return []

    def _begin(self, now_s: float, wall_s: float) -> list[Outbound]:
        if self._plan is None:
            raise UsageError("there is no plan to begin with", "rollout")
        state = self._state
        if state is not None and state.phase in ("rolling", "returning"):
            raise UsageError(
                f"rollout {state.rollout} has not ended ({state.phase}): take it up with --resume or return it with "
                "--abort",
                "rollout",
            )
        up = set(self._table.up(now_s, wall_s))
        known = {name: name in up for name, one in self._table.said().items() if one.status is not None}
        name = self._claim.by[:8]
        waves = plan_waves(self._plan, known, name)
        begun = RolloutState(
            form=FORM,
            rollout=name,
            seq=0,
            ts=wall_s,
            phase="rolling",
            wave=0,
            spent_s=0.0,
            waves=waves,
            plan=self._plan,
        )
        self._check(begun, now_s, wall_s)
        counts = ", ".join(str(len(wave)) for wave in waves)
        self.notes.append(f"rollout {name}: {sum(map(len, waves))} devices in {len(waves)} waves ({counts})")
        return [self._take_claim(begun, now_s, wall_s)]

    def _check(self, begun: RolloutState, now_s: float, wall_s: float) -> None:
        """Raise UsageError where a device cannot be given the plan, before any is given it."""
        if len(msgspec.json.encode(begun)) > MESSAGE_BYTES - 4096:
            raise UsageError(
                "the names of the devices and the plan do not fit one message", "plan", "name fewer devices"
            )
        facts, wrong = self._facts(begun, now_s, wall_s), []
        for name in (one for wave in begun.waves for one in wave):
            try:
                self._contents(facts[name])
            except CannotGive as why:
                wrong.append(f"{name}: {why}")
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise UsageError(f"{'; '.join(wrong[:5])}{more}", "rollout", "leave such devices out by `devices`")

    def _take_claim(self, state: RolloutState, now_s: float, wall_s: float) -> Outbound:
        self._rollout = Rollout(state.plan)
        self._stage, self._since_s = _Stage.CLAIMING, now_s
        return self._publish_state(state, now_s, wall_s)

    def _claiming(self, fresh: bool, now_s: float, wall_s: float) -> list[Outbound]:
        if fresh and self._confirmed:
            self._stage = _Stage.HOLDING
            # Records of an earlier rollout say nothing of this one; their devices hold what it left.
            rollout = None if self._own is None else self._own.rollout
            old = [name for name, record in self._records.items() if record.rollout != rollout]
            return [Outbound(self._topics.record(name), b"", retain=True, keep="latest") for name in old]
        if now_s - (self._since_s or 0.0) > self._claim_s:
            topic = self._topics.state
            self._end(f"the broker does not show what is published on {topic}: may this user write and read it?")
        return []

    def _hold(self, passed_s: float, now_s: float, wall_s: float) -> list[Outbound]:
        if self._own is None or self._rollout is None:
            return []
        state = replace(self._own, spent_s=self._own.spent_s + min(passed_s, self._renew_s))
        if self._abort and state.phase == "rolling":
            state = replace(state, phase="returning", reason="aborted by an operator", spent_s=0.0)
        facts = self._facts(state, now_s, wall_s)
        self.look = look = self._rollout.look(state, facts)
        self._note(self._own, look)
        steps = [] if look.state.phase != state.phase else look.steps
        out = [message for name, step in steps if (message := self._step(name, step, facts[name], now_s)) is not None]
        if look.state.phase in ("done", "returned"):
            self._stage, self._since_s = _Stage.LEAVING, now_s
            return [self._publish_state(replace(look.state, claim=None), now_s, wall_s, claimed=False)]
        keys = ("phase", "wave", "left_out")
        if now_s - self._sent_s >= self._renew_s or any(
            getattr(look.state, key) != getattr(self._own, key) for key in keys
        ):
            out.insert(0, self._publish_state(look.state, now_s, wall_s))
        else:
            self._own = replace(look.state, seq=self._own.seq, claim=self._own.claim)
        return out

    def release(self, wall_s: float) -> list[Outbound]:
        """The last message of a run that is stopped before its end: the claim is given back."""
        if self._stage is not _Stage.HOLDING or self._own is None:
            return []
        return [self._publish_state(self._own, self._ticked_s, wall_s, claimed=False)]

    # ---- messages --------------------------------------------------------------------------------------------------

    def _publish_state(self, state: RolloutState, now_s: float, wall_s: float, claimed: bool = True) -> Outbound:
        claim = self._claim if claimed else None
        self._own = replace(state, seq=state.seq + 1, ts=wall_s, claim=claim)
        self._sent_s = now_s
        return self._retained(self._topics.state, self._own)

    def _retained(self, topic: str, body: msgspec.Struct) -> Outbound:
        return Outbound(topic, msgspec.json.encode(body), retain=True, keep="latest")

    def _step(self, name: str, step: Step, facts: DeviceFacts, now_s: float) -> Outbound | None:
        """The message, unless it was sent a moment ago and the broker may still show it."""
        sent_s, times = self._steps.get((name, step), (-math.inf, 0))
        if now_s - sent_s < AGAIN_S:
            return None
        self._steps[name, step] = (now_s, times + 1)
        topic = self._topics.record(name) if "record" in step.value else f"{self._prefix}/{name}/desired"
        if times == 1:
            self.notes.append(
                f"the broker does not show what was published on {topic}: may this user write and read it?"
            )
        record = facts.record
        if step is Step.RECORD:
            try:
                give, back = self._contents(facts)
            except CannotGive as why:
                self._unfit[name] = str(why)
                return None
            rollout = "" if self._own is None else self._own.rollout
            return self._retained(topic, RolloutRecord(rollout=rollout, give=give, back=back))
        if record is None:
            return None
        if step is Step.GIVE:
            return self._retained(topic, record.give)
        version = max(facts.version, record.give.version) + 1
        if step is Step.RECORD_BACK:
            return self._retained(topic, replace(record, back_version=version))
        return self._retained(topic, replace(record.back, version=record.back_version or version))

    def _contents(self, facts: DeviceFacts) -> tuple[Desired, Desired]:
        plan = self._plan if self._own is None else self._own.plan
        if plan is None:
            raise CannotGive("there is no plan")
        if facts.unreadable:
            raise CannotGive(f"its desired state cannot be read: {facts.unreadable}")
        if facts.reported is None:
            raise CannotGive("it has never reported what it holds")
        if facts.desired is None and facts.reported.version is not None and not facts.reported.withdrawn:
            # Withdrawn while the device was off, or dropped by a broker that was asked for more than it queues: what
            # else it named is not known.
            version = facts.reported.version
            raise CannotGive(f"the broker does not show the desired state of version {version} that it reports")
        return contents(plan, facts.desired, facts.reported.installed, facts.version + 1)

    def _facts(self, state: RolloutState, now_s: float, wall_s: float) -> Mapping[str, DeviceFacts]:
        up = set(self._table.up(now_s, wall_s))
        said = self._table.said()
        names = {name for wave in state.waves for name in wave} | set(self._records)
        found = {}
        for name in names:
            record, desired, one = self._records.get(name), self._desired.get(name), said.get(name)
            facts = DeviceFacts(
                record=record if record is not None and record.rollout == state.rollout else None,
                desired=desired if isinstance(desired, Desired) else None,
                unreadable=desired.reason if isinstance(desired, DesiredRefused) else "",
                unfit=self._unfit.get(name, ""),
                reported=None if one is None else one.reported,
                status=None if one is None else one.status,
                up=name in up,
            )
            found[name] = facts
        return found

    def _note(self, before: RolloutState, look: Look) -> None:
        """Say what has changed since the last look."""
        for name, now in look.devices.items():
            told = self._shown.get(name)
            if told != now and now[0] not in (
                DeviceProgress.UNTOUCHED,
                DeviceProgress.RECORDED,
                DeviceProgress.UNANSWERED,
            ):
                if told is None or told[0] is not now[0] or now[0] is not DeviceProgress.WAITING:
                    self.notes.append(f"{name}: {now[0].value}{': ' if now[1] else ''}{now[1]}")
                self._shown[name] = now
        state = look.state
        if state.phase != before.phase:
            self.notes.append(_turn_text(state, look))
        elif state.wave != before.wave:
            wave = state.waves[state.wave]
            names = ", ".join(wave[:NAMES_SHOWN]) + (" ..." if len(wave) > NAMES_SHOWN else "")
            self.notes.append(f"wave {state.wave} has held; wave {state.wave + 1} of {len(state.waves)}: {names}")


def _fault(state: RolloutState) -> str:
    """Why this command does nothing with the state; empty where it can."""
    if state.form != FORM:
        return f"it has form {brief(state.form)}, not {FORM}"
    return one_line(state_fault(state) or "")[:200]


def _turn_text(state: RolloutState, look: Look) -> str:
    """What is said where a rollout turns, or ends."""
    if state.phase == "returning":
        return f"stopped: {state.reason}; every device that was given it gets what it had"
    open_ = (DeviceProgress.UNANSWERED, DeviceProgress.WAITING)
    counts = Counter(DeviceProgress.WAITING if how in open_ else how for how, _ in look.devices.values())
    words = {
        DeviceProgress.APPLIED: "have applied it" if state.phase == "done" else "hold what they had",
        DeviceProgress.WAITING: "have not answered, and find it when they come back",
        DeviceProgress.FAILED: "failed" if state.phase == "done" else "could not be brought back",
        DeviceProgress.OVERTAKEN: "were given something else by somebody else, and are left alone",
    }
    shown = [f"{counts[how]} {text}" for how, text in words.items() if counts[how]]
    return f"{state.phase}: {', '.join(shown) or 'nothing was given to anybody'}"
