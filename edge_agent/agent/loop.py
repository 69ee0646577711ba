"""The agent: take what arrives, look around every second, report at intervals, stop in order.

messages ─▶ intake ─▶ serving ─▶ respond          governor_loop ─▶ governor ─▶ limits          device_reporter
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.device_reporter import DeviceReporter
from edge_agent.agent.governor_loop import PERIOD_S, GovernorLoop
from edge_agent.agent.intake import Intake
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Notifier
from edge_agent.agent.serving import ModelServer
from edge_agent.base.errors import EdgeError
from edge_agent.protocol.envelope import LinkChange, LinkListener, Outbound

log = logging.getLogger("edge_agent")
PATIENCE_S = 20.0
"""Extend the service manager's start timeout at this interval while resident models are loaded."""


class Background(Protocol):
    """Periodic work beside the requests: the memory guard, the golden probes."""

    async def run(self) -> None:
        """Work until cancelled; what is under way then is ended before this returns."""
        ...


class Agent:
    """The running agent: one task each for messages, the governor, heartbeats, telemetry and the background work."""

    def __init__(
        self,
        context: Context,
        manager: ModelManager,
        server: ModelServer,
        intake: Intake,
        governor_loop: GovernorLoop,
        reporter: DeviceReporter,
        background: Sequence[Background] = (),
    ) -> None:
        self._context = context
        self._manager = manager
        self._server = server
        self._intake = intake
        self._governor_loop = governor_loop
        self._reporter = reporter
        self._background = background
        self._stopping = asyncio.Event()

    def stop(self, why: str) -> None:
        """Begin an orderly end. May be called more than once."""
        log.info("stopping: %s", why)
        self._stopping.set()

    def look_again(self) -> None:
        """Read the store again at once (SIGHUP). Settings are read at the start only."""
        log.info("reload: the store is read again; settings take effect with a restart")
        self._governor_loop.refresh_models()

    def fault(self) -> str | None:
        """What is wrong with the process itself, for the watchdog; None when nothing is. Being offline is no fault."""
        if not self._context.transport.alive():
            return "the MQTT link has stopped working"
        return self._server.fault

    async def run(self, notifier: Notifier) -> None:
        """Serve until `stop`. Raises what a task raised; a broker that cannot be reached ends nothing."""
        self._governor_loop.tick()
        listener = LinkListener(self.link_changed, self.undelivered, self._reporter.unsendable)
        await self._context.transport.start(listener)
        tasks = [
            asyncio.create_task(self._take_messages(), name="intake"),
            asyncio.create_task(self._look_around(notifier), name="governor"),
            asyncio.create_task(self._reporter.run_telemetry(), name="report"),
            asyncio.create_task(self._reporter.run_heartbeat(), name="heartbeat"),
            *(asyncio.create_task(work.run(), name=type(work).__name__) for work in self._background),
            # This one ends when the agent is ready, so `wait` below leaves it out.
            asyncio.create_task(self._get_ready(notifier), name="ready"),
        ]
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait([*tasks[:-1], stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            notifier.stopping()
            await self._end([*tasks, stopping])

    async def _end(self, tasks: list[asyncio.Task[None] | asyncio.Task[bool]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._intake.close()
        self._governor_loop.close()
        serving = [served.task for served in self._manager.every_served_model() if served.task is not None]
        self._server.abandon("the device is stopping")
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._manager.close()
        await self._context.transport.stop([self._reporter.last_words()])

    def link_changed(self, change: LinkChange) -> None:
        """Report that the connection came or went. Streamed answers end with it, since their parts cannot be sent."""
        self._reporter.link_changed(change)
        if not change.connected:
            self._server.stop_streams("the broker went away")

    def undelivered(self, message: Outbound, reason: str) -> None:
        """The broker refused a message, or no subscription matched it: end the streamed answer that it is part of."""
        if message.request_id is not None and not message.expendable and not message.holds_place:
            self._server.stop_streams(f"{message.topic}: {reason}", message.request_id, message.topic)
        elif message.client is None:
            self._reporter.undelivered(message.topic, reason)

    async def _take_messages(self) -> None:
        async for message in self._context.transport.messages():
            await self._intake.take(message)

    async def _get_ready(self, notifier: Notifier) -> None:
        """Report that the agent is ready once the load of every resident model has succeeded or failed."""
        for served in list(self._manager.served_models.values()):
            while served.lifecycle.wanted and not served.settled.is_set():
                notifier.extend_timeout(2 * PATIENCE_S)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(served.settled.wait(), PATIENCE_S)
        notifier.ready()
        self._reporter.report()
        log.info("ready: %s", self._status_line())
        await self._reporter.report_runtimes()

    async def _look_around(self, notifier: Notifier) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self._governor_loop.tick()
            except EdgeError as error:
                # The loaded models are served on; the store is read again at the next tick.
                log.error("watch: %s", error)
            if self._governor_loop.take_changed():
                self._reporter.report_models()
            self._reporter.report_change()
            notifier.status(self._status_line())
            notifier.watchdog()

    def _status_line(self) -> str:
        served_models = self._manager.served_models.values()
        loaded = sum(1 for served in served_models if served.worker is not None)
        link = "connected" if self._context.transport.connected else "broker away"
        return f"{link}; {loaded} of {len(served_models)} models in memory; {len(self._context.requests)} requests open"
