"""The log of all requests and replies, with the rules that hold for each, checked as each packet leaves.

- An answer belongs to a request that was delivered, and repeats its texts, adapter and nothing else.
- At most one answer: the same words may be sent again (QoS 1, a retry), other words never. One exception: a refusal at
  the door (404, 429, 503) is not remembered, so a message that the broker delivers again is decided anew.
- No packet with an answer leaves after the deadline, but for a 408, which says just that, the word that ends a stream
  which cannot be finished, and answers to orders.
- A stream's parts come in order and once, end once, and together are the answer.
- A process that is killed may have answered what it did not acknowledge: the next one is given it again and answers
  again. So each life of the daemon answers once what was delivered to it, and nothing that was not.
- Nothing is acknowledged before its answer while no more wait than the window holds.
- (boot_id, seq) stands for one message, and an event that reached the disk reaches the broker.
- In the end each delivered request was answered, or its deadline passed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge_agent.agent.context import UNACKNOWLEDGED
from edge_agent.core.job import Job
from edge_agent.core.request_table import GRACE_S, RequestTable
from edge_agent.protocol.envelope import Inbound, Outbound
from tests.support.whole.board import said

DOOR = frozenset({404, 408, 422, 429, 503})
PART = 0
Key = tuple[str, str]


@dataclass(slots=True)
class Ask:
    """A client's request. `answerable` is False for one to which silence is right (no place to answer)."""

    key: Key
    texts: tuple[str, ...]
    adapter: str | None
    sent_s: float
    due_s: float
    well_formed: bool = True
    order: bool = False
    cancelled: bool = False
    deliveries: int = 0
    earlier: bool = False
    sends: int = 0
    answers: dict[bytes, int] = field(default_factory=dict)
    said: list[tuple[float, int]] = field(default_factory=list)
    told: bool = False
    prompt: bool = False
    parts: list[str] = field(default_factory=list)
    ended: bool = False


class WatchedLedger(RequestTable):
    """The real ledger, watched: every job is opened once and closed once, in a state that is final."""

    def __init__(self, complain: Callable[[str], None], states: dict[Key, list[str]]) -> None:
        super().__init__()
        self._complain = complain
        self.states = states
        self._jobs: dict[int, Job] = {}

    def open(self, job: Job) -> None:
        """See `RequestTable.open`."""
        super().open(job)
        self._jobs[id(job)] = job

    def close(self, job: Job, answer: bytes | None, until_s: float = math.inf) -> bool:
        """See `RequestTable.close`."""
        closed = super().close(job, answer, until_s)
        if closed != (self._jobs.pop(id(job), None) is not None):
            self._complain(f"{job.key} was closed twice, or never opened")
        self.states.setdefault(job.key, []).append(job.state.value)
        return closed


class RequestLog:
    """All requests by (client, id)."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self.asks: dict[Key, Ask] = {}
        self.statuses: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        # Answers that the link has taken and not sent yet, and since when.
        self.waiting: dict[Key, float] = {}
        # By (boot_id, seq): what was said, and which events are on the disk.
        self.numbered: dict[tuple[str, int], bytes] = {}
        self.answered_again: set[Key] = set()
        self.spooled: set[tuple[str, int]] = set()

    def process_ended(self) -> None:
        """The daemon's process has ended: what it knew of requests went with it."""
        self.waiting.clear()
        for ask in self.asks.values():
            ask.earlier = bool(ask.answers) or ask.earlier
            ask.answers.clear()
            ask.parts.clear()
            ask.deliveries, ask.ended, ask.told = 0, False, False

    def written(self, record: bytes) -> None:
        """An event is on the disk."""
        _, payload, _ = msgspec.msgpack.decode(record)
        body = json.loads(payload)
        self.spooled.add((body["boot_id"], body["seq"]))

    def answered_but_held(self, held: Iterable[Inbound]) -> list[str]:
        """Requests that were delivered once, answered, and would be delivered again. Not those sent several times."""
        requests = [message for message in held if "/infer/" in message.topic]
        keys = [_key(message.response_topic, message.payload, message.correlation) for message in requests]
        asks = [self.asks[key] for key in keys if key in self.asks]
        once = [ask for ask in asks if ask.deliveries == 1 and ask.sends == 1]
        return [f"{ask.key} with {list(ask.answers.values())}" for ask in once if ask.answers]

    def acknowledged(self, message: Inbound, held: int, closed: Container[Key]) -> None:
        """The device acknowledges a message while `held` are unacknowledged, this one included."""
        key = _key(message.response_topic, message.payload, message.correlation)
        ask = self.asks.get(key) if key and "/infer/" in message.topic else None
        if ask is None or not ask.well_formed or ask.deliveries != 1 or held > UNACKNOWLEDGED:
            return
        if not ask.told and ask.key not in closed:
            self._complain(f"{key} is acknowledged before its answer, with {held} unacknowledged")

    def delivered(self, message: Inbound) -> None:
        """The device gets a message."""
        if message.topic.endswith("/cancel"):
            return
        key = _key(message.response_topic, message.payload, message.correlation)
        ask = self.asks.get(key) if key else None
        if ask is not None:
            received_s = message.received_s or 0.0
            if ask.deliveries and received_s > ask.due_s + GRACE_S:
                # Read so late (the process stood still) that its name may stand for something new.
                ask.answers.clear()
            ask.deliveries += 1
            ask.due_s = max(ask.due_s, received_s + (message.expiry_s or 0.0))

    def told(self, message: Outbound, now_s: float) -> None:
        """The agent hands a message to its link."""
        if "/reply" in message.topic:
            key = (message.topic.split("/")[3], str(json.loads(message.payload)["id"]))
            if key in self.asks:
                self.asks[key].told = True
                if not message.expendable:  # else it may give way to answers
                    self.waiting[key] = now_s

    def heard(self, message: Outbound, now_s: float) -> None:
        """A packet of the device leaves for the broker."""
        body = json.loads(message.payload)
        self.kinds[message.topic.rsplit("/", 1)[-1]] += 1
        if "boot_id" in body and "seq" in body:
            number = (body["boot_id"], body["seq"])
            if self.numbered.setdefault(number, message.payload) != message.payload:
                self._complain(f"{number} stands for two messages: {self.numbered[number]!r} and {message.payload!r}")
        if "/reply" not in message.topic:
            return
        key = (message.topic.split("/")[3], str(body["id"]))
        self.waiting.pop(key, None)
        ask = self.asks.get(key)
        if ask is not None and ask.earlier and ask.sends == 1:
            self.answered_again.add(key)
        if ask is None or not ask.deliveries:
            self._complain(f"an answer to {key}, which nobody asked: {body}")
            return
        if "seq" in body:
            self._check_part(ask, body, message.payload, now_s)
            return
        self.statuses[body["status"]] += 1
        self._check(ask, body, message.payload, now_s)

    def _check_part(self, ask: Ask, body: dict[str, Any], payload: bytes, now_s: float) -> None:
        """A part of a stream: in order, once, in time, nothing after the end; all parts together are the answer."""
        if payload in ask.answers:
            return
        ask.answers[payload] = PART
        if ask.ended or body["seq"] != len(ask.parts):
            self._complain(f"{ask.key}: part {body['seq']} after {len(ask.parts)}, ended: {ask.ended}")
        if now_s > ask.due_s + 1e-6:
            self._complain(f"{ask.key}: part {body['seq']} left {now_s - ask.due_s:.3f} s after the deadline")
        ask.parts.append(body["text"])
        if body["done"]:
            ask.ended = True
            ask.said.append((now_s, 200))
            self.statuses[200] += 1
            if "".join(ask.parts) != "".join(said(ask.texts[0])):
                self._complain(f"{ask.key} got another stream: {ask.parts}")

    def _check(self, ask: Ask, body: dict[str, Any], payload: bytes, now_s: float) -> None:
        status = body["status"]
        ask.said.append((now_s, status))
        again = payload in ask.answers
        ask.answers.setdefault(payload, status)
        others = [word for words, word in ask.answers.items() if words != payload and word != PART]
        # Who asks again for a stream that ended gets its text in one reply.
        twice = (ask.ended and ask.deliveries < 2) or any(word not in DOOR for word in others)
        if not again and (twice or 0 < ask.deliveries <= len(others)):
            self._complain(f"{ask.key} was answered {[*others, status]} after {ask.deliveries} deliveries")
        ends_a_stream = ask.prompt and status != 200  # whose parts may have been dropped for coming too late
        if now_s > ask.due_s + 1e-6 and not ask.order and status != 408 and not ends_a_stream:
            self._complain(f"{ask.key} was answered {now_s - ask.due_s:.3f} s after its deadline with {status}")
        if status == 499 and not ask.cancelled and not ask.prompt:  # a stream that nobody hears ends so, too
            self._complain(f"{ask.key} was cancelled by nobody")
        if status == 200 and not ask.order:
            results = body["result"] if isinstance(body["result"], list) else [body["result"]]
            if ask.prompt:
                right = [result["text"] for result in results] == ["".join(said(ask.texts[0]))]
            else:
                labels = [result["label"] for result in results]
                right = labels == list(ask.texts) and results[0]["of"][0] == ask.adapter
            if not right:
                self._complain(f"{ask.key} got the answer to something else: {body['result']}")

    def unanswered(self, states: dict[Key, list[str]]) -> list[str]:
        """Delivered requests to which nothing was ever said, though their deadline was not missed."""
        silent = [ask for ask in self.asks.values() if ask.deliveries and not ask.told and not ask.order]
        return [
            f"{ask.key}, sent {ask.sent_s:.3f}, due {ask.due_s:.3f}: {states.get(ask.key, 'never a job')}"
            for ask in silent
            if ask.well_formed and states.get(ask.key, ["none"])[-1] != "expired"
        ]


def _key(topic: str | None, payload: bytes, correlation: bytes | None) -> Key | None:
    try:
        body = json.loads(payload)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    topic = topic or body.get("reply_to")
    name = body.get("id") or (correlation or b"").decode()
    levels = topic.split("/") if isinstance(topic, str) else []
    return (levels[3], str(name)) if len(levels) > 3 and name else None
