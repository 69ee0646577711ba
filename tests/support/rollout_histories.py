"""Random histories of rollouts: devices that apply, refuse, hang, go away and come back, a command that is killed, put
to sleep, begun twice and aborted, an operator who publishes by hand. The broker is a dictionary; clocks are our own.

    python -m tests.support.rollout_histories --count 10000 --seed 0

Of each history: it ends in a stated time once somebody carries it out, no desired state is ever replaced by an older
one, nothing is given without a record at the broker, one run at a time gives anything, and afterwards every device
holds the new package or what it had, as the end says.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from edge_agent.base.errors import UsageError
from edge_agent.fleet.rollout_driver import Intent, RolloutDriver
from edge_agent.protocol import messages
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.rollout_messages import RolloutClaim, RolloutPlan, RolloutRecord, RolloutState, StopRules
from tests.support import told_devices as told

PREFIX = "edge/v1"
STATE = f"{PREFIX}/group/rollout/state"
WALL_S = 1_790_000_000.0
OLD, NEW, OTHER = (f"sha256:{digit * 64}" for digit in "123")
FATES = ("good", "good", "good", "good", "refuses", "hangs", "dies", "silent", "drifts back")
QUEUE = 100_000


class Broker:
    """Retained messages, and a queue for each subscriber. What is published late (a killed run) is not modelled."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.queues: dict[int, deque[tuple[str, bytes]]] = {}

    def subscribe(self, who: int) -> None:
        self.queues[who] = deque(self.retained.items(), maxlen=QUEUE)

    def publish(self, topic: str, payload: bytes, retain: bool = True) -> None:
        if topic.endswith("/desired") and topic in self.retained and payload:
            before, now = (msgspec.json.decode(body)["version"] for body in (self.retained[topic], payload))
            assert now >= before, f"{topic}: {now} after {before}"
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for queue in self.queues.values():
            queue.append((topic, payload))


@dataclass
class Device:
    """One device: what it holds, and how it takes a new package."""

    name: str
    fate: str
    store: dict[str, str]
    on: bool = True
    version: int | None = None
    wanted: messages.Desired | None = None
    pending_until_s: float | None = None
    back_s: float | None = None
    seq: int = 0
    states: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def look(self, broker: Broker, now_s: float, chance: random.Random) -> None:
        """A second of its life."""
        if not self.on:
            if self.back_s is not None and now_s >= self.back_s:
                self.on = True
                self.say_status(broker, now_s)
            return
        if chance.random() < 0.1:
            self.say_status(broker, now_s)
        payload = broker.retained.get(f"{PREFIX}/{self.name}/desired")
        if payload is not None:
            body = msgspec.json.decode(payload, type=messages.Desired)
            if self.version is None or body.version > self.version:
                self._take(broker, body, now_s, chance)
        if self.pending_until_s is not None and now_s >= self.pending_until_s:
            self._end(broker, now_s)

    def _take(self, broker: Broker, body: messages.Desired, now_s: float, chance: random.Random) -> None:
        self.version, self.wanted = body.version, body
        self.states = {one.model: ("pending", None) for one in body.models}
        news = any(one.package == NEW for one in body.models)
        if news and self.fate == "dies":
            self.on, self.back_s = False, (now_s + 200 if chance.random() < 0.7 else None)
            broker.publish(f"{PREFIX}/{self.name}/status", _status(now_s, "offline", self.seq))
            self.pending_until_s = now_s + 201
            return
        self.pending_until_s = now_s + (1e9 if news and self.fate == "hangs" else chance.choice((0, 2, 10)))
        self.report(broker, now_s)

    def _end(self, broker: Broker, now_s: float) -> None:
        assert self.wanted is not None
        drifted = self.pending_until_s is not None and self.fate == "drifts back" and self.store.get("m") == NEW
        self.pending_until_s = None
        for one in self.wanted.models:
            if one.package == NEW and (self.fate == "refuses" or drifted):
                self.states[one.model] = ("rolled-back" if drifted else "refused", "the probes fail")
                if drifted:
                    self.store["m"] = OLD
            elif one.package is None:
                self.store.pop(one.model, None)
                self.states[one.model] = ("applied", None)
            else:
                self.store[one.model] = str(one.package)
                self.states[one.model] = ("applied", None)
                if one.package == NEW and self.fate == "drifts back":
                    self.pending_until_s = now_s + 7
        self.report(broker, now_s)

    def report(self, broker: Broker, now_s: float) -> None:
        """Publish `reported`."""
        self.seq += 1
        items = [
            messages.ReportedItem(
                model=one.model, adapter=None, package=one.package, state=self.states[one.model][0],  # type: ignore[arg-type]
                since=now_s, reason=self.states[one.model][1],
            )
            for one in (self.wanted.models if self.wanted is not None else ())
        ]  # fmt: skip
        worst = next((s for s in ("pending", "rolled-back", "refused") if any(i.state == s for i in items)), "applied")
        body = messages.Reported(
            ts=now_s, boot_id="b", seq=self.seq, version=self.version, items=items,
            state=None if self.version is None else worst,  # type: ignore[arg-type]
            installed=[messages.InstalledEntry(model=m, adapter=None, package=p) for m, p in self.store.items()],
        )  # fmt: skip
        broker.publish(f"{PREFIX}/{self.name}/reported", msgspec.json.encode(body))

    def say_status(self, broker: Broker, now_s: float) -> None:
        """Publish `status`."""
        self.seq += 1
        broker.publish(f"{PREFIX}/{self.name}/status", _status(now_s, "online", self.seq))


def _status(now_s: float, state: str, seq: int) -> bytes:
    return msgspec.json.encode(replace(told.status(state, ts=WALL_S + now_s), seq=seq))


@dataclass
class Run:
    """One run of the command."""

    number: int
    driver: RolloutDriver
    asleep_until_s: float = 0.0


class History:
    """One history from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.broker = Broker()
        self.now_s = 0.0
        self.runs: list[Run] = []
        self.begun = 0
        self.counts: Counter[str] = Counter()
        self.others: set[str] = set()
        self.rollouts: set[str] = set()
        self.before: dict[str, dict[str, str]] = {}
        self.devices = [self._device(number) for number in range(self.chance.randint(1, 12))]
        silent = self.chance.choice(("fail", "skip"))
        rules = StopRules(applied=self.chance.choice((1.0, 1.0, 0.8, 0.5)), silent=silent)  # type: ignore[arg-type]
        self.plan = RolloutPlan(
            models=[messages.DesiredModel(model="m", package=NEW)],
            waves=self.chance.choice((["10%", "50%", "100%"], ["100%"], [["d0"], "60%", "100%"])),  # type: ignore[arg-type]
            within_s=120.0,
            watch_s=20.0,
            stop=rules,
        )

    def _device(self, number: int) -> Device:
        name = f"d{number}"
        device = Device(name, self.chance.choice(FATES), self.chance.choice(({}, {"m": OLD}, {"m": OLD, "x": OTHER})))
        device.store = dict(device.store)
        device.say_status(self.broker, self.now_s)
        if self.chance.random() < 0.6:
            models = [messages.DesiredModel(model=one, package=at) for one, at in device.store.items()]
            body = messages.Desired(version=self.chance.randint(1, 9), models=models)
            device.version, device.wanted = body.version, body
            device.states = dict.fromkeys(device.store, ("applied", None))
            self.broker.publish(f"{PREFIX}/{name}/desired", msgspec.json.encode(body))
        device.report(self.broker, self.now_s)
        if device.fate == "silent":
            device.on = False
        self.before[name] = dict(device.store)
        return device

    def start(self, intent: Intent) -> None:
        """Somebody types the command."""
        self.begun += 1
        claim = RolloutClaim(by=f"{self.begun:08d}{self.chance.getrandbits(32):08x}", who=f"run {self.begun}")
        driver = RolloutDriver(PREFIX, intent, claim, self.plan if intent is Intent.BEGIN else None)
        self.broker.subscribe(self.begun)
        self.runs.append(Run(self.begun, driver))

    def state(self) -> RolloutState | None:
        """What the broker holds."""
        payload = self.broker.retained.get(STATE)
        return None if payload is None else msgspec.json.decode(payload, type=RolloutState)

    def second(self) -> None:
        """A second passes."""
        self.now_s += 1.0
        for device in self.devices:
            device.look(self.broker, self.now_s, self.chance)
        awake = [run for run in self.runs if self.now_s >= run.asleep_until_s]
        gave = [run.number for run in awake if self._turn(run)]
        assert len(gave) <= 1, f"runs {gave} gave something in one second"

    def _turn(self, run: Run) -> bool:
        """A run reads and acts; whether it gave a device anything."""
        queue, gave = self.broker.queues[run.number], False
        early = run.asleep_until_s and self.chance.random() < 0.5  # it acts before it reads what came while it slept
        run.asleep_until_s = 0.0
        while queue and not early:
            topic, payload = queue.popleft()
            run.driver.take(topic, payload, self.now_s, WALL_S + self.now_s)
            if self.chance.random() < 0.02:
                run.driver.take(topic, payload, self.now_s, WALL_S + self.now_s)  # a duplicate
        try:
            out = run.driver.tick(self.now_s, WALL_S + self.now_s)
        except UsageError as error:
            self.counts["refused"] += 1
            self.notes = str(error)
            self._stop(run)
            return False
        for message in out:
            gave = self._publish(message) or gave
            if self.chance.random() < 0.004:
                self.counts["killed"] += 1
                self._stop(run)
                return gave
        if run.driver.ended:
            self._stop(run)
        return gave

    def _publish(self, message: Outbound) -> bool:
        levels = message.topic.split("/")
        if levels[-1] == "desired":
            record = msgspec.json.decode(
                self.broker.retained[f"{PREFIX}/group/rollout/device/{levels[-2]}"], type=RolloutRecord
            )
            body = msgspec.json.decode(message.payload, type=messages.Desired)
            assert body in (record.give, replace(record.back, version=record.back_version or 0)), "without a record"
        self.broker.publish(message.topic, message.payload, message.retain)
        if message.topic == STATE:
            self.rollouts.add(msgspec.json.decode(message.payload, type=RolloutState).rollout)
        return levels[-1] == "desired"

    def _stop(self, run: Run) -> None:
        self.runs.remove(run)
        del self.broker.queues[run.number]

    def disturb(self) -> None:
        """Something happens to the command, or somebody else does something."""
        chance = self.chance.random()
        if self.runs and chance < 0.004:
            self.counts["killed"] += 1
            self._stop(self.chance.choice(self.runs))
        elif self.runs and chance < 0.008:
            self.counts["slept"] += 1
            self.chance.choice(self.runs).asleep_until_s = self.now_s + self.chance.randint(5, 100)
        elif chance < 0.011:
            self.start(self.chance.choice((Intent.RESUME, Intent.BEGIN, Intent.RESUME)))
        elif chance < 0.0115:
            self.start(Intent.ABORT)
        elif chance < 0.013:
            self._by_hand(self.chance.choice(self.devices))
        elif chance < 0.016:
            device = self.chance.choice(self.devices)
            if device.on:
                device.on, device.back_s = False, self.now_s + self.chance.randint(3, 60)
                self.broker.publish(f"{PREFIX}/{device.name}/status", _status(self.now_s, "offline", device.seq))

    def _by_hand(self, device: Device) -> None:
        payload = self.broker.retained.get(f"{PREFIX}/{device.name}/desired")
        known = 0 if payload is None else int(msgspec.json.decode(payload)["version"])
        body = messages.Desired(
            version=max(known, device.version or 0) + 1, models=[messages.DesiredModel(model="m", package=OTHER)]
        )
        self.others.add(device.name)
        self.counts["by hand"] += 1
        self.broker.publish(f"{PREFIX}/{device.name}/desired", msgspec.json.encode(body))

    def play(self) -> str:
        """The whole history; how it ended. Raises AssertionError."""
        self.start(Intent.BEGIN)
        for _ in range(self.chance.randint(0, 600)):
            self.second()
            self.disturb()
        quiet_s = 0
        most_s = 100 + 40 + len(self.plan.waves) * (120 + 2 * 20) + 120 + 60 + 40
        while quiet_s < most_s and not self._over():
            if not self.runs and quiet_s < most_s - 1:
                self.start(Intent.BEGIN if self.state() is None else Intent.RESUME)
            self.second()
            quiet_s += 1
        state = self.state()
        assert state is not None and state.phase in ("done", "returned"), f"stuck: {state}"
        for device in self.devices:  # those that were away come back and find what they are to hold
            device.on, device.fate = True, "good"
        for _ in range(30):
            self.second()
        self._check(state)
        return state.phase

    def _over(self) -> bool:
        state = self.state()
        return state is not None and state.phase in ("done", "returned") and not self.runs

    def _check(self, state: RolloutState) -> None:
        failed = 0
        for wave in state.waves:
            for name in wave:
                device = next(one for one in self.devices if one.name == name)
                if name in self.others:
                    failed += 1
                elif state.phase == "done":
                    bad = device.store.get("m") != NEW or device.states["m"][0] != "applied"
                    failed += bad
                    assert not bad or self.plan.stop.applied < 1 or name in state.left_out, name
                elif f"{PREFIX}/group/rollout/device/{name}" in self.broker.retained:
                    # Before a second rollout a device may be on its way to something else.
                    assert len(self.rollouts) > 1 or device.store == self.before[name], name
        if state.phase == "returned":
            assert state.reason
        self.counts["failed of done"] += failed if state.phase == "done" else 0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Random histories of rollouts.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    ends: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        history = History(seed)
        try:
            ends[history.play()] += 1
        except BaseException:
            print(f"seed {seed}")
            raise
        total += history.counts
    print(f"{arguments.count} histories: {dict(ends)}; {dict(total)}")


if __name__ == "__main__":
    main()
