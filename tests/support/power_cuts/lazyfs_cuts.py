"""`make powercut LAZYFS=DIR`: power cuts on LazyFS, under real daemons, at their operations and at random moments.

    python -m tests.support.power_cuts.lazyfs_cuts DIR --points 20 --moments 10 --seed 0

DIR: a built clone of LazyFS. The state folder of an `edge-agent run` lies on it; the daemon gets an order over a real
mosquitto, and the power goes: after each operation of a recorded run (`--points`: so many of each order, drawn by the
seed; 0: all), and at moments drawn by the seed. What is left holds the old or the new state, what was answered as done
is there, and a daemon starts on it, answers, and carries the order out when it is given again. The programs that keep
events, desired states and trials are cut off after each of their operations.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.base.errors import EdgeError
from edge_agent.store.inbox_packages import package_digest
from tests.support.agents import AgentProcess, echo_package
from tests.support.desk import Desk, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until
from tests.support.power_cuts.lazyfs import Cut, LazyFolder, kill_tree
from tests.support.power_cuts.spool_scenario import ACKED, KEPT, check_events
from tests.support.power_cuts.state_files_scenario import check_files
from tests.support.power_cuts.store_scenarios import View, opened, view
from tests.support.store_child import ROOT

PROGRAM = Path("lazyfs/build/lazyfs")
DONE_S = 60.0
FAILURES = (AssertionError, EdgeError, OSError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Order:
    """What a device holds before (releases by their counter), what lies in its incoming folder, and what it is told."""

    name: str
    installed: tuple[int, ...]
    package: int | None
    verb: str


ORDERS = (
    Order("install into nothing", (), 1, "install"),
    Order("install the next version", (1,), 2, "install"),
    Order("roll back", (1, 2), None, "rollback"),
    Order("remove", (1, 2), None, "remove"),
    Order("reach a desired state", (1,), 2, "desired"),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """The power goes so many seconds after the order was sent."""

    after_s: float

    def __str__(self) -> str:
        return f"{1000 * self.after_s:.0f} ms after the order"


@dataclass(slots=True)
class Life:
    """One device whose state folder lies on LazyFS."""

    order: Order
    agent: AgentProcess
    disk: LazyFolder
    table: Desk
    package: Path | None
    asked: Iterator[str] = field(default_factory=lambda: map("q{}".format, itertools.count()))

    @property
    def backing(self) -> Path:
        """The state folder as the disk under LazyFS holds it."""
        return self.agent.folder / "backing"

    async def power_on(self) -> None:
        """Start the daemon, and wait until it hears. Raises AssertionError."""
        seen = len(self.table.bodies("status"))
        self.agent.start()
        await until(lambda: self.disk.dead or len(self.table.bodies("status")) > seen)
        assert not self.disk.dead, "the power went before the order"

    def tell(self) -> Callable[[], bool | None]:
        """Send the order; what is returned says whether it was answered as done, or refused, or None: not yet."""
        if self.order.verb == "desired":
            assert self.package is not None
            wanted = [{"model": "echo", "package": package_digest(self.package)}]
            body = json.dumps({"version": 1, "models": wanted, "policy": {"within_s": 600}}).encode()
            self.table.send("desired", body, None, retain=True, response_topic=None, expiry_s=None)
            return self._reached
        name = next(self.asked)
        what = {"model": "echo"} if self.package is None else {"package": self.package.name}
        self.table.send(f"cmd/{self.order.verb}", what, name)

        def answered() -> bool | None:
            found = self.table.replies(name)
            return found[0]["status"] == 200 if found else None

        return answered

    def _reached(self) -> bool | None:
        found = (self.table.bodies("reported") or [{"version": None, "state": None}])[-1]
        return found["state"] == "applied" if found["version"] == 1 and found["state"] != "pending" else None

    async def until_done(self, done: Callable[[], bool | None], within_s: float = DONE_S) -> None:
        """Returns also when LazyFS has ended itself, or when the time is up."""
        until_s = time.monotonic() + within_s
        while done() is None and not self.disk.dead and time.monotonic() < until_s:
            await asyncio.sleep(0.005)

    def give_package(self) -> None:
        """Lay the package into the incoming folder, where it is not."""
        if self.package is not None:
            inbox = self.agent.folder / "state" / "inbox"
            inbox.mkdir(exist_ok=True)
            if not (inbox / self.package.name).exists():
                shutil.copy(self.package, inbox)

    def power_off(self, drop: bool) -> None:
        """End everything at once; with `drop` through LazyFS' own order to clear its cache."""
        if self.agent.process is not None:
            kill_tree(self.agent.process.pid)
            self.agent.process.wait()
            self.agent.process = None
        if drop and not self.disk.dead:
            self.disk.drop()
        self.disk.end()


class Lives:
    """All lives of one order: recorded once, then cut off."""

    def __init__(self, lazyfs: Path, folder: Path, broker: Mosquitto, order: Order, packages: dict[int, Path]) -> None:
        self.order = order
        self._lazyfs, self._folder, self._broker = lazyfs, folder, broker
        self._package = None if order.package is None else packages[order.package]
        self._numbers = itertools.count()
        before = AgentProcess(folder / "before", broker.port)
        state = before.folder / "state"
        (state / "inbox").mkdir(parents=True)
        for counter in order.installed:
            before.install(packages[counter])
        if self._package is not None:
            shutil.copy(self._package, state / "inbox")
        self._before, self._old = state, view(state / "store")
        self._new: View = ((), ())
        self.operations: Sequence[Cut] = ()
        self.took_s = 0.0
        self.fired = 0

    @contextlib.asynccontextmanager
    async def _life(self, cut: Cut | None) -> AsyncIterator[Life]:
        name = f"{self.order.verb}-{len(self.order.installed)}-{next(self._numbers)}"
        top = self._folder / name
        agent = AgentProcess(top, self._broker.port, name)
        shutil.copytree(self._before, top / "backing")
        disk = LazyFolder(self._lazyfs / PROGRAM, top / "state", top / "backing")
        async with desk(self._broker, name) as table:
            life = Life(self.order, agent, disk, table, self._package)
            try:
                disk.mount(cut)
                yield life
            finally:
                life.power_off(drop=False)
        shutil.rmtree(top)

    async def record(self) -> None:
        """Carry the order out, and keep which operations that took. Raises AssertionError."""
        async with self._life(None) as life:
            await life.power_on()
            started = len(life.disk.operations())
            begun_s = time.monotonic()
            done = life.tell()
            await life.until_done(done)
            self.took_s = time.monotonic() - begun_s
            assert done(), f"{self.order.name}: {life.agent.log}"
            self.operations = life.disk.operations()[started:]
            life.agent.stop()
            self._new = view(life.agent.folder / "state" / "store")
            assert self._new != self._old, self.order.name

    async def check(self, cut: Cut | Moment) -> bool:
        """Carry the order out and cut it off. True when the power went before the answer. Raises AssertionError."""
        where = f"{self.order.name}, {cut}"
        async with self._life(cut if isinstance(cut, Cut) else None) as life:
            done: Callable[[], bool | None] = lambda: None  # noqa: E731 - the daemon may end before it is told anything
            try:
                await life.power_on()
                done = life.tell()
                await life.until_done(done, DONE_S if isinstance(cut, Cut) else cut.after_s)
            except AssertionError:
                if not life.disk.dead:
                    raise
            self.fired += isinstance(cut, Cut) and life.disk.dead
            life.power_off(drop=True)
            await asyncio.sleep(0.05)  # an answer may be on its way
            promised = done()
            assert promised is not False, f"{where}: refused: {life.agent.log[-2000:]}"
            seen = self._left(life, where)
            assert seen == self._new if promised else seen in (self._old, self._new), f"{where}: neither: {seen}"
            await self._again(life, seen, where)
            return promised is None

    def _left(self, life: Life, where: str) -> View:
        """What the disk holds, looked at in a copy."""
        copy = life.agent.folder / "copy"
        shutil.copytree(life.backing, copy)
        store = copy / "store"
        library = opened(store)
        library.recover()
        seen = view(store)
        assert library.problems() == () and library.scrub() == (), f"{where}: {library.problems()} {library.scrub()}"
        assert library.collect() == 0 and not list(store.rglob("*.tmp")), where
        return seen

    async def _again(self, life: Life, seen: View, where: str) -> None:
        """Power on: the daemon answers a request, and the order is carried out if it was not."""
        life.disk.mount()
        await life.power_on()
        wanted = 200 if seen[0] else 404
        answer = await life.table.ask(next(life.asked), {"text": "x"})
        # A desired state is worked on at once, so that there may be a model before the answer.
        assert answer["status"] == wanted, f"{where}: after power on {answer}"
        if seen != self._new or self.order.verb == "desired":
            life.give_package()
            done = life.tell()
            await life.until_done(done)
            assert done(), f"{where}: given again: {life.agent.log[-2000:]}"
        life.agent.stop()
        store = life.agent.folder / "state" / "store"
        assert view(store) == self._new and opened(store).scrub() == (), f"{where}: given again: {view(store)}"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the simulator that changes files and says what it promises."""

    name: str
    module: str
    check: Callable[[Path, str, str], None]


def _events(top: Path, said: str, where: str) -> None:
    lines = [line.split() for line in said.splitlines()]
    kept, acked = ({int(number) for word, number in lines if word == wanted} for wanted in (KEPT, ACKED))
    check_events(top / "events", kept - acked, where)


def _files(top: Path, said: str, where: str) -> None:
    lines = [line.split() for line in said.splitlines()]
    saved = {one: [int(number) for word, number in lines if word == one] for one in ("desired", "trials", "samples")}
    check_files(top, {one: max(numbers, default=0) for one, numbers in saved.items()}, where)


PROGRAMS = (
    Program("events in the spool", "spool_scenario", _events),
    Program("the desired state and trials", "state_files_scenario", _files),
)


NO_SYNC = "import os\nos.fsync = lambda descriptor: None\n"


def _try_the_check(lazyfs: Path, folder: Path) -> None:
    """A program that does not sync must be found, or LazyFS drops nothing here. Raises AssertionError."""
    (folder / "no-sync").mkdir()
    (folder / "no-sync" / "sitecustomize.py").write_text(NO_SYNC)
    for program in PROGRAMS:
        try:
            cut_program(lazyfs, folder / "program", program, None, PYTHONPATH=str(folder / "no-sync"))
        except AssertionError:
            continue
        raise AssertionError(f"{program.name}: nothing is lost without fsync: this LazyFS drops nothing")


def cut_program(lazyfs: Path, folder: Path, program: Program, cut: Cut | None, **environment: str) -> list[Cut]:
    """Run it on LazyFS, off after `cut` (None: at its end), and check what is left. Returns the operations."""
    shutil.rmtree(folder, ignore_errors=True)
    backing = folder / "backing"
    disk = LazyFolder(lazyfs / PROGRAM, folder / "state", backing)
    place = disk.folder / "events" if program.module == "spool_scenario" else disk.folder
    try:
        disk.mount(cut)
        command = [sys.executable, "-m", f"tests.support.power_cuts.{program.module}", str(place)]
        env = {**os.environ, **environment}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DONE_S, cwd=ROOT, env=env)
        assert disk.dead or done.returncode == 0, f"{program.name}: {done.stderr}"
        operations = disk.operations()
        assert disk.dead or cut is None, f"{program.name}, {cut}: LazyFS did not end"
        if not disk.dead:
            disk.drop()
    finally:
        disk.end()
    program.check(backing, done.stdout, f"{program.name}, {cut or 'at its end'}")
    return operations


class Tally:
    """Points that were tried, and what was not survived."""

    def __init__(self) -> None:
        self.points = 0
        self.failures: list[str] = []

    @contextlib.contextmanager
    def one(self, where: str) -> Iterator[None]:
        """Count one point; what it raises is kept."""
        self.points += 1
        try:
            yield
        except FAILURES as error:
            self.failures.append(f"{where}: {type(error).__name__}: {error}")
            print(self.failures[-1], flush=True)


async def _orders(lazyfs: Path, folder: Path, options: argparse.Namespace, tally: Tally) -> None:
    packages = {counter: echo_package(folder / "packages", counter=counter) for counter in (1, 2)}
    with Mosquitto(folder) as broker:
        for number, order in enumerate(ORDERS):
            lives = await asyncio.to_thread(Lives, lazyfs, folder / str(number), broker, order, packages)
            await lives.record()
            draw = random.Random(f"{options.seed} {order.name}")
            cuts: list[Cut | Moment] = list(lives.operations)
            if options.points and options.points < len(cuts):
                cuts = draw.sample(cuts, options.points)
            at_operations = len(cuts)
            cuts += [Moment(draw.uniform(0, 1.1 * lives.took_s)) for _ in range(options.moments)]
            before = 0
            for cut in cuts:
                with tally.one(str(cut)):
                    before += await lives.check(cut)
            print(
                f"{order.name}: {len(lives.operations)} operations, cut after {at_operations} of them"
                f" ({lives.fired} came up again, else after the answer) and at {options.moments} random"
                f" moments; {before} of {len(cuts)} before the answer",
                flush=True,
            )


def main() -> int:
    """Run everything; print a line per order and program. Returns 1 when a power cut was not survived."""
    parser = argparse.ArgumentParser()
    parser.add_argument("lazyfs", type=Path, help="a built clone of LazyFS")
    parser.add_argument("--points", type=int, default=0, help="operations of each order to cut after (0: all)")
    parser.add_argument("--moments", type=int, default=10, help="random moments of each order")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options = parser.parse_args()
    lazyfs = options.lazyfs.resolve()
    if not (lazyfs / PROGRAM).exists():
        parser.error(f"{lazyfs / PROGRAM} is not there: build LazyFS as its README.md says, and give its folder")
    logging.disable(logging.ERROR)
    tally, began_s = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lazyfs-cuts-") as name:
        folder = Path(name)
        _try_the_check(lazyfs, folder)
        for program in PROGRAMS:
            operations = cut_program(lazyfs, folder / "program", program, None)
            for cut in operations:
                with tally.one(program.name):
                    cut_program(lazyfs, folder / "program", program, cut)
            print(f"{program.name}: cut after {len(operations)} operations", flush=True)
        asyncio.run(_orders(lazyfs, folder, options, tally))
    print(f"{tally.points} power cuts, {len(tally.failures)} not survived, {time.monotonic() - began_s:.0f} s")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
