"""What changed in the store, as events: by an order over MQTT, by a command on the board, or while the daemon was away.

A file of its own because it compares two states of the store and has nothing to do with serving them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from edge_agent.agent.context import Context
from edge_agent.agent.ports import Library
from edge_agent.bundle.catalog import InstalledState

Installed = Mapping[str, InstalledState]


class Announced(Protocol):
    """Keeps over restarts what was announced last. Implemented by `store.announced_state.AnnouncedFile`."""

    def read(self) -> Installed | None:
        """The state that was announced last; None where none was kept."""
        ...

    def write(self, state: Installed) -> None:
        """Keep a state. A disk that cannot be written is not an error: the change is announced again later."""
        ...


class Change(NamedTuple):
    """An event: its kind (of `messages.EVENT_KINDS`), a sentence, and the figures."""

    kind: str
    text: str
    data: Mapping[str, Any]


def changes(before: Installed, after: Installed) -> Iterator[Change]:
    """What happened between two states, by model."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if new is None:
            yield Change("removed", f"model {name!r} was removed", {"model": name})
        elif old != new:
            yield _change(name, old, new)


def _change(name: str, old: InstalledState | None, new: InstalledState) -> Change:
    data: dict[str, Any] = {"model": name, "version": new.version, "adapters": list(new.adapters)}
    if old is not None and new.version < old.version:
        return Change("rolled-back", f"model {name!r} is back at version {new.version}", data)
    gone = [] if old is None else [one for one in old.adapters if one not in new.adapters]
    if old is not None and gone and new.variant == old.variant and set(new.adapters) < set(old.adapters):
        names = ", ".join(gone)
        return Change("removed", f"adapter {names} of model {name!r} was removed", {**data, "removed": gone})
    having = f" with {len(new.adapters)} adapters" if new.adapters else ""
    return Change("installed", f"model {name!r} is installed in version {new.version}{having}", data)


class StoreChanges:
    """Announces changes of the store."""

    def __init__(self, context: Context, library: Library, announced: Announced) -> None:
        self._context = context
        self._library = library
        self._announced = announced
        self._known = announced.read()

    def generation(self) -> int:
        """See `ports.Library`."""
        return self._library.generation()

    def announce(self) -> None:
        """Announce what differs from the state that was announced last. The first state ever is what there is. Raises
        StoreError when the store cannot be read."""
        installed = self._library.installed()
        if self._known is not None:
            for change in changes(self._known, installed):
                self._context.announce(change.kind, change.text, change.data, "info")
        if self._known != installed:
            self._known = dict(installed)
            self._announced.write(installed)
