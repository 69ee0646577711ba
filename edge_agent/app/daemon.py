"""`edge-agent run`: settings become the running agent."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.actuators.clocks import ClockCap
from edge_agent.agent.acks import AckWindow
from edge_agent.agent.canary import Canary
from edge_agent.agent.commands import Commands
from edge_agent.agent.context import Context, full_grant
from edge_agent.agent.context_sizing import Sizer
from edge_agent.agent.governor_loop import GovernorLoop
from edge_agent.agent.host_monitor import Budget, HostMonitor
from edge_agent.agent.intake import Intake, IntakeOptions
from edge_agent.agent.loop import Agent, LoopOptions, Parts
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.report import Identity, Reporter
from edge_agent.agent.respond import Responder
from edge_agent.agent.serving import ModelServer
from edge_agent.app import wiring
from edge_agent.base.clock import SystemClock
from edge_agent.base.errors import StoreError, WorkerError
from edge_agent.bundle.gguf_header import header_at
from edge_agent.config.load import device_id, load
from edge_agent.config.settings import Settings
from edge_agent.core.energy import EnergyMeter
from edge_agent.core.governor import GovernorConfig
from edge_agent.core.thermal_model import prior_for
from edge_agent.lifecycle.supervision import Signals, SystemdNotifier
from edge_agent.mqtt.spool import Spool
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.messages import Runtime
from edge_agent.protocol.worker_messages import RuntimeReport, RuntimeUnavailable
from edge_agent.sensors.boards import Board
from edge_agent.sensors.jtop import JtopSource
from edge_agent.sensors.suite import SensorSuite
from edge_agent.store.footprint_cache import FootprintFile
from edge_agent.store.model_store import ModelStore
from edge_agent.store.state_folder import daemon_lock
from edge_agent.worker.probe import ask_backends
from edge_agent.worker.supervisor import spawn

log = logging.getLogger("edge_agent")
JTOP_RETRY_S = 30.0
SOFT_BELOW_HARD_C = 2.0
"""An operator's soft limit nearer to the board's hard one would be met by stops instead of by control."""


class StoreProcess:
    """Carries out store commands in `edge-agent install|remove|rollback` processes. Implements `commands.Operator`.

    The signature library never enters the daemon, and a package that crashes its reader harms nobody.
    """

    def __init__(self, config: Path | None, inbox: Path) -> None:
        self._config = config
        self._inbox = inbox

    async def install(self, package: str) -> Mapping[str, Any]:
        """See `commands.Operator`; only names inside the incoming folder are taken."""
        if "/" in package or package.startswith(".") or not package.isprintable() or not package:
            raise StoreError(f"{package!r} is not the name of a file in the incoming folder", str(self._inbox))
        return await self._run("install", str(self._inbox / package))

    async def remove(self, model: str, adapter: str | None) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run("remove", model, *(("--adapter", adapter) if adapter else ()))

    async def rollback(self, model: str) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run("rollback", model)

    async def _run(self, verb: str, *arguments: str) -> Mapping[str, Any]:
        command = [sys.executable, "-m", "edge_agent", verb, "--json", *arguments]
        if self._config is not None:
            command += ["--config", str(self._config)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise StoreError(f"cannot be started: {error.strerror}", f"edge-agent {verb}", "try again later") from error
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            raise
        if process.returncode != 0:
            text = err.decode("utf-8", "replace").strip().removeprefix("edge-agent: ")
            raise StoreError(text[-500:] or f"exit code {process.returncode}", f"edge-agent {verb}")
        report: Mapping[str, Any] = json.loads(out)
        return report


def run(config: Path | None, sysroot: Path | None) -> int:
    """Serve until SIGTERM. Raises ConfigError, StoreError before anything is started."""
    settings = load(config)
    logging.basicConfig(level=settings.log.level.upper(), format="%(levelname)s %(message)s", stream=sys.stderr)
    state_dir = settings.store.state_dir
    try:
        settings.store.inbox_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot be created: {error.strerror}", str(state_dir), "check owner and path") from error
    with daemon_lock(state_dir):
        asyncio.run(_serve(settings, config, sysroot or settings.sensors.sysroot))
    return 0


async def _serve(settings: Settings, config: Path | None, sysroot: Path) -> None:
    if settings.store.allow_unsigned:
        log.warning(
            "UNSIGNED PACKAGES ARE ACCEPTED (store.allow_unsigned): whoever can write a package decides what runs"
        )
    agent = build(settings, config, sysroot)
    with Signals(stop=agent.stop, reload=agent.look_again):
        await agent.run(SystemdNotifier.from_environment(health=agent.fault))


def build(settings: Settings, config: Path | None, sysroot: Path) -> Agent:
    """Wire one agent; nothing runs yet."""
    clock = SystemClock()
    sensors = SensorSuite(sysroot, time.monotonic, jtop=settings.sensors.jtop)
    if sensors.jtop is not None:
        threading.Thread(target=_keep_open, args=(sensors.jtop,), name="jtop", daemon=True).start()
    topics = wiring.topics(settings)
    max_rows, threads = settings.worker.max_rows, wiring.threads(settings)
    reporter = Reporter(_identity(settings, sensors, threads), topics, clock)
    spool = Spool(settings.store.state_dir / "spool")
    transport = MqttTransport(
        wiring.mqtt_options(settings, topics.device),
        topics.subscriptions(),
        will=reporter.status("offline", "connection lost"),
        spool=spool,
        on_change=lambda change: reporter.link_changed(change.connected, change.text),
        on_unheard=reporter.unheard,
    )
    reporter.connect(transport, lambda: (len(spool), spool.lost))
    context = Context(clock, transport, topics, AckWindow(transport.ack), reporter.event, full_grant(max_rows, threads))
    context.energy = EnergyMeter(wiring.utilisation(sensors.board))
    library = ModelStore(wiring.store_dir(settings))
    host = HostMonitor(context, sensors, Budget(settings.memory.reserve_bytes, settings.memory.models_bytes))
    host.decode_threads = settings.worker.decode_threads or 0
    responder = Responder(context, host.reading)
    options = wiring.spawn_options(settings)
    manager = ModelManager(
        library,
        lambda on_event, on_death: spawn(options, on_event, on_death),
        clock,
        host,
        reporter.event,
        FootprintFile(settings.store.state_dir),
        Sizer(wiring.generators(settings), lambda path: asyncio.to_thread(header_at, path)),
    )
    manager.rules = wiring.form_rules(settings)
    server = ModelServer(context, manager, responder, settings.worker.quarantine_deaths, settings.stream.flush_ms)
    reporter.on_unheard = server.stop_streams
    plan = heat_plan(settings, sensors.board, max_rows, threads)
    clocks = ClockCap(sysroot, settings.store.state_dir) if settings.thermal.set_clock else None
    watch = GovernorLoop(context, plan, host, library, manager, server, clocks)
    commands = Commands(
        context,
        manager,
        StoreProcess(config, settings.store.inbox_path),
        lambda: reporter.diagnosis(manager, host.readings),
    )
    intake = Intake(
        context, IntakeOptions(settings.limits.queue_jobs, wiring.bounds(settings)), manager, server, commands.take
    )
    loop = LoopOptions(settings.telemetry.interval_s, settings.telemetry.heartbeat_s, settings.models.resident)
    canary = Canary(context, manager, library.probes, settings.telemetry.canary_s)
    agent = Agent(context, loop, Parts(manager, server, intake, commands, watch, host, reporter, canary))
    agent.find_runtimes = lambda: _runtimes(settings)
    agent.rss_bytes = _rss_bytes
    return agent


def heat_plan(settings: Settings, board: Board, max_rows: int, threads: int) -> GovernorConfig:
    """What the governor is told of this board, and of what the operator has set: a soft limit below the hard one."""
    own_c = settings.thermal.soft_limit_c
    if own_c is not None and board.hard_limit_c is not None:
        own_c = min(own_c, board.hard_limit_c - SOFT_BELOW_HARD_C)
    return GovernorConfig(
        own_c or board.soft_limit_c,
        max_rows,
        threads,
        board.hard_limit_c,
        prior_for(board.key),
        firmware_soft_c=board.flags_c,
    )


async def _runtimes(settings: Settings) -> list[Runtime]:
    """The allowed backends as a worker's interpreter finds them; asked once, in a child, since imports are memory."""
    names = settings.worker.backends
    try:
        found = await ask_backends(wiring.spawn_options(settings), names)
    except WorkerError as error:
        return [Runtime(name=name, version=None, devices=[], reason=str(error)) for name in names]
    return [_runtime(name, found[name]) for name in names]


def _runtime(name: str, report: RuntimeReport) -> Runtime:
    if isinstance(report, RuntimeUnavailable):
        return Runtime(name=name, version=None, devices=[], reason=report.reason)
    return Runtime(name=name, version=report.version, devices=list(report.devices), reason=report.unchecked or None)


def _keep_open(source: JtopSource) -> None:
    """Connect to jtop, and again where its service came late or stopped; its client may block, hence this thread."""
    while True:
        if source.lost:
            source.open()
        time.sleep(JTOP_RETRY_S)


def _rss_bytes() -> int | None:
    """Resident bytes of this process, shared pages included; None where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _identity(settings: Settings, sensors: SensorSuite, threads: int) -> Identity:
    return Identity(
        device=device_id(settings),
        boot_id=uuid.uuid4().hex,
        version=__version__,
        board=sensors.board.name,
        python=platform.python_version(),
        limits={
            "queue_jobs": settings.limits.queue_jobs,
            "texts_per_request": settings.limits.texts_per_request,
            "text_bytes": settings.limits.text_bytes,
            "message_bytes": settings.limits.message_bytes,
            "deadline_max_s": settings.limits.deadline_max_s,
            "max_rows": settings.worker.max_rows,
            "threads": threads,
        },
        heartbeat_s=settings.telemetry.heartbeat_s,
        interval_s=settings.telemetry.interval_s,
        home_assistant=settings.telemetry.home_assistant,
    )
