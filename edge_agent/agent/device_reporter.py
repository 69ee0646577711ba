"""When the agent reports the state of the device: at a change, at every heartbeat, at the end of a telemetry interval.

Also what follows when the connection to the broker comes or goes. `StatusBuilder` builds the messages, `Publisher`
sends them and limits events of one kind by the minute, `DeviceReporter` decides when.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.memory_guard import MemoryGuard
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import RetainedTopics, Transport
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.status_builder import Identity, IntervalFigures, StatusBuilder
from edge_agent.base.clock import Clock
from edge_agent.core.desired_state import DesiredState, InstalledPackages
from edge_agent.core.model_lifecycle import ModelState
from edge_agent.core.trial_records import TrialRecord
from edge_agent.protocol import encode
from edge_agent.protocol.envelope import LinkChange, Outbound
from edge_agent.protocol.messages import NotTaken, Runtime, Severity, State

log = logging.getLogger("edge_agent")
EVENTS_PER_MINUTE = 20
"""Of one kind. Events wait on disk while the broker is away: a client that can provoke them must not be able to wear
out the flash."""
CLIENT_EVENTS_PER_MINUTE = 5
"""Of one kind that one client's requests bring about, so that it cannot use up the events of the others."""
CLIENTS_KEPT = 256
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Publisher:
    """Publishes the agent's own messages; what the transport cannot take now is kept or dropped there."""

    def __init__(
        self, builder: StatusBuilder, transport: Transport, clock: Clock, retained: RetainedTopics | None = None
    ) -> None:
        self._builder = builder
        self._transport = transport
        self._clock = clock
        self._retained = retained
        # Topics that were withdrawn on this connection, as far as the broker has not refused it.
        self._withdrawn: set[str] = set()
        # By kind: when the minute began, and the events since then. The kinds are `messages.EVENT_KINDS`.
        self._recent: dict[str, tuple[float, int]] = {}
        # The same by kind and client.
        self._recent_of: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def event(
        self,
        kind: str,
        message: str,
        data: Mapping[str, Any],
        severity: Severity = "warning",
        client: str | None = None,
    ) -> None:
        """See `context.Announce`. Log and publish an event, unless too many of its kind came within the minute."""
        left = CLIENT_EVENTS_PER_MINUTE if client is None else self._left_of((kind, client))
        left = min(left, self._left(kind)) if left >= 0 else left
        if left < 0:
            return
        if left == 0:
            whose = "" if client is None else " of this client or"
            message = f"{message}; more{whose} of this kind within the minute are not reported"
        if kind != "broker":  # the transport has logged that itself, at the moment it happened
            log.log(LEVELS[severity], "%s: %s", kind, message)
        limit = self._transport.payload_limit
        self._transport.publish(self._builder.event(kind, message, data, severity, limit))

    def _left(self, kind: str) -> int:
        """How many events of this kind may still follow this one within the minute; below 0: not even this one."""
        count = _counted(self._recent.get(kind), self._clock.monotonic_s())
        self._recent[kind] = count
        return EVENTS_PER_MINUTE + 1 - count[1]

    def _left_of(self, key: tuple[str, str]) -> int:
        """The same for a kind and a client."""
        count = _counted(self._recent_of.pop(key, None), self._clock.monotonic_s())
        self._recent_of[key] = count
        if len(self._recent_of) > CLIENTS_KEPT:
            self._recent_of.popitem(last=False)
        return CLIENT_EVENTS_PER_MINUTE + 1 - count[1]

    def status(self, state: State, reason: str) -> None:
        """Publish how the agent is."""
        self._transport.publish(self._builder.status(state, reason))

    def info(self, runtimes: Sequence[Runtime]) -> None:
        """Publish what this device is."""
        self._transport.publish(self._builder.info(runtimes))

    def models(self, served_models: Mapping[str, ServedModel]) -> None:
        """Publish what can be asked."""
        self._transport.publish(self._builder.models(served_models))

    def reported(
        self,
        state: DesiredState | None,
        installed: InstalledPackages | None,
        not_taken: NotTaken | None,
        trials: Sequence[TrialRecord] = (),
    ) -> None:
        """See `desired_keeper.ReportDesired`."""
        limit = self._transport.payload_limit
        self._transport.publish(self._builder.reported(state, installed, not_taken, limit, trials))

    def telemetry(self, figures: IntervalFigures) -> None:
        """Publish an interval's figures."""
        self._transport.publish(self._builder.telemetry(figures))

    def tidy_retained(self) -> None:
        """Withdraw what the broker retains of this device under another name or prefix, and its announcement to Home
        Assistant where that was switched off; remember what it will retain from now on."""
        known = self._retained.read() if self._retained is not None else ()
        discovery = self._builder.home_assistant() if self._builder.identity.home_assistant else None
        own = (*self._builder.retained_topics, *(() if discovery is None else (discovery.topic,)))
        self._withdrawn = set(known) - set(own)
        for topic in sorted(self._withdrawn):
            self._transport.publish(encode.withdrawal(topic))
        if self._retained is not None and not set(own) <= set(known):
            # Before anything is published there: what the broker retains must never be forgotten here.
            self._retained.write(tuple(dict.fromkeys((*known, *own))))

    def home_assistant(self, models: Iterable[str], gone: Iterable[str]) -> None:
        """Publish the discovery message of Home Assistant, where the operator wants it: `models` have entities there,
        `gone` have none any more."""
        if self._builder.identity.home_assistant:
            self._transport.publish(self._builder.home_assistant(models, gone))

    def refused(self, topic: str, reason: str) -> None:
        """The broker refuses a message on this topic: what should be withdrawn there is tried again later."""
        if topic in self._withdrawn:
            self._withdrawn.discard(topic)
            log.warning("what the broker retains on %s cannot be withdrawn: %s", topic, reason)

    def forget_withdrawn(self) -> None:
        """A heartbeat after it was sent on a connection that still is, a withdrawal counts as delivered."""
        if self._withdrawn and self._retained is not None and self._transport.connected:
            self._retained.write([topic for topic in self._retained.read() if topic not in self._withdrawn])
            self._withdrawn.clear()

    def last_words(self, reason: str) -> Outbound:
        """The offline status of an orderly end, for `Transport.stop`."""
        return self._builder.status("offline", reason)


def _counted(recent: tuple[float, int] | None, now_s: float) -> tuple[float, int]:
    """When the minute began, and the events in it with this one."""
    if recent is None or now_s - recent[0] >= 60.0:
        return now_s, 1
    return recent[0], recent[1] + 1


GONE = 32
"""Models that left and are still named to Home Assistant as removed: it may not have been there when they left."""
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
        # The models that Home Assistant was told of, None before the first connection; and those that are gone since.
        self._discovered: tuple[str, ...] | None = None
        self._gone: tuple[str, ...] = ()

    def link_changed(self, change: LinkChange) -> None:
        """The connection came or went: an event, which waits on disk until the broker has it; and the retained state
        again after a connection, since the broker may have published the will."""
        severity: Severity = "info" if change.connected and change.kind == "connected" else "warning"
        self._publisher.event("broker", change.text, {"connected": change.connected}, severity)
        if change.connected:
            self._publisher.tidy_retained()
            self.report()
            self._discover(tuple(self._manager.served_models))

    def undelivered(self, topic: str, reason: str) -> None:
        """The broker refused a message of the agent's own."""
        self._publisher.refused(topic, reason)

    def unsendable(self, topic: str, why: str) -> None:
        """A message of the agent's own cannot be sent to this broker: an event, once."""
        what = topic.removeprefix(f"{self._context.topics.prefix}/{self._context.topics.device}/")
        self._publisher.event("not-sendable", f"{what} is not sent: {why}", {"topic": topic})

    def report(self) -> None:
        """Publish status, info and models."""
        self._reported = self._state()
        self._publisher.status(*self._reported)
        self._publisher.info(self._runtimes)
        self.report_models()

    def report_models(self) -> None:
        """Publish what can be asked; to Home Assistant, too, where other models are there than before."""
        self._publisher.models(self._manager.served_models)
        if self._discovered not in (None, names := tuple(self._manager.served_models)):
            self._discover(names)

    def _discover(self, names: tuple[str, ...]) -> None:
        left = dict.fromkeys((*self._gone, *(self._discovered or ())))
        self._gone = tuple(name for name in left if name not in names)[-GONE:]
        self._discovered = names
        self._publisher.home_assistant(names, self._gone)

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
            self._publisher.forget_withdrawn()
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
            context.take_dropped(),
        )

    def last_words(self) -> Outbound:
        """What the broker is to keep of an agent that ended in order."""
        return self._publisher.last_words("stopped in order")

    def _state(self) -> tuple[State, str]:
        """How the device is, in words that stay the same while it is so."""
        troubles = list(self._context.transport.troubles)
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
