"""The rules that hold at every moment, whatever happens; `Rules.look` is called before the clock moves."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

from edge_agent.agent.context import UNACKNOWLEDGED
from edge_agent.base.limits import DEDUP_ENTRIES, INBOX_MESSAGES, OUTBOX_MESSAGES, SPOOL_EVENTS
from edge_agent.core.governor import GovernorLevel
from edge_agent.core.job import JobState
from edge_agent.core.model_lifecycle import MAY_HAVE_WORKER
from edge_agent.core.request_table import ANSWERS_BYTES
from edge_agent.protocol.topics import SELF
from tests.support.whole.clients import DEVICE, PREFIX
from tests.support.whole.lives import outlived

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agent.core.memory_ledger import MemoryAccount
    from tests.support.whole.world import World

WATCHDOG_S = 5.0
ANSWER_WAITS_S = 1.0


class Rules:
    """Looks at one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.steps = 0
        self.digest = 0
        self._beats = 0
        self._beat_s = world.clock.monotonic_s()
        self._said: set[str] = set()
        self._accounts: Mapping[str, MemoryAccount] = {}
        self._others_bytes = world.board.others_bytes
        self._emergency_s: float | None = None
        self.promises = 0
        self.emergencies = 0

    def look(self) -> None:
        """One look; each rule is complained about once."""
        world = self._world
        self.steps += 1
        self.digest = zlib.crc32(f"{world.clock.monotonic_s():.6f} {len(world.ledger)}".encode(), self.digest)
        for pid in outlived(world):
            self._say("outlived", f"worker {pid} outlives the daemon that was killed")
        if world.life.dead:
            return
        self._bounds()
        self._jobs()
        self._workers()
        self._memory()
        self._heat()
        self._answers()
        self._agent()

    def reborn(self) -> None:
        """A new process has its own service manager's patience."""
        self._beats, self._beat_s = 0, self._world.clock.monotonic_s()

    def peaceful(self) -> None:
        """After a long peace: nothing is open, nothing is unacknowledged, everything was answered or has expired."""
        world = self._world
        for job in world.ledger.open_jobs():
            self._say("open", f"{job.key} is still open: {job.state.value}, due {job.deadline_s:.3f}")
        # The device's message to itself may be on its way at this very moment (seed 599); one that stays out degrades
        # the status.
        held = [one.topic for one in world.broker.held_messages() if not one.topic.endswith(f"/{SELF}")]
        if held:
            self._say("unacknowledged", f"{len(held)} messages are not acknowledged: {held[:3]}")
        if world.broker.connection is None:
            self._say("disconnected", "the link is down though the broker is up")
        if len(world.spool):
            self._say("events", f"{len(world.spool)} events are still in the spool: {world.spool.trouble}")
        for text in world.request_log.unanswered(world.states):
            self._say(text, f"neither answered nor expired: {text}")

        self._kept()
        running = [one.model for one in world.device.context.trials.values() if one.state == "running"]
        beside = [name for name in world.device.manager.ledger.accounts() if name.endswith("/trial")]
        if running or beside:
            self._say("trial", f"after a long peace {running} are on trial, and {beside} hold memory")

    def _kept(self) -> None:
        """The retained status is that of this life, and no event that reached the disk is missing."""
        world = self._world
        status = json.loads(world.broker.retained[f"{PREFIX}/{DEVICE}/status"].payload)
        well = {"online", "degraded"} if world.lifted else {"online"}
        if status["state"] not in well or status["boot_id"] != world.life.boot_id:
            self._say("status", f"after a long peace the status is {status}")
        missing = sorted(world.request_log.spooled - world.request_log.numbered.keys())
        if missing and not world.spool.lost:
            self._say("missing", f"events that were on the disk never arrived: {missing[:5]} of {len(missing)}")

    def _say(self, rule: str, text: str) -> None:
        if rule not in self._said:
            self._said.add(rule)
            self._world.complain(text)

    def _bounds(self) -> None:
        world, device = self._world, self._world.device
        sizes = {
            "open requests": (len(world.ledger), device.queue_jobs),
            "known requests": (world.ledger.closed_count, DEDUP_ENTRIES),
            "bytes of answers": (world.ledger.answer_bytes, ANSWERS_BYTES),
            "inbox": (len(world.transport._inbox), INBOX_MESSAGES + 1),
            "outbox": (len(world.transport._outbox), OUTBOX_MESSAGES + 64),
            "spool": (len(world.spool), SPOOL_EVENTS),
            "held acknowledgements": (len(device.context.acks._waiting), UNACKNOWLEDGED),
        }
        for what, (size, most) in sizes.items():
            if size > most:
                self._say(what, f"{what}: {size}, at most {most} are allowed")

    def _jobs(self) -> None:
        """An open job waits or runs; one that runs is known to a served whose worker it is with."""
        served_models = self._world.device.manager.every_served_model()
        running = {id(job) for served in served_models for job in served.running.values()}
        for job in self._world.ledger.open_jobs():
            if job.state not in {JobState.QUEUED, JobState.RUNNING}:
                self._say("state", f"{job.key} is open and {job.state.value}")
            if job.state is JobState.RUNNING and id(job) not in running:
                self._say("lost", f"{job.key} runs nowhere")
        for served in served_models:
            if any(job.state is not JobState.QUEUED for job in served.queue.jobs()):
                self._say("queue", f"a job that does not wait stands in the queue of {served.name}")

    def _workers(self) -> None:
        """A process belongs to a served model, is being started, or is being ended. A model has a worker only in the
        states that may have one."""
        world = self._world
        served_models = world.device.manager.every_served_model()
        handles = [one for served in served_models for one in (served.worker, served.successor) if one is not None]
        owned = {id(handle.process) for handle in handles}
        for served in served_models:
            if served.worker is not None and served.lifecycle.state not in MAY_HAVE_WORKER:
                self._say("lifecycle", f"{served.name} has a worker and is {served.lifecycle.state.value}")
        strays = [worker for worker in world.spawner.alive() if id(worker) not in owned and not worker._closing]
        for worker in world.spawner.alive():
            if worker.most_at_once > worker.sequences:
                self._say("sequences", f"{worker.most_at_once} answers at once on {worker.sequences} sequences")
            if worker.second_beyond:
                self._say("sequences", f"{worker.second_beyond} is its client's second job beyond the sequences")
        if len(strays) > 1:
            self._say("strays", f"workers that belong to nobody: {[worker.pid for worker in strays]}")

    def _memory(self) -> None:
        """No byte is promised twice: all that models hold or were promised fits into the board less the reserve, and a
        new promise also into what other programs left of it."""
        world = self._world
        memory, board = world.device.host.last_memory, world.board
        accounts = world.device.manager.ledger.accounts()
        reserved = sum(account.reserved_bytes for account in accounts.values())
        # A worker that takes over from another one brings its account along: that is no new promise.
        before = {id(account) for account in self._accounts.values()}
        new = [name for name, account in accounts.items() if id(account) not in before]
        others_bytes = min(self._others_bytes, board.others_bytes) if new else 0
        self._accounts, self._others_bytes = accounts, board.others_bytes
        self.promises += len(new)
        if memory is not None and reserved > board.total_bytes - memory.reserve_bytes - others_bytes:
            self._say("memory", f"{reserved} bytes are held or promised to {accounts}, others hold {others_bytes}")

    def _heat(self) -> None:
        """No work is handed out while the governor has closed the board for heat; a worker may end what it has."""
        world = self._world
        if world.device.context.grant.level is not GovernorLevel.EMERGENCY:
            self._emergency_s = None
            return
        if self._emergency_s is None:
            self._emergency_s = world.clock.monotonic_s()
            self.emergencies += 1
        for worker in world.spawner.alive():
            late_s = worker.handed_s - self._emergency_s
            if late_s > 0.0:
                self._say("heat", f"worker {worker.pid} was handed work {late_s:.3f} s into an emergency")

    def _answers(self) -> None:
        """On a sound connection no answer waits; what was given while there was none may expire in the outbox."""
        world = self._world
        connection, now_s = world.broker.connection, world.clock.monotonic_s()
        sound = connection is not None and connection.mute_since_s is None and not connection.congested
        asks = world.request_log.asks
        waiting = [key for key, since_s in world.request_log.waiting.items() if now_s - since_s > ANSWER_WAITS_S]
        late = [key for key in waiting if now_s <= asks[key].due_s]
        if not sound or not world.transport.connected:
            world.request_log.waiting.clear()
        elif late:
            self._say("outbox", f"the answers to {late} wait on a sound connection")
        if world.transport._outbox.lost:
            self._say("lost answers", f"{world.transport._outbox.lost} computed answers found no room in the outbox")

    def _agent(self) -> None:
        world = self._world
        if world.device.server.fault is not None:
            self._say("fault", world.device.server.fault)
        if world.life.running.done() and not world.device.agent._stopping.is_set():
            self._say("ended", f"the agent ended by itself: {world.life.running!r}")
        beats = len(world.notifier.calls)
        now_s = world.clock.monotonic_s()
        if beats != self._beats or world.stalled_until_s > self._beat_s or world.device.agent._stopping.is_set():
            self._beats, self._beat_s = beats, now_s
        elif now_s - self._beat_s > WATCHDOG_S:
            self._say("watchdog", f"no sign of life to the service manager for {now_s - self._beat_s:.1f} s")
