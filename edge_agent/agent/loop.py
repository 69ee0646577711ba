"""The agent: take what arrives, look around every second, report at intervals, stop in order.

messages ─▶ intake ─▶ dispatch ─▶ respond          watch ─▶ governor ─▶ limits          report
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from edge_agent.agent.canary import Canary
from edge_agent.agent.commands import Commands
from edge_agent.agent.context import Context
from edge_agent.agent.governor_loop import PERIOD_S, GovernorLoop
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.intake import Intake
from edge_agent.agent.memory_guard import LOOK_S, MemoryGuard
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Notifier
from edge_agent.agent.report import Reporter
from edge_agent.agent.served_model import Phase
from edge_agent.agent.serving import ModelServer
from edge_agent.base.errors import EdgeError
from edge_agent.protocol.messages import Runtime, State

log = logging.getLogger("edge_agent")
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Intervals in seconds, and the models to hold in memory from the start ('all' stands for every one)."""

    telemetry_s: float
    heartbeat_s: float
    resident: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """The agent's own rooms, wired by `app`."""

    manager: ModelManager
    server: ModelServer
    intake: Intake
    commands: Commands
    watch: GovernorLoop
    host: HostMonitor
    reporter: Reporter
    canary: Canary


class Agent:
    """Runs until `stop` is called."""

    def __init__(self, context: Context, options: LoopOptions, parts: Parts) -> None:
        self._context = context
        self._options = options
        self._manager = parts.manager
        self._server = parts.server
        self._intake = parts.intake
        self._commands = parts.commands
        self._watch = parts.watch
        self._canary = parts.canary
        self._host = parts.host
        self._reporter = parts.reporter
        self._guard = MemoryGuard(context, parts.manager, parts.host)
        self._stopping = asyncio.Event()
        self._runtimes: list[Runtime] = []
        self._told: tuple[State, str] = ("starting", "")
        self.find_runtimes: Callable[[], Awaitable[list[Runtime]]] | None = None
        self.rss_bytes: Callable[[], int | None] = lambda: None

    def stop(self, why: str) -> None:
        """Begin an orderly end; safe to call more than once."""
        log.info("stopping: %s", why)
        self._stopping.set()

    def look_again(self) -> None:
        """SIGHUP: take over what changed in the store now. Settings are read at the start only."""
        log.info("reload: the store is read again; settings take effect with a restart")
        self._watch.refresh_models()

    def fault(self) -> str | None:
        """What is wrong with the process itself, for the watchdog; None when it is well. Offline is well."""
        if not self._context.transport.alive():
            return "the MQTT link has stopped working"
        return self._server.fault

    async def run(self, notifier: Notifier) -> None:
        """Serve until `stop`. Being offline is no failure: the broker may come later than we."""
        self._watch.tick()
        self._want_resident()
        self._reporter.on_connected = self._report_state
        await self._context.transport.start()
        tasks = [
            asyncio.create_task(self._take_messages(), name="intake"),
            asyncio.create_task(self._look_around(notifier), name="watch"),
            asyncio.create_task(self._report(), name="report"),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._guard_memory(), name="guard"),
            # Ends by itself: the last one, which `wait` leaves out.
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
        await self._commands.close()
        await self._canary.close()
        self._watch.close()
        serving = [served.task for served in self._manager.every_served_model() if served.task is not None]
        self._server.abandon("the device is stopping")
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._manager.close()
        await self._context.transport.stop([self._reporter.status("offline", "stopped in order")])

    async def _take_messages(self) -> None:
        async for message in self._context.transport.messages():
            await self._intake.take(message)

    async def _get_ready(self, notifier: Notifier) -> None:
        """Ready means: every model that is to be resident was tried. A large one may take its time."""
        for served in list(self._manager.served_models.values()):
            while served.wanted and not served.settled.is_set():
                notifier.extend_timeout(2 * PATIENCE_S)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(served.settled.wait(), PATIENCE_S)
        notifier.ready()
        self._report_state()
        log.info("ready: %s", self._status_line())
        if self.find_runtimes is not None:
            self._runtimes = await self.find_runtimes()
            self._reporter.publish_info(self._runtimes)

    async def _look_around(self, notifier: Notifier) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self._watch.tick()
            except EdgeError as error:
                # A store that cannot be read now may be readable later; what is loaded goes on.
                log.error("watch: %s", error)
            self._canary.tick()
            if self._watch.changed:
                self._watch.changed = False
                self._want_resident()
                self._reporter.publish_models(self._manager)
            self._report_changed_state()
            notifier.status(self._status_line())
            notifier.watchdog()

    async def _guard_memory(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._guard.look()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._options.heartbeat_s)
            self._report_state()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._options.telemetry_s)
            context = self._context
            self._reporter.publish_telemetry(
                context.stats.take(),
                self._host.readings,
                context.grant,
                len(context.requests),
                self.rss_bytes(),
                self._guard.summary(),
                self._manager.served_models,
            )

    def _state(self) -> tuple[State, str]:
        """How the device is, in words that stay the same while it is so."""
        troubles = []
        if self._context.grant.closed:
            troubles.append("no requests are taken for heat")
        if self._manager.closed:
            troubles.append("no requests are taken for want of memory")
        quarantined = [
            served.name for served in self._manager.served_models.values() if served.phase is Phase.QUARANTINED
        ]
        if quarantined:
            troubles.append(f"quarantined: {', '.join(quarantined)}")
        return ("degraded", "; ".join(troubles)) if troubles else ("online", "serving")

    def _report_changed_state(self) -> None:
        """Whoever watches from afar is told when it changes, not at the next heartbeat."""
        if self._state() != self._told:
            self._report_state()

    def _report_state(self) -> None:
        self._told = self._state()
        self._reporter.publish_status(*self._told)
        self._reporter.publish_info(self._runtimes)
        self._reporter.publish_models(self._manager)

    def _want_resident(self) -> None:
        for served in self._manager.served_models.values():
            served.resident = "all" in self._options.resident or served.name in self._options.resident
            if served.resident:
                served.wanted = served.worker is None or served.loaded_digest != served.model.variant.digest
                served.wake.set()

    def _status_line(self) -> str:
        served_models = self._manager.served_models.values()
        loaded = sum(1 for served in served_models if served.worker is not None)
        link = "connected" if self._context.transport.connected else "broker away"
        return f"{link}; {loaded} of {len(served_models)} models in memory; {len(self._context.requests)} requests open"
