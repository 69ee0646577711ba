"""`edge-forge sweep`: train a recipe with other values until there are as many trials as wanted; print and write them.

Every trial is a training step of the recipe with some keys replaced, so a trial that was trained before, here or by
`edge-forge build`, comes from the cache. Trials are scored on the validation rows alone; nothing is exported.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_forge import commands
from edge_forge.kinds.api import Kind, TrainingPart
from edge_forge.plan.cache import Cache, StepEnded, canonical
from edge_forge.plan.cost import foretold_trials, host_flops_per_s
from edge_forge.plan.step_runner import code_version
from edge_forge.progress import Progress, duration
from edge_forge.recipe import schema
from edge_forge.sweep import space as spaces
from edge_forge.sweep import sweep_report
from edge_forge.sweep.space import Choices, Dimension, Range
from edge_forge.sweep.study import DONE, ENDED, FAILED, RunningTrial, SweepStudy, TrialResult, require
from edge_forge.user_state import UserState

RANKS = "ranks"
_MOST_TRIALS = 1000
_FAILURES = 3
"""So many failed trials, and no other: the fault is not of their values."""


class FallenBehind(StepEnded):
    """Ends the training of a trial from within its reports."""


class _Watch:
    """Told each evaluation of the trial at work; keeps the best score, and ends the training when it falls behind."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.trial: RunningTrial | None = None
        self.key, self.maximise, self.prunes = "", True, False
        self.epochs = 0
        self.scores: list[float] = []
        self.passes = self.cpu_s = 0.0
        # Whether the trial's training told a score: one from the cache does not.
        self.told = False

    def begin(self, trial: RunningTrial, kind: Kind, epochs: int, prunes: bool) -> None:
        """A trial of at most `epochs` passes begins."""
        self.trial, self.epochs, self.prunes = trial, epochs, prunes
        self.key, self.maximise = kind.score.key, kind.score.maximise
        self.clear()

    def clear(self) -> None:
        """Nothing was told yet."""
        self.scores, self.passes, self.cpu_s, self.told = [], 0.0, 0.0, False

    @property
    def best(self) -> float | None:
        """The best score so far."""
        return (max if self.maximise else min)(self.scores) if self.scores else None

    def __call__(self, scores: Mapping[str, float]) -> None:
        if self.trial is None or not math.isfinite(scores.get(self.key, math.nan)):
            return
        self.told = True
        behind = self.note(scores)
        self.cpu_s = scores.get("cpu_s", 0.0)
        self.progress.show(f"  pass {self.passes:g} of {self.epochs}: {self.scores[-1]:.4f}", moving=True)
        if behind and self.prunes and self.passes < self.epochs:
            raise FallenBehind

    def note(self, scores: Mapping[str, float]) -> bool:
        """Keep an evaluation; whether the trial is worse than the median of the others after as many passes."""
        self.scores.append(float(scores[self.key]))
        self.passes = float(scores["epoch"])
        best = self.best
        return self.trial is not None and best is not None and self.trial.falls_behind(round(self.passes), best)


class _Sweep(NamedTuple):
    """What all trials of a sweep share."""

    document: Mapping[str, Any]
    file: Path
    kind: Kind
    cache: Cache
    progress: Progress
    watch: _Watch
    space: tuple[Dimension, ...]
    prunes: bool

    def recipe(self, values: Mapping[str, str]) -> Any:
        """The recipe with these values. Raises ConfigError."""
        document = schema.overlaid(self.document, [f"{key}={text}" for key, text in values.items()])
        return self.kind.recipe.parse(document, str(self.file), os.environ)

    def training(self, recipe: Any) -> TrainingPart:
        """The training of a recipe."""
        return self.kind.plan(recipe, self.file.resolve().parent, self.cache, self.progress).training


def main(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    require()
    if not 1 <= arguments.trials <= _MOST_TRIALS:
        raise UsageError(f"{arguments.trials} trials", "--trials", f"take 1 to {_MOST_TRIALS}")
    kind, plan, file = commands.open_plan(arguments)
    cache, progress = plan.steps.cache, plan.steps.progress
    watch = _Watch(progress)
    # What the steps of a trial say was said of the recipe before the first one, or is shown by the watch.
    silent = Progress(io.StringIO(), on_evaluation=watch)
    trials = Cache(cache.root, silent)
    recipe: Any = plan.recipe
    document = schema.overlaid(schema.read(file), arguments.overlay)
    sweep = _Sweep(document, file, kind, trials, silent, watch, (), arguments.preset != RANKS)
    sweep = sweep._replace(space=_space(arguments, sweep, recipe))
    with commands.lines_named(file, arguments.overlay), cache.locked():
        plan.training.check_inputs()
        study = _study(sweep, recipe, plan.training)
        planned = _planned(sweep, recipe.training, arguments.trials)
        study.plan(planned)
        wanted = min(arguments.trials, spaces.combinations(sweep.space) or arguments.trials)
        _said_before(sweep, study, plan.training, wanted)
        _run(sweep, study, wanted)
        found = sweep_report.found(sweep.kind, recipe, sweep.space, study.trials[:wanted])
        stem = f"sweep-{study.folder.name}"
        written = commands.write_report(cache, stem, found, sweep_report.blocks_of(found))
    if arguments.json:
        print(json.dumps({**found, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        _print(found, written[1], arguments)
    return 0


def _space(arguments: argparse.Namespace, sweep: _Sweep, recipe: Any) -> tuple[Dimension, ...]:
    """What is varied, by --over, the preset or the method. Raises UsageError, ConfigError."""
    training = recipe.training

    def accepted(values: Mapping[str, str]) -> str:
        try:
            sweep.recipe(values)
        except EdgeError as error:
            return f"{error.what} ({error.remedy})" if error.remedy else error.what
        return ""

    given: tuple[Dimension, ...] = tuple(spaces.parsed(text) for text in arguments.over)
    for one in given:
        if one.key in {setting.partition("=")[0].strip() for setting in arguments.overlay}:
            raise UsageError(f"{one.key} is both set and swept", "--over", f"leave --set {one.key} out")
    spaces.check(given, accepted, training)
    if arguments.preset == RANKS:
        if any(isinstance(one, Range) for one in given):
            raise UsageError("an ablation compares values that are listed", "--preset ranks", "write KEY=A,B,C")
        if spaces.RANK in {one.key for one in given}:
            return given
        ranks, left_out = spaces.ablation_of_ranks(training, accepted)
        for reason in left_out:
            sweep.watch.progress.warn(reason)
        return (ranks, *given)
    return given or spaces.default_space(training, accepted)


def _study(sweep: _Sweep, recipe: Any, training: TrainingPart) -> SweepStudy:
    """The journal for this recipe, space, data, base and code."""
    step = training.steps.code[sweep.kind.score.step]
    about = {
        "recipe": json.loads(json.dumps(sweep.document, default=str)),
        "space": [one.as_dict() for one in sweep.space],
        "prunes": sweep.prunes,
        "data": training.data_step.digests(),
        "base": training.base.base_id,
        "code": code_version(*step),
    }
    name = f"{recipe.name}-{hashlib.sha256(canonical(about)).hexdigest()[:12]}"
    folder = sweep.cache.root / "sweeps" / name
    return SweepStudy(folder, sweep.space, sweep.kind.score.maximise, recipe.training.seed, UserState.of(os.environ))


def _planned(sweep: _Sweep, training: Any, trials: int) -> list[dict[str, str]]:
    """Trials that come first: all of a small space of listed values, else the recipe's own values."""
    choices = [one for one in sweep.space if isinstance(one, Choices)]
    count = spaces.combinations(sweep.space)
    if len(choices) == len(sweep.space) and count is not None and (count <= trials or not sweep.prunes):
        found: list[dict[str, str]] = [{}]
        for choice in choices:
            found = [{**values, choice.key: text} for values in found for text in choice.values]
        return found[:trials]
    own: dict[str, str] = {}
    for one in sweep.space:
        text = _own(one, sweep.document, training)
        if text is None:
            return []
        own[one.key] = text
    return [own]


def _own(one: Dimension, document: Mapping[str, Any], training: Any) -> str | None:
    """The recipe's own value of a key as a value of the space; None where it is outside."""
    table, _, name = one.key.rpartition(".")
    section = document.get(table, {}) if table else document
    value = section.get(name) if isinstance(section, dict) else None
    if value is None and table in ("method", "train"):
        value = getattr(training, name, None)
    if isinstance(one, Range):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        return one.text(value) if one.low <= value <= one.high else None
    wanted = list(value) if isinstance(value, tuple) else value
    return next((text for text in one.values if schema.toml_value(text) in (wanted, *_alone(wanted))), None)


def _alone(value: object) -> list[object]:
    return value if isinstance(value, list) and len(value) == 1 else []


def _said_before(sweep: _Sweep, study: SweepStudy, training: TrainingPart, wanted: int) -> None:
    """What is varied, what is there already, and what the rest costs."""
    say = sweep.watch.progress.say
    say("sweep: " + "; ".join(map(str, sweep.space)))
    changing = [one.key for one in sweep.space if spaces.changes_base(one.key, sweep.recipe({}))]
    if changing:
        say(
            f"sweep: values of {', '.join(changing)} change the base: a teacher and a distillation are trained for "
            "each, which the cost below does not count"
        )
    done = len(study.trials)
    if done:
        say(f"sweep: {min(done, wanted)} of {wanted} trials are there already (remove {study.folder} to begin anew)")
    left = wanted - done
    if left > 0:
        epochs = next((one for one in sweep.space if one.key == spaces.EPOCHS), None)
        work = training.work_ahead
        bounds = [int(text) for text in epochs.edges] if epochs is not None else [work.epochs]
        works = (work._replace(epochs=min(bounds)), work._replace(epochs=max(bounds)))
        say(foretold_trials(left, works, host_flops_per_s(), sweep.prunes))


class Pace:
    """How long the trials that are left take, by those that were trained now: one from the cache takes no time."""

    def __init__(self) -> None:
        self._spent_s, self._trained = 0.0, 0

    def note(self, spent_s: float, trained: bool) -> None:
        """A trial ended after so long."""
        if trained:
            self._spent_s, self._trained = self._spent_s + spent_s, self._trained + 1

    def left(self, trials: int) -> str:
        """For so many trials; '' before one was trained."""
        return f" (about {duration(self._spent_s / self._trained * trials)} left)" if self._trained else ""


def _run(sweep: _Sweep, study: SweepStudy, wanted: int) -> None:
    """Trials until there are as many as wanted. Raises the last one's error where all failed."""
    progress, pace = sweep.watch.progress, Pace()
    while (done := len(study.trials)) < wanted:
        trial = study.ask()
        shown = ", ".join(f"{key.rpartition('.')[2]} {text}" for key, text in trial.values.items())
        progress.say(f"trial {done + 1} of {wanted}{pace.left(wanted - done)}: {shown}")
        begun_s = progress.clock()
        with progress.working(f"trial {done + 1}"):
            result = _tried(sweep, study, trial)
        pace.note(progress.clock() - begun_s, sweep.watch.told)
        score = "" if result.score is None else f", {sweep.kind.score.title} {result.score:.4f}"
        progress.say(f"trial {done + 1}: {result.state}{score}{': ' + result.reason if result.reason else ''}")
        failed = [one for one in study.trials if one.result.state == FAILED]
        if len(failed) >= _FAILURES and len(failed) == len(study.trials):
            raise EdgeError(f"the first {len(failed)} trials all failed: {result.reason}", "sweep",
                            f"remove {study.folder} when the reason is mended")  # fmt: skip


def _tried(sweep: _Sweep, study: SweepStudy, trial: RunningTrial) -> TrialResult:
    """Train one trial and note what it came to."""
    values, watch = dict(trial.values), sweep.watch
    watch.clear()
    try:
        # Another method has another scale of its own.
        base = sweep.recipe({key: text for key, text in values.items() if key in spaces.CHOOSES_METHOD}).training
        values = spaces.with_alpha(values, base)
        recipe = sweep.recipe(values)
        watch.begin(trial, sweep.kind, recipe.training.epochs, sweep.prunes)
        training = sweep.training(recipe)
        training.check_inputs()
        facts = training.trained.facts
        if not watch.scores:  # from the cache: other trials are compared with it as well
            for entry in facts["curves"]:
                watch.note(entry)
        result = _trained(sweep.kind, facts)
    except FallenBehind:
        result = TrialResult(ENDED, watch.best, watch.cpu_s, passes=watch.passes, curve=watch.scores)
    except EdgeError as error:
        if isinstance(error, UsageError):
            raise
        result = TrialResult(FAILED, None, watch.cpu_s, reason=_one_line(error))
    study.tell(trial, values, result)
    return result


def _one_line(error: EdgeError) -> str:
    where = f"{error.where}: " if isinstance(error, ConfigError) and error.where else ""
    return f"{where}{error.what}"


def _trained(kind: Kind, facts: Mapping[str, Any]) -> TrialResult:
    """The result of a whole training by its record."""
    score = kind.score
    curves = [entry for entry in facts["curves"] if math.isfinite(entry[score.key])]
    if not curves:
        why = f"its {score.title} is no number: the step size is too high for it"
        return TrialResult(FAILED, None, float(facts["cpu_s"]), reason=why)
    best = (max if score.maximise else min)(curves, key=lambda entry: entry[score.key])
    return TrialResult(
        DONE, float(best[score.key]), float(facts["cpu_s"]), int(facts["trainable_parameters"]),
        float(curves[-1]["epoch"]), score.error(best, int(facts["rows"]["validation"])),
        curve=[float(entry[score.key]) for entry in curves],
    )  # fmt: skip


def _print(found: Mapping[str, Any], page: Path, arguments: argparse.Namespace) -> None:
    table = sweep_report.table(found)
    commands.print_table(table.columns, table.rows)
    print()
    for line in sweep_report.advice(found):
        print(line)
    if found["best"]:
        print("\nfor the recipe:")
        for line in found["best"]["lines"]:
            print(f"  {line}")
        own = [setting for setting in arguments.overlay if setting.partition("=")[0].strip() not in
               found["best"]["values"]]  # fmt: skip
        best = [f"{key}={text}" for key, text in found["best"]["values"].items()]
        settings = " ".join(f"--set {shlex.quote(setting)}" for setting in (*own, *best))
        settings += f" --build {shlex.quote(str(arguments.build))}" if arguments.build else ""
        print(f"\nbuild it    edge-forge build {shlex.quote(str(arguments.recipe))} {settings}  (trained already)")
    print(f"report      {page}")
