"""The trials of versions, under way and ended, in one file of the state folder.

That a version is on trial is in the store's record, with the switch; this file has the time that was spent and the
verdict. Where it is missing or damaged, a trial that is under way begins anew.

A file of its own because it is a file of the daemon's: installs and the record of the store do not touch it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.core.trial_records import TrialRecord
from edge_agent.store.disk import replace_file, translated

log = logging.getLogger("edge_agent.store")
TRIALS_FILE = "version_trials.json"
TRIALS_BYTES = limits.MIB
MOST_RECORDS = 128


class _Trials(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    trials: Annotated[tuple[TrialRecord, ...], Meta(max_length=MOST_RECORDS)] = ()


class TrialFile:
    """The file in `folder`. Implements `agent.trial_watch.TrialStorage`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS_FILE

    def read(self) -> dict[str, TrialRecord]:
        """See `trial_watch.TrialStorage`."""
        try:
            found = decode(self._path.read_bytes(), _Trials, str(self._path), TRIALS_BYTES)
        except FileNotFoundError:
            return {}
        except (OSError, EdgeError) as error:
            log.warning("the trials of versions are not known; one that is under way begins anew: %s", error)
            return {}
        return {one.model: one for one in found.trials}

    def write(self, records: Mapping[str, TrialRecord]) -> None:
        """See `trial_watch.TrialStorage`."""
        trials = tuple(records.values())[-MOST_RECORDS:]
        with translated(self._path.parent):
            replace_file(self._path, encode(_Trials(trials=trials)))
