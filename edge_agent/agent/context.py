"""What every part of the running agent shares: its connection, its books, its clock, its way to report events."""

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
    """Report an event; `agent.publisher.Publisher.event`."""

    def __call__(self, kind: str, message: str, data: Mapping[str, Any], severity: Severity = "warning") -> None:
        """`kind` is one of protocol.messages.EVENT_KINDS; `message` a sentence with its numbers."""
        ...


@dataclass(slots=True)
class Context:
    """Shared by intake, dispatch, respond, watch and report. `grant` is what the governor allows at this moment."""

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


def full_grant(max_rows: int, threads: int) -> ComputeGrant:
    """The limits before the first reading."""
    return ComputeGrant(
        GovernorLevel.NORMAL,
        max_rows,
        threads,
        None,
        "no reading yet",
        unlimited_threads=threads,
        unlimited_rows=max_rows,
    )
