"""The state of the store that was announced last, in one file of the state folder.

A command on the board may change the store while no daemon runs; the next one compares, and sends the events. The file
is a cache: where it is missing, damaged or from a later release, nothing is announced at the next start.

A file of its own because it is a file of the daemon's: installs and the record of the store do not touch it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import field

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.catalog import InstalledState
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.store.disk import replace_file, translated

log = logging.getLogger("edge_agent.store")
ANNOUNCED_FILE = "announced.json"
ANNOUNCED_BYTES = limits.MIB


class _Known(Document, frozen=True, kw_only=True):
    """An `InstalledState` on disk."""

    version: int
    variant: str
    adapters: tuple[str, ...] = ()


class _Announced(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    models: dict[str, _Known] = field(default_factory=dict)


class AnnouncedFile:
    """The file in `folder`. Implements `agent.store_changes.Announced`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ANNOUNCED_FILE

    def read(self) -> Mapping[str, InstalledState] | None:
        """See `store_changes.Announced`."""
        try:
            found = decode(self._path.read_bytes(), _Announced, str(self._path), ANNOUNCED_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, EdgeError) as error:
            log.warning("changes of the store since the last run are not announced: %s", error)
            return None
        return {name: InstalledState(one.version, one.variant, one.adapters) for name, one in found.models.items()}

    def write(self, state: Mapping[str, InstalledState]) -> None:
        """See `store_changes.Announced`."""
        models = {
            name: _Known(version=one.version, variant=one.variant, adapters=one.adapters) for name, one in state.items()
        }
        try:
            with translated(self._path.parent):
                replace_file(self._path, encode(_Announced(models=models)))
        except EdgeError as error:
            log.warning("the state of the store is not kept: %s", error)
