"""The trials of versions, under way and ended, in two files of the state folder.

That a version is on trial is in the store's record, with the switch; one file has the time that was spent and the
verdict, the other one what trials under way have measured, which is written less often. Where one is missing or
damaged, a trial that is under way begins anew, or counts its requests anew.

A file of its own because it is a file of the daemon's: installs and the record of the store do not touch it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.jsonio import Document, decode, encode
from edge_agent.core.trial_records import TrialRecord, TrialSamples
from edge_agent.store.disk import replace_file, translated

log = logging.getLogger("edge_agent.store")
TRIALS_FILE = "version_trials.json"
TRIALS_BYTES = limits.MIB
MOST_RECORDS = 128
SAMPLES_FILE = "trial_samples.json"
SAMPLES_BYTES = 8 * limits.MIB
MOST_SAMPLES = 16
"""Models whose measurements are kept: each takes up to 250 KiB. Of more, those that were begun last."""


class _Trials(Document, frozen=True, kw_only=True):
    """The whole file."""

    schema: Literal[1] = 1
    trials: Annotated[tuple[TrialRecord, ...], Meta(max_length=MOST_RECORDS)] = ()


class _Samples(Document, frozen=True, kw_only=True):
    """The whole file of measurements, by model."""

    schema: Literal[1] = 1
    samples: Annotated[dict[str, TrialSamples], Meta(max_length=MOST_SAMPLES)] = field(default_factory=dict)


class TrialFile:
    """The files in `folder`. Implements `agent.trial_watch.TrialStorage`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS_FILE
        self._samples_path = folder / SAMPLES_FILE

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

    def read_samples(self) -> dict[str, TrialSamples]:
        """See `trial_watch.TrialStorage`."""
        try:
            return dict(decode(self._samples_path.read_bytes(), _Samples, SAMPLES_FILE, SAMPLES_BYTES).samples)
        except FileNotFoundError:
            return {}
        except (OSError, EdgeError) as error:
            log.warning("what trials have measured is not known; their requests are counted anew: %s", error)
            return {}

    def write_samples(self, samples: Mapping[str, TrialSamples]) -> None:
        """See `trial_watch.TrialStorage`."""
        with translated(self._samples_path.parent):
            if samples:
                replace_file(self._samples_path, encode(_Samples(samples=dict(list(samples.items())[-MOST_SAMPLES:]))))
            else:
                self._samples_path.unlink(missing_ok=True)
