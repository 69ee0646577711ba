"""`edge-agent run`: settings become the running agent, and what it has other processes do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import __version__
from edge_agent.actuators.clock_cap import ClockCap
from edge_agent.agent.canary import CanaryProber
from edge_agent.agent.commands import Commands, FetchedBytes
from edge_agent.agent.context import AckWindow, Context, full_grant
from edge_agent.agent.context_sizing import Sizer
from edge_agent.agent.desired_keeper import DesiredKeeper
from edge_agent.agent.device_reporter import DeviceReporter, Publisher
from edge_agent.agent.governor_loop import GovernorLoop
from edge_agent.agent.host_monitor import Budget, HostMonitor
from edge_agent.agent.intake import Intake, IntakeOptions
from edge_agent.agent.loop import Agent, Background
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.memory_guard import MemoryGuard
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.respond import Responder
from edge_agent.agent.serving import ModelServer
from edge_agent.agent.status_builder import Identity, StatusBuilder
from edge_agent.agent.store_changes import StoreChanges
from edge_agent.agent.store_scrub import StoreScrub
from edge_agent.agent.trial_watch import TrialWatch
from edge_agent.agent.worker_events import WorkerEventHandler
from edge_agent.app import wiring
from edge_agent.app.code_watch import CodeWatch
from edge_agent.app.state_keeper import StateKeeper
from edge_agent.base.causes import Cause
from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.clock import SystemClock
from edge_agent.base.errors import StoreError, WorkerError
from edge_agent.base.limits import KIB, ORDER_END_S, ORDER_S
from edge_agent.base.shown_text import one_line
from edge_agent.bundle.gguf_header import header_at
from edge_agent.config.load import device_id, load
from edge_agent.config.settings import Settings
from edge_agent.core.desired_state import FoundPackage
from edge_agent.core.energy import EnergyMeter
from edge_agent.lifecycle.running_code import code_stamp
from edge_agent.lifecycle.supervision import Signals, SystemdNotifier
from edge_agent.mqtt.spool import Spool
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Runtime
from edge_agent.protocol.topics import Topics
from edge_agent.protocol.worker_messages import RuntimeReport, RuntimeUnavailable
from edge_agent.sensors.boards import Board
from edge_agent.sensors.jtop import JtopSource
from edge_agent.sensors.memory import daemon_bytes
from edge_agent.sensors.suite import SensorSuite
from edge_agent.store.announced_state import AnnouncedFile
from edge_agent.store.desired_file import DesiredFile
from edge_agent.store.footprint_cache import FootprintFile
from edge_agent.store.inbox_packages import InboxPackages, file_mark
from edge_agent.store.model_store import ModelStore
from edge_agent.store.old_downloads import DOWNLOADS, remove_old
from edge_agent.store.retained_topics import RetainedFile
from edge_agent.store.state_folder import DaemonHold, be_owner, check_interpreter
from edge_agent.store.trial_file import TrialFile
from edge_agent.worker.one_shot import ask_backends
from edge_agent.worker.supervisor import SpawnOptions, spawn

if TYPE_CHECKING:
    from edge_agent.agent.trace_reports import TraceReports

log = logging.getLogger("edge_agent")
SAYS, SAID_CHARS = "edge-agent: ", 500
"""How a command's last sentence begins, and how much of it an order is answered with."""
KEPT_BYTES = 64 * KIB
"""Of what a command says on its way, the end is kept."""
JTOP_RETRY_S = 30.0
DOWNLOADS_S = 6 * 3600.0
"""How often downloads that were given up are looked for; a week makes one old."""


class JournalFormatter(logging.Formatter):
    """A message is one line of the journal, whatever name or reason it holds: a line break in one would begin a line of
    its own there."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """See `logging.Formatter`; a traceback is added after it."""
        return one_line(super().formatMessage(record))


def run(config: Path | None, sysroot: Path | None) -> int:
    """Serve until SIGTERM. Raises ConfigError, StoreError before anything is started.

    A state folder that cannot be written is no such error: what is installed is served, and the folder waited for.
    """
    settings = load(config)
    logging.basicConfig(level=settings.log.level.upper(), stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JournalFormatter())
    be_owner(settings.store.state_dir)
    check_interpreter()
    hold = DaemonHold(settings.store.state_dir, settings.store.inbox_path, code_stamp())
    try:
        asyncio.run(_serve(settings, config, sysroot or settings.sensors.sysroot, hold))
    finally:
        hold.release()
    return 0


async def _serve(settings: Settings, config: Path | None, sysroot: Path, hold: DaemonHold) -> None:
    trouble = hold.take()
    if trouble is not None:
        log.error("%s; what is installed is served, and the folder is tried again", trouble)
    if settings.store.allow_unsigned:
        log.warning(
            "UNSIGNED PACKAGES ARE ACCEPTED (store.allow_unsigned): whoever can write a package decides what runs"
        )
    agent = build(settings, config, sysroot, hold, trouble)
    with Signals(stop=agent.stop, reload=agent.look_again):
        await agent.run(SystemdNotifier.from_environment(health=agent.fault))


def build(
    settings: Settings, config: Path | None, sysroot: Path, hold: DaemonHold, trouble: str | None = None
) -> Agent:
    """Make one agent of the parts that fit these settings and this board; nothing runs yet but the jtop client.

    `trouble`: why the state folder is not held yet.
    """
    worker, state_dir = settings.worker, settings.store.state_dir
    max_rows, threads, spawn_options = worker.max_rows, wiring.threads(settings), wiring.spawn_options(settings)

    clock, sensors = SystemClock(), _sensors(settings, sysroot)
    library = ModelStore(wiring.store_dir(settings))
    library.recover()

    topics = wiring.topics(settings)
    identity = _identity(settings, sensors.board, threads)
    builder = StatusBuilder(identity, topics, clock)
    transport = _transport(settings, topics, will=builder.status("offline", "connection lost"))
    publisher = Publisher(builder, transport, clock, RetainedFile(state_dir))

    acks, traces = AckWindow(transport.ack), _trace_reports(settings, topics, transport, clock)
    energy = EnergyMeter(wiring.utilisation(sensors.board))
    grant = full_grant(max_rows, threads)
    context = Context(clock, transport, topics, acks, publisher.event, grant, energy=energy, traces=traces)

    budget = Budget(settings.memory.reserve_bytes, settings.memory.models_bytes)
    host = HostMonitor(context, sensors, budget, worker.decode_threads or 0, daemon_bytes)
    responder = Responder(context, host.reading)
    events = WorkerEventHandler(context, responder, worker.quarantine_deaths)
    memory = MemoryAccounting(host, FootprintFile(state_dir))
    sizer = Sizer(wiring.generators(settings), lambda path: asyncio.to_thread(header_at, path))
    manager = ModelManager(
        context,
        library,
        functools.partial(spawn, spawn_options),
        events,
        memory,
        sizer,
        wiring.routing_policy(settings),
    )
    flush_ms, resident = settings.stream.flush_ms, settings.models.resident
    server = ModelServer(context, manager, events, responder, flush_ms, resident)

    governor_config = wiring.governor_config(settings, sensors.board, max_rows, threads)
    clock_cap = ClockCap(sysroot, state_dir) if settings.thermal.set_clock else None
    changes = StoreChanges(context, library, AnnouncedFile(state_dir))
    governor_loop = GovernorLoop(context, governor_config, host, changes, manager, server, clock_cap)
    guard = MemoryGuard(context, manager, host)
    canary = CanaryProber(context, manager, library.probes, settings.telemetry.canary_s)
    runtimes = functools.partial(find_runtimes, spawn_options, worker.backends)
    reporter = DeviceReporter(context, identity, publisher, manager, host, guard, runtimes)

    store = StoreProcess(config, settings.store.inbox_path)
    commands = Commands(context, manager, store, lambda: builder.diagnosis(manager.served_models, host.readings))
    desired, others = _desired(settings, context, library, store, publisher, manager)
    intake_options = IntakeOptions(settings.limits.queue_jobs, wiring.bounds(settings), desired)
    intake = Intake(context, intake_options, manager, server, events, commands)
    keepers = StateKeeper(context, hold, library, trouble), CodeWatch(context, hold.code, code_stamp)
    trials = TrialWatch(context, library, manager, host, store, TrialFile(state_dir), responder)
    return Agent(context, manager, server, intake, governor_loop, reporter, [guard, canary, trials, *others, *keepers])


class DownloadKeeper:
    """Deletes downloads that were begun long ago and never finished. Implements `agent.loop.Background`."""

    def __init__(self, downloads: Path) -> None:
        self._downloads = downloads

    async def run(self) -> None:
        """Look now and every `DOWNLOADS_S`, until cancelled."""
        while True:
            await asyncio.to_thread(remove_old, self._downloads)
            await asyncio.sleep(DOWNLOADS_S)


def _trace_reports(
    settings: Settings, topics: Topics, transport: MqttTransport, clock: SystemClock
) -> TraceReports | None:
    if not settings.telemetry.traces:
        return None
    from edge_agent.agent.trace_reports import TraceReports

    return TraceReports(topics, transport, clock)


def _desired(
    settings: Settings,
    context: Context,
    library: ModelStore,
    store: StoreProcess,
    publisher: Publisher,
    manager: ModelManager,
) -> tuple[DesiredKeeper, list[Background]]:
    inbox = InboxSource(settings.store.inbox_path, settings.store.sticks_dir)
    storage = DesiredFile(settings.store.state_dir)
    keeper = DesiredKeeper(context, library.packages, store, inbox, storage, publisher.reported)
    work: list[Background] = [keeper, DownloadKeeper(settings.store.state_dir / DOWNLOADS)]
    if settings.store.scrub_s:
        work.append(StoreScrub(context, library, manager, store, inbox, keeper.urls, settings.store.scrub_s))
    return keeper, work


def _transport(settings: Settings, topics: Topics, will: Outbound) -> MqttTransport:
    spool = Spool(settings.store.state_dir / "spool")
    options, own_topics = wiring.mqtt_options(settings, topics.device), topics.self_checks()
    return MqttTransport(options, topics.subscriptions(), will, spool=spool, own_topics=own_topics)


def _sensors(settings: Settings, sysroot: Path) -> SensorSuite:
    sensors = SensorSuite(sysroot, time.monotonic, jtop=settings.sensors.jtop)
    if sensors.jtop is not None:
        threading.Thread(target=_keep_open, args=(sensors.jtop,), name="jtop", daemon=True).start()
    return sensors


def _keep_open(source: JtopSource) -> None:
    """Connect to jtop, and again where its service came late or stopped; its client may block, hence this thread."""
    while True:
        if source.lost:
            source.open()
        time.sleep(JTOP_RETRY_S)


def _identity(settings: Settings, board: Board, threads: int) -> Identity:
    """What the agent says of itself that does not change while it runs."""
    return Identity(
        device=device_id(settings),
        boot_id=uuid.uuid4().hex,
        version=__version__,
        board=board.name,
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


class InboxSource:
    """The packages of the incoming folder, looked for in a thread, and those on sticks. Implements
    `desired_keeper.PackageSource`."""

    def __init__(self, folder: Path, sticks: Path | None = None) -> None:
        self._packages = InboxPackages(folder)
        self._sticks = None
        self._looking = asyncio.Lock()
        if sticks is not None:
            from edge_agent.store.stick_packages import StickLook  # memory, where they are looked at

            self._sticks = StickLook(sticks)

    async def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """See `desired_keeper.PackageSource`; what lies in the incoming folder comes first."""
        # One look at a time: the desired state and the weekly reading of the store both ask. A stick that is looked at
        # passes for one that does not answer, and what is known of the files belongs to one thread.
        async with self._looking:
            on_sticks = {} if self._sticks is None else await self._sticks.find(wanted)
            return {**on_sticks, **await asyncio.to_thread(self._packages.find, wanted)}

    def refused(self, found: FoundPackage) -> None:
        """See `desired_keeper.PackageSource`."""
        if self._sticks is not None and "/" in found.name:
            self._sticks.refused(found)
        else:
            self._packages.refused(found)


class StoreProcess:
    """Carries out store commands in `edge-agent install|remove|rollback` processes. Implements `commands.Operator`.

    The signature library never enters the daemon, and a package that crashes its reader harms nobody.
    """

    def __init__(self, config: Path | None, inbox: Path, order_s: float = ORDER_S) -> None:
        self._config = config
        self._inbox = inbox
        self._order_s = order_s

    async def install(
        self, package: str, limit_s: float | None = None, digest: str | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `commands.Operator`; only names inside the incoming folder are taken. What is installed leaves it."""
        if "/" in package or package.startswith(".") or not package.isprintable() or not package:
            text = f"{package!r} is not the name of a file in the incoming folder"
            raise StoreError(text, str(self._inbox), cause=Cause.INVALID)
        path, wanted = self._inbox / package, () if digest is None else ("--digest", digest)
        before = await asyncio.to_thread(file_mark, path)
        report = await self._run(limit_s, "install", str(path), *wanted, *_trial_option(trial))
        if before is not None and before == await asyncio.to_thread(file_mark, path):  # else another one came meanwhile
            await asyncio.to_thread(self._clear, path)
        return report

    async def install_from(
        self, path: str, digest: str, limit_s: float | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run(limit_s, "install", path, "--digest", digest, *_trial_option(trial))

    async def fetch(
        self,
        url: str,
        digest: str,
        limit_s: float | None = None,
        progress: FetchedBytes | None = None,
        trial: str = "",
    ) -> Mapping[str, Any]:
        """See `commands.Operator`; the URL has been checked where it arrived, and is by the command."""
        steps = CommandSteps(progress)
        return await self._run(
            limit_s, "install", url, "--digest", digest, "--progress", *_trial_option(trial), steps=steps
        )

    def _clear(self, package: Path) -> None:
        """Remove an installed package from the incoming folder: its bytes are in the store, and a small disk has no
        room for both."""
        try:
            if package.is_dir() and not package.is_symlink():
                shutil.rmtree(package)
            else:
                package.unlink()
        except OSError as error:
            log.warning("%s is installed and stays in the incoming folder: %s", package, error.strerror or error)

    async def remove(self, model: str, adapter: str | None, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run(limit_s, "remove", model, *(("--adapter", adapter) if adapter else ()))

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run(limit_s, "rollback", model, *_trial_option(trial))

    async def promote(self, model: str, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run(limit_s, "promote", model)

    async def _run(
        self, limit_s: float | None, verb: str, *arguments: str, steps: CommandSteps | None = None
    ) -> Mapping[str, Any]:
        steps = steps or CommandSteps()
        order_s = self._order_s if limit_s is None else min(limit_s, self._order_s)
        command = module_command("edge_agent", verb, "--json", *arguments)
        if self._config is not None:
            command += ["--config", str(self._config)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
            )
        except OSError as error:
            raise StoreError(f"cannot be started: {error.strerror}", f"edge-agent {verb}", "try again later") from error
        try:
            out, err = await asyncio.wait_for(steps.communicate(process), order_s)
        except asyncio.CancelledError:
            # Whoever cancels waits for the end: until then the store and the download are held.
            await _ended(process)
            raise
        except asyncio.TimeoutError as error:  # until Python 3.10 not the built-in one
            await _ended(process)
            raise StoreError(
                f"the order was ended after {order_s:.0f} s; what was installed before is unchanged",
                f"edge-agent {verb}",
                "run the command on the device, where it has no limit of time"
                if limit_s is None
                else "publish a higher version with a larger policy.within_s",
                Cause.SOURCE if steps.fetching else Cause.EXPIRED,
            ) from error
        if process.returncode != 0:
            text = _sentence(err) or f"exit code {process.returncode}"
            raise StoreError(text, f"edge-agent {verb}", cause=_cause(out))
        report: Mapping[str, Any] = json.loads(out)
        return report


class CommandSteps:
    """Reads what a command says while it works: `install --progress` writes a line of JSON for each step."""

    def __init__(self, fetched: FetchedBytes | None = None) -> None:
        self.fetching = False
        self._fetched = fetched

    async def communicate(self, process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
        """As the method of `Process`, of which the steps are left out; the end of what was said is kept."""
        if process.stdout is None or process.stderr is None:
            return b"", b""
        out, err = await asyncio.gather(process.stdout.read(), self._listen(process.stderr))
        await process.wait()
        return out, err

    async def _listen(self, stream: asyncio.StreamReader) -> bytes:
        said, rest = b"", b""
        while chunk := await stream.read(4096):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-KEPT_BYTES:]
            for line in lines:
                if not self._is_step(line):
                    said = (said + line + b"\n")[-KEPT_BYTES:]
        return said + rest

    def _is_step(self, line: bytes) -> bool:
        if not line.startswith(b'{"step"'):
            return False
        with contextlib.suppress(ValueError, TypeError, KeyError):
            step = json.loads(line)
            self.fetching = step["step"] == "fetching"
            if self.fetching and self._fetched is not None:
                self._fetched(int(step["done_bytes"]), int(step["total_bytes"]))
        return True


def _trial_option(trial: str) -> tuple[str, ...]:
    return ("--trial", trial) if trial else ()


def _cause(out: bytes) -> Cause:
    """The cause that a command with `--json` ended with; one that ended otherwise (killed, or by an error that nobody
    foresaw) said none."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return Cause(json.loads(out)["cause"])
    return Cause.AGENT_ERROR


def _sentence(err: bytes) -> str:
    """The sentence that a command ended with, cut at its end: its begin says what was refused. What libraries printed
    before it is left out."""
    _, _, text = ("\n" + err.decode("utf-8", "replace").strip()).rpartition(f"\n{SAYS}")
    text = text.strip()
    return text if len(text) <= SAID_CHARS else f"{text[: SAID_CHARS - 3]}..."


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a process that has not ended, at first with a signal that it may act on."""
    for end in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        end()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), ORDER_END_S)


async def find_runtimes(options: SpawnOptions, names: Sequence[str]) -> list[Runtime]:
    """The allowed backends as a worker's interpreter finds them; asked once, in a child, since imports are memory."""
    try:
        found = await ask_backends(options, names)
    except WorkerError as error:
        return [Runtime(name=name, version=None, devices=[], reason=str(error)) for name in names]
    return [_runtime(name, found[name]) for name in names]


def _runtime(name: str, report: RuntimeReport) -> Runtime:
    if isinstance(report, RuntimeUnavailable):
        return Runtime(name=name, version=None, devices=[], reason=report.reason)
    return Runtime(name=name, version=report.version, devices=list(report.devices), reason=report.unchecked or None)
