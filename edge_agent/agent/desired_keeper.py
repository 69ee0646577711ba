"""Brings the device to the state that `desired` names, and reports how far it is.

What is to be done next is decided by `core.desired_state`; the changes of the store run in processes of their own
(`commands.Operator`), one at a time. The state is saved before an attempt begins, so that attempts which take the board
down are counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edge_agent.agent.commands import Operator
from edge_agent.agent.context import Context
from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError
from edge_agent.core.desired_state import (
    RESTART_S,
    Attempt,
    DesiredState,
    FoundPackage,
    InstalledPackages,
    Item,
    ItemState,
    StoreAction,
    Surroundings,
    Terms,
    Wanted,
)
from edge_agent.core.trial_records import TrialRecord
from edge_agent.protocol.decode import DesiredRefused, decode_desired
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import Desired, NotTaken
from edge_agent.protocol.trial_terms import trial_text

log = logging.getLogger("edge_agent")
LOOK_S = 1.0
SCAN_S = 10.0
"""How often the sources are looked through while something waits for a package."""
SAVE_S = RESTART_S - 5.0
"""The time spent is saved this often; a restart costs RESTART_S, so no running time is lost."""
REPORT_S = 300.0
"""The state is published again so often, for a broker that has lost it."""
UNREAD_S = 600.0
"""A saved state that the disk does not give is waited for so long."""
PROGRESS_S = 15.0
"""A download that goes on is a change to publish no more often than this: the message has all items in it."""


class DesiredStorage(Protocol):
    """Keeps the desired state over restarts. Implemented by `store.desired_file.DesiredFile`."""

    def read(self) -> DesiredState | None:
        """What was saved last; None where there is nothing, or nothing that makes sense. Raises StoreError where the
        disk does not give it now."""
        ...

    def write(self, state: DesiredState) -> None:
        """Save it, atomically. Raises StoreError."""
        ...


class PackageSource(Protocol):
    """Where packages are looked for. Implemented by `app.daemon.InboxSource`."""

    def find(self, wanted: Collection[str]) -> Coroutine[Any, Any, Mapping[str, FoundPackage]]:
        """For digests that are wanted and can be had now: the name that `Operator.install` takes, or the path that
        `install_from` takes, by its slash."""
        ...

    def refused(self, found: FoundPackage) -> None:
        """What was found is not the package that it claims to be: not to be found again unless it has changed since."""
        ...


class ReportDesired(Protocol):
    """Publish `reported`; `agent.device_reporter.Publisher.reported`."""

    def __call__(
        self,
        state: DesiredState | None,
        installed: InstalledPackages | None,
        not_taken: NotTaken | None,
        trials: Sequence[TrialRecord] = (),
    ) -> None:
        """What the device works on, what it holds (None: the store cannot be read), what it did not take, and the
        trials of versions."""
        ...


class DesiredKeeper:
    """Takes messages on `desired` and works towards the newest. Implements `agent.loop.Background`."""

    def __init__(
        self,
        context: Context,
        read_installed: Callable[[], InstalledPackages],
        operator: Operator,
        source: PackageSource,
        storage: DesiredStorage,
        report: ReportDesired,
    ) -> None:
        """`read_installed` may raise EdgeError."""
        self._context = context
        self._read_installed = read_installed
        self._operator = operator
        self._source = source
        self._storage = storage
        self._report = report
        self._installed: InstalledPackages | None = None
        self._offered: Mapping[str, FoundPackage] = {}
        self._scan: asyncio.Task[Mapping[str, FoundPackage]] | None = None
        self._scanned_s: float | None = None
        # Until when URLs wait for the first look through the folders; None once that was done.
        self._folders_first_s: float | None = context.clock.monotonic_s() + SCAN_S
        self._attempt: tuple[Attempt, asyncio.Task[None]] | None = None
        # The file that the attempt installs, and an attempt for an earlier version that was told to end.
        self._file: FoundPackage | None = None
        self._stopped: asyncio.Task[None] | None = None
        self._not_taken: NotTaken | None = None
        self._connected = False
        self._reported: tuple[float, object, object] | None = None
        # What of the state is on the disk: the items, and the time spent.
        self._saved: tuple[object, float] | None = None
        self._trouble = ""
        self._state: DesiredState | None = None
        self._announced: tuple[int, ItemState] | None = None
        # Until when the file is waited for, when it is tried again, and the message that waits with it.
        self._unread: tuple[float, float] | None = (context.clock.monotonic_s() + UNREAD_S, 0.0)
        self._waiting: Inbound | None = None
        self._read_saved()

    @property
    def state(self) -> DesiredState | None:
        """What the device works on, or has ended with."""
        return self._state

    def urls(self, package: str) -> tuple[str, ...]:
        """Where the desired state says that a package can be fetched."""
        return self._sources().get(package, ())

    async def run(self) -> None:
        """Look once a second, until cancelled; an attempt under way is stopped then."""
        try:
            while True:
                self.tick()
                await asyncio.sleep(LOOK_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop what is under way, in order: that is no attempt which took the device down."""
        running, self._attempt = self._attempt, None
        for task in (self._scan, self._stopped, None if running is None else running[1]):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if running is not None and self._state is not None:
            stopped = (Cause.UNAVAILABLE, "the daemon was stopped during an attempt")
            self._state.attempt_ended(running[0].wanted, stopped, self._around())
            self._save()

    def receive(self, message: Inbound) -> None:
        """A message on the desired topic: the broker's retained one, a new one, a duplicate, or an old one."""
        if self._unread is not None:
            self._waiting = message  # the newest: the broker retains no more either
            return
        self._waiting = None  # older than this one, see `receive_later`
        decoded = decode_desired(message)
        if decoded is None:
            self._withdraw()
        elif isinstance(decoded, DesiredRefused):
            self._refuse(decoded.version, decoded.reason)
        else:
            self._take(decoded)

    def receive_later(self, message: Inbound) -> None:
        """As `receive`, at the next look, and only the last of those that come until then: there are too many."""
        self._waiting = message

    def tick(self) -> None:
        """Look at the store and the sources; begin what can be begun, save and publish what has changed."""
        self._read_saved()
        self._take_waiting()
        self._take_scan()
        self._end_attempt()
        around, state = self._around(), self._state
        if state is not None:
            attempt = state.look(around)
            if attempt is not None:
                self._begin(state, attempt)
            self._save_if_due(state)
            self._look_for_packages(state)
            self._announce_end(state)
        self._publish_if_due()

    def _read_saved(self) -> None:
        """Go on with what was saved. A disk that does not give it now is asked again for a while: to begin anew would
        forget the versions below which nothing is taken, and the attempts that were cut off."""
        now_s = self._context.clock.monotonic_s()
        if self._unread is None or now_s < self._unread[1]:
            return
        try:
            self._state = self._storage.read()
        except EdgeError as error:
            if now_s < self._unread[0]:
                self._unread = (self._unread[0], now_s + SCAN_S)
                self._refuse(None, f"the state that was saved is waited for: {error}")
                return
            log.warning("how far the desired state was is not known; the broker's message begins anew: %s", error)
        self._unread, self._not_taken = None, None
        if self._state is not None:
            self._announced = (self._state.version, self._state.summary)
            self._state.restarted(self._context.clock.wall_s())
        self._take_waiting()

    def _take_waiting(self) -> None:
        if self._unread is None and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.receive(waiting)

    # ---- what arrives ----------------------------------------------------------------------------------------------

    def _take(self, body: Desired) -> None:
        fingerprint = hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()
        now = self._state
        if now is not None and body.version == now.version:
            if fingerprint != now.fingerprint:
                self._refuse(body.version, f"version {body.version} was taken with other contents; give a higher one")
            elif now.withdrawn:
                now.shown_again()
                self._save()
            return
        if now is not None and body.version < now.version:
            self._refuse(body.version, f"version {body.version} is older than {now.version}, which was taken")
            return
        self._stop_attempt()
        items = [Item(wanted, since_s=self._context.clock.wall_s()) for wanted in _wanted(body)]
        self._state = DesiredState(body.version, _terms(body), items, fingerprint=fingerprint)
        self._not_taken, self._announced, self._scanned_s = None, None, None
        self._folders_first_s = self._context.clock.monotonic_s() + SCAN_S
        before = "" if now is None or now.ended else f"; version {now.version} had not ended"
        text = f"version {body.version} is taken: {len(items)} items, within {body.policy.within_s:.0f} s{before}"
        self._context.announce("desired", text, {"version": body.version}, "info")
        self._save()

    def _refuse(self, version: int | None, reason: str) -> None:
        not_taken = NotTaken(version=version, reason=reason)
        if not_taken != self._not_taken:  # the broker repeats what it retains at every connection
            self._not_taken = not_taken
            self._context.announce("desired", f"not taken: {reason}", {"version": version})

    def _withdraw(self) -> None:
        state = self._state
        self._not_taken = None
        if state is None or state.withdrawn:
            return
        self._stop_attempt()
        state.withdraw(self._context.clock.wall_s())
        self._save()

    # ---- what is done ----------------------------------------------------------------------------------------------

    def _begin(self, state: DesiredState, attempt: Attempt) -> None:
        self._save()
        if self._trouble and attempt.action is not StoreAction.REMOVE:
            unsaved = (Cause.DISK_FULL, f"the state cannot be saved: {self._trouble}")
            state.attempt_ended(attempt.wanted, unsaved, self._around())
            return
        task = asyncio.create_task(self._carry_out(attempt), name=f"desired-{attempt.action.value}")
        self._attempt = (attempt, task)

    async def _carry_out(self, attempt: Attempt) -> None:
        wanted, limit_s = attempt.wanted, attempt.limit_s
        if attempt.action is StoreAction.REMOVE:
            await self._operator.remove(wanted.model, wanted.adapter, limit_s)
        elif attempt.action is StoreAction.ROLL_BACK:
            await self._operator.rollback(wanted.model, limit_s, self._trial())
        else:
            await self._install(wanted.package or "", attempt)

    async def _install(self, digest: str, attempt: Attempt) -> None:
        """From the next source in turn: a file that was found first, then the URLs."""
        found, urls = self._offered.get(digest), self._sources().get(digest, ())
        number = (attempt.number - 1) % (len(urls) + (found is not None))
        if found is not None and number == 0:
            self._file = found
            if "/" in found.name:
                await self._operator.install_from(found.name, digest, attempt.limit_s, self._trial())
            else:
                await self._operator.install(found.name, attempt.limit_s, digest, self._trial())
        else:
            state, url = self._state, urls[number - (found is not None)]

            def progress(done: int, total: int) -> None:
                if state is not None:
                    state.fetching(attempt.wanted, done, total)

            await self._operator.fetch(url, digest, attempt.limit_s, progress, self._trial())

    def _sources(self) -> Mapping[str, tuple[str, ...]]:
        return {} if self._state is None else self._state.terms.sources

    def _trial(self) -> str:
        return "" if self._state is None else self._state.terms.trial

    def _end_attempt(self) -> None:
        if self._attempt is None or self._state is None or not self._attempt[1].done():
            return
        (attempt, task), self._attempt = self._attempt, None
        (failure, file), self._file = (_failure(task), self._file), None
        if failure is not None and failure[0] is Cause.SOURCE and file is not None:
            self._source.refused(file)
        if file is not None and (failure is None or failure[0] is Cause.SOURCE):
            # What was installed has left the incoming folder; the next look finds what is there still.
            self._offered = {digest: one for digest, one in self._offered.items() if one != file}
        self._scanned_s = None
        self._state.attempt_ended(attempt.wanted, failure, self._around())
        self._save()

    def _stop_attempt(self) -> None:
        """The attempt is for a version that nobody wants any more. Its process is told to end, which it may at any
        moment; the store shows the old state or the new one. The next attempt waits until it has ended."""
        if self._attempt is not None:
            (_, task), self._attempt, self._file = self._attempt, None, None
            task.add_done_callback(_note_stopped)
            task.cancel()
            self._stopped = task

    def _look_for_packages(self, state: DesiredState) -> None:
        """Begin to look through the sources, where a package is waited for."""
        wanted = {item.wanted.package for item in state.items if item.state is ItemState.PENDING} - {None}
        now_s = self._context.clock.monotonic_s()
        due = self._scanned_s is None or now_s - self._scanned_s >= SCAN_S
        if wanted and due and self._scan is None:
            self._scanned_s = now_s
            find = self._source.find({one for one in wanted if one is not None})
            self._scan = asyncio.create_task(find, name="desired-sources")

    def _take_scan(self) -> None:
        if self._scan is None or not self._scan.done():
            return
        (task, self._scan), self._folders_first_s = (self._scan, None), None
        if task.cancelled() or (error := task.exception()) is not None:
            log.error("the sources of packages cannot be looked through: %r", None if task.cancelled() else error)
            self._offered = {}
        else:
            self._offered = task.result()

    def _around(self) -> Surroundings:
        try:
            self._installed = self._read_installed()
        except EdgeError as error:
            log.debug("what is installed cannot be read: %s", error)
            self._installed = None
        clock = self._context.clock
        fetching = self._folders_first_s is None or clock.monotonic_s() > self._folders_first_s
        offered = {*self._offered, *(self._sources() if fetching else ())}
        if self._stopped is not None and self._stopped.done():
            self._stopped = None
        saved, stopping = not self._trouble, self._stopped is not None
        return Surroundings(self._installed, offered, saved, clock.monotonic_s(), clock.wall_s(), stopping)

    # ---- what is kept and told -------------------------------------------------------------------------------------

    def _save_if_due(self, state: DesiredState) -> None:
        known = self._saved
        if known is None or known[0] != _marks(state) or abs(state.spent_s - known[1]) >= SAVE_S:
            self._save()

    def _save(self) -> None:
        if self._state is None:
            return
        try:
            self._storage.write(self._state)
        except EdgeError as error:
            if not self._trouble:
                log.error("the desired state cannot be saved, so nothing is begun but removals: %s", error)
            self._trouble, self._saved = str(error), None
        else:
            self._trouble, self._saved = "", (_marks(self._state), self._state.spent_s)

    def _announce_end(self, state: DesiredState) -> None:
        """An event at the end of a version, and whenever that end changes."""
        summary = state.summary
        if summary is ItemState.PENDING or self._announced == (state.version, summary):
            return
        self._announced = (state.version, summary)
        wrong = [f"{item.wanted.text()} {item.state.value}: {item.reason}" for item in state.items if item.reason]
        text = "; ".join([f"version {state.version} has ended: {summary.value}", *wrong[:3]])
        applied = summary is ItemState.APPLIED
        self._context.announce(
            "desired", text, {"version": state.version, "state": summary.value}, "info" if applied else "warning"
        )

    def _publish_if_due(self) -> None:
        connected, now_s = self._context.transport.connected, self._context.clock.monotonic_s()
        shown = (None if self._state is None else (self._state.version, _shown(self._state)), self._installed)
        marks = (shown, self._not_taken, tuple(self._context.trials.values()))
        came, self._connected = connected and not self._connected, connected
        if not connected:
            return
        progress = () if self._state is None else tuple(one.fetched for one in self._state.items)
        if not came and self._reported is not None and self._reported[1] == marks:
            pause_s = REPORT_S if self._reported[2] == progress else PROGRESS_S
            if now_s - self._reported[0] < pause_s:
                return
        self._reported = (now_s, marks, progress)
        self._report(self._state, self._installed, self._not_taken, tuple(self._context.trials.values()))


def _note_stopped(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("an attempt for an earlier desired state ended: %s", error)


def _failure(task: asyncio.Task[None]) -> tuple[Cause, str] | None:
    if task.cancelled():
        return Cause.UNAVAILABLE, "the attempt was stopped"
    error = task.exception()
    if error is None:
        return None
    if isinstance(error, EdgeError):
        return error.cause, str(error)
    log.error("%s ended: %r", task.get_name(), error, exc_info=error)
    return Cause.AGENT_ERROR, f"an error of the agent: {type(error).__name__}"


def _wanted(body: Desired) -> list[Wanted]:
    found = []
    for model in body.models:
        if not isinstance(model.package, msgspec.UnsetType):
            found.append(Wanted(model.model, None, model.package))
        found.extend(Wanted(model.model, one.adapter, one.package) for one in model.adapters)
    return found


def _terms(body: Desired) -> Terms:
    sources: dict[str, tuple[str, ...]] = {}
    for one in body.sources:
        sources[one.package] = (*sources.get(one.package, ()), one.url)
    trial = "" if isinstance(body.policy.trial, msgspec.UnsetType) else trial_text(body.policy.trial)
    return Terms(body.policy.within_s, body.policy.others == "remove", sources, trial)


def _marks(state: DesiredState) -> tuple[object, ...]:
    """What must be on the disk."""
    return (state.version, *((one.wanted, one.state, one.attempts, one.cut_off) for one in state.items))


def _shown(state: DesiredState) -> tuple[object, ...]:
    """What operators see of the items."""
    items = tuple((one.wanted, one.state, one.attempts, one.reason, one.next) for one in state.items)
    return (state.withdrawn, *items)
