"""`edge-forge sequence`: tasks trained one after another on one model, and what it still knows of each after each.

The first recipe is trained on its base, the next on what the first made of it, with adapters folded in, and so on.
After each, every task so far is scored on the model as it is then: classifiers by their own heads, generators by their
answers, texts by their perplexity, preferences by their pairs. Beside that stands each task with an adapter of its own
on the untouched base, as a device attaches them: there nothing is forgotten. Every part is a step of the cache. A file
of its own because it runs several plans, and `commands` those of one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import ConfigError, UsageError
from edge_forge import commands
from edge_forge.commands import Opened
from edge_forge.kinds.api import TrainingPart
from edge_forge.report import sequence_report
from edge_forge.train.methods import MERGED, METHODS


def sequence(arguments: argparse.Namespace) -> int:
    """Train, score, print and write the matrix. Raises UsageError, ConfigError, EdgeError."""
    opened = [commands.open_plan(arguments, path) for path in arguments.recipe]
    _check(opened)
    steps = opened[0].plan.steps
    with steps.cache.locked():
        for one in opened:
            with commands.lines_named(one.file, arguments.overlay):
                one.plan.training.check_inputs()
        _check_bases(opened)
        found = _figures(opened)
        stem = commands.joined_stem("sequence", found["tasks"])
        written = commands.write_report(steps.cache, stem, found, sequence_report.blocks_of(found))
    if arguments.json:
        print(json.dumps({**found, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        for table in sequence_report.tables(found):
            commands.print_table(table.columns, table.rows)
            print()
        print(f"{sequence_report.said(found)}\nreport: {written[1]}")
    return 0


def _figures(opened: Sequence[Opened]) -> dict[str, Any]:
    """`scores`: by which score each task is told; `after`: a row for each task, those scores of all up to it; `apart`:
    each by an adapter of its own. `further`: the same of every score of which all tasks have one, by its name."""
    done: list[TrainingPart] = []
    after: list[list[Mapping[str, float]]] = []
    for one in opened:
        recipe: Any = one.plan.recipe
        steps = one.plan.steps
        steps.progress.say(f"== {recipe.name}, after {len(done)} other{'s' * (len(done) != 1)} ==")
        training = one.plan.training
        if done:
            made = f"dir:{done[-1].made_base.absolute()}"
            recipe = msgspec.structs.replace(recipe, base=msgspec.structs.replace(recipe.base, source=made))
            training = one.kind.plan(recipe, steps.recipe_dir, steps.cache, steps.progress).training
        done.append(training)
        after.append([task.remembered_by(training) for task in done])
    plans = [one.plan for one in opened]
    apart = [plan.training.remembered_by(plan.training) for plan in plans]
    told = [next(iter(scores)) for scores in apart]
    shared = [key for key in apart[0] if all(key in scores for scores in apart) and {*told} != {key}]
    recipes: list[Any] = [plan.recipe for plan in plans]
    return {
        "tasks": list(commands.unique([recipe.name for recipe in recipes])),
        "methods": [recipe.training.method for recipe in recipes],
        "scores": told,
        "after": [[scores[key] for scores, key in zip(row, told, strict=False)] for row in after],
        "apart": [scores[key] for scores, key in zip(apart, told, strict=True)],
        "further": {
            key: {"after": [[scores[key] for scores in row] for row in after], "apart": [one[key] for one in apart]}
            for key in shared
        },
    }


def _check(opened: Sequence[Opened]) -> None:
    if len(opened) < 2:
        raise UsageError("one task is no sequence", "sequence", "name two recipes or more")
    families = {one.kind.family: one.plan.recipe.name for one in opened}
    if len(families) > 1:
        said = " and ".join(f"{name} an {family}" if family[0] in "ae" else f"{name} a {family}"
                            for family, name in families.items())  # fmt: skip
        raise UsageError(
            f"{said}: they have no base in common", "sequence", "name classifiers alone, or generators alone"
        )
    for one in opened:
        recipe: Any = one.plan.recipe
        one.kind.recipe.check_sequence(recipe)
        method = METHODS[recipe.training.method]
        if not method.exportable_to(MERGED):
            raise UsageError(
                f"{recipe.name}: {method.title} cannot be folded into weights for the next task",
                "sequence", "use another method: --set method.name=lora",
            )  # fmt: skip


def _check_bases(opened: Sequence[Opened]) -> None:
    """All begin with one base. Raises ConfigError."""
    first = opened[0].plan
    for plan in (one.plan for one in opened[1:]):
        if plan.training.base.base_id != first.training.base.base_id:
            raise ConfigError(
                f"{plan.recipe.name} has another base than {first.recipe.name}, so they cannot follow each other",
                "base.source", "give all recipes of a sequence the same base",
            )  # fmt: skip
