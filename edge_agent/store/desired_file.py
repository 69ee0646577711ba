"""The newest version of `desired` and how far the device is with it, in one file of the state folder.

It carries the running time that was spent and the attempts that were made over restarts, and the version below which
nothing is taken. Where the file is missing or damaged, the broker's retained message begins anew; a disk that does not
give it now may give it later.

A file of its own because it is a file of the daemon's: installs and the record of the store do not touch it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError, StoreError
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.core.desired_state import MOST_ITEMS, DesiredState, Item, ItemState, Terms, Wanted
from edge_agent.store.disk import replace_file, translated

log = logging.getLogger("edge_agent.store")
DESIRED_FILE = "desired.json"
DESIRED_BYTES = limits.MIB
REASON_CHARS = (2000, 100, 0)
"""Of each reason, the first of these with which the file is not too large."""


class _Item(Document, frozen=True, kw_only=True):
    """An `Item` on disk."""

    model: str
    adapter: str | None
    package: str | None
    state: ItemState
    since_s: float
    reason: str = ""
    cause: Cause | None = None
    attempts: int = 0
    cut_off: int = 0
    trials: int = 0


class _Desired(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    version: int
    fingerprint: str
    within_s: float
    spent_s: float
    items: Annotated[tuple[_Item, ...], Meta(max_length=MOST_ITEMS)]
    remove_others: bool = False
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trial: str = ""
    withdrawn: bool = False


class DesiredFile:
    """The file in `folder`. Implements `agent.desired_keeper.DesiredStorage`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DESIRED_FILE

    def read(self) -> DesiredState | None:
        """See `desired_keeper.DesiredStorage`."""
        try:
            found = decode(self._path.read_bytes(), _Desired, str(self._path), DESIRED_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot be read: {error.strerror or error}", str(self._path)) from error
        except EdgeError as error:
            log.warning("how far the desired state was is not known; the broker's message begins anew: %s", error)
            return None
        items = [
            Item(
                Wanted(one.model, one.adapter, one.package),
                one.state,
                one.since_s,
                one.reason,
                one.cause,
                one.attempts,
                one.cut_off,
                one.trials,
            )
            for one in found.items
        ]
        return DesiredState(
            found.version,
            Terms(found.within_s, found.remove_others, found.sources, found.trial),
            items,
            fingerprint=found.fingerprint,
            spent_s=found.spent_s,
            withdrawn=found.withdrawn,
        )

    def write(self, state: DesiredState) -> None:
        """See `desired_keeper.DesiredStorage`. Reasons are cut where the file would be larger than is read again."""
        for most in REASON_CHARS:
            data = self._encoded(state, most)
            if len(data) <= DESIRED_BYTES:
                break
        else:
            raise StoreError(f"it would have {len(data)} bytes, at most {DESIRED_BYTES} are read", str(self._path))
        with translated(self._path.parent):
            replace_file(self._path, data)

    def _encoded(self, state: DesiredState, reason_chars: int) -> bytes:
        items = tuple(
            _Item(
                model=one.wanted.model,
                adapter=one.wanted.adapter,
                package=one.wanted.package,
                state=one.state,
                since_s=one.since_s,
                reason=one.reason[:reason_chars],
                cause=one.cause,
                attempts=one.attempts,
                cut_off=one.cut_off,
                trials=one.trials,
            )
            for one in state.items
        )
        body = _Desired(
            version=state.version,
            fingerprint=state.fingerprint,
            within_s=state.terms.within_s,
            spent_s=state.spent_s,
            items=items,
            remove_others=state.terms.remove_others,
            sources=dict(state.terms.sources),
            trial=state.terms.trial,
            withdrawn=state.withdrawn,
        )
        return encode(body)
