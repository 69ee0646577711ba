"""One run: a device, its surroundings, a stretch of traffic with faults, a stretch of peace, an orderly end.

The invariants are looked at whenever everything that can run has run and the clock is about to move. Whatever is wrong
is noted, not raised: a rule broken inside the agent's own call would else end as one of its errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import tempfile
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from edge_agent.base.clock import ManualClock
from edge_agent.base.limits import WORKER_SILENCE_S
from edge_agent.bundle.catalog import InstalledModel, TaskSpec, Variant
from edge_agent.core.job import JobState
from edge_agent.core.variant_fallback import FallbackState
from edge_agent.mqtt import spool as spool_module
from edge_agent.mqtt import transport
from edge_agent.mqtt.spool import Segment, Spool
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Inbound, Outbound
from tests.support.fakes import FakeLibrary, RecordingNotifier, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import Stuck, VirtualLoop
from tests.support.whole import faults
from tests.support.whole.board import Moods, SimBoard, SimSpawner
from tests.support.whole.broker import SimBroker, SimConnection
from tests.support.whole.clients import DEVICE, PREFIX, Clients
from tests.support.whole.lives import Killed, Life, Lives
from tests.support.whole.request_log import Ask, Key, RequestLog, WatchedLedger
from tests.support.whole.rules import Rules

TROUBLE_S = (5.0, 15.0, 30.0)
PEACE_S = 75.0
FAIR_S = 12.0
# A worker that hangs is noticed by its silence under a job (WORKER_SILENCE_S); then it must be loaded again.
AGAIN_S = WORKER_SILENCE_S + 15.0
COMPLAINTS = 20


@dataclass(slots=True)
class Disk:
    """The disk under the spool."""

    full: bool = False


class Loop(VirtualLoop):
    """Virtual time, with threads' work done at once, and a look around before the clock moves."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.before_time_passes: Callable[[], None] = lambda: None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Done here and now: a thread's time is not ours to simulate."""
        future: asyncio.Future[Any] = self.create_future()
        future.set_result(func(*args))
        return future

    def time_passes(self) -> None:
        """See `VirtualLoop`."""
        self.before_time_passes()


@dataclass(slots=True)
class Outcome:
    """What a run showed: broken rules, what happened before them, and figures to see that it was not idle."""

    seed: int
    complaints: list[str]
    trace: list[str]
    statuses: Counter[int]
    kinds: Counter[str]
    faults: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    virtual_s: float = 0.0
    digest: int = 0
    answered_again: int = 0
    modest_share: float = 1.0

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.complaints)} rules broken", *self.complaints]
        return "\n".join([*lines, "-- the last that happened before the first:", *self.trace])


class World:
    """Everything around one agent, and the agent."""

    def __init__(self, seed: int, clock: ManualClock, folder: Path) -> None:
        self.seed = seed
        self.clock = clock
        self.complaints: list[str] = []
        self.trace: deque[str] = deque(maxlen=60)
        self.frozen_trace: list[str] = []
        self.faults: Counter[str] = Counter()
        self.sent: dict[Key, Inbound] = {}
        self.disk = Disk()
        self.request_log = RequestLog(self.complain)
        self.states: dict[Key, list[str]] = {}
        self.folder = folder
        self.broker = SimBroker(self.dice("broker"), self._heard, self.complain)
        self.broker.delivered = self._delivered
        self.broker.on_ack = self._acknowledged
        self.board = SimBoard(clock, self.dice("board"))
        dice = self.dice("models")
        self.spawner = SimSpawner(self.board, self.dice("workers"), Moods(mixed=dice.random() < 0.7))
        classifiers = tuple(_model(index, dice) for index in range(dice.choice((1, 2, 4))))
        self.installed = (*classifiers, *_generators(dice))
        self.library = FakeLibrary(*self.installed)
        self.settings: dict[str, Any] = {
            "queue_jobs": dice.choice((4, 32, 256)),
            "max_rows": dice.choice((1, 8, 32)),
            "quarantine_deaths": dice.choice((0, 3, 8)),
            "resident": dice.choice(((), ("all",), ("m0",))),
        }
        self.clients = Clients(self, self.dice("clients"))
        self.rules = Rules(self)
        self.modest: list[Ask] = []
        self.stalled_until_s = clock.monotonic_s()
        self.lifted = False
        self.lives = Lives(self)
        self.life: Life

    @property
    def device(self) -> Device:
        """The parts of the process that lives now, or lived last."""
        return self.life.device

    @property
    def transport(self) -> MqttTransport:
        """Its link."""
        return self.life.transport

    @property
    def ledger(self) -> WatchedLedger:
        """Its ledger."""
        return self.life.ledger

    @property
    def spool(self) -> Spool:
        """Its spool."""
        return self.life.spool

    @property
    def notifier(self) -> RecordingNotifier:
        """What it told the service manager."""
        return self.life.notifier

    def dice(self, what: str) -> random.Random:
        """Each part has dice of its own, so that one more throw here changes nothing there."""
        return random.Random(f"{self.seed}/{what}")

    # ---- what happens ----------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Trouble, then peace in which everything must come right again, then the end."""
        self.lives.begin()
        dice = self.dice("faults")
        trouble_s = dice.choice(TROUBLE_S)
        chosen = dice.sample(faults.ALL, dice.randrange(0, 7))
        troubles = [asyncio.create_task(self._trouble(kind, trouble_s)) for kind in chosen]
        self.lives.own |= {task for task in (asyncio.current_task(), *troubles) if task is not None}
        await self.clients.traffic(trouble_s)
        await asyncio.gather(*troubles)
        self._heal()
        await asyncio.sleep(PEACE_S)
        await self._ask_again()
        if len(self.spool):
            await asyncio.sleep(1.0)  # something happened at this very moment, and is being told
        self.rules.peaceful()
        await self.lives.stop("the run is over")
        self._last_words()

    async def play_fair(self, hog_priority: int | None) -> None:
        """Modest clients on a sound board, alone or beside a hog whose requests have that priority; then the end."""
        self.settings["queue_jobs"] = max(
            32, self.settings["queue_jobs"]
        )  # four places have no share for three clients
        self.lives.begin()
        hog = None if hog_priority is None else asyncio.create_task(self.clients.hog(FAIR_S, hog_priority))
        self.lives.own |= {task for task in (asyncio.current_task(), hog) if task is not None}
        self.modest = await self.clients.modest(FAIR_S)
        if hog is not None:
            await hog
        await asyncio.sleep(PEACE_S)
        self.rules.peaceful()
        await self.lives.stop("the run is over")

    async def _trouble(self, kind: faults.Fault, seconds: float) -> None:
        name = kind.__name__
        dice = self.dice(name)
        until_s = self.clock.monotonic_s() + seconds
        while True:
            await asyncio.sleep(dice.expovariate(1.0 / 6.0))
            if self.clock.monotonic_s() >= until_s:
                return
            self.faults[name] += 1
            self.note(f"FAULT {name}")
            await kind(self, dice)

    def _heal(self) -> None:
        self.note("PEACE")
        self.board.lost.clear()
        self.board.freezes = self.disk.full = self.broker.refuses_events = False
        self.board.fever_c = 0.0
        self.board.others_bytes = self.board.total_bytes // 8
        self.spawner.moods = _replace(self.spawner, Moods(mixed=self.spawner.moods.mixed))
        self.broker.up = True
        self.library.broken = None
        for model in self.installed:
            self.library.install(model)

    async def _ask_again(self) -> None:
        """After the trouble: every model serves, once whoever operates the device has lifted what was quarantined."""
        for served in list(self.device.manager.served_models.values()):
            await self._lift(served.name)
        for model in self.installed:
            statuses = await self._ask_once(model.name)
            if 200 not in statuses:
                # A worker that still hung was its third death, noticed only when it was asked; or a load is expected to
                # take as long as it once did: who tries again finds it done.
                await self._lift(model.name)
                statuses = await self._ask_once(model.name)
            if 200 not in statuses:
                self.complain(f"after the trouble {model.name} answers {statuses or 'nothing'}")

    async def _ask_once(self, name: str) -> list[int]:
        ask = self.clients.request(name, AGAIN_S)
        await asyncio.sleep(AGAIN_S + 1.0)
        return [status for _, status in ask.said]

    async def _lift(self, name: str) -> None:
        """A quarantine, and the pause after a build that failed, as an operator does."""
        served = self.device.manager.served_models[name]
        unserved = served.fallback.state is not FallbackState.CHOSEN and not served.fallback.answers
        if served.lifecycle.published == "quarantined" or unserved:
            self.lifted = True
            self.clients.order("load", {"model": name})
            await asyncio.sleep(60.0)

    def _last_words(self) -> None:
        status = self.broker.retained[f"{PREFIX}/{DEVICE}/status"].payload
        if b"stopped in order" not in status:
            self.complain(f"stopped in order, and the status is {status!r}")

    def stalled(self, seconds: float) -> None:
        """The process does not run for so long."""
        self.clock.advance(seconds)
        self.stalled_until_s = self.clock.monotonic_s()

    def another_variant(self, name: str, dice: random.Random) -> Variant:
        """A newer release of a model, of another size."""
        size_mib = dice.randrange(50, 1500)
        return a_variant(f"{name}-v{dice.randrange(2, 9)}", size_mib, size_mib + 50)

    # ---- what is noted ---------------------------------------------------------------------------------------------

    def complain(self, text: str) -> None:
        """A rule is broken."""
        if not self.complaints:
            self.frozen_trace = list(self.trace)
        if len(self.complaints) < COMPLAINTS:
            self.complaints.append(f"at {self.clock.monotonic_s():.4f}: {text}")

    def note(self, text: str) -> None:
        """Something happened."""
        self.trace.append(f"{self.clock.monotonic_s():.4f} {text}")

    def _heard(self, message: Outbound, now_s: float) -> None:
        if not message.topic.endswith(("/telemetry", "/models", "/info")):
            self.trace.append(f"{now_s:.4f} <- {message.topic} {message.payload[:140]!r}")
        self.request_log.heard(message, now_s)

    def _delivered(self, message: Inbound) -> None:
        self.trace.append(f"{self.clock.monotonic_s():.4f} -> {message.topic} {message.correlation} {message.expiry_s}")
        self.request_log.delivered(message)

    def _acknowledged(self, message: Inbound, held: int) -> None:
        self.request_log.acknowledged(message, held, self.states)

    def serving(self) -> bool:
        """Whether any job is with a worker."""
        return any(job.state is JobState.RUNNING for job in self.ledger.open_jobs())


def simulate(seed: int) -> Outcome:
    """One run. The same seed gives the same run, packet by packet."""
    return _outcome(seed, World.play)


def share_beside_a_hog(seed: int, priority: int | None) -> tuple[float, Outcome]:
    """The answered share of modest clients, beside a hog whose requests have that priority (None: without it)."""
    outcome = _outcome(seed, lambda world: world.play_fair(priority))
    return outcome.modest_share, outcome


def _outcome(seed: int, play: Callable[[World], Awaitable[None]]) -> Outcome:
    clock = ManualClock()
    loop = Loop(clock)
    strays: list[str] = []

    def stray(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            strays.append(str(context.get("exception") or context))

    loop.set_exception_handler(stray)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder, _surroundings():
        world = loop.run_until_complete(_begin(seed, clock, Path(folder)))
        try:
            loop.run_until_complete(_run(world, loop, play))
        except Stuck as error:
            awake = [str(task.get_stack(limit=1)) for task in asyncio.all_tasks(loop)]
            world.complain(f"{error}; tasks: {awake}")
            loop.close()
        else:
            _end(loop)
        for stray in strays:
            world.complain(f"an error that nobody caught: {stray}")
    return Outcome(
        seed,
        world.complaints,
        world.frozen_trace or list(world.trace),
        world.request_log.statuses,
        world.request_log.kinds,
        world.faults,
        world.rules.steps,
        clock.monotonic_s() - 1000.0,
        world.rules.digest,
        len(world.request_log.answered_again),
        _share([any(status == 200 for _, status in ask.said) for ask in world.modest]),
    )


def _share(answered: list[bool]) -> float:
    return sum(answered) / len(answered) if answered else 1.0


async def _begin(seed: int, clock: ManualClock, folder: Path) -> World:
    return World(seed, clock, folder)


async def _run(world: World, loop: Loop, play: Callable[[World], Awaitable[None]]) -> None:
    class SimSegment(Segment):
        def append(self, record: bytes) -> None:
            try:
                world.life.effect()
            except Killed:
                world.life.tear(self, record)
                raise
            if world.disk.full:
                raise OSError(28, "No space left on device")
            super().append(record)
            world.request_log.written(record)

    def connect(_options: object, _version: int, will: Any, listener: Any, epoch: int) -> SimConnection:
        return SimConnection(
            world.broker, world.dice(f"connection {world.lives.count} {epoch}"), listener, epoch, will, world.life
        )

    loop.before_time_passes = world.rules.look
    with mock.patch.object(transport, "Connection", connect), mock.patch.object(spool_module, "Segment", SimSegment):
        await play(world)


def _end(loop: Loop) -> None:
    loop.before_time_passes = lambda: None
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """No log lines, and no waiting for a disk."""
    logger = logging.getLogger("edge_agent")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with mock.patch.object(os, "fsync", lambda _descriptor: None):
            yield
    finally:
        logger.setLevel(before)


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _model(index: int, dice: random.Random) -> InstalledModel:
    size_mib = dice.choice((40, 300, 900, 1500))
    variant = a_variant(f"m{index}-v1", size_mib, size_mib + 60)
    model = a_model(f"m{index}", variant, ("a", "b", "c")[: dice.choice((0, 2, 3, 3))])
    if dice.random() > 0.34:
        return model
    # In every third model the chosen variant is compiled first; most have another one, which answers meanwhile.
    engine = replace(variant, digest=f"{variant.digest}-engine", runtime="tensorrt", files={"model": "/graph"})
    graph = replace(variant, runtime="onnx", files={"model": "/graph"})
    return replace(model, variant=engine, variants=(engine, graph) if dice.random() < 0.8 else (engine,))


def _generators(dice: random.Random) -> tuple[InstalledModel, ...]:
    """In every third run a model that answers word by word."""
    if dice.random() > 0.34:
        return ()
    model = a_model("g0", a_variant("g0-v1", 200, 260, runtime="llamacpp"), ("a", "b"))
    return (replace(model, task=TaskSpec("generate", max_tokens=512)),)


def _replace(spawner: SimSpawner, moods: Moods) -> Moods:
    """The workers that live share the old moods: they are mended, too."""
    for worker in spawner.board.workers:
        worker._moods = moods
    return moods
