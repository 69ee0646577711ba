"""Random histories of a device's desired state, from seeds: the real keeper, the real store, tiny real packages.

`python -m tests.support.histories --count 10000 --seed 0` plays histories 0 to 9,999; `--only 17` plays and tells one.

A history: an operator publishes versions (also older ones, twice, out of order, damaged); the daemon is killed or
stopped, the power goes (also between any two steps of an install), the disk fills, the wall clock jumps, packages
vanish, come in parts or forged, people change the store by hand. Looked at all the time: no version is pending for
longer than it states plus `SLACK_S` of running time, and after every end of a process each model is whole. Then there
is peace, and the last version must end, what is reported must be what the store holds, and one more version must be
applied.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from edge_agent.agent.commands import FetchedBytes
from edge_agent.agent.context import AckWindow, Context, full_grant
from edge_agent.agent.desired_keeper import DesiredKeeper
from edge_agent.agent.device_reporter import Publisher
from edge_agent.agent.status_builder import Identity, StatusBuilder
from edge_agent.base.causes import Cause
from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import EdgeError, PackageError, StoreError
from edge_agent.core.desired_state import DesiredState, FoundPackage
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Topics
from edge_agent.store.crash_points import INSTALL_POINTS
from edge_agent.store.desired_file import DesiredFile
from edge_agent.store.inbox_packages import InboxPackages, file_mark, package_digest
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.stick_packages import StickPackages, mounted
from tests.support import packages as tiny
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import Stuck, VirtualLoop

TROUBLE_S = (60.0, 240.0, 600.0)
WITHIN_S = (60, 120, 300)
SLACK_S = 45.0
"""Beyond the stated time: an attempt that is ended at its limit, and the looks in between."""
LAST_S = 900.0
TAKES_S = (0.5, 5.0, 40.0, 400.0)
TOPICS = Topics("edge/v1", "dev")
UNKNOWN = "sha256:" + "f" * 64
FAULTS = (
    "publish", "publish", "publish", "old message", "damaged message", "withdraw", "kill", "power cut",
    "power cut in a change", "power cut in a change", "power cut in a change",
    "orderly stop", "kill at a save", "full", "room", "clock", "broker", "vanish", "arrive", "arrive", "half", "forged",
    "arrive all", "arrive all", "by hand", "by hand", "unreadable", "server", "server lies",
    "stick", "stick", "stick away", "stick away in a change", "arrive all in a change",
)  # fmt: skip


class Killed(BaseException):
    """The process is gone here; nothing in the agent takes it for a failure of its own."""


@dataclass(frozen=True)
class Catalogue:
    """The packages that there are: bytes by digest, and what a device may be asked to hold."""

    data: Mapping[str, bytes]
    models: Mapping[str, tuple[str, ...]]
    adapters: tuple[str, ...]
    failing: str

    @property
    def newest(self) -> dict[str, Any]:
        """What must be reached at the end, whatever was there: the highest counters, and an adapter for one."""
        named = {name: digests[-1] for name, digests in self.models.items()}
        adapters = [{"adapter": "intents", "package": self.adapters[-1]}]
        return {"models": [{"model": "tiny", "package": named["tiny"], "adapters": adapters},
                           {"model": "mini", "package": named["mini"]}]}  # fmt: skip


@functools.cache
def catalogue() -> Catalogue:
    """Three releases of two models, two of an adapter, and a model whose golden probes fail everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            one: [tiny.base_package(folder, counter, one, counter) for counter in (1, 2, 3)] for one in ("tiny", "mini")
        }
        adapters = [tiny.adapter_package(folder, made["tiny"][0], counter, "intents", counter) for counter in (1, 2)]
        off = tiny.model_source(folder / "off", "off", 9, off=5.0)
        failing = tiny._built(folder / "off-1.tar", tiny.release("off", 1), off).path
        every = [*made["tiny"], *made["mini"], *adapters, failing]
        digests = {path: package_digest(path) for path in every}
        return Catalogue(
            {digest: path.read_bytes() for path, digest in digests.items()},
            {one: tuple(digests[path] for path in paths) for one, paths in made.items()},
            tuple(digests[path] for path in adapters),
            digests[failing],
        )


class BootClock:
    """A clock whose monotonic time begins anew with every start of the board."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._began_s = clock.monotonic_s()

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self._clock.monotonic_s() - self._began_s

    def wall_s(self) -> float:
        """See `Clock`."""
        return self._clock.wall_s()


class Link(FakeTransport):
    """The connection of one life: what it publishes is retained by the broker of the history, while that is there."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history
        self.connected = history.broker_up

    def publish(self, message: Outbound) -> bool:
        """See `ports.Transport`."""
        if self.connected and message.topic == TOPICS.reported:
            self._history.reported = json.loads(message.payload)
        return True


class Storage(DesiredFile):
    """The daemon's file, on a disk that fills, by a process that may be killed at the write."""

    def __init__(self, history: History, life: Life) -> None:
        super().__init__(history.folder)
        self._history, self._life = history, life

    def write(self, state: DesiredState) -> None:
        """See `DesiredStorage`."""
        if self._life.dead:
            raise Killed
        if self._life.doomed == "before a save":
            self._history.process_gone(self._life)
            raise Killed
        if self._history.full:
            raise StoreError("the disk says: No space left on device", cause=Cause.DISK_FULL)
        super().write(state)
        if self._life.doomed == "after a save":
            self._history.process_gone(self._life)
            raise Killed


class Source:
    """The incoming folder and the sticks, read where they stand: threads have no time of their own here."""

    def __init__(self, inbox: InboxPackages, sticks: Path) -> None:
        self._inbox, self._folder = inbox, sticks
        self._sticks: dict[Path, StickPackages] = {}

    async def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """See `PackageSource`."""
        self._sticks = {one: self._sticks.get(one) or StickPackages(one) for one in mounted(self._folder)}
        on_sticks: dict[str, FoundPackage] = {}
        for stick in self._sticks.values():
            on_sticks |= stick.find(wanted)
        return {**on_sticks, **self._inbox.find(wanted)}

    def refused(self, found: FoundPackage) -> None:
        """See `PackageSource`."""
        if "/" not in found.name:
            self._inbox.refused(found)
        elif (stick := self._sticks.get(Path(found.name).parent)) is not None:
            stick.refused(found)


class Life:
    """One process of the daemon, and the children that it started."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.dead = False
        self.doomed = ""
        clock = BootClock(history.clock)
        self.link = Link(history)
        builder = StatusBuilder(Identity("dev", "boot", "0", "none", "3", {}, 60.0, 10.0), TOPICS, clock)
        publisher = Publisher(builder, self.link, clock)
        context = Context(clock, self.link, TOPICS, AckWindow(self.link.ack), self._announce, full_grant(8, 4))
        self.keeper = DesiredKeeper(
            context,
            history.packages,
            self,
            Source(InboxPackages(history.inbox), history.sticks),
            Storage(history, self),
            publisher.reported,
        )
        self.task = asyncio.create_task(self._run(), name="life")

    def _announce(self, kind: str, message: str, data: Mapping[str, Any], *_more: Any, **_named: Any) -> None:
        self.history.note(f"event {kind}: {message}")

    async def _run(self) -> None:
        with contextlib.suppress(Killed):
            await self.keeper.run()

    def hear(self, payload: bytes) -> None:
        """A message arrives, unless the process is gone."""
        if not self.dead and self.link.connected:
            with contextlib.suppress(Killed):
                self.keeper.receive(Inbound(TOPICS.desired, payload, qos=1))

    # ---- the operator of the store: processes that outlive the daemon's death, but not the power ---------------------

    async def install(
        self, package: str, limit_s: float | None = None, digest: str | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        path = self.history.inbox / package

        def work(store: ModelStore) -> None:
            before = file_mark(path)
            store.install(path, digest=digest)
            if file_mark(path) == before:
                path.unlink(missing_ok=True)

        return await self._child(work, limit_s)

    async def install_from(
        self, path: str, digest: str, limit_s: float | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        history = self.history

        def work(store: ModelStore) -> None:
            store.install(Path(path), digest=digest)

        history.outcome.counts["from a stick"] += 1
        return await self._child(work, limit_s)

    async def fetch(
        self,
        url: str,
        digest: str,
        limit_s: float | None = None,
        progress: FetchedBytes | None = None,
        trial: str = "",
    ) -> Mapping[str, Any]:
        """See `commands.Operator`; the server may be away."""
        history = self.history

        def work(store: ModelStore) -> None:
            if not history.server_up or digest not in catalogue().data:
                raise StoreError("the server answers 404 Not Found", url, cause=Cause.SOURCE)
            path, data = history.folder / "fetched.tar", catalogue().data[digest]
            if history.server_lies:
                history.outcome.counts["a lie fetched"] += 1
                data = history.worse(data)
            path.write_bytes(data)
            store.install(path, digest=digest)

        return await self._child(work, limit_s)

    async def remove(self, model: str, adapter: str | None, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._child(lambda store: store.remove(model, adapter), limit_s)

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """See `commands.Operator`."""

        def work(store: ModelStore) -> None:
            store.rollback(model)

        return await self._child(work, limit_s)

    async def _child(self, work: Callable[[ModelStore], None], limit_s: float | None) -> Mapping[str, Any]:
        child = self.history.start_process(work)
        try:
            await asyncio.wait_for(asyncio.shield(child), limit_s)
        except asyncio.TimeoutError:
            child.cancel()
            raise StoreError("the order was ended", cause=Cause.EXPIRED) from None
        except asyncio.CancelledError:
            if not self.dead:  # told to end; the children of a killed daemon go on
                child.cancel()
            raise
        return {}


@dataclass
class Outcome:
    """What a history showed."""

    seed: int
    complaints: list[str] = field(default_factory=list)
    trace: deque[str] = field(default_factory=lambda: deque(maxlen=80))
    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return "\n".join(
            [f"history {self.seed}: {len(self.complaints)} complaints", *self.complaints, "--", *self.trace]
        )


class History:
    """A device, its operator and its bad luck."""

    def __init__(self, seed: int, clock: ManualClock, folder: Path) -> None:
        self.dice = random.Random(f"history/{seed}")
        self.clock, self.folder = clock, folder
        self.outcome = Outcome(seed)
        self.inbox = folder / "inbox"
        self.inbox.mkdir()
        self.full, self.broker_up, self.unreadable = False, True, False
        self.unsaved = self.quick = False
        self.server_up = True
        self.server_lies = False
        self.sticks = folder / "sticks"
        self.sticks.mkdir()
        self.pull_at: str | None = None
        self.arrive_at: str | None = None
        self.meanwhile: Callable[[], None] | None = None
        self.reported: dict[str, Any] = {}
        self.retained = b""
        self.published: list[bytes] = []
        self.version = 0
        self.children: set[asyncio.Task[None]] = set()
        self.cut_at: str | None = None
        self.fresh_s: dict[int, float] = {}
        self.passed_by_s: dict[str, float] = {}
        self.reader = ModelStore(folder / "store")
        self.life: Life | None = None

    # ---- the world -------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something happened."""
        self.outcome.trace.append(f"{self.clock.monotonic_s():.1f} {text}")

    def complain(self, text: str) -> None:
        """A rule is broken."""
        if len(self.outcome.complaints) < 5:
            self.outcome.complaints.append(f"at {self.clock.monotonic_s():.1f}: {text}")

    def packages(self) -> Any:
        """See `ModelStore.packages`; the disk may not answer."""
        if self.unreadable:
            raise StoreError("the disk says: Input/output error")
        return self.reader.packages()

    def start_process(self, work: Callable[[ModelStore], None]) -> asyncio.Task[None]:
        """A process that changes the store: it takes a while, and then does it all, unless the power goes in it."""
        child = asyncio.create_task(self._process(work), name="child")
        self.children.add(child)
        child.add_done_callback(self.children.discard)
        child.add_done_callback(lambda done: done.cancelled() or done.exception())
        return child

    async def _process(self, work: Callable[[ModelStore], None]) -> None:
        if len(self.children) > 1:
            raise StoreError("another install or rollback is at work on this store", cause=Cause.BUSY)
        await asyncio.sleep(TAKES_S[0] if self.quick else self.dice.choice(TAKES_S))
        try:
            work(self._store())
        except Killed:
            self.outcome.counts["cut in a change"] += 1
            self._power_is_gone()
            raise asyncio.CancelledError from None

    def _store(self) -> ModelStore:
        (cut_at, self.cut_at), (pull_at, self.pull_at) = (self.cut_at, None), (self.pull_at, None)
        (arrive_at, self.arrive_at), (meanwhile, self.meanwhile) = (self.arrive_at, None), (self.meanwhile, None)

        def at(point: str) -> None:
            if point == pull_at:
                self._pull_sticks()
            if point == arrive_at:
                self._files("arrive all")
            if point == "verified" and meanwhile is not None:
                meanwhile()
            if point == cut_at:
                raise Killed

        context = InstallContext(
            prober=tiny.TinyProber(),
            hardware=tiny.HARDWARE,
            trust=tiny.trust(),
            clock=ManualClock(wall_s=tiny.WALL_S),
            reserve_bytes=0,
            free_bytes=lambda _folder: 0 if self.full else 1 << 40,
            at=at,
        )
        return ModelStore(self.folder / "store", context)

    def process_gone(self, life: Life) -> None:
        """The daemon is killed; its children go on."""
        life.dead = True
        life.link.connected = False
        life.task.cancel()
        if self.life is life:
            self.life = None
        self._whole("a kill")

    def _power_is_gone(self) -> None:
        if self.life is not None:
            self.process_gone(self.life)
        for child in tuple(self.children):
            child.cancel()
        self._whole("a power cut")

    def _whole(self, after: str) -> None:
        """Every installed model can run, and every file is what its name says."""
        store = ModelStore(self.folder / "store")
        if store.problems() or store.scrub():
            self.complain(f"half applied after {after}: {store.problems()} {store.scrub()}")

    def start(self) -> None:
        """A daemon begins; the broker repeats what it retains."""
        saved = DesiredFile(self.folder).read()
        for version in self.fresh_s:
            if saved is None or saved.version != version:
                self.fresh_s[version] = 0.0  # it could not be saved, so its time begins anew
            elif self.unsaved:
                self.fresh_s[version] = saved.spent_s
        self.unsaved = self.full
        self.life = Life(self)
        if self.retained:
            self.life.hear(self.retained)

    # ---- what happens ----------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Trouble, peace, and one more version."""
        self.start()
        world = [self._watch(), self._supervise(), *([self._boot_loop()] if self.dice.random() < 0.15 else [])]
        others = [asyncio.create_task(one, name="world") for one in world]
        until_s = self.clock.monotonic_s() + self.dice.choice(TROUBLE_S)
        while self.clock.monotonic_s() < until_s:
            await asyncio.sleep(self.dice.expovariate(1 / 12.0))
            fault = self.dice.choice(FAULTS)
            self.outcome.counts[fault] += 1
            self.note(f"FAULT {fault}")
            self.happen(fault)
        self.note("PEACE")
        if self.life is not None:
            self.life.doomed = ""
        self.full = self.unreadable = self.server_lies = False
        self.cut_at = self.pull_at = self.arrive_at = None
        self.broker(up=True)
        await asyncio.sleep(max(WITHIN_S) + SLACK_S)
        while self.children:  # what a person began in the trouble
            await asyncio.sleep(1.0)
        await asyncio.sleep(2.0)  # the keeper looks once a second
        self._judge("in peace")
        self.quick = True
        for digest in catalogue().data:
            self.arrive(digest)
        self.publish(catalogue().newest, LAST_S)
        for _ in range(int(LAST_S + SLACK_S)):
            await asyncio.sleep(1.0)
            if self.reported.get("version") == self.version and self.reported.get("state") != "pending":
                break
        self._judge("with the last version")
        if self.reported.get("state") != "applied":
            self.complain(f"the last version is not applied: {self.reported}")
        for task in others:
            task.cancel()

    async def _supervise(self) -> None:
        """The service manager, and whoever switches the power on again."""
        while True:
            await asyncio.sleep(1.0)
            if self.life is None:
                await asyncio.sleep(self.dice.choice((1.0, 5.0, 30.0)))
                self.start()

    async def _boot_loop(self) -> None:
        """A board whose daemon does not live long enough to save the time that it spent."""
        until_s = self.clock.monotonic_s() + max(TROUBLE_S)
        while self.clock.monotonic_s() < until_s:
            await asyncio.sleep(self.dice.uniform(10.0, 25.0))
            if self.life is not None:
                self.process_gone(self.life)
                self.start()

    async def _watch(self) -> None:
        """No version is pending for longer than it states, in running time."""
        while True:
            await asyncio.sleep(1.0)
            state = None if self.life is None else self.life.keeper.state
            if state is None or state.ended:
                continue
            self.fresh_s[state.version] = spent_s = self.fresh_s.get(state.version, 0.0) + 1.0
            self._watch_for_passed_by(state)
            if spent_s > state.terms.within_s + SLACK_S:
                self.complain(
                    f"version {state.version} is stuck: {spent_s:.0f} s of {state.terms.within_s:.0f}, {state.items}"
                )
                return

    def _watch_for_passed_by(self, state: DesiredState) -> None:
        """A package that lies in the incoming folder, whole, is not waited for: whatever lay there before it."""
        waited_for = {one.wanted.package for one in state.items if one.next.startswith("waits for the package")}
        for digest, data in catalogue().data.items():
            path = self.inbox / f"{digest[7:15]}.tar"
            there = digest in waited_for and path.exists() and path.read_bytes() == data
            self.passed_by_s[digest] = self.passed_by_s.get(digest, 0.0) + 1.0 if there else 0.0
            if self.passed_by_s[digest] == SLACK_S:
                self.complain(f"{path.name} lies there and is waited for")

    def _judge(self, when: str) -> None:
        said, life = self.reported, self.life
        assert life is not None
        state = life.keeper.state
        if state is None:
            if said.get("version") is not None:
                self.complain(f"{when}: nothing is desired, and reported says {said}")
            return
        if said.get("version") != state.version or said.get("state") == "pending" or not state.ended:
            self.complain(f"{when}: {said} does not say the end of version {state.version}")
        held = ModelStore(self.folder / "store").packages()
        for item in state.items:
            if (item.state.value == "applied") != held.shows(item.wanted):
                self.complain(f"{when}: {item} and the store holds {held}")
            if item.state.value in ("refused", "rolled-back") and not item.reason:
                self.complain(f"{when}: {item} has no reason")
            self.outcome.counts[f"item {item.state.value}"] += 1
        self._whole(when)

    def happen(self, fault: str) -> None:
        """One thing goes wrong, or is done by a person."""
        match fault:
            case "publish":
                self.publish(self._wish(), self.dice.choice(WITHIN_S))
            case "power cut":
                self._power_is_gone()
            case "power cut in a change":
                self.cut_at = self.dice.choice(INSTALL_POINTS)
            case "full" | "room":
                self.full = fault == "full"
                self.unsaved |= self.full
            case "clock":
                self.clock.set_wall(self.dice.choice((0.0, 1.7e9, 4e9)))
            case "broker":
                self.broker(up=not self.broker_up)
            case "server":
                self.server_up = not self.server_up
            case "server lies":
                self.server_lies = not self.server_lies
            case "arrive all in a change":
                self.arrive_at = "opened"
            case "stick" | "stick away" | "stick away in a change":
                self._stick(fault)
            case "unreadable":
                self.unreadable = not self.unreadable
            case "by hand":
                self._by_hand()
            case "vanish" | "arrive" | "arrive all" | "half" | "forged":
                self._files(fault)
            case _ if self.life is not None:
                self._to_the_daemon(self.life, fault)

    def _to_the_daemon(self, life: Life, fault: str) -> None:
        match fault:
            case "old message" if self.published:
                life.hear(self.dice.choice(self.published))
            case "damaged message":
                life.hear(self.dice.choice((b"{", b'{"version": 999}', b'{"version": -1, "models": []}', b"\xff")))
            case "withdraw" if self.dice.random() < 0.3:
                self.retained = b""
                life.hear(b"")
            case "kill":
                self.process_gone(life)
            case "kill at a save":
                life.doomed = self.dice.choice(("before a save", "after a save"))
            case "orderly stop":
                life.task.cancel()
                self.life = None

    def _wish(self) -> dict[str, Any]:
        dice, known = self.dice, catalogue()
        models: list[dict[str, Any]] = []
        for name, digests in known.models.items():
            if dice.random() < 0.7:
                package = dice.choice((*digests, *digests, None, UNKNOWN, known.models["mini"][0]))
                models.append({"model": name, "package": package})
                if name == "tiny" and package is not None and dice.random() < 0.6:
                    adapter = dice.choice((*known.adapters, None))
                    models[-1]["adapters"] = [{"adapter": "intents", "package": adapter}]
        if dice.random() < 0.2:
            models.append({"model": "off", "package": known.failing})
        if dice.random() < 0.6:
            return {"models": models}
        sources = [{"package": one, "url": f"http://server/{one[7:15]}.tar"} for one in known.data]
        return {"models": models, "sources": sources}

    def publish(self, wish: dict[str, Any], within_s: float) -> None:
        """The operator publishes a version; it arrives now, later from the broker's memory, or twice."""
        self.version += self.dice.choice((1, 1, 7))
        others = "remove" if self.dice.random() < 0.15 else "keep"
        body = {"version": self.version, **wish, "policy": {"within_s": within_s, "others": others}}
        self.retained = json.dumps(body).encode()
        self.published.append(self.retained)
        self.note(f"publish {self.retained.decode()}")
        life = self.life
        if life is not None and self.broker_up:
            for _ in range(self.dice.choice((1, 1, 2))):
                life.hear(self.retained)

    def broker(self, up: bool) -> None:
        """The broker goes, or comes back with what it retains."""
        self.broker_up = up
        life = self.life
        if life is not None:
            life.link.connected = up
            if up and self.retained:
                life.hear(self.retained)

    def arrive(self, digest: str) -> None:
        """A package lies in the incoming folder, whole."""
        (self.inbox / f"{digest[7:15]}.tar").write_bytes(catalogue().data[digest])

    def worse(self, data: bytes) -> bytes:
        """What a bad source makes of a package."""
        place = self.dice.randrange(len(data))
        return self.dice.choice(
            (b"<html>" * 999, data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        )

    def _stick(self, fault: str) -> None:
        if fault == "stick away in a change":
            self.pull_at = self.dice.choice(("opened", "verified", "blob-begun"))
        elif fault == "stick away":
            self._pull_sticks()
        else:
            self._put_stick()

    def _put_stick(self) -> None:
        stick = self.sticks / self.dice.choice("ab")
        stick.mkdir(exist_ok=True)
        for digest, data in catalogue().data.items():
            if self.dice.random() < 0.5:
                whole = self.dice.random() < 0.7
                (stick / f"{digest[7:15]}.tar").write_bytes(data if whole else self.worse(data))

    def _pull_sticks(self) -> None:
        """An open file gives nothing more then."""
        for path in sorted(self.sticks.glob("*/*")):
            os.truncate(path, 0)
            path.unlink()

    def _files(self, fault: str) -> None:
        digest = self.dice.choice(sorted(catalogue().data))
        data, path = catalogue().data[digest], self.inbox / f"{digest[7:15]}.tar"
        if fault == "arrive":
            self.arrive(digest)
        elif fault == "arrive all":
            for one in catalogue().data:
                self.arrive(one)
        elif fault == "half":
            path.write_bytes(data[: self.dice.randrange(len(data))])
        elif fault == "forged":
            place = self.dice.randrange(len(data))
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        elif fault == "vanish":
            for found in sorted(self.inbox.iterdir()):
                if self.dice.random() < 0.5:
                    found.unlink()

    def _by_hand(self) -> None:
        """A person at the board installs, removes or returns something."""
        digest, name = self.dice.choice(sorted(catalogue().data)), self.dice.choice(("tiny", "mini"))
        path = self.folder / "by-hand.tar"
        path.write_bytes(catalogue().data[digest])
        works: tuple[Callable[[ModelStore], object], ...] = (
            lambda store: store.install(path), lambda store: store.remove(name), lambda store: store.rollback(name),
        )  # fmt: skip
        chosen = self.dice.choice(works)

        def work(store: ModelStore) -> None:
            with contextlib.suppress(EdgeError, PackageError):
                chosen(store)

        self.start_process(work)


def simulate(seed: int, story: Callable[[History], Coroutine[Any, Any, None]] = History.play) -> Outcome:
    """One history, of random trouble or as a test tells it; the same seed gives the same one."""
    catalogue()
    clock = ManualClock()
    loop = VirtualLoop(clock)
    loop.set_exception_handler(lambda _loop, _context: None)
    logger = logging.getLogger("edge_agent")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder, mock.patch.object(os, "fsync", lambda _one: None):
            history = loop.run_until_complete(_made(seed, clock, Path(folder)))
            try:
                loop.run_until_complete(story(history))
            except Stuck as error:
                history.complain(str(error))
            finally:
                _end(loop)
    finally:
        logger.setLevel(before)
    return history.outcome


async def _made(seed: int, clock: ManualClock, folder: Path) -> History:
    return History(seed, clock, folder)


def _end(loop: VirtualLoop) -> None:
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        gathered: Coroutine[Any, Any, Any] = _gather(rest)
        loop.run_until_complete(gathered)
    loop.close()


async def _gather(tasks: Collection[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """The exit code is 1 when a history broke a rule; its number is the last line."""
    parser = argparse.ArgumentParser(prog="tests.support.histories", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first history")
    parser.add_argument("--only", type=int, help="play this one, and tell it")
    options = parser.parse_args()
    if options.only is not None:
        outcome = simulate(options.only)
        print(outcome)
        return 1 if outcome.complaints else 0
    began_s, counts, bad = time.monotonic(), Counter[str](), []
    for seed in range(options.seed, options.seed + options.count):
        outcome = simulate(seed)
        counts += outcome.counts
        if outcome.complaints:
            bad.append(seed)
            print(f"history {seed}: {outcome.complaints[0]}", flush=True)
    things = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{options.count} histories from {options.seed} in {time.monotonic() - began_s:.0f} s: {things}")
    if bad:
        print(f"{len(bad)} broke a rule; python -m tests.support.histories --only {bad[0]}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
