"""The lives of one daemon: what a process builds at its start, what it leaves behind, and its two ways to end.

What stays from one life to the next is what is on the disk (the spool's folder, the measured footprints, the store) and
what the broker holds for the client id. A process that is killed is gone between two effects (a packet, a write, a
child): `Life.effect` raises `Killed` there, and what the old code still runs while its stack unwinds reaches nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.agent.status_builder import StatusBuilder
from edge_agent.base.causes import WorkerDeath
from edge_agent.base.errors import StoreError
from edge_agent.core.memory_ledger import FootprintKey, MeasuredFootprint
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.reconnect import Reason
from edge_agent.mqtt.spool import _HEADER, Segment, Spool
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Topics
from edge_agent.protocol.worker_messages import AnyEvent, WorkerListener
from edge_agent.store.footprint_cache import FootprintFile
from edge_agent.store.trial_file import TrialFile
from tests.support.fakes import RecordingNotifier
from tests.support.in_process import Device, FakeOperator
from tests.support.whole.board import EXIT_S, SimWorker
from tests.support.whole.clients import DEVICE, PREFIX
from tests.support.whole.request_log import WatchedLedger

if TYPE_CHECKING:
    from tests.support.whole.world import World

STOP_S = 60.0
REAP_ROUNDS = 500
DOOM_S = 3.0
# RestartSec of systemd/edge-agent.service.
RESTART_S = 5.0


class Killed(BaseException):
    """The process is gone here. Not an Exception, so that nothing in the agent takes it for a failure of its own."""


class Life:
    """One process of the daemon, from its start to its end."""

    def __init__(self, world: World, number: int, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self.boot_id = f"boot-{number}"
        self.dead = False
        self.died_s = 0.0
        self.ended = asyncio.Event()
        # So many effects are left before it is killed; None: it is not doomed.
        self.doom: int | None = None
        self.spool = SimSpool(self, world.folder / "spool")
        self.ledger = WatchedLedger(self.complain, world.states)
        self.notifier = RecordingNotifier()
        ports = {
            "transport": self._made_transport,
            "sensors": world.board,
            "spawner": self._spawn,
            "library": world.library,
            "operator": FakeOperator(world.library),
            "trials": KeptTrialFile(self, world.folder),
            "ledger": self.ledger,
            "figures": KeptFigures(self, world.folder),
        }
        self.device = Device(world.clock, ports=ports, boot_id=self.boot_id, **world.settings)
        self.running: asyncio.Task[None] = asyncio.create_task(self.device.agent.run(self.notifier), name=self.boot_id)

    def _made_transport(self, builder: StatusBuilder) -> MqttTransport:
        self.transport = MqttTransport(
            MqttOptions(host="sim", client_id=DEVICE, protocol=5, reconnect_cap_s=8.0),
            Topics(PREFIX, DEVICE).subscriptions(),
            builder.status("offline", "connection lost"),
            spool=self.spool,
            own_topics=Topics(PREFIX, DEVICE).self_checks(),
            random01=self._dice.random,
        )
        self._link_publish = self.transport.publish
        self.transport.publish = self._publish  # type: ignore[method-assign]
        return self.transport

    def effect(self) -> None:
        """Something is about to reach the world outside the process. Raises Killed when it never does."""
        if self.doom is not None and not self.dead:
            self.doom -= 1
            if self.doom < 0:
                self.die()
        if self.dead:
            raise Killed

    def die(self) -> None:
        """kill -9, here and now: its sockets are closed by the kernel and its children get their signal."""
        if self.dead:
            return
        world = self._world
        self.over()
        world.note(f"KILLED {self.boot_id}, {len(self.ledger)} open, {world.broker.unacknowledged} unacknowledged")
        connection = world.broker.connection
        if connection is not None and connection.mute_since_s is None:
            connection.lose(Reason("transient", "the process was killed"))
        for worker in world.spawner.alive():
            worker.orphan()
        world.request_log.process_ended()

    def over(self) -> None:
        """It has ended, in whichever way."""
        self.dead = True
        self.died_s = self._world.clock.monotonic_s()
        self.ended.set()

    def complain(self, text: str) -> None:
        """See `World.complain`; what a dead process does to itself is nobody's concern."""
        if not self.dead:
            self._world.complain(text)

    def tear(self, segment: Segment, record: bytes) -> None:
        """What is on the disk of a record in whose writing the process was killed: nothing, or a part of it."""
        if self._dice.random() < 0.5:
            data = _HEADER.pack(len(record), 0) + record[: len(record) // 2]
            with segment.path.open("r+b" if segment.path.exists() else "wb") as file:
                file.seek(segment.size_bytes)
                file.write(data)

    async def _spawn(self, listener: WorkerListener) -> SimWorker:
        self.effect()
        return await self._world.spawner(UnlessDead(self, listener))

    def _publish(self, message: Outbound) -> bool:
        if self.dead:
            raise Killed
        self._world.request_log.told(message, self._world.clock.monotonic_s())
        taken = self._link_publish(message)
        if not taken and "/reply" in message.topic and not message.expendable:
            self.complain(f"the link does not take an answer: {message.payload[:80]!r}")
        return taken


class UnlessDead:
    """Passes on what a worker tells while the daemon that started it lives; the worker lives on for a moment."""

    def __init__(self, life: Life, listener: WorkerListener) -> None:
        self._life = life
        self._listener = listener

    def on_event(self, event: AnyEvent) -> None:
        """See `WorkerListener`."""
        if not self._life.dead:
            with contextlib.suppress(Killed):
                self._listener.on_event(event)

    def on_death(self, death: WorkerDeath) -> None:
        """See `WorkerListener`."""
        if not self._life.dead:
            with contextlib.suppress(Killed):
                self._listener.on_death(death)


class SimSpool(Spool):
    """The real spool; the mark of what was sent is an effect of its own, so a kill may leave the old one."""

    def __init__(self, life: Life, folder: Path) -> None:
        self._life = life
        super().__init__(folder)

    def _write_mark(self) -> None:
        self._life.effect()
        super()._write_mark()


class KeptFigures(FootprintFile):
    """The real file of measured footprints."""

    def __init__(self, life: Life, folder: Path) -> None:
        self._life = life
        super().__init__(folder)

    def write(self, figures: Mapping[FootprintKey, MeasuredFootprint]) -> None:
        """See `FootprintFile.write`."""
        self._life.effect()
        super().write(figures)


class KeptTrialFile(TrialFile):
    """The real file of the trials of versions."""

    def __init__(self, life: Life, folder: Path) -> None:
        self._life = life
        super().__init__(folder)

    def write(self, records: Mapping[str, TrialRecord]) -> None:
        """See `TrialFile.write`."""
        self._life.effect()
        super().write(records)

    def write_samples(self, samples: Mapping[str, TrialSamples]) -> None:
        """See `TrialFile.write_samples`."""
        self._life.effect()
        super().write_samples(samples)


class Lives:
    """Starts and ends the daemon; one of its faults at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._one = asyncio.Lock()
        self.count = 0
        # The simulation's own tasks: every other one is a part of the daemon's process.
        self.own: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """A new process starts."""
        world = self._world
        world.life = Life(world, self.count, world.dice(f"link {self.count}"))
        self.count += 1
        world.states.clear()
        world.rules.reborn()

    async def restart(self, pause_s: float) -> None:
        """An orderly stop, as for an upgrade, and a start."""
        async with self._one:
            await self.stop("restart")
            await self._start(pause_s)

    async def kill(self, after: int, pause_s: float) -> None:
        """kill -9 after so many effects (or a while, when it is idle), and a start."""
        async with self._one:
            life = self._world.life
            life.doom = after
            if after:
                waiting = asyncio.create_task(life.ended.wait())
                self.own.add(waiting)
                await asyncio.wait({waiting}, timeout=DOOM_S)
                waiting.cancel()
            life.die()
            await self._reap(life)
            await self._start(pause_s)

    async def _start(self, pause_s: float) -> None:
        """After a pause; a start that fails because the store cannot be read is tried again, as systemd does."""
        world = self._world
        await asyncio.sleep(pause_s)
        self.begin()
        await asyncio.sleep(0)
        while world.life.running.done() and isinstance(world.life.running.exception(), StoreError):
            world.life.over()
            await self._reap(world.life)
            await asyncio.sleep(RESTART_S)
            self.begin()
            await asyncio.sleep(0)

    async def stop(self, why: str) -> None:
        """An orderly end, and what must be true after it."""
        world, life = self._world, self._world.life
        open_keys = [job.key for job in life.ledger.open_jobs()]
        connection = world.broker.connection
        life.device.agent.stop(why)
        done, _ = await asyncio.wait({life.running}, timeout=STOP_S)
        if not done:
            world.complain(f"the agent did not end within {STOP_S:.0f} s of being stopped")
        elif life.running.exception() is not None:
            world.complain(f"the agent ended with {life.running.exception()!r}")
        for worker in world.spawner.alive():
            world.complain(f"worker {worker.pid} outlives the agent")
        if len(life.ledger):
            world.complain(f"open after the end: {[job.key for job in life.ledger.open_jobs()]} of {open_keys}")
        if connection is not None and connection.said_goodbye and connection.never_troubled:
            for text in world.request_log.answered_but_held(world.broker.held_messages()):
                world.complain(f"answered but not acknowledged by an orderly end: {text}")
        life.over()
        await self._reap(life)
        world.request_log.process_ended()

    async def _reap(self, life: Life) -> None:
        """What the process would have done next is never done. A cancelled task may ask for another round."""
        for _ in range(REAP_ROUNDS):
            rest = [task for task in asyncio.all_tasks() if task not in self.own]
            if not rest:
                break
            for task in sorted(rest, key=lambda task: (len(task.get_name()), task.get_name())):
                task.cancel()
            await asyncio.sleep(0)
        else:
            self._world.complain(f"tasks that cannot be ended: {rest}")
        life.spool.close()


def outlived(world: World) -> list[int]:
    """Worker processes that are still there although the daemon that started them has been dead for a while."""
    life = world.life
    late = life.dead and world.clock.monotonic_s() > max(life.died_s, world.stalled_until_s) + 2 * EXIT_S
    return [worker.pid for worker in world.spawner.alive()] if late else []
