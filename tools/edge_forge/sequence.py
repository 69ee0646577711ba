"""`edge-forge sequence`: tasks trained one after another on one model, and what it still knows of each after each.

The first recipe is trained on its base, the next on what the first made of it, with adapters folded in, and so on.
After each, every task so far is scored by its own head on the model as it is then. Beside that stands each task with an
adapter of its own on the untouched base, as a device attaches them: there nothing is forgotten. Every part is a step of
the cache. A file of its own because it runs several plans, and `commands` those of one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import ConfigError, UsageError
from edge_forge import commands
from edge_forge.commands import Opened
from edge_forge.plan.classifier_training import ClassifierTraining
from edge_forge.report import sequence_report
from edge_forge.train.methods import MERGED, METHODS


def sequence(arguments: argparse.Namespace) -> int:
    """Train, score, print and write the matrix. Raises UsageError, ConfigError, EdgeError."""
    opened = [commands.open_plan(arguments, path) for path in arguments.recipe]
    _check(opened)
    steps = opened[0].plan.steps
    with steps.cache.locked():
        apart = [_of(one) for one in opened]
        for one, training in zip(opened, apart, strict=True):
            with commands.lines_named(one.file, arguments.overlay):
                training.check_inputs()
        _check_bases(apart)
        found = _figures(opened, apart)
        stem = commands.joined_stem("sequence", found["tasks"])
        written = commands.write_report(steps.cache, stem, found, sequence_report.blocks_of(found))
    if arguments.json:
        print(json.dumps({**found, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        table = sequence_report.table(found)
        commands.print_table(table.columns, table.rows)
        print(f"report: {written[1]}")
    return 0


def _figures(opened: Sequence[Opened], apart: Sequence[ClassifierTraining]) -> dict[str, Any]:
    """`after`: a row for each task, the accuracies of all up to it; `apart`: each by an adapter of its own."""
    done: list[ClassifierTraining] = []
    after: list[list[float]] = []
    for one in opened:
        recipe: Any = one.plan.recipe
        one.plan.steps.progress.say(f"== {recipe.name}, after {len(done)} other{'s' * (len(done) != 1)} ==")
        if done:
            made = f"dir:{done[-1].as_base.path('base').absolute()}"
            recipe = msgspec.structs.replace(recipe, base=msgspec.structs.replace(recipe.base, source=made))
        done.append(ClassifierTraining(recipe, one.plan.steps))
        after.append([task.remembered_by(done[-1]) for task in done])
    return {
        "tasks": list(commands.unique([one.plan.recipe.name for one in opened])),
        "methods": [training.recipe.training.method for training in apart],
        "rows": [len(training.data.measured[1]) for training in apart],
        "after": after,
        "apart": [training.remembered_by(training) for training in apart],
    }


def _of(opened: Opened) -> ClassifierTraining:
    training = opened.plan.training
    if not isinstance(training, ClassifierTraining):
        raise UsageError(
            "a sequence is of classifiers", "sequence", "see --pairs and --text of diagnose for generators"
        )
    if training.recipe.slots:
        raise UsageError(
            f"{training.recipe.name}: a sequence asks what is left of classes of texts, and these are slots",
            "sequence",
            "name recipes of classifiers",
        )  # fmt: skip
    return training


def _check(opened: Sequence[Opened]) -> None:
    if len(opened) < 2:
        raise UsageError("one task is no sequence", "sequence", "name two recipes or more")
    for one in opened:
        if _of(one).recipe.compress.wanted:
            raise UsageError(
                f"{one.plan.recipe.name} makes a base of its own, so no other task can follow on it",
                "sequence", "leave its compression out: --set compress.layers=0",
            )  # fmt: skip
        method = METHODS[_of(one).recipe.training.method]
        if not method.exportable_to(MERGED):
            raise UsageError(
                f"{one.plan.recipe.name}: {method.title} cannot be folded into weights for the next task",
                "sequence", "use another method: --set method.name=lora",
            )  # fmt: skip


def _check_bases(apart: Sequence[ClassifierTraining]) -> None:
    """All begin with one base. Raises ConfigError."""
    first = apart[0]
    for other in apart[1:]:
        if other.base.base_id != first.base.base_id:
            raise ConfigError(
                f"{other.recipe.name} has another base than {first.recipe.name}, so they cannot follow each other",
                "base.source", "give all recipes of a sequence the same base",
            )  # fmt: skip
