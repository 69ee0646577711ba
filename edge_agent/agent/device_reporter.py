"""When the agent reports the state of the device: at a change, at every heartbeat, at the end of a telemetry interval.

Also what follows when the connection to the broker comes or goes. `StatusBuilder` builds the messages, `Publisher`
sends them and limits events of one kind by the minute, `DeviceReporter` decides when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.memory_guard import MemoryGuard
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Transport
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.status_builder import Identity, IntervalFigures, StatusBuilder
from edge_agent.base.clock import Clock
from edge_agent.core.model_lifecycle import ModelState
from edge_agent.protocol.envelope import LinkChange, Outbound
from edge_agent.protocol.messages import Runtime, Severity, State

log = logging.getLogger("edge_agent")
EVENTS_PER_MINUTE = 20
"""Of one kind. Events wait on disk while the broker is away: a client that can provoke them must not be able to wear
out the flash."""
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Publisher:
    """Publishes the agent's own messages; what the transport cannot take now is kept or dropped there."""

    def __init__(self, builder: StatusBuilder, transport: Transport, clock: Clock) -> None:
        self._builder = builder
        self._transport = transport
        self._clock = clock
        # By kind: when the minute began, and the events since then. The kinds are `messages.EVENT_KINDS`.
        self._recent: dict[str, tuple[float, int]] = {}

    def event(self, kind: str, message: str, data: Mapping[str, Any], severity: Severity = "warning") -> None:
        """See `context.Announce`. Log and publish an event, unless too many of its kind came within the minute."""
        now_s = self._clock.monotonic_s()
        since_s, count = self._recent.get(kind, (now_s, 0))
        if now_s - since_s >= 60.0:
            since_s, count = now_s, 0
        self._recent[kind] = (since_s, count + 1)
        if count > EVENTS_PER_MINUTE:
            return
        if count == EVENTS_PER_MINUTE:
            message = f"{message}; more of this kind within the minute are not reported"
        if kind != "broker":  # the transport has logged that itself, at the moment it happened
            log.log(LEVELS[severity], "%s: %s", kind, message)
        self._transport.publish(self._builder.event(kind, message, data, severity))

    def status(self, state: State, reason: str) -> None:
        """Publish how the agent is."""
        self._transport.publish(self._builder.status(state, reason))

    def info(self, runtimes: Sequence[Runtime]) -> None:
        """Publish what this device is."""
        self._transport.publish(self._builder.info(runtimes))

    def models(self, served_models: Mapping[str, ServedModel]) -> None:
        """Publish what can be asked."""
        self._transport.publish(self._builder.models(served_models))

    def telemetry(self, figures: IntervalFigures) -> None:
        """Publish an interval's figures."""
        self._transport.publish(self._builder.telemetry(figures))

    def home_assistant(self) -> None:
        """Publish the discovery message of Home Assistant, where the operator wants it."""
        if self._builder.identity.home_assistant:
            self._transport.publish(self._builder.home_assistant())

    def last_words(self, reason: str) -> Outbound:
        """The offline status of an orderly end, for `Transport.stop`."""
        return self._builder.status("offline", reason)


FindRuntimes = Callable[[], Awaitable[list[Runtime]]]


class DeviceReporter:
    """Reports the device's state and figures. `find_runtimes` asks the backends of this device; it takes seconds."""

    def __init__(
        self,
        context: Context,
        identity: Identity,
        publisher: Publisher,
        manager: ModelManager,
        host: HostMonitor,
        guard: MemoryGuard,
        find_runtimes: FindRuntimes,
    ) -> None:
        self._context = context
        self._identity = identity
        self._publisher = publisher
        self._manager = manager
        self._host = host
        self._guard = guard
        self._find_runtimes = find_runtimes
        self._runtimes: list[Runtime] = []
        self._reported: tuple[State, str] = ("starting", "")

    def link_changed(self, change: LinkChange) -> None:
        """The connection came or went: an event, which waits on disk until the broker has it; and the retained state
        again after a connection, since the broker may have published the will."""
        severity: Severity = "info" if change.connected else "warning"
        self._publisher.event("broker", change.text, {"connected": change.connected}, severity)
        if change.connected:
            self.report()
            self._publisher.home_assistant()

    def report(self) -> None:
        """Publish status, info and models."""
        self._reported = self._state()
        self._publisher.status(*self._reported)
        self._publisher.info(self._runtimes)
        self.report_models()

    def report_models(self) -> None:
        """Publish what can be asked."""
        self._publisher.models(self._manager.served_models)

    def report_change(self) -> None:
        """Publish the state if it is not the one that was published last: operators need not wait for a heartbeat."""
        if self._state() != self._reported:
            self.report()

    async def report_runtimes(self) -> None:
        """Find out which backends can run here, and publish it."""
        self._runtimes = await self._find_runtimes()
        self._publisher.info(self._runtimes)

    async def run_heartbeat(self) -> None:
        """Report at every heartbeat, until cancelled."""
        while True:
            await asyncio.sleep(self._identity.heartbeat_s)
            self.report()

    async def run_telemetry(self) -> None:
        """Publish telemetry at the end of every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._identity.interval_s)
            self._publisher.telemetry(self.figures())

    def figures(self) -> IntervalFigures:
        """The figures since the last call; takes the counters."""
        context = self._context
        return IntervalFigures(
            context.stats.take(),
            self._host.readings,
            context.grant,
            len(context.requests),
            self._host.daemon_bytes(),
            self._guard.summary(),
            self._manager.served_models,
            context.transport.events_waiting,
            context.transport.events_lost,
        )

    def last_words(self) -> Outbound:
        """What the broker is to keep of an agent that ended in order."""
        return self._publisher.last_words("stopped in order")

    def _state(self) -> tuple[State, str]:
        """How the device is, in words that stay the same while it is so."""
        troubles = []
        if self._context.grant.closed:
            troubles.append("no requests are taken for heat")
        if self._manager.closed:
            troubles.append("no requests are taken for want of memory")
        quarantined = [
            served.name
            for served in self._manager.served_models.values()
            if served.lifecycle.state is ModelState.QUARANTINED
        ]
        if quarantined:
            troubles.append(f"quarantined: {', '.join(quarantined)}")
        troubles += [self._context.conditions[name] for name in sorted(self._context.conditions)]
        return ("degraded", "; ".join(troubles)) if troubles else ("online", "serving")
