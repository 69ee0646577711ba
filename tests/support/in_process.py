"""A whole agent in this process on fakes and a clock of the test's own.

async def scenario(device): ...
Device.run(scenario, a_model("m"))
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edge_agent.agent.canary import CanaryProber
from edge_agent.agent.commands import Commands, FetchedBytes
from edge_agent.agent.context import AckWindow, Context, full_grant
from edge_agent.agent.context_sizing import LoadPlan, Sizer
from edge_agent.agent.desired_keeper import DesiredKeeper
from edge_agent.agent.device_reporter import DeviceReporter, Publisher
from edge_agent.agent.governor_loop import GovernorLoop
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.intake import Intake, IntakeOptions
from edge_agent.agent.loop import Agent
from edge_agent.agent.memory_accounting import MemoryAccounting
from edge_agent.agent.memory_guard import MemoryGuard
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.respond import Responder
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.serving import ModelServer
from edge_agent.agent.status_builder import Identity, StatusBuilder
from edge_agent.agent.store_changes import StoreChanges
from edge_agent.agent.trace_reports import TraceReports
from edge_agent.agent.trial_watch import TrialWatch
from edge_agent.agent.worker_events import WorkerEventHandler
from edge_agent.base.clock import ManualClock
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.probes import ProbeFile
from edge_agent.core import governor
from edge_agent.core.adapter_routing import RoutingPolicy
from edge_agent.core.memory_ledger import MemoryClaim
from edge_agent.core.request_table import RequestTable
from edge_agent.protocol.decode import Bounds
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import Runtime
from edge_agent.protocol.topics import Topics
from tests.support.fakes import (
    FakeLibrary,
    FakeSensors,
    FakeSpawner,
    FakeTransport,
    KeptTrials,
    NoSource,
    NothingAnnounced,
    NothingSaved,
    Plan,
)
from tests.support.virtual_time import run, settle

PREFIX, NAME = "edge/v1", "dev"


class FakeOperator:
    """Store changes as `agent.commands.Operator` asks for them; remembers them, and raises `fault` once when set."""

    def __init__(self, library: FakeLibrary | None = None) -> None:
        """`library`: where the ends of trials take effect."""
        self.library = library
        self.calls: list[tuple[str, ...]] = []
        self.fault: Exception | None = None
        self.takes_s = 0.0

    async def install(
        self, package: str, limit_s: float | None = None, digest: str | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        return await self._do("install", package)

    async def install_from(
        self, path: str, digest: str, limit_s: float | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        return await self._do("install_from", path)

    async def fetch(
        self,
        url: str,
        digest: str,
        limit_s: float | None = None,
        progress: FetchedBytes | None = None,
        trial: str = "",
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        return await self._do("fetch", url)

    async def remove(self, model: str, adapter: str | None, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `Operator`."""
        return await self._do("remove", model, *([adapter] if adapter else []))

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """See `Operator`."""
        done = await self._do("rollback", model)
        self._end_trial(model, promote=False)
        return done

    async def promote(self, model: str, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `TrialOperator`."""
        done = await self._do("promote", model)
        self._end_trial(model, promote=True)
        return done

    def _end_trial(self, model: str, promote: bool) -> None:
        if self.library is not None and model in self.library.earlier:
            self.library.end_trial(model, promote)

    async def _do(self, *call: str) -> Mapping[str, Any]:
        self.calls.append(call)
        await asyncio.sleep(self.takes_s)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        return {"done": call[0]}


class Device:
    """The agent's real parts wired over fakes, as `app.daemon` wires them over the real ones."""

    def __init__(
        self,
        clock: ManualClock,
        *models: InstalledModel,
        plan: Plan | None = None,
        queue_jobs: int = 256,
        max_rows: int = 8,
        quarantine_deaths: int = 3,
        soft_limit_c: float | None = 80.0,
        resident: tuple[str, ...] = (),
        ports: Mapping[str, Any] | None = None,
        canary_s: float = 0.0,
        boot_id: str = "boot",
        heartbeat_s: float = 60.0,
        interval_s: float = 10.0,
        home_assistant: bool = False,
        decode_threads: int = 0,
        traces: bool = False,
    ) -> None:
        """`ports` replaces fakes by name: transport (a function of the status builder, which makes the will), library,
        sensors, spawner, operator; so do ledger, figures, sizer, routing."""
        given = ports or {}
        self.clock = clock
        self.queue_jobs = queue_jobs
        self.library: FakeLibrary = given.get("library") or FakeLibrary(*models)
        self.spawner: FakeSpawner = given.get("spawner") or FakeSpawner(plan)
        self.sensors: FakeSensors = given.get("sensors") or FakeSensors(clock)
        if not given.keys() - {"sizer", "routing"}:
            self.sensors.held_bytes = self.spawner.held_bytes
        self.operator = given.get("operator") or FakeOperator(self.library)
        self.events: list[tuple[str, str]] = []
        topics = Topics(PREFIX, NAME)
        identity = Identity(NAME, boot_id, "0.1", "no board", "3.11", {}, heartbeat_s, interval_s, home_assistant)
        self.builder = StatusBuilder(identity, topics, clock)
        self.transport: FakeTransport = given["transport"](self.builder) if "transport" in given else FakeTransport()
        self.publisher = Publisher(self.builder, self.transport, clock, given.get("retained"))
        self.context = Context(
            clock,
            self.transport,
            topics,
            AckWindow(self.transport.ack),
            self._announce,
            full_grant(max_rows, 4),
            requests=given["ledger"] if "ledger" in given else RequestTable(),
            traces=TraceReports(topics, self.transport, clock) if traces else None,
        )
        self.host = HostMonitor(self.context, self.sensors, decode_threads=decode_threads)
        self.host.sample()
        responder = Responder(self.context, self.host.reading)
        events = WorkerEventHandler(self.context, responder, quarantine_deaths)
        memory = MemoryAccounting(self.host, given.get("figures"))
        sizer, routing = given.get("sizer") or Sizer(), given.get("routing") or RoutingPolicy()
        self.manager = ModelManager(self.context, self.library, self.spawner, events, memory, sizer, routing)
        self.server = ModelServer(self.context, self.manager, events, responder, resident=resident)
        plan_c = governor.GovernorConfig(soft_limit_c, max_rows, 4)
        self.changes = StoreChanges(self.context, self.library, NothingAnnounced())
        self.watch = GovernorLoop(self.context, plan_c, self.host, self.changes, self.manager, self.server)
        self.guard = MemoryGuard(self.context, self.manager, self.host)
        self.reporter = DeviceReporter(
            self.context, identity, self.publisher, self.manager, self.host, self.guard, self._runtimes
        )
        self.commands = Commands(self.context, self.manager, self.operator, dict)
        self.desired = DesiredKeeper(
            self.context,
            self.library.packages,
            self.operator,
            given.get("source") or NoSource(),
            given.get("desired") or NothingSaved(),
            self.publisher.reported,
        )
        options = IntakeOptions(queue_jobs, Bounds(), self.desired)
        self.intake = Intake(self.context, options, self.manager, self.server, events, self.commands)
        self.probes: dict[str | tuple[str, str], ProbeFile] = {}
        self.canary = CanaryProber(self.context, self.manager, self._probes_of, canary_s)
        storage = given.get("trials") or KeptTrials()
        self.trials = TrialWatch(self.context, self.library, self.manager, self.host, self.operator, storage, responder)
        background = [self.guard, self.canary, self.desired, self.trials]
        self.agent = Agent(self.context, self.manager, self.server, self.intake, self.watch, self.reporter, background)
        self._acks = 0

    @staticmethod
    def run(scenario: Callable[[Device], Awaitable[None]], *models: InstalledModel, **options: Any) -> Device:
        """Build a device on a fresh clock, let it look around once, run the scenario on virtual time."""
        clock = ManualClock()

        async def whole() -> Device:
            device = Device(clock, *models, **options)
            device.watch.tick()
            await settle()
            await scenario(device)
            device.check()
            return device

        return run(whole, clock)

    @staticmethod
    async def _runtimes() -> list[Runtime]:
        return []

    def _probes_of(self, model: InstalledModel, adapter: str | None) -> ProbeFile | None:
        return self.probes.get(model.name if adapter is None else (model.name, adapter))

    def _announce(self, kind: str, message: str, data: Mapping[str, Any], *more: Any, **named: Any) -> None:
        self.events.append((kind, message))
        self.publisher.event(kind, message, data, *more, **named)

    def kinds(self) -> list[str]:
        """The events' kinds so far."""
        return [kind for kind, _ in self.events]

    def served(self, name: str = "m") -> ServedModel:
        """A model's served."""
        return self.manager.served_models[name]

    def claim(self, name: str = "m") -> MemoryClaim:
        """What the model in memory was promised, or what it is to be promised as it is packaged."""
        served = self.served(name)
        if served.worker is not None and served.is_current:
            return served.worker.plan.claim
        return LoadPlan(served.model.variant, served.model.variant).claim

    def quarantine(self, name: str = "m") -> None:
        """A model is quarantined, without the deaths and events that lead to it."""
        lifecycle = self.served(name).lifecycle
        lifecycle.begin_load(self.clock.monotonic_s())
        assert lifecycle.died(self.clock.monotonic_s(), quarantine_deaths=1)

    def message(
        self,
        request_id: str,
        body: Mapping[str, Any] | None = None,
        model: str = "m",
        deadline_s: float = 30.0,
        client: str = "tester",
        topic: str | None = None,
        user: Mapping[str, str] | None = None,
    ) -> Inbound:
        """A request as it comes from the broker."""
        self._acks += 1
        return Inbound(
            topic or f"{PREFIX}/{NAME}/infer/{model}",
            json.dumps({"text": "turn it on"} if body is None else body).encode(),
            qos=1,
            content_type="application/json",
            response_topic=f"{PREFIX}/client/{client}/reply/here",
            correlation=request_id.encode(),
            expiry_s=deadline_s,
            user=user or {},
            ack=self._acks,
            received_s=self.clock.monotonic_s(),
        )

    async def ask(self, request_id: str, body: Mapping[str, Any] | None = None, **more: Any) -> Inbound:
        """A request arrives and is taken in."""
        message = self.message(request_id, body, **more)
        await self.intake.take(message)
        return message

    async def cancel(self, request_id: str, client: str = "tester") -> None:
        """The client withdraws its request."""
        topic = f"{PREFIX}/{NAME}/cancel"
        await self.intake.take(self.message(f"cancel-{request_id}", {"id": request_id}, client=client, topic=topic))

    async def order(self, name: str, body: Mapping[str, Any], request_id: str = "order") -> None:
        """A command arrives."""
        await self.intake.take(self.message(request_id, body, topic=f"{PREFIX}/{NAME}/cmd/{name}"))

    def status(self, request_id: str) -> int:
        """The status word of the one answer to a request."""
        return int(self.transport.reply(request_id)["status"])

    def check(self) -> None:
        """What must hold at every moment: at most one answer each, and no served's loop has ended by an error."""
        for request_id, statuses in self.transport.statuses().items():
            assert len(statuses) == 1, f"{request_id} was answered {statuses}"
        for served in self.manager.served_models.values():
            if served.task is not None and served.task.done() and not served.task.cancelled():
                served.task.result()
                raise AssertionError(f"nobody serves {served.name}\n{self.dump()}")

    def dump(self) -> str:
        """Everything, for a failing test's message."""
        parts = (self.transport, self.library, self.sensors, self.spawner)
        return "\n--\n".join([*(part.dump() for part in parts), "\n".join(map(str, self.events))])
