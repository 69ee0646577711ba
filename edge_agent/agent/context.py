"""What the parts of the running agent share: clock, connection, open requests, counters, events, acknowledgements."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edge_agent.agent.ports import Transport
from edge_agent.agent.stats import Stats
from edge_agent.base.clock import Clock
from edge_agent.core.duty_cycle import DutyCycle
from edge_agent.core.energy import EnergyMeter
from edge_agent.core.governor import ComputeGrant, GovernorLevel
from edge_agent.core.latency import CostModel
from edge_agent.core.reply_rate import DoorRate, ReplyRate
from edge_agent.core.request_table import RequestTable
from edge_agent.core.trial_records import TrialRecord
from edge_agent.protocol import encode
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import Severity
from edge_agent.protocol.topics import ReplyAddress, Topics

if TYPE_CHECKING:
    from edge_agent.agent.trace_reports import TraceReports

UNACKNOWLEDGED = 12
"""The most requests that stay unacknowledged; see `AckWindow`."""


class AckWindow:
    """Acknowledges QoS 1 requests after their answers, within a small window, in the order of arrival.

    The broker redelivers an unacknowledged request when this daemon is killed, so that its answer is not lost. Brokers
    stop delivering at their in-flight limit (mosquitto: 20); overload would then wait in the broker instead of being
    answered with 429. So when more than `held` requests are unacknowledged, the oldest is acknowledged before its
    answer. Acknowledgements must be in order (MQTT 5, 4.6.0-2).
    """

    def __init__(self, ack: Callable[[Inbound], None], held: int = UNACKNOWLEDGED) -> None:
        self._ack = ack
        self._held = held
        self._waiting: OrderedDict[int, tuple[Inbound, bool]] = OrderedDict()

    def hold(self, message: Inbound) -> None:
        """Take a message in; it is acknowledged after `release`, or when `held` newer ones have arrived."""
        if message.ack is None:
            return
        self._waiting[message.ack] = (message, False)
        while len(self._waiting) > self._held:
            _, (oldest, _) = self._waiting.popitem(last=False)
            self._ack(oldest)
        self._drain()

    def release(self, message: Inbound) -> None:
        """Acknowledge a message that was answered, refused or dropped, as soon as all before it are."""
        if message.ack is not None and message.ack in self._waiting:
            self._waiting[message.ack] = (message, True)
            self._drain()

    def _drain(self) -> None:
        while self._waiting:
            message, released = next(iter(self._waiting.values()))
            if not released:
                return
            self._waiting.popitem(last=False)
            self._ack(message)


class Announce(Protocol):
    """Report an event; `agent.device_reporter.Publisher.event`."""

    def __call__(
        self,
        kind: str,
        message: str,
        data: Mapping[str, Any],
        severity: Severity = "warning",
        client: str | None = None,
    ) -> None:
        """`kind` is one of protocol.messages.EVENT_KINDS; `message` a sentence with its numbers; `client` whose request
        brought it about, in whose share of the events it counts."""
        ...


@dataclass(slots=True)
class Context:
    """The shared collaborators of intake, serving, responder, governor loop and reporter.

    `grant`: the limits that the governor allows now; only `GovernorLoop` replaces it. `requests`: open and recently
    answered requests. `stats`: counters of the current telemetry interval. `costs`: measured compute times.
    `conditions`: what makes the device degraded at the moment, a sentence by the name of what is wrong.
    `trials`: the version on trial, or how the last one's trial ended, by model; `agent.version_trials` sets them.
    `reply_rate`: how many refusals a client is still sent; `door_rate`: whether its messages are still looked at.
    `traces`: what is told of closed requests (`agent.trace_reports`); None unless the setting asks for it.
    """

    clock: Clock
    transport: Transport
    topics: Topics
    acks: AckWindow
    announce: Announce
    grant: ComputeGrant
    requests: RequestTable = field(default_factory=RequestTable)
    stats: Stats = field(default_factory=Stats)
    costs: CostModel = field(default_factory=CostModel)
    duty_cycle: DutyCycle = field(default_factory=DutyCycle)
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    conditions: dict[str, str] = field(default_factory=dict)
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    reply_rate: ReplyRate = field(default_factory=ReplyRate)
    door_rate: DoorRate = field(default_factory=DoorRate)
    traces: TraceReports | None = None

    def note_condition(self, name: str, sentence: str | None) -> None:
        """Make the device degraded for this reason, or end that (None)."""
        if sentence is None:
            self.conditions.pop(name, None)
        else:
            self.conditions[name] = sentence

    def note_trial(self, record: TrialRecord) -> None:
        """Show this of the model's trial from now on."""
        self.trials[record.model] = record

    def send_expendable(self, message: Outbound, to: ReplyAddress) -> None:
        """Send a refusal at the door or a repeated answer, unless its client has had too many; what is not sent is
        counted."""
        if self.reply_rate.take(to.client, len(message.payload), self.clock.monotonic_s()):
            self.transport.publish(encode.expendable(message, to))

    def take_dropped(self) -> dict[str, int]:
        """Messages that were not sent, or not read, since the last call, by cause."""
        dropped = dict(self.transport.take_dropped())
        if withheld := self.reply_rate.take_withheld():
            dropped["client-rate"] = withheld
        if turned_away := self.door_rate.take_turned_away():
            dropped["turned-away"] = turned_away
        if self.traces is not None and (untold := self.traces.take_withheld()):
            dropped["trace-rate"] = untold
        return dropped

    def replace_grant(self, grant: ComputeGrant) -> ComputeGrant:
        """Set what the governor allows from now on; returns what it allowed before."""
        before, self.grant = self.grant, grant
        return before


def full_grant(max_rows: int, threads: int) -> ComputeGrant:
    """The grant that holds until the first temperature is read: no limit."""
    return ComputeGrant(
        GovernorLevel.NORMAL,
        max_rows,
        threads,
        None,
        "no reading yet",
        unlimited_threads=threads,
        unlimited_rows=max_rows,
    )
