"""The trials of a sweep: Optuna draws their values and says which fall behind; its journal is kept in the build folder.

    BUILD/sweeps/<recipe>-<digest>/journal.log    Optuna's journal of this space, this data and this code
    BUILD/sweeps/<recipe>-<digest>/journal.json   up to which byte it is believed, sealed by this user

The journal is believed up to its seal, as a result of a step is (`plan.cache`): what another user wrote, and the line
that a killed process did not end, are cut off. A trial that was at work then begins again with its values.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.base.errors import EdgeError
from edge_forge.plan.cache import write_json
from edge_forge.sweep.space import Choices, Dimension
from edge_forge.user_state import UserState

_JOURNAL, _SEAL = "journal.log", "journal.json"
_JOURNAL_BYTES = 64 << 20
_STARTUP_TRIALS = 6
"""Trials at random before the sampler follows what was found."""
_COMPARED_TRIALS = 3
"""Trials that must have been scored at a pass before one is ended there."""
_JUDGED_PASS = 2
"""The first pass after which a trial may be ended: most of the first one is warm-up."""
_ATTRIBUTE = "edge-forge"
_NAME = "sweep"
DONE, ENDED, FAILED = "trained", "ended early", "failed"


@dataclass(frozen=True)
class TrialResult:
    """What one trial came to. `score` is the best of its evaluations; None where there was none.

    `cpu_s` is the processor time of the training process, `parameters` the trained ones (0: not known, since the run
    was ended before it told), `passes` those after which it was scored the last time, `error` the half-width of one
    standard error of the score (0: not known).
    """

    state: str
    score: float | None
    cpu_s: float
    parameters: int = 0
    passes: float = 0.0
    error: float = 0.0
    reason: str = ""
    curve: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SweepTrial:
    """A finished trial: its number from 0, its values as TOML texts, and its result."""

    number: int
    values: dict[str, str]
    result: TrialResult


class RunningTrial:
    """A trial at work: its number and values, and whether it falls behind."""

    def __init__(self, number: int, values: Mapping[str, str], asked: Any) -> None:
        self.number = number
        self.values = dict(values)
        self.asked = asked

    def falls_behind(self, passed: int, score: float) -> bool:
        """Note the best score after `passed` passes; whether the trial is worse than the median of the others there."""
        self.asked.report(score, passed)
        return bool(self.asked.should_prune())


def require() -> None:
    """Raise EdgeError with the line to install what is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise EdgeError("a sweep needs Optuna, which is not installed", "sweep", "`make setup` in the clone") from error


class SweepStudy:
    """The journal of one sweep. One process works with it at a time: who holds the build folder's lock."""

    def __init__(self, folder: Path, space: Sequence[Dimension], maximise: bool, seed: int, state: UserState) -> None:
        require()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.folder, self.space, self.maximise = folder, space, maximise
        self._seed, self._state = seed, state
        folder.mkdir(parents=True, exist_ok=True)
        self._cut()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the journal is an experimental part of Optuna
                lock: Any = _HeldLock()
                backend = JournalFileBackend(str(folder / _JOURNAL), lock_obj=lock)
                self._storage = JournalStorage(backend)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise EdgeError(f"the sweep's journal cannot be read: {error}", str(folder), "remove the folder") from error
        self._study(seed)
        self._sealed_now()

    def _cut(self) -> None:
        """Cut the journal behind what is sealed; all of it where the seal is not this user's."""
        path = self.folder / _JOURNAL
        if not path.is_file():
            return
        data = path.read_bytes()[:_JOURNAL_BYTES]
        believed = 0
        try:
            note = json.loads((self.folder / _SEAL).read_text(encoding="utf-8"))
            length = int(note["bytes"])
            if 0 <= length <= len(data) and self._state.is_sealed(_sealed(data[:length]), note["seal"]):
                believed = length
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            believed = 0
        with path.open("r+b") as file:
            file.truncate(believed)

    def _sealed_now(self) -> None:
        data = (self.folder / _JOURNAL).read_bytes()
        write_json(self.folder / _SEAL, {"bytes": len(data), "seal": self._state.seal(_sealed(data))})

    def _study(self, seed: int) -> Any:
        """The study with a sampler of that seed: a trial's values depend on its number and the trials before it, not on
        how often the sweep was taken up again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.create_study(
                storage=self._storage,
                study_name=_NAME,
                load_if_exists=True,
                direction="maximize" if self.maximise else "minimize",
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_COMPARED_TRIALS, n_warmup_steps=_JUDGED_PASS),
            )

    def plan(self, values: Sequence[Mapping[str, str]]) -> None:
        """Trials with these values come first; those that were planned or made before are left out."""
        study = self._study(self._seed)
        for one in values:
            fixed = {dimension.key: _drawn(dimension, one[dimension.key]) for dimension in self.space}
            study.enqueue_trial(fixed, skip_if_exists=True)
        self._sealed_now()

    @property
    def trials(self) -> list[SweepTrial]:
        """The finished trials in the order in which they were made."""
        return list(self._finished())

    def _finished(self) -> Iterator[SweepTrial]:
        for trial in self._study(self._seed).get_trials(deepcopy=False):
            told = trial.user_attrs.get(_ATTRIBUTE)
            if trial.state.is_finished() and told is not None:
                yield SweepTrial(trial.number, dict(told["values"]), TrialResult(**told["result"]))

    def ask(self) -> RunningTrial:
        """The next trial: the one that was at work when the process was killed, or a new one."""
        asked = self._interrupted() or self._study(self._seed + len(self.trials)).ask()
        values = {}
        for one in self.space:
            if isinstance(one, Choices):
                values[one.key] = str(asked.suggest_categorical(one.key, list(one.values)))
            elif one.whole:
                values[one.key] = one.text(asked.suggest_int(one.key, round(one.low), round(one.high), log=one.log))
            else:
                values[one.key] = one.text(asked.suggest_float(one.key, one.low, one.high, log=one.log))
        self._sealed_now()
        return RunningTrial(asked.number, values, asked)

    def _interrupted(self) -> Any:
        from optuna.trial import Trial as AskedTrial
        from optuna.trial import TrialState

        study = self._study(self._seed)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            place = self._storage.get_study_id_from_name(_NAME), trial.number
            return AskedTrial(study, self._storage.get_trial_id_from_study_id_trial_number(*place))
        return None

    def tell(self, trial: RunningTrial, values: Mapping[str, str], result: TrialResult) -> None:
        """What the trial came to; `values` are all that were replaced in the recipe."""
        from optuna.trial import TrialState

        trial.asked.set_user_attr(_ATTRIBUTE, {"values": dict(values), "result": asdict(result)})
        study = self._study(self._seed)
        if result.state == DONE:
            study.tell(trial.number, result.score)
        else:
            study.tell(trial.number, state=TrialState.PRUNED if result.state == ENDED else TrialState.FAIL)
        self._sealed_now()


def _drawn(dimension: Dimension, text: str) -> Any:
    if isinstance(dimension, Choices):
        return text
    return int(text) if dimension.whole else float(text)


def _sealed(data: bytes) -> bytes:
    return b"sweep journal " + hashlib.sha256(data).digest()


class _HeldLock:
    """No lock of its own: the build folder's is held. Optuna's is a file that a killed process leaves behind."""

    def acquire(self) -> bool:
        """Have it."""
        return True

    def release(self) -> None:
        """Nothing to give back."""
