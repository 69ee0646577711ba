"""What the device is to hold (`desired`) and how far it is (`reported`): one transition table for each thing named.

The page for operators is docs/desired.md. Rules for changes:
- Nothing is begun for an item whose state is in `ENDED`; only what the store shows can change its state then.
- What is applied is read from the store, never from the result of an attempt: an attempt that was killed may have
  switched, and one that ended well may have brought something else.
- Time is the running time of the daemon (monotonic), carried over restarts, where each restart costs `RESTART_S`. The
  wall clock is shown and never decided by. So every version ends within `within_s` of running time, and after
  `within_s / RESTART_S` restarts at the latest.
- An attempt is begun before the time is up and gets the time that is left, at most that of an order;
  TIME_UP comes to items without one.

This module knows no file and no clock. `agent.desired_keeper` carries out its orders, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from edge_agent.base.causes import Cause
from edge_agent.base.limits import DESIRED_ITEMS
from edge_agent.core import backoff

RESTART_S = 30.0
"""Added to the time spent at every restart: at most so much passes between two saved states."""
RETRY_BASE_S, RETRY_CAP_S = 10.0, 600.0
BUSY_S = 5.0
MOST_CUT_OFF = 3
"""Attempts that the end of the daemon (a power cut, a kill) cut off. The trials of a package that takes the board down
must not be repeated until the time is up."""
LEAST_ATTEMPT_S = 10.0
"""An attempt that would have less time is not begun."""
FOR_GOOD = frozenset({Cause.PACKAGE_REFUSED, Cause.PROBES_FAILED, Cause.NO_EARLIER_VERSION})
"""Causes that the same package meets again on this device; all others are tried again. INVALID is none: the settings
file has it, too, while someone edits it. SIGNATURE is none: the digest of a package does not cover its statement, which
another source may give signed; see `MOST_UNSIGNED`."""
UNCOUNTED = frozenset({Cause.BUSY, Cause.UNAVAILABLE, Cause.DISK_FULL, Cause.SOURCE, Cause.NO_TRUST_ROOT})
"""Causes that say nothing about the package and cost no trial: tried again until the time is up. After any other one,
`MOST_ATTEMPTS` attempts are made: each may load the model and wear the board."""
MOST_ATTEMPTS = 8
MOST_UNSIGNED = 3
"""Attempts that end at a signature, or one for each source where there are more; then the package is refused."""


MOST_ITEMS = 8 * DESIRED_ITEMS
"""With those that are to go because nothing names them."""


class ItemState(Enum):
    """Where one thing named by `desired` is."""

    PENDING = "pending"
    WORKING = "working"
    """An attempt is under way. Reported as pending."""
    APPLIED = "applied"
    REFUSED = "refused"
    ROLLED_BACK = "rolled-back"
    """It was applied, and the device shows something else since."""


class ItemEvent(Enum):
    """What happens to it."""

    SHOWN = "shown"
    """The store shows what is wanted."""
    LOST = "lost"
    """The store shows something else than what is wanted."""
    BEGUN = "begun"
    FAILED = "failed"
    """The attempt ended without effect, and may succeed later."""
    REFUSED = "refused"
    """The attempt ended without effect, and the next one would, too."""
    CUT_OFF = "cut off"
    """The daemon ended during the attempt."""
    TIME_UP = "time up"


_S, _E = ItemState, ItemEvent
TRANSITIONS: Mapping[ItemState, Mapping[ItemEvent, ItemState]] = {
    _S.PENDING: {
        _E.SHOWN: _S.APPLIED,
        _E.BEGUN: _S.WORKING,
        _E.REFUSED: _S.REFUSED,
        _E.TIME_UP: _S.REFUSED,
    },
    _S.WORKING: {
        _E.SHOWN: _S.APPLIED,
        _E.FAILED: _S.PENDING,
        _E.REFUSED: _S.REFUSED,
        _E.CUT_OFF: _S.PENDING,
    },
    _S.APPLIED: {_E.LOST: _S.ROLLED_BACK},
    # Someone on the device did what was asked for after all.
    _S.REFUSED: {_E.SHOWN: _S.APPLIED},
    _S.ROLLED_BACK: {_E.SHOWN: _S.APPLIED},
}
ENDED = frozenset({_S.APPLIED, _S.REFUSED, _S.ROLLED_BACK})

Key = tuple[str, str | None]
"""A model, or one adapter of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that `desired` names: the model, or an adapter of it, from the package with this digest (of its index).
    None: it is not to be on the device."""

    model: str
    adapter: str | None
    package: str | None

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.model, self.adapter

    def text(self) -> str:
        """For a sentence."""
        return f"model {self.model!r}" if self.adapter is None else f"adapter {self.adapter!r} of {self.model!r}"


@dataclass(frozen=True, slots=True)
class InstalledPackages:
    """What the store holds: the package that each model and each adapter came from, and that of the version before;
    `damaged`: models that lie there and cannot run, and their adapters."""

    current: Mapping[Key, str] = field(default_factory=dict)
    previous: Mapping[str, str] = field(default_factory=dict)
    damaged: Collection[Key] = frozenset()

    def shows(self, wanted: Wanted) -> bool:
        """Whether this is what is wanted. What is damaged is neither the package nor gone."""
        return self.current.get(wanted.key) == wanted.package and (
            wanted.package is not None or wanted.key not in self.damaged
        )


@dataclass(slots=True)
class Item:
    """The state of one thing. `since_s` is wall time, of the state as it is reported; `reason` says why it was refused
    or rolled back, or what the last attempt met; `trials`: attempts that failed for a cause that counts; `again_s` is
    monotonic; `next` says what happens next while it is pending; `fetched`: bytes of its package that the attempt under
    way has fetched, and of how many, where it tells."""

    wanted: Wanted
    state: ItemState = ItemState.PENDING
    since_s: float = 0.0
    reason: str = ""
    cause: Cause | None = None
    attempts: int = 0
    cut_off: int = 0
    trials: int = 0
    again_s: float = -math.inf
    next: str = ""
    fetched: tuple[int, int] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is begun for it any more."""
        return self.state in ENDED

    def move(self, event: ItemEvent, wall_s: float) -> None:
        """Raises ValueError where this cannot happen to it."""
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise ValueError(f"{event.value!r} cannot happen to what is {self.state.value}")
        self.fetched = None
        if after in ENDED:
            self.next = ""
        if after in ENDED or self.state in ENDED:
            self.since_s = wall_s
        self.state = after

    def shown(self, wall_s: float) -> None:
        """The store shows what is wanted."""
        self.move(ItemEvent.SHOWN, wall_s)
        self.reason, self.cause = "", None

    def lost(self, found: str | None, wall_s: float) -> None:
        """The store shows package `found` instead."""
        self.move(ItemEvent.LOST, wall_s)
        what = "nothing that can run" if found is None else f"package {found}"
        self.reason = f"changed on the device after it was applied: it holds {what} now"

    def begun(self, what: str, wall_s: float) -> None:
        """An attempt begins; `what`: what is being done."""
        self.move(ItemEvent.BEGUN, wall_s)
        self.attempts += 1
        self.next = what

    def fetching(self, done: int, total: int) -> None:
        """The attempt under way has fetched `done` of `total` bytes."""
        self.fetched = (done, total)

    def failed(self, cause: Cause, reason: str, now_s: float, wall_s: float, sources: int = 1) -> None:
        """The attempt ended without effect; it is refused, or tried again later. `sources`: how many there are."""
        self.reason, self.cause = reason, cause
        self.trials += cause not in UNCOUNTED
        most = max(MOST_UNSIGNED, sources) if cause is Cause.SIGNATURE else MOST_ATTEMPTS
        if cause in FOR_GOOD or self.trials >= most:
            self.move(ItemEvent.REFUSED, wall_s)
            return
        self.move(ItemEvent.FAILED, wall_s)
        pause_s = backoff.delay_s(self.attempts - 1, RETRY_BASE_S, RETRY_CAP_S, 1.0)
        if cause in (Cause.BUSY, Cause.UNAVAILABLE):  # someone else changes the store, or the daemon stops
            self.attempts -= 1
            pause_s = BUSY_S
        self.again_s = now_s + pause_s
        self.next = f"tried again in {pause_s:.0f} s"

    def interrupted(self, wall_s: float) -> None:
        """The daemon ended during the attempt."""
        self.cut_off += 1
        self.reason = "the daemon ended during an attempt (a power cut, or a kill)"
        self.move(ItemEvent.CUT_OFF, wall_s)
        if self.cut_off >= MOST_CUT_OFF:
            self.refuse(f"{self.cut_off} attempts were cut off on this device (power cuts, or kills)", None, wall_s)

    def refuse(self, reason: str, cause: Cause | None, wall_s: float) -> None:
        """It will not be done."""
        self.reason, self.cause = reason, cause
        self.move(ItemEvent.REFUSED, wall_s)

    def time_is_up(self, within_s: float, wall_s: float) -> None:
        """It waited until the end."""
        waited = self.next if self.next.startswith("waits") else "was put off"
        last = f"; the last attempt: {self.reason}" if self.reason else ""
        self.reason = f"not done within {within_s:.0f} s of running: it {waited}{last}"
        self.cause = self.cause or Cause.EXPIRED
        self.move(ItemEvent.TIME_UP, wall_s)

    def wait(self, what: str) -> None:
        """What it waits for."""
        self.next = what


class FoundPackage(NamedTuple):
    """A file that a package lies in: the name in the incoming folder, or the path on a stick, by its slash; `mark`:
    what changes when the file is changed or exchanged."""

    name: str
    mark: tuple[int, ...] = ()


class StoreAction(Enum):
    """What the agent is to do."""

    INSTALL = "install"
    ROLL_BACK = "roll back"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Do this for one item, in `limit_s` seconds at most. `number`: which attempt it is, from 1."""

    wanted: Wanted
    action: StoreAction
    limit_s: float
    number: int = 1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known at a look: the store (None: it cannot be read), digests of packages that can be had now, whether
    the state is saved, whether an attempt for an earlier version has not ended yet."""

    installed: InstalledPackages | None
    offered: Collection[str]
    saved: bool
    now_s: float
    wall_s: float
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """How a version is to be reached: in so many seconds of running time, with the removal of what it does not name,
    with packages fetched from these URLs by digest, and with a trial of each new version on these terms (JSON; '' for
    none)."""

    within_s: float
    remove_others: bool = False
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trial: str = ""


class DesiredState:
    """One version of `desired` on its way. Other modules call the methods and only read."""

    def __init__(
        self,
        version: int,
        terms: Terms,
        items: list[Item],
        *,
        fingerprint: str = "",
        spent_s: float = 0.0,
        withdrawn: bool = False,
    ) -> None:
        """`fingerprint` tells two messages of one version apart; `spent_s`: running time that earlier daemons have
        spent on it; `withdrawn`: the operator has deleted it at the broker since."""
        self.version = version
        self.terms = terms
        self.fingerprint = fingerprint
        self.items = items
        self.spent_s = spent_s
        self.withdrawn = withdrawn
        self._looked_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether every item has ended."""
        return all(item.ended for item in self.items)

    @property
    def left_s(self) -> float:
        """Running time until everything has ended; 0 when it has, and when the time is up."""
        return 0.0 if self.ended else max(0.0, self.terms.within_s - self.spent_s)

    @property
    def summary(self) -> ItemState:
        """The state of the whole: pending while anything is, else the worst."""
        states = {item.state for item in self.items}
        if states & {ItemState.PENDING, ItemState.WORKING}:
            return ItemState.PENDING
        return next((one for one in (ItemState.ROLLED_BACK, ItemState.REFUSED) if one in states), ItemState.APPLIED)

    def restarted(self, wall_s: float) -> None:
        """A daemon begins with what the one before had saved."""
        if not self.ended:
            self.spent_s += RESTART_S
        for item in self.items:
            if item.state is ItemState.WORKING:
                item.interrupted(wall_s)

    def look(self, around: Surroundings) -> Attempt | None:
        """Take in what the store shows and that time has passed; what is to be begun now. The item is then WORKING, and
        `attempt_ended` must follow."""
        self._spend(around.now_s)
        if around.installed is not None:
            # A version that names nothing at all has ended before the first look, and everything is to go.
            if self.terms.remove_others and (not self.ended or not self.items):
                self._note_others(around.installed, around.wall_s)
            for item in self.items:
                self._observe(item, around.installed, around.wall_s)
        working = any(item.state is ItemState.WORKING for item in self.items)
        if not working and self.spent_s + LEAST_ATTEMPT_S > self.terms.within_s:
            self._time_is_up(around.wall_s)
            return None
        ready = [item for item in self.items if item.state is ItemState.PENDING and self._ready(item, around)]
        for item in ready:
            item.wait("waits for its turn")
        if working or not ready:
            return None
        item = min(ready, key=lambda one: _ORDER[one.wanted.package is not None, one.wanted.adapter is not None])
        action = _action(item.wanted, around.installed or InstalledPackages())
        item.begun(_UNDER_WAY[action], around.wall_s)
        return Attempt(item.wanted, action, self.terms.within_s - self.spent_s, item.attempts)

    def attempt_ended(self, wanted: Wanted, failure: tuple[Cause, str] | None, around: Surroundings) -> None:
        """An attempt is over. `failure`: why it failed, None where it ended well."""
        item = next(one for one in self.items if one.wanted == wanted and one.state is ItemState.WORKING)
        if around.installed is not None and around.installed.shows(wanted):
            item.shown(around.wall_s)
            return
        cause, reason = failure or (Cause.PACKAGE_REFUSED, _brought_nothing(wanted))
        if failure is None and around.installed is None:
            cause, reason = Cause.STORE, "whether it was done is not known: the store cannot be read"
        sources = 1 + len(self.terms.sources.get(wanted.package or "", ()))
        item.failed(cause, reason, around.now_s, around.wall_s, sources)

    def fetching(self, wanted: Wanted, done: int, total: int) -> None:
        """How far the download of an attempt under way is; nothing where the attempt is over."""
        for item in self.items:
            if item.wanted == wanted and item.state is ItemState.WORKING:
                item.fetching(done, total)

    def withdraw(self, wall_s: float) -> None:
        """Nobody wants this version any more: what has not ended is refused. An attempt under way must have been
        stopped."""
        self.withdrawn = True
        for item in self.items:
            if not item.ended:
                item.refuse("withdrawn: the desired state was deleted at the broker", Cause.CANCELLED, wall_s)

    def shown_again(self) -> None:
        """The operator has published the same version again: what was refused meanwhile stays so."""
        self.withdrawn = False

    def _spend(self, now_s: float) -> None:
        if self._looked_s is not None and not self.ended:
            self.spent_s += max(0.0, now_s - self._looked_s)
        self._looked_s = now_s

    def _note_others(self, installed: InstalledPackages, wall_s: float) -> None:
        """Whatever is installed and not named is to go: models, and adapters that did not come with their model."""
        named = {item.wanted.key for item in self.items}
        models = {item.wanted.model for item in self.items if item.wanted.package is not None or item.wanted.adapter}
        own = {item.wanted.model: item.wanted.package for item in self.items if item.wanted.adapter is None}
        for (model, adapter), package in installed.current.items():
            gone = (model, None) if model not in models else (model, adapter)
            carried = package in (own.get(model), installed.current.get((model, None)))
            if gone in named or (model in models and (adapter is None or carried)):
                continue
            self._note_other(gone, named, wall_s)
        for model, _ in installed.damaged:
            if model not in models and (model, None) not in named:
                self._note_other((model, None), named, wall_s)

    def _note_other(self, gone: Key, named: set[Key], wall_s: float) -> None:
        if len(self.items) < MOST_ITEMS:  # those that are left out are noted by a later version
            named.add(gone)
            self.items.append(Item(Wanted(*gone, None), since_s=wall_s))

    def _observe(self, item: Item, installed: InstalledPackages, wall_s: float) -> None:
        if item.state is ItemState.WORKING or self._waits_for(item) is not None:
            return
        shown = installed.shows(item.wanted)
        if shown and item.state is not ItemState.APPLIED:
            item.shown(wall_s)
        elif not shown and item.state is ItemState.APPLIED:
            item.lost(installed.current.get(item.wanted.key), wall_s)

    def _waits_for(self, item: Item) -> str | None:
        """What must end before an adapter is looked at: its model, since another base may bring, keep or lose it; and
        for its removal every install, since the package of an adapter brings it to all models with its base."""
        if item.wanted.adapter is None or item.ended:
            return None
        removal = item.wanted.package is None
        for one in self.items:
            if not one.ended and (
                one.wanted.key == (item.wanted.model, None) or (removal and one.wanted.package is not None)
            ):
                return one.wanted.text()
        return None

    def _ready(self, item: Item, around: Surroundings) -> bool:
        """Whether an attempt can be begun; else `next` says what it waits for."""
        if around.installed is None:
            item.wait("waits for a store that can be read")
            return False
        action = _action(item.wanted, around.installed)
        if (first := self._waits_for(item)) is not None:
            item.wait(f"waits for {first}")
        elif around.stopping:
            item.wait("waits for the end of an attempt for an earlier version")
        elif around.now_s < item.again_s:
            pass  # `attempt_ended` has said when it is tried again
        elif action is StoreAction.INSTALL and item.wanted.package not in around.offered:
            item.wait("waits for the package, which is in no source")
        elif action is not StoreAction.REMOVE and not around.saved:
            # A removal frees the room that the others wait for.
            item.wait("waits for a disk that can be written")
        else:
            return True
        return False

    def _time_is_up(self, wall_s: float) -> None:
        for item in self.items:
            if item.state is ItemState.PENDING:
                item.time_is_up(self.terms.within_s, wall_s)


_ORDER = {(False, False): 0, (True, False): 1, (True, True): 2, (False, True): 3}
"""By whether a package is wanted, and whether it is an adapter: models that go first, since they make room, then
models, then adapters, then adapters that go."""
_UNDER_WAY = {
    StoreAction.INSTALL: "is being installed",
    StoreAction.ROLL_BACK: "is being returned to the version before",
    StoreAction.REMOVE: "is being removed",
}


def _action(wanted: Wanted, installed: InstalledPackages) -> StoreAction:
    if wanted.package is None:
        return StoreAction.REMOVE
    # An older release is refused at the install (its counter); the version before may always return.
    back = wanted.adapter is None and installed.previous.get(wanted.model) == wanted.package
    return StoreAction.ROLL_BACK if back else StoreAction.INSTALL


def _brought_nothing(wanted: Wanted) -> str:
    return f"the package was taken and brought no {wanted.text()}: it carries another name"
