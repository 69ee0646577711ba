"""Sends what `StatusBuilder` builds. Events of one kind are limited by the minute."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.agent.ports import Transport
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.status_builder import IntervalFigures, StatusBuilder
from edge_agent.base.clock import Clock
from edge_agent.protocol.envelope import Outbound
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
