"""The discovery topics on which this device has announced itself, in one file of the state folder.

What was announced is retained by the broker: it must be known after the setting or the device's name has changed, so
that it can be withdrawn. A file that cannot be read counts as empty; a disk that cannot be written is logged once.

A file of its own because it is a file of the daemon's: installs and the record of the store do not touch it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.store.disk import replace_file, translated

log = logging.getLogger("edge_agent.store")
DISCOVERY_FILE = "discovery.json"
FILE_BYTES = 16 * limits.KIB
TOPICS = 16


class _Contents(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    topics: Annotated[tuple[Annotated[str, Meta(max_length=limits.TOPIC_BYTES)], ...], Meta(max_length=TOPICS)] = ()


class DiscoveryFile:
    """The topics in `folder`. Implements `agent.ports.AnnouncedDiscovery`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DISCOVERY_FILE
        self._reported = False

    def read(self) -> Sequence[str]:
        """See `ports.AnnouncedDiscovery`."""
        try:
            return decode(self._path.read_bytes(), _Contents, str(self._path), FILE_BYTES).topics
        except FileNotFoundError:
            return ()
        except (OSError, EdgeError) as error:
            log.warning("what was announced to Home Assistant earlier is not known: %s", error)
            return ()

    def write(self, topics: Sequence[str]) -> None:
        """See `ports.AnnouncedDiscovery`."""
        try:
            with translated(self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, encode(_Contents(topics=tuple(topics)[-TOPICS:])))
        except EdgeError as error:
            if not self._reported:
                log.warning("what is announced to Home Assistant cannot be remembered: %s", error)
            self._reported = True
        else:
            self._reported = False
