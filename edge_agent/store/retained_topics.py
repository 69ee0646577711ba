"""The topics on which the broker retains messages of this device, in one file of the state folder.

They must be known after the device's name, the prefix or a setting has changed, so that what was left there can be
withdrawn. A file that cannot be read counts as empty; a disk that cannot be written is logged once.

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
from edge_agent.store.disk import make_folder, replace_file, translated

log = logging.getLogger("edge_agent.store")
RETAINED_FILE = "retained.json"
FILE_BYTES = 32 * limits.KIB
TOPICS = 32
"""Five for each name that the device has had; the oldest are forgotten."""


class _Contents(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    topics: Annotated[tuple[Annotated[str, Meta(max_length=limits.TOPIC_BYTES)], ...], Meta(max_length=TOPICS)] = ()


class RetainedFile:
    """The topics in `folder`. Implements `agent.ports.RetainedTopics`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RETAINED_FILE
        self._reported = False

    def read(self) -> Sequence[str]:
        """See `ports.RetainedTopics`."""
        try:
            return decode(self._path.read_bytes(), _Contents, str(self._path), FILE_BYTES).topics
        except FileNotFoundError:
            return ()
        except (OSError, EdgeError) as error:
            log.warning("which topics the broker retains of this device is not known: %s", error)
            return ()

    def write(self, topics: Sequence[str]) -> None:
        """See `ports.RetainedTopics`."""
        try:
            with translated(self._path.parent):
                make_folder(self._path.parent)
                replace_file(self._path, encode(_Contents(topics=tuple(topics)[-TOPICS:])))
        except EdgeError as error:
            if not self._reported:
                log.warning("which topics the broker retains of this device cannot be remembered: %s", error)
            self._reported = True
        else:
            self._reported = False
