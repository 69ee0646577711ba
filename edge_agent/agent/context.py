"""What the parts of the running agent share: clock, connection, open requests, counters, events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_agent.agent.acks import AckWindow
from edge_agent.agent.ports import Transport
from edge_agent.agent.stats import Stats
from edge_agent.base.clock import Clock
from edge_agent.core.duty_cycle import DutyCycle
from edge_agent.core.energy import EnergyMeter
from edge_agent.core.governor import ComputeGrant, GovernorLevel
from edge_agent.core.latency import CostModel
from edge_agent.core.request_table import RequestTable
from edge_agent.protocol.messages import Severity
from edge_agent.protocol.topics import Topics


class Announce(Protocol):
    """Report an event; `agent.device_reporter.Publisher.event`."""

    def __call__(self, kind: str, message: str, data: Mapping[str, Any], severity: Severity = "warning") -> None:
        """`kind` is one of protocol.messages.EVENT_KINDS; `message` a sentence with its numbers."""
        ...


@dataclass(slots=True)
class Context:
    """The shared collaborators of intake, serving, responder, governor loop and reporter.

    `grant`: the limits that the governor allows now; only `GovernorLoop` replaces it. `requests`: open and recently
    answered requests. `stats`: counters of the current telemetry interval. `costs`: measured compute times.
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
