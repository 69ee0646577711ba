"""Bytes that models were measured to hold on this device, in one file of the state folder.

The file is a cache: where it is missing, damaged or from a later release, measuring starts anew. A disk that cannot be
written is logged once, and the agent continues.

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
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.core.memory_ledger import FootprintKey, MeasuredFootprint
from edge_agent.store.disk import make_folder, replace_file, translated

log = logging.getLogger("edge_agent.store")
FIGURES_FILE = "footprints.json"
FIGURES_BYTES = 256 * limits.KIB
_BOUNDED = " shrunk"


class _Entry(Document, frozen=True, kw_only=True):
    """A `MeasuredFootprint` on disk."""

    runtime: str
    stated_bytes: int
    held_bytes: int
    load_s: float = 0.0


class _Contents(Document, frozen=True, kw_only=True):
    """The whole file; `figures` by `stored_key`."""

    schema: Literal[1] = 1
    figures: dict[str, _Entry] = field(default_factory=dict)


class FootprintFile:
    """The figures in `folder`. Implements `agent.ports.FootprintCache`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FIGURES_FILE
        self._reported = False

    def read(self) -> Mapping[FootprintKey, MeasuredFootprint]:
        """See `ports.FootprintCache`."""
        try:
            contents = decode(self._path.read_bytes(), _Contents, str(self._path), FIGURES_BYTES)
        except FileNotFoundError:
            return {}
        except (OSError, EdgeError) as error:
            log.warning("footprints measured earlier are begun anew: %s", error)
            return {}
        return {
            parse_key(stored): MeasuredFootprint(entry.runtime, entry.stated_bytes, entry.held_bytes, entry.load_s)
            for stored, entry in contents.figures.items()
            if entry.held_bytes > 0
        }

    def write(self, figures: Mapping[FootprintKey, MeasuredFootprint]) -> None:
        """See `ports.FootprintCache`."""
        contents = _Contents(figures={stored_key(key): _entry(figure) for key, figure in figures.items()})
        try:
            with translated(self._path.parent):
                make_folder(self._path.parent)
                replace_file(self._path, encode(contents))
        except EdgeError as error:
            if not self._reported:
                log.warning("measured footprints are not kept: %s", error)
            self._reported = True
        else:
            self._reported = False


def _entry(figure: MeasuredFootprint) -> _Entry:
    return _Entry(
        runtime=figure.runtime,
        stated_bytes=figure.stated_bytes,
        held_bytes=figure.held_bytes,
        load_s=round(figure.load_s, 3),
    )


def stored_key(key: FootprintKey) -> str:
    """A key as the file holds it: 'DIGEST' or 'DIGEST SETTINGS', followed by ' shrunk' for a bounded load."""
    settings = f" {key.settings}" if key.settings else ""
    return f"{key.digest}{settings}{_BOUNDED if key.bounded else ''}"


def parse_key(stored: str) -> FootprintKey:
    """The inverse of `stored_key`."""
    unbounded = stored.removesuffix(_BOUNDED)
    digest, _, settings = unbounded.partition(" ")
    return FootprintKey(digest, settings, bounded=unbounded != stored)
